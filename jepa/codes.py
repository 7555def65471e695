"""Codes of many rows: computed part by part, written to a file that is whole or not there.

Axes: n rows, f features, e code.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Float
from torch import Tensor

ACCELERATORS = ("auto", "cpu", "gpu", "mps")
_GROUP_BYTES = 128 << 20  # of codes in a row group: many small groups make a large footer


@runtime_checkable
class Embedder(Protocol):
    """What is needed of a model."""

    def embed(self, x: Tensor) -> Tensor:
        """Code rows."""
        ...


def pick_device(accelerator: str) -> torch.device:
    """Return the device of a name; `auto` takes a GPU where there is one.

    Raises:
        ValueError: if there is no such name, or no such device here.
    """
    if accelerator not in ACCELERATORS:
        raise ValueError(f"accelerator must be one of {ACCELERATORS}, got {accelerator!r}")
    there = {
        "gpu": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    name = next(n for n in there if there[n]) if accelerator == "auto" else accelerator
    if not there[name]:
        raise ValueError(f"accelerator={name}: this machine has none; take accelerator=cpu")
    return torch.device("cuda" if name == "gpu" else name)


def regroup(parts: Iterable[Tensor], size: int) -> Iterator[Tensor]:
    """Cut a stream of rows into parts of `size` rows, the last one shorter, wherever it was cut.

    Codes of a row differ in the last digit with the number of rows computed together; this makes
    them independent of how a file is read.
    """
    held: list[Tensor] = []
    n_held = 0
    for part in parts:
        held.append(part)
        n_held += len(part)
        if n_held >= size:
            rows = torch.cat(held)
            whole = n_held // size * size
            yield from rows[:whole].split(size)
            held, n_held = [rows[whole:]], n_held - whole
    if n_held:
        yield torch.cat(held)


def embed_parts(
    model: Embedder, parts: Iterable[Tensor], *, batch_size: int, device: torch.device
) -> Iterator[Tensor]:
    """Yield the codes of `batch_size` rows at a time, on the CPU. `model` lies on `device`."""
    for x in regroup(parts, batch_size):
        with torch.inference_mode():  # not around the yield: it would reach the caller
            codes = model.embed(x.to(device)).float().cpu()
        yield codes


def write_codes(out: Path, names: list[str], codes: Iterable[Tensor]) -> int:
    """Write codes as they come, one float32 column per name; return the number of rows.

    `out` ends in `.parquet` or `.npy`. It appears when all rows are in it; if anything fails,
    nothing of it is left, and a file of that name stays as it was.

    Raises:
        ValueError: if there are no rows, or the file cannot be written.
    """
    write = {".parquet": _write_parquet, ".npy": _write_npy}[out.suffix.lower()]
    groups = regroup(codes, max(_GROUP_BYTES // (4 * len(names)), 1))
    with _complete_file(out) as file:
        n_rows = write(file, names, groups)
        if not n_rows:
            raise ValueError("the table has a header, but no rows: there is nothing to embed")
    return n_rows


@contextmanager
def _complete_file(out: Path) -> Iterator[BinaryIO]:
    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        with open(part, "wb") as file:
            yield file
        os.replace(part, out)
    except OSError as error:
        raise ValueError(
            f"out={str(out)!r} cannot be written ({error.strerror or error}): free some space, or "
            "choose another place; nothing was left behind"
        ) from error
    finally:
        with suppress(OSError):
            part.unlink()


def _write_parquet(file: BinaryIO, names: list[str], groups: Iterable[Float[Tensor, "n e"]]) -> int:
    schema = pa.schema([(name, pa.float32()) for name in names])
    n_rows = 0
    # codes hardly repeat: dictionaries, statistics and compression cost time and save nothing
    with pq.ParquetWriter(
        file, schema, compression="none", use_dictionary=False, write_statistics=False
    ) as writer:
        for group in groups:
            columns = [pa.array(column) for column in np.ascontiguousarray(group.numpy().T)]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema), len(group))
            n_rows += len(group)
    return n_rows


def _write_npy(file: BinaryIO, names: list[str], groups: Iterable[Float[Tensor, "n e"]]) -> int:
    n_rows = 0
    _write_npy_header(file, n_rows, len(names))
    for group in groups:
        file.write(np.ascontiguousarray(group.numpy(), dtype="<f4").data)
        n_rows += len(group)
    file.seek(0)
    _write_npy_header(file, n_rows, len(names))  # numpy leaves room for any number of rows
    return n_rows


def _write_npy_header(file: BinaryIO, n_rows: int, n_codes: int) -> None:
    header = {"descr": "<f4", "fortran_order": False, "shape": (n_rows, n_codes)}
    np.lib.format.write_array_header_1_0(file, header)
