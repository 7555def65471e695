"""Decoded images in one memory-mapped file, built once: `<name>.pixels`, with a journal beside it.

The file holds uint8 squares [n, 3, side, side]. The journal has a line for each portion that is
whole, with its checksum, and a last one once all are: so a build that was cut off goes on, and a
portion that is not what it was is decoded again. A file whose size and time are those of that last
line is taken as it is; any other is read through first.
"""

import fcntl
import hashlib
import json
import os
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from jaxtyping import UInt8
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn
from torch import Tensor

from jepa.data.large import GRAY, decode_squares

VERSION = 1
PORTION = 256  # images of one line of the journal


class Packed:
    """The pixels of a packed file.

    Args:
        path: the file.
        n: images in it.
        side: of the squares.
        damaged: names of images that could not be decoded, and why; theirs are gray.
    """

    def __init__(self, path: Path, n: int, *, side: int, damaged: dict[str, str]):
        self.path, self.side, self.damaged = path, side, damaged
        # copy on write: torch wants memory that can be written to, and the file is never changed
        pixels = np.memmap(path, dtype=np.uint8, mode="c", shape=(n, 3, side, side))
        self.pixels = torch.from_numpy(pixels)

    def describe(self) -> str:
        """Say where the file is, and how large."""
        return f"packed: {self.path}, {self.path.stat().st_size / 1e9:.3g} GB"

    def expect(self, rows: Sequence[int]) -> None:
        """Nothing is to be made ready."""

    def read(self, rows: Sequence[int]) -> UInt8[Tensor, "b 3 s s"]:
        """Return the pixels of these images."""
        return self.pixels.index_select(0, torch.tensor(rows, dtype=torch.long))


def pack(files: dict[str, Path], folder: Path, *, label: str, side: int, n_workers: int) -> Packed:
    """Return the packed file of these images, built or mended first where it has to be.

    Another set of files, sizes, times or another side has a file of its own. Of several processes
    one builds, and the others wait.

    Args:
        files: by name, in the order of their numbers.
        folder: gets the file.
        label: how its name begins.
        side: of the squares.
        n_workers: threads that decode.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{label}_{side}_{digest(files, side)}.pixels"
    with locked(path.with_suffix(".lock")), ThreadPoolExecutor(n_workers) as pool:
        damaged = Build(path, files, side=side, pool=pool).run()
    return Packed(path, len(files), side=side, damaged=damaged)


def digest(files: dict[str, Path], side: int) -> str:
    """Return what tells one set of files from another."""
    found = hashlib.sha256(f"{VERSION} {side}".encode())
    for name, path in files.items():
        status = path.stat()
        found.update(f"{name}\0{status.st_size}\0{int(status.st_mtime)}\n".encode())
    return found.hexdigest()[:12]


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Wait until no other process holds the lock."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class Build:
    """Bring a packed file to its end.

    Args:
        path: the file.
        files: by name, in the order of their numbers.
        side: of the squares.
        pool: decodes.
    """

    def __init__(self, path: Path, files: dict[str, Path], *, side: int, pool: ThreadPoolExecutor):
        self.path, self.journal = path, path.with_suffix(".journal")
        self.names, self.files = list(files), list(files.values())
        self.side, self.pool = side, pool
        self.n_bytes = 3 * side * side  # of an image
        self.n_portions = -(-len(files) // PORTION)

    def run(self) -> dict[str, str]:
        """Decode what is missing; return the damaged images, and why."""
        lines = self.lines()
        if lines and lines[-1] == self.stamp():
            return damaged_of(lines)
        with open(self.path, "r+b" if self.path.exists() else "w+b") as file:
            file.truncate(len(self.files) * self.n_bytes)
            whole = [one for one in lines if "portion" in one and self.is_whole(file, one)]
            self.journal.write_text("".join(f"{json.dumps(one)}\n" for one in whole))
            whole += self.fill(file, {one["portion"] for one in whole})
        self.note(self.stamp())
        return damaged_of(whole)

    def lines(self) -> list[dict[str, Any]]:
        """Return the journal, without a last line that was cut off."""
        if not self.journal.exists() or not self.path.exists():
            return []
        found = []
        for text in self.journal.read_text().splitlines():
            try:
                found.append(json.loads(text))
            except ValueError:
                break
        return found

    def stamp(self) -> dict[str, Any]:
        """Return the journal's last line: size and time of the file as it is."""
        status = self.path.stat()
        return {"complete": True, "bytes": status.st_size, "mtime_ns": status.st_mtime_ns}

    def is_whole(self, file: BinaryIO, line: dict[str, Any]) -> bool:
        """Tell whether a portion is what it was."""
        file.seek(line["portion"] * PORTION * self.n_bytes)
        return (
            zlib.crc32(file.read(len(self.part(line["portion"])) * self.n_bytes)) == line["crc32"]
        )

    def part(self, portion: int) -> range:
        """Return the numbers of a portion's images."""
        return range(len(self.files))[portion * PORTION : (portion + 1) * PORTION]

    def fill(self, file: BinaryIO, done: set[int]) -> list[dict[str, Any]]:
        """Decode and write the other portions; return their lines."""
        lines = []
        columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns) as progress:
            start = sum(len(self.part(one)) for one in done)
            bar = progress.add_task(f"packing {self.path.name}", total=len(self.files))
            progress.update(bar, completed=start)
            for portion in sorted(set(range(self.n_portions)) - done):
                lines.append(self.write(file, portion))
                self.note(lines[-1])
                progress.advance(bar, len(self.part(portion)))
        return lines

    def write(self, file: BinaryIO, portion: int) -> dict[str, Any]:
        """Decode and write a portion; return its line once it is on the disk."""
        part = self.part(portion)
        squares = decode_squares([self.files[i] for i in part], side=self.side, pool=self.pool)
        empty = np.full((3, self.side, self.side), GRAY, dtype=np.uint8)
        content = np.stack([empty if isinstance(one, str) else one for one in squares]).tobytes()
        file.seek(portion * PORTION * self.n_bytes)
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
        damaged = {self.names[i]: o for i, o in zip(part, squares, strict=True) if isinstance(o, str)}  # fmt: skip  # noqa: E501
        return {"portion": portion, "crc32": zlib.crc32(content), "damaged": damaged}

    def note(self, line: dict[str, Any]) -> None:
        """Append a line to the journal."""
        with self.journal.open("a") as file:
            file.write(f"{json.dumps(line)}\n")


def damaged_of(lines: list[dict[str, Any]]) -> dict[str, str]:
    """Return the damaged images that a journal names."""
    return {name: why for one in lines for name, why in one.get("damaged", {}).items()}
