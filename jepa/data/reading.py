"""Read a table some rows at a time, so that a file of any size fits.

Columns mean the same in every part: what a whole file would tell of a column, its kind, is given.
"""

import gzip
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from jepa.data.readers import (
    check_header,
    check_path,
    is_parquet,
    plain_errors,
    separator_of,
)


def read_header(path: str | Path) -> pd.DataFrame:
    """Return the table without its rows.

    Raises:
        FileNotFoundError, ValueError: as `read_table`.
    """
    path = check_path(path)
    if is_parquet(path):
        with plain_errors(path):
            return pq.read_schema(path).empty_table().to_pandas()
    check_header(path)
    with plain_errors(path):
        return pd.read_csv(path, sep=separator_of(path), encoding="utf-8", nrows=0)


def read_chunks(
    path: str | Path,
    *,
    columns: Sequence[str],
    texts: Mapping[str, Sequence[str]],
    n_rows: int,
) -> Iterator[tuple[pd.DataFrame, float]]:
    """Yield (at most `n_rows` rows, share of the file read so far), in order.

    Args:
        path: csv, tsv (plain or gzipped) or parquet.
        columns: what to read; those the file lacks are left out.
        texts: columns that a csv holds as text, with the values known of them (none for dates):
            a part of whole numbers only must not turn the labels `007` and `A12` into 7.
        n_rows: rows of a part; parquet may give smaller ones.

    Raises:
        FileNotFoundError, ValueError: as `read_table`, also in the middle of the file.
    """
    path = check_path(path)
    with plain_errors(path):
        if is_parquet(path):
            yield from _read_parquet(path, columns, n_rows)
        else:
            yield from _read_csv(path, columns, texts, n_rows)


def _read_csv(
    path: Path, columns: Sequence[str], texts: Mapping[str, Sequence[str]], n_rows: int
) -> Iterator[tuple[pd.DataFrame, float]]:
    size = path.stat().st_size
    wanted = set(columns)
    zipped = path.suffix.lower() == ".gz"
    with open(path, "rb") as raw, gzip.open(raw) if zipped else nullcontext(raw) as file:
        chunks = pd.read_csv(
            file,
            sep=separator_of(path),
            encoding="utf-8",
            low_memory=False,
            usecols=lambda name: name in wanted,
            dtype=dict.fromkeys(texts, str),
            chunksize=n_rows,
        )
        for frame in chunks:
            for name in texts.keys() & set(frame.columns):
                frame[name] = _as_known(frame[name], frozenset(texts[name]))
            yield frame, raw.tell() / size


def _read_parquet(
    path: Path, columns: Sequence[str], n_rows: int
) -> Iterator[tuple[pd.DataFrame, float]]:
    with pq.ParquetFile(path) as file:
        there = set(file.schema_arrow.names)
        done, total = 0, max(file.metadata.num_rows, 1)
        for batch in file.iter_batches(n_rows, columns=[c for c in columns if c in there]):
            done += len(batch)
            yield pa.Table.from_batches([batch]).to_pandas(), done / total


def _as_known(column: pd.Series, known: frozenset[str]) -> pd.Series:
    """Write a value as it is known, where only its form differs: `07` or `7.0` as `7`, `true`.

    In a training file whose labels are all numbers or all bools, pandas has read them as such.
    """
    forms = {value: _form(value, known) for value in column.dropna().unique()}
    if all(value == form for value, form in forms.items()):
        return column
    return column.map(forms, na_action="ignore")


def _form(value: str, known: frozenset[str]) -> str:
    text = value.strip()
    if text in known:
        return text
    try:
        number = float(text)
    except ValueError:
        form = text.capitalize()
    else:
        form = str(int(number)) if number.is_integer() else str(number)
    return form if form in known else text
