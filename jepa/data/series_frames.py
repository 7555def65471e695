"""Read a series or a panel from a file: checked, on a regular grid, neither split nor scaled.

Axes: c channels, t time steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import cast

import numpy as np
import pandas as pd
from jaxtyping import Float
from pandas.api import types

from jepa.data.columns import column_of, nearest
from jepa.data.quoting import list_setting
from jepa.data.readers import read_table
from jepa.data.series_times import GAPS, check_order, read_times, regular, shown

FORMATS = ("wide", "long")


@dataclass(frozen=True, kw_only=True)
class SeriesFrame:
    """One or more series that lie one after another along the axis of time.

    Args:
        channels: their names.
        values: NaN where missing.
        series: a name for each series; one empty name where all channels share their times.
        bounds: where each series begins, and the end of the last.
        times: of each series; whole numbers or dates.
        frequency: of the times: a pandas offset, or a whole number as text.
    """

    channels: tuple[str, ...]
    values: Float[np.ndarray, "c t"]
    series: tuple[str, ...]
    bounds: tuple[int, ...]
    times: tuple[pd.Index, ...]
    frequency: str

    @property
    def lengths(self) -> list[int]:
        """Time steps of each series."""
        return [len(times) for times in self.times]

    def without(self, sentinel: float | int) -> "SeriesFrame":
        """Return it with this value read as missing."""
        return replace(self, values=np.where(self.values == sentinel, np.nan, self.values))


def read_series(
    path: str | Path,
    *,
    format: str = "wide",
    time_column: str | None = None,
    id_column: str | None = None,
    value_column: str | None = None,
    gaps: str = "refuse",
    sentinel: float | int | None = None,
    drop: Sequence[str] | None = None,
    ordered: bool = True,
) -> SeriesFrame:
    """Read a csv, tsv (plain or gzipped) or parquet file.

    Args:
        path: the file.
        format: `wide`: one column of times, every other column is a channel. `long`: one row for
            each series and time. Series that share all their times become the channels of one
            series; others become a panel of one channel.
        time_column: None for `date` (wide) or `ds` (long).
        id_column: of the long format; None for `unique_id`.
        value_column: of the long format; None for `y`.
        gaps: see `regular`.
        sentinel: a number that stands for a missing value.
        drop: columns to leave out.
        ordered: refuse times that repeat or fall; False for a published wide file, whose rows are
            steps as they stand.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for a file that is no series; names row, column and fix.
    """
    _check_choice("format", format, FORMATS)
    _check_choice("gaps", gaps, GAPS)
    table = _without(read_table(path), drop or ())
    if format == "long":
        frame = from_long(
            table,
            time_column=time_column or "ds",
            id_column=id_column or "unique_id",
            value_column=value_column or "y",
            gaps=gaps,
        )
    else:
        _refuse_long_keys(id_column=id_column, value_column=value_column)
        frame = from_wide(table, time_column=time_column or "date", gaps=gaps, ordered=ordered)
    return frame if sentinel is None else frame.without(sentinel)


def from_wide(
    table: pd.DataFrame, *, time_column: str, gaps: str, ordered: bool = True
) -> SeriesFrame:
    """Read one column of times and a channel in every other column."""
    table = _with_times(table, time_column)
    channels = [str(name) for name in table.columns if name != time_column]
    if not channels or not len(table):
        raise ValueError(
            f"the table has {len(table)} rows and {len(channels)} columns beside "
            f"{time_column!r}: a series needs at least 2 rows and a channel"
        )
    times = read_times(column_of(table, time_column))
    if ordered:
        check_order(times, name="")
    grid, frequency = regular(times, gaps=gaps, name="")
    values = np.full((len(channels), len(grid)), np.nan)
    place = slice(None) if grid is times else grid.get_indexer(times)
    for row, channel in enumerate(channels):
        values[row, place] = read_numbers(column_of(table, channel))
    return SeriesFrame(
        channels=tuple(channels),
        values=values,
        series=("",),
        bounds=(0, len(grid)),
        times=(grid,),
        frequency=frequency,
    )


def from_long(
    table: pd.DataFrame, *, time_column: str, id_column: str, value_column: str, gaps: str
) -> SeriesFrame:
    """Read one row for each series and time; the rows of a series rise, series may mix."""
    table = _with_times(table, time_column)
    known = (id_column, time_column, value_column)
    for key, name in zip(("id", "time", "value"), known, strict=True):
        if name not in table:
            raise ValueError(_no_column(f"data.{key}_column", name, table))
    others = [str(name) for name in table.columns if name not in known]
    if others:
        raise ValueError(
            f"column {others[0]!r} is exogenous ({len(others)} such columns), and PatchTST ignores "
            f"exogenous columns: leave each out with {list_setting('data.drop', others[0])}, or "
            "write a wide file (data.format=wide), where every column is a channel"
        )
    if not len(table):
        raise ValueError("the table is empty: a series needs at least 2 rows")
    return _stack(table, known, gaps)


def _stack(table: pd.DataFrame, known: tuple[str, str, str], gaps: str) -> SeriesFrame:
    """Put the series side by side where they share all times, else one after another."""
    parts = _read_parts(table, known, gaps)
    names, grids, steps, values = zip(*parts, strict=True)
    other = next((i for i, step in enumerate(steps) if step != steps[0]), None)
    if other is not None and gaps != "rows":
        raise ValueError(
            f"the series have different steps: {names[0]!r} has {steps[0]}, {names[other]!r} has "
            f"{steps[other]}; keep one kind of series a file"
        )
    if all(grid.equals(grids[0]) for grid in grids):
        return SeriesFrame(
            channels=names,
            values=np.stack(values),
            series=("",),
            bounds=(0, len(grids[0])),
            times=grids[:1],
            frequency=steps[0],
        )
    return SeriesFrame(
        channels=(known[2],),
        values=np.concatenate(values)[None],
        series=names,
        bounds=(0, *accumulate(len(grid) for grid in grids)),
        times=grids,
        frequency=steps[0],
    )


def _read_parts(
    table: pd.DataFrame, known: tuple[str, str, str], gaps: str
) -> list[tuple[str, pd.Index, str, np.ndarray]]:
    """Return (name, times, frequency, values) of each series, in the order of the file."""
    ids, times, numbers = (column_of(table, name) for name in known)
    if ids.isna().any():
        row = int(ids.isna().to_numpy().argmax())
        raise ValueError(f"column {known[0]!r} is empty in row {row + 1}: name the series there")
    index, values = read_times(times), read_numbers(numbers)
    code, names = pd.factorize(ids.astype(str))
    order = np.argsort(code, kind="stable")
    parts = []
    for rows in np.split(order, np.cumsum(np.bincount(code))[:-1]):
        name = str(names[code[rows[0]]])
        check_order(index[rows], name=f"series {name!r}: ")
        grid, step = regular(index[rows], gaps=gaps, name=f"series {name!r}: ")
        part = np.full(len(grid), np.nan)
        part[grid.get_indexer(index[rows])] = values[rows]
        parts.append((name, grid, step, part))
    return parts


def read_numbers(column: pd.Series) -> np.ndarray:
    """Read as float64; an empty cell is NaN.

    Raises:
        ValueError: for a cell that is no finite number, naming row and column.
    """
    if types.is_numeric_dtype(column.dtype) and not types.is_complex_dtype(column.dtype):
        values = column.to_numpy(dtype=np.float64, na_value=np.nan)
        wrong = np.isinf(values)
    else:
        cells = cast(pd.Series, pd.to_numeric(column.astype(object), errors="coerce"))
        values = cells.to_numpy(dtype=np.float64, na_value=np.nan)
        blank = column.isna() | (column.astype(str).str.strip() == "")
        wrong = ~np.isfinite(values) & ~blank.to_numpy()
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise ValueError(
            f"column {column.name!r} holds {shown(column, row)} in row {row + 1}, which is no "
            f"finite number ({int(wrong.sum())} such cells): leave missing cells empty, or leave "
            f"the column out with {list_setting('data.drop', str(column.name))}"
        )
    return values


def _with_times(table: pd.DataFrame, time_column: str) -> pd.DataFrame:
    """Return the table with the column of times, which parquet may hold as the index."""
    if time_column not in table and time_column in table.index.names:
        table = table.reset_index()
    if time_column not in table:
        raise ValueError(_no_column("data.time_column", time_column, table))
    return table.rename(columns=str)


def _no_column(key: str, name: str, table: pd.DataFrame) -> str:
    names = [str(column) for column in table.columns]
    return f"there is no column {name!r}: set {key}=<column>; {nearest(name, names)}"


def _without(table: pd.DataFrame, drop: Sequence[str]) -> pd.DataFrame:
    table = table.rename(columns=str)
    absent = [str(name) for name in drop if str(name) not in table]
    if absent:
        names = cast(list[str], list(table.columns))
        raise ValueError(
            f"data.drop names {absent[0]!r}, which the table lacks; {nearest(absent[0], names)}"
        )
    return table.drop(columns=[str(name) for name in drop])


def _refuse_long_keys(**keys: str | None) -> None:
    for key, value in keys.items():
        if value is not None:
            raise ValueError(
                f"data.{key}={value} has no effect with data.format=wide, where every column is a "
                "channel: leave it out, or give data.format=long"
            )


def _check_choice(key: str, value: str, valid: Sequence[str]) -> None:
    if value not in valid:
        raise ValueError(f"data.{key} must be one of {', '.join(valid)}, got {value!r}")
