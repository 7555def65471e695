"""Code a table or images: `python -m jepa.embed run=<run> data.path=<file> out=<parquet|npy>`.

The checkpoint alone is enough: it holds the config, the spec and what was fitted on the training
rows. A table has the same columns, in any order; the target may be absent. Images are those of a
folder or an archive, and their names, row by row, go to `<out without its ending>.files.txt`.
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
BATCH = {"table": 4096, "images": 256}  # of one forward pass


@hydra.main(config_path=str(CONF), config_name="embed")
def main(cfg: DictConfig) -> None:
    """Open the checkpoint, embed the rows or images part by part, say where the codes are."""
    out = check_out(cfg.out, cfg.data.path, cfg.batch_size)
    from jepa import run, screen
    from jepa.codes import pick_device
    from jepa.data.reading import read_header
    from jepa.spec import kind_of

    device = pick_device(cfg.accelerator)
    checkpoint = run.find_checkpoint(cfg.run)
    trained_cfg, model, content = run.load_model(checkpoint, cfg.trust)
    kind = kind_of(run.spec_of(content))
    if kind not in BATCH:
        raise ValueError(
            f"{checkpoint} was trained on {kind}; embed codes tables and images: for the future of "
            "a series take python -m jepa.forecast"
        )
    settings = {"batch_size": cfg.batch_size or BATCH[kind], "device": device}
    started = time.perf_counter()
    if kind == "images":
        share = trained_cfg.data.get("max_corrupt_share", 0.0)
        n_rows = embed_images(
            model.to(device), content, cfg.data.path, out, max_corrupt_share=share, **settings
        )
    else:
        transform = transform_of(content, checkpoint)
        transform.encode(read_header(cfg.data.path))  # says at once which columns are absent
        n_rows = embed_file(model.to(device), transform, cfg.data.path, out, **settings)
    seconds = time.perf_counter() - started
    screen.say(
        f"written: {out}: {n_rows:,} rows x {len(model.code_names()):,} codes in "  # pyright: ignore
        f"{seconds:.1f} s ({n_rows / seconds:,.0f} rows/s on {device})"
    )


def check_out(out: str, source: str, batch_size: int | None) -> Path:
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
        raise ValueError(f"out={out!r} would overwrite data.path={source!r}")
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    return path


def embed_images(
    model: Any,
    content: dict[str, Any],
    path: str | Path,
    out: Path,
    *,
    batch_size: int,
    device: Any,
    max_corrupt_share: float | int,
) -> int:
    """Embed the images of a folder or an archive; return how many.

    They are scaled as the `content` of the checkpoint says; a share of the files may be damaged.

    Raises:
        FileNotFoundError, ValueError: for images that cannot be read, and an `out` that cannot be
            written; nothing of it is left then.
    """
    from jepa import run
    from jepa.codes import embed_parts, write_codes
    from jepa.data.image_folder import stream_images
    from jepa.data.pixels import ToInput

    fitted, names = content["preprocessing"], []
    spec: Any = run.spec_of(content)
    parts = stream_images(
        path,
        ToInput(fitted["image_size"], fitted["mean"], fitted["std"]),
        n_channels=spec.n_channels,
        max_corrupt_share=max_corrupt_share,
        names=names,
    )
    codes = embed_parts(model.eval(), parts, batch_size=batch_size, device=device)
    n_images = write_codes(out, model.code_names(), codes)
    text = "".join(f"{name}\n" for name in names)
    out.with_suffix(".files.txt").write_text(text, encoding="utf-8", errors="surrogateescape")
    return n_images


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
