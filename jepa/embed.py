"""Code the rows of a table: `python -m jepa.embed run=<run> data.path=<file> out=<parquet|npy>`.

The checkpoint alone is enough: it holds the config, the spec and what was fitted on the training
rows. The table has the same columns, in any order; the target may be absent.
"""

import time
from collections.abc import Generator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from omegaconf import DictConfig

from jepa.config import CONF, run_command

if TYPE_CHECKING:
    from torch import Tensor

    from jepa.data.tables import TableTransform

SUFFIXES = (".parquet", ".npy")
_CHUNK = 1 << 15  # rows read at a time


@hydra.main(config_path=str(CONF), config_name="embed")
def main(cfg: DictConfig) -> None:
    """Open the checkpoint, embed the table part by part, say where the codes are."""
    out = check_out(cfg.out, cfg.data.path, cfg.batch_size)
    from jepa import run, screen
    from jepa.codes import pick_device
    from jepa.data.reading import read_header

    device = pick_device(cfg.accelerator)
    header = read_header(cfg.data.path)
    checkpoint = run.find_checkpoint(cfg.run)
    _, model, content = run.load_model(checkpoint)
    transform = transform_of(content, checkpoint)
    transform.encode(header)  # says at once which columns are absent
    started = time.perf_counter()
    n_rows = embed_file(
        model.to(device), transform, cfg.data.path, out, batch_size=cfg.batch_size, device=device
    )
    seconds = time.perf_counter() - started
    screen.say(
        f"written: {out}: {n_rows:,} rows x {len(model.code_names()):,} codes in "  # pyright: ignore
        f"{seconds:.1f} s ({n_rows / seconds:,.0f} rows/s on {device})"
    )


def check_out(out: str, source: str, batch_size: int) -> Path:
    """Return the path to write to.

    Raises:
        ValueError: if it is of another kind, in no folder, or the table that is to be read.
    """
    path = Path(out).expanduser()
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"out={out!r} must end in {' or '.join(SUFFIXES)}")
    if not path.parent.is_dir():
        raise ValueError(f"out={out!r}: there is no folder {str(path.parent)!r}; make it first")
    if path.is_dir():
        raise ValueError(f"out={out!r} is a folder: name a file in it")
    if path.resolve() == Path(source).expanduser().resolve():
        raise ValueError(f"out={out!r} would overwrite the table data.path={source!r}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    return path


def transform_of(content: dict[str, Any], checkpoint: Path) -> "TableTransform":
    """Return the fitted transform that a checkpoint carries.

    Raises:
        ValueError: if it carries none.
    """
    from jepa.data.tables import TableTransform

    if "preprocessing" not in content:
        raise ValueError(f"{checkpoint} holds no preprocessing of a table: it cannot read one")
    return TableTransform.from_state(content["preprocessing"])


def embed_file(
    model: Any,
    transform: "TableTransform",
    path: str | Path,
    out: Path,
    *,
    batch_size: int,
    device: Any,
    chunk_rows: int = _CHUNK,
) -> int:
    """Embed one file into another; return the number of rows.

    Raises:
        FileNotFoundError, ValueError: for a table that cannot be read or encoded, and an `out`
            that cannot be written; nothing of it is left then.
    """
    from jepa.codes import embed_parts, write_codes

    with closing(encode_file(transform, path, chunk_rows)) as parts:  # ends the progress bar
        codes = embed_parts(model.eval(), parts, batch_size=batch_size, device=device)
        return write_codes(out, model.code_names(), codes)


def encode_file(
    transform: "TableTransform", path: str | Path, chunk_rows: int
) -> "Generator[Tensor]":
    """Yield the encoded rows of a file, and show a progress bar."""
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
    from rich.progress import TimeRemainingColumn as TimeLeft

    from jepa import screen
    from jepa.data.reading import read_chunks

    columns = list(dict.fromkeys(feature.column for feature in transform.features))
    texts = {f.column: f.vocabulary for f in transform.features if f.scaler is None or f.part}
    shown = (BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[rate]}"))
    bar = Progress(
        *shown, TextColumn("left"), TimeLeft(), console=screen.console,
        disable=not screen.console.is_terminal,
    )  # fmt: skip
    n_rows, started = 0, time.perf_counter()
    with bar:
        task = bar.add_task("embedding", total=1.0, rate="")
        for frame, share in read_chunks(path, columns=columns, texts=texts, n_rows=chunk_rows):
            yield transform.encode(frame)
            n_rows += len(frame)
            rate = n_rows / (time.perf_counter() - started)
            bar.update(task, completed=share, rate=f"{n_rows:,} rows  {rate:,.0f} rows/s")


def cli() -> None:
    """Run the command."""
    run_command(main, "embed")


if __name__ == "__main__":
    cli()
