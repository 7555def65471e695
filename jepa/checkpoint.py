"""Crash-safe checkpoint files, and what one holds: `python -m jepa.checkpoint run=<path>`.

A file is streamed to a temporary sibling, synced, and put in place by one rename: whenever a run is
killed, the name stands for a whole file, the old one or the new one. `manifest.json` beside the
files lists the sha256 of each; a new one is listed before its file takes its name.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hydra
import torch
from lightning.pytorch.plugins.io import CheckpointIO
from lightning.pytorch.utilities import rank_zero_warn
from omegaconf import DictConfig

from jepa.config import CONF, run_command
from jepa.stored import parse_config

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
MANIFEST = "manifest.json"
STEP = re.compile(r"step_(\d+)\.ckpt")


class _Hashed:
    """A file that is hashed as it is written; after an error it swallows the rest.

    `torch.save` turns an error of its file into one that no longer says what happened.
    """

    def __init__(self, file: Any):
        self.file, self.hash, self.error = file, hashlib.sha256(), None

    def write(self, data: Any) -> int:
        if self.error is None:
            try:
                self.file.write(data)
                self.hash.update(data)
            except OSError as error:
                self.error = error
        return memoryview(data).nbytes

    def flush(self) -> None:
        """Nothing: `write_file` flushes once, at the end."""


class CheckpointFiles(CheckpointIO):
    """Lightning's way to its files. A full disk costs one checkpoint, not the run.

    `failed` is the error of the newest attempt, None where that was written.
    """

    def __init__(self) -> None:
        self.failed: OSError | None = None

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write the file, or keep the one that is there and warn if the disk is full."""
        self.failed = None
        with self.unless_full(path):
            write_file(checkpoint, Path(path))

    def publish(self, path: Path, *, keep: int) -> None:
        """Make a file the folder's `last.ckpt`, and keep the newest few `step_<n>.ckpt`."""
        with self.unless_full(path):
            alias(path, path.with_name("last.ckpt"))
            keep_newest(path.parent, keep)

    @contextlib.contextmanager
    def unless_full(self, path: str | Path) -> Iterator[None]:
        """Note a full disk and warn."""
        try:
            yield
        except OSError as error:
            if error.errno not in FULL:
                raise
            self.failed = error
            rank_zero_warn(
                f"{path} could not be written ({error}): the checkpoint before it is kept and "
                "training goes on; free space"
            )

    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = True
    ) -> dict[str, Any]:
        """Read a file; nothing in it is executed, whatever `weights_only` says."""
        return torch.load(path, map_location=map_location or "cpu", weights_only=True)

    def remove_checkpoint(self, path: str | Path) -> None:
        """Delete a file."""
        Path(path).unlink(missing_ok=True)


def write_file(content: dict[str, Any], path: Path) -> None:
    """Write a checkpoint, whole or not at all, and list its checksum.

    Tensors are streamed: no second copy of them is held in memory.

    Raises:
        OSError: if it cannot be written; what had the name keeps it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        with temporary.open("wb") as file:
            hashed = _Hashed(file)
            torch.save(content, hashed)  # pyright: ignore[reportArgumentType]
            if hashed.error is not None:
                raise hashed.error
            sync(file)
        enlist(path, hashed.hash.hexdigest())


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary name, which takes the place of `path` unless something is raised."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync(file: Any) -> None:
    """Wait until the file's bytes are on the disk: a rename may reach it before them."""
    file.flush()
    os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def alias(source: Path, target: Path) -> None:
    """Give a file a second name, or a copy where the file system has no links."""
    for checksum in manifest(source.parent).get(source.name, [])[-1:]:
        enlist(target, checksum)
    with replacing(target) as temporary:
        try:
            os.link(source, temporary)
        except OSError as error:
            if error.errno in FULL:
                raise
            with source.open("rb") as old, temporary.open("wb") as new:
                shutil.copyfileobj(old, new)
                sync(new)


def enlist(path: Path, checksum: str) -> None:
    """List the checksum of a file that is about to take this name, beside the one it has now."""
    listed = manifest(path.parent)
    listed = {name: sums for name, sums in listed.items() if (path.parent / name).exists()}
    listed[path.name] = [*listed.get(path.name, []), checksum][-2:]
    name = path.parent / MANIFEST
    with replacing(name) as temporary, temporary.open("w", encoding="utf-8") as file:
        json.dump({"sha256": listed}, file, indent=1)
        sync(file)


def manifest(folder: Path) -> dict[str, list[str]]:
    """Return the checksums that each name may have; empty where there is no manifest."""
    try:
        listed = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["sha256"]
        return {str(name): [str(one) for one in sums] for name, sums in listed.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}  # without it, the checksums inside the files are all there is


def checksum_of(path: Path) -> str:
    """Return the sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def judge(path: Path) -> tuple[str, str]:
    """Return (`good`, `damaged` or `unlisted`; the checksum).

    `unlisted` is a file in a folder without a manifest, as one that was copied away alone.
    """
    checksum, listed = checksum_of(path), manifest(path.parent)
    if not listed:
        return "unlisted", checksum
    known = {one for sums in listed.values() for one in sums}
    return "good" if checksum in known else "damaged", checksum


def is_good(path: Path) -> bool:
    """Tell whether a file is whole: by its checksum, or by reading it where none is listed."""
    verdict, _ = judge(path)
    if verdict != "unlisted":
        return verdict == "good"
    try:
        with zipfile.ZipFile(path) as parts:  # torch does not compare these checksums
            whole = parts.testzip() is None
        return whole and "global_step" in CheckpointFiles().load_checkpoint(path)
    except Exception:  # a damaged file can fail anywhere inside
        return False


def newest_good(folder: Path) -> tuple[Path | None, list[str]]:
    """Return the newest checkpoint of a folder that is whole, and the names of damaged newer ones.

    `last.ckpt` is the newest by construction; behind it the others count by their step.
    """
    damaged = []
    for path in newest_first(folder):
        if is_good(path):
            return path, damaged
        damaged.append(path.name)
    return None, damaged


def newest_first(folder: Path) -> list[Path]:
    """Return the checkpoints of a folder: `last.ckpt`, those with a step, `best.ckpt`."""
    steps = sorted(steps_of(folder).items(), reverse=True)
    named = [folder / "last.ckpt", *(path for _, path in steps), folder / "best.ckpt"]
    return [path for path in named if path.is_file()]


def steps_of(folder: Path) -> dict[int, Path]:
    """Return the files `step_<n>.ckpt` of a folder by their step."""
    matches = ((STEP.fullmatch(path.name), path) for path in folder.glob("step_*.ckpt"))
    return {int(match[1]): path for match, path in matches if match}


def keep_newest(folder: Path, n: int) -> None:
    """Delete all but the newest `n` files `step_<n>.ckpt`."""
    steps = steps_of(folder)
    for step in sorted(steps)[: max(0, len(steps) - n)]:
        steps[step].unlink(missing_ok=True)


def clean(folder: Path) -> None:
    """Delete what killed processes left half-written."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)


@hydra.main(config_path=str(CONF), config_name="checkpoint")
def main(cfg: DictConfig) -> None:
    """Print what a checkpoint holds and whether it is whole.

    Raises:
        ValueError: if it is damaged, naming the newest good one beside it.
    """
    from jepa.run import find_checkpoint

    path = find_checkpoint(cfg.run, "last.ckpt")
    verdict, checksum = judge(path)
    print(f"{path}: {verdict}, sha256 {checksum}, {size(path.stat().st_size)}")
    others = [one for one in newest_first(path.parent) if one != path]
    if not is_good(path):
        good = next((str(one) for one in others if is_good(one)), None)
        hint = f"the newest good one is {good}" if good else "there is no good one beside it"
        raise ValueError(f"{path} is damaged: its checksum is not that of a file written; {hint}")
    print("\n".join(describe(CheckpointFiles().load_checkpoint(path))))
    for other in others:
        print(f"{other}: {judge(other)[0]}, {size(other.stat().st_size)}")


def describe(content: dict[str, Any]) -> list[str]:
    """Return lines on a checkpoint: where in the run it is, the objective, what each key holds."""
    lines = [f"epoch {content['epoch']}, step {content['global_step']}"]
    if "config" in content:
        objective = parse_config(content["config"]).objective
        best = [
            state["best_model_score"].item()
            for state in content.get("callbacks", {}).values()
            if isinstance(state, dict) and state.get("best_model_score") is not None
        ]
        lines.append(f"objective {objective}: " + (f"{min(best):.6g}" if best else "not yet known"))
    for key, value in content.items():
        tensors = list(tensors_in(value))
        what = f"{len(tensors)} tensors, {size(sum(t.nbytes for t in tensors))}"
        lines.append(f"  {key}: " + (what if tensors else type(value).__name__))
    return lines


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors of nested plain values."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for one in value.values():
            yield from tensors_in(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from tensors_in(one)


def size(n_bytes: int) -> str:
    """Word a number of bytes."""
    power = min(max(0, len(str(n_bytes)) - 1) // 3, 3)
    return f"{n_bytes / 1000**power:.4g} {('B', 'kB', 'MB', 'GB')[power]}"


def cli() -> None:
    """Run the command."""
    run_command(main, "checkpoint")


if __name__ == "__main__":
    cli()
