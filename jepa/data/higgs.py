"""HIGGS: 10,500,000 training and 500,000 test rows, 28 numbers, 2 classes.

Metric: accuracy (and ROC-AUC). Source: UCI, "HIGGS" (Baldi, Sadowski and Whiteson, "Searching for
Exotic Particles in High-Energy Physics with Deep Learning", arXiv:1402.4735), CC BY 4.0; the last
500,000 rows are its test split, validation rows are drawn from the others. No checksum is
published.

The csv.gz is read once, in pieces, into a cache of float32 beside it, one column after the other,
which later runs map into memory.
"""

import gzip
import os
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd
from rich.progress import Progress

from jepa.data.files import fetch
from jepa.data.tabular import Card, TableData

_URL = "https://archive.ics.uci.edu/ml/machine-learning-databases/00280/HIGGS.csv.gz"
_JETS = [f"jet{i}_{name}" for i in (1, 2, 3, 4) for name in ("pt", "eta", "phi", "b_tag")]
COLUMNS = [
    *("lepton_pt", "lepton_eta", "lepton_phi", "missing_energy", "missing_energy_phi"),
    *_JETS,
    *("m_jj", "m_jjj", "m_lv", "m_jlv", "m_bb", "m_wbb", "m_wwbb"),
]
_CHUNK = 200_000
_UNREADABLE = (pd.errors.ParserError, pd.errors.EmptyDataError)


class Higgs(TableData):
    """Simulated collisions; was it a Higgs boson?

    Args:
        data_dir: folder that holds, or is to hold, higgs/HIGGS.csv.gz.
        table: settings of `TableData`.
    """

    target = "signal"
    task = "binary"
    default_shares: ClassVar[dict[str, float]] = {"val": 0.05}
    n_rows = 11_000_000
    n_test = 500_000

    def __init__(self, *, data_dir: str, **table):
        super().__init__(**table)
        self.folder = Path(data_dir) / "higgs"
        self.card = Card(
            source=_URL,
            rows={"train": self.n_rows - self.n_test, "test": self.n_test},
            columns=28,
            classes=2,
            metric="accuracy",
        )

    def load(self) -> dict[str, pd.DataFrame]:
        """Map the cache, which is built first if it is absent or of another size."""
        cache = self.folder / "higgs.f32"
        shape = (1 + len(COLUMNS), self.n_rows)
        if not cache.is_file() or cache.stat().st_size != 4 * shape[0] * shape[1]:
            source = fetch(_URL, self.folder / "HIGGS.csv.gz", max_bytes=4 << 30)
            build_cache(source, cache, shape)
        table = np.memmap(cache, dtype=np.float32, mode="r", shape=shape)
        frame = pd.DataFrame(table[1:].T, columns=pd.Index(COLUMNS), copy=False)
        frame = frame.assign(signal=table[0].astype(np.int8))
        cut = self.n_rows - self.n_test
        return {"train": frame.iloc[:cut], "test": frame.iloc[cut:]}


def build_cache(source: Path, cache: Path, shape: tuple[int, int]) -> None:
    """Write the columns of a csv.gz as float32, one after the other; label first.

    The file takes its name only when it is complete.

    Raises:
        ValueError: for another number of rows or columns, and for a file cut short.
    """
    part = cache.with_name(f".{cache.name}.{os.getpid()}.part")
    try:
        table = np.memmap(part, dtype=np.float32, mode="w+", shape=shape)
        with Progress() as progress, open(source, "rb") as raw, gzip.open(raw) as text:
            bar = progress.add_task(f"reading {source.name}", total=source.stat().st_size)
            done = 0
            for chunk in pd.read_csv(text, header=None, dtype=np.float32, chunksize=_CHUNK):
                end = done + len(chunk)
                if chunk.shape[1] != shape[0] or end > shape[1]:
                    raise ValueError(_other(source, f"at least {end:,}", chunk.shape[1], shape))
                table[:, done:end] = chunk.to_numpy().T
                done = end
                progress.update(bar, completed=raw.tell())
        if done != shape[1]:
            raise ValueError(_other(source, f"{done:,}", shape[0], shape))
        table.flush()
        os.replace(part, cache)
    except (EOFError, gzip.BadGzipFile, *_UNREADABLE) as error:
        raise ValueError(
            f"{source} is damaged or cut short ({error}): download it again"
        ) from error
    finally:
        with suppress(OSError):
            part.unlink()


def _other(source: Path, rows: str, columns: int, shape: tuple[int, int]) -> str:
    return (
        f"{source} has {rows} rows and {columns} columns, expected {shape[1]:,} and {shape[0]}: it "
        "is another file, or cut short; download it again"
    )
