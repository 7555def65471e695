"""Time stamps of a series: read, checked, put on a regular grid, and carried on into the future."""

import re
from typing import Any, cast

import numpy as np
import pandas as pd
from pandas.api import types
from pandas.tseries.frequencies import to_offset

GAPS = ("refuse", "missing", "rows")
_YEAR_FIRST = re.compile(r"\d{4}-\d{1,2}-\d{1,2}|\d{4}/\d{1,2}/\d{1,2}", re.ASCII)
_SEASONS = {"B": 5, "D": 7, "W": 52, "MS": 12, "ME": 12, "BMS": 12, "BME": 12, "QS": 4, "QE": 4}
_YEARS = (1678, 2261)  # as far as 64-bit nanoseconds reach
_MAX_GROWTH = 20  # a grid this many times as long as the file is no grid of it


def read_times(column: pd.Series) -> pd.Index:
    """Read whole numbers or dates; dates with a time zone are read in UTC.

    Raises:
        ValueError: for a missing or unreadable value, naming its row.
    """
    if types.is_bool_dtype(column.dtype) or types.is_complex_dtype(column.dtype):
        raise ValueError(_unreadable(column, 0))
    if types.is_numeric_dtype(column.dtype):
        return _read_numbers(column)
    dates = _read_dates(column)
    wrong = np.flatnonzero(~dates.dt.year.between(*_YEARS))  # also where there is no date
    if len(wrong):
        raise ValueError(_unreadable(column, int(wrong[0])))
    return pd.DatetimeIndex(dates).tz_localize(None).as_unit("ns")


def _read_numbers(column: pd.Series) -> pd.Index:
    numbers = column.to_numpy(dtype=np.float64, na_value=np.nan)
    whole = np.isfinite(numbers) & (np.abs(numbers) < 2**53)
    whole[whole] &= numbers[whole] == np.floor(numbers[whole])
    if not whole.all():
        raise ValueError(_unreadable(column, int(np.flatnonzero(~whole)[0])))
    return pd.Index(numbers.astype(np.int64))


def _read_dates(column: pd.Series) -> pd.Series:
    if isinstance(column.dtype, pd.PeriodDtype):
        column = column.dt.to_timestamp()
    if types.is_datetime64_any_dtype(column.dtype):
        return cast(pd.Series, pd.to_datetime(column, utc=True))
    cells = [str(value).strip() for value in column]
    readable = np.array([_YEAR_FIRST.match(cell) is not None for cell in cells], dtype=bool)
    # 01/02/2020 may be January or February: refused
    text = pd.Series(cells, index=column.index, dtype=object).where(readable)
    dates = cast(pd.Series, pd.to_datetime(text, format="ISO8601", utc=True, errors="coerce"))
    left = dates.isna() & readable
    if left.any():  # such as 1990/1/1 0:00; in the form of the first of them
        slashed = cast(pd.Series, text[left]).str.replace("/", "-")
        dates[left] = pd.to_datetime(slashed, utc=True, errors="coerce")
    return dates


def shown(column: pd.Series, row: int) -> str:
    """Show a cell in a message: text in quotes, numbers plain."""
    value = column.iloc[row]
    return repr(value) if isinstance(value, str) else str(value)


def _unreadable(column: pd.Series, row: int) -> str:
    return (
        f"column {column.name!r} holds {shown(column, row)} in row {row + 1}, which is no time: "
        f"write whole numbers, or dates as 2024-12-31 or 2024-12-31 23:59:00 ({_YEARS[0]} to "
        f"{_YEARS[1]}), or name another column with data.time_column"
    )


def check_order(times: pd.Index, *, name: str) -> None:
    """Refuse times that do not rise.

    Raises:
        ValueError: naming the first time that repeats or comes too late.
    """
    if times.is_monotonic_increasing and times.is_unique:
        return
    falls = np.flatnonzero(np.asarray(times[1:] <= times[:-1]))
    row = int(falls[0]) + 1
    if times[row] == times[row - 1]:
        raise ValueError(
            f"{name}time {times[row]} is duplicated (rows {row} and {row + 1}): a series has one "
            "row a time; remove or average the duplicates (several series in one file: "
            "data.format=long)"
        )
    raise ValueError(
        f"{name}times are unsorted: {times[row]} (row {row + 1}) comes after {times[row - 1]}; "
        "sort the file by its time column"
    )


def regular(times: pd.Index, *, gaps: str, name: str) -> tuple[pd.Index, str]:
    """Return the grid that the rows are to lie on, and its frequency as text.

    Args:
        times: ascending.
        gaps: `refuse`; `missing`: the grid has the absent times too; `rows`: the times as they
            are, every row a step.
        name: of the series, for the message.

    Raises:
        ValueError: for a gap that is to be refused, naming the first; for times without a step.
    """
    if len(times) < 2:
        raise ValueError(f"{name}the series has {len(times)} rows: a series needs at least 2")
    frequency, grid = _grid(times)
    if gaps == "rows":
        return times, frequency
    if grid is None:
        raise ValueError(
            f"{name}times follow no regular step (most common: {frequency}); first at odds: "
            f"{_first_break(times)}; resample the series, or give data.gaps=rows to take every "
            "row for a step"
        )
    if len(grid) > len(times) and gaps == "refuse":
        absent = grid.difference(times)
        raise ValueError(
            f"{name}there is a gap: {absent[0]} is absent at a step of {frequency} "
            f"({len(absent)} absent times in all); give data.gaps=missing to insert them as "
            "missing values, or data.gaps=rows to take every row for a step"
        )
    return grid, frequency


def _grid(times: pd.Index) -> tuple[str, pd.Index | None]:
    """Return (frequency, the grid that holds all times; None if there is no such grid)."""
    if not isinstance(times, pd.DatetimeIndex):
        return _number_grid(times)
    exact = pd.infer_freq(times) if len(times) > 2 else None
    if exact is not None:
        return str(exact), times
    steps = np.diff(times.to_numpy(dtype="datetime64[ns]").astype(np.int64))
    common = int(_most_common(steps))
    frequency = to_offset(cast(Any, pd.Timedelta(common, unit="ns"))).freqstr
    if (steps % common == 0).all():
        return frequency, _dates(times, frequency)
    for candidate in _calendar(times):
        grid = _dates(times, candidate)
        if grid is not None and times.isin(grid).all():
            return candidate, grid
    return frequency, None


def _number_grid(times: pd.Index) -> tuple[str, pd.Index | None]:
    steps = np.diff(times.to_numpy())
    common = int(_most_common(steps))
    n_steps = int(times[-1] - times[0]) // common + 1
    if (steps % common).any() or n_steps > _MAX_GROWTH * len(times):
        return str(common), None
    return str(common), pd.RangeIndex(int(times[0]), int(times[-1]) + 1, common)


def _dates(times: pd.DatetimeIndex, frequency: str) -> pd.DatetimeIndex | None:
    offset = to_offset(frequency)
    first, last = cast(Any, times[0]), cast(Any, times[-1])
    if (last - first) / (first + offset - first) > _MAX_GROWTH * len(times):
        return None
    return pd.date_range(first, last, freq=offset)


def _calendar(times: pd.DatetimeIndex) -> list[str]:
    """Return the frequencies of short stretches: of months, say, which have no one length."""
    stretches = (times[i : i + 4] for i in range(min(len(times) - 3, 50)))
    found = (pd.infer_freq(part) for part in stretches)
    return list(dict.fromkeys(str(one) for one in found if one is not None))


def _most_common(steps: np.ndarray) -> np.integer:
    values, counts = np.unique(steps, return_counts=True)
    return values[counts.argmax()]


def _first_break(times: pd.Index) -> str:
    steps = np.diff(times.to_numpy())
    row = int(np.flatnonzero(steps != _most_common(steps))[0])
    return f"{times[row]} to {times[row + 1]}"


def future_index(last: pd.Timestamp | int, frequency: str, n: int) -> pd.Index:
    """Return the `n` times that follow `last`."""
    if isinstance(last, pd.Timestamp):
        return pd.date_range(last, periods=n + 1, freq=to_offset(frequency))[-n:]
    step = int(frequency)
    return pd.RangeIndex(last + step, last + step * (n + 1), step)


def steps_per_day(times: pd.Index, frequency: str) -> int:
    """Return how many steps make a day; 0 where that is no whole number."""
    if not isinstance(times, pd.DatetimeIndex):
        return 0
    try:
        share = pd.Timedelta(days=1) / pd.Timedelta(to_offset(frequency))  # pyright: ignore
    except (TypeError, ValueError):  # months and the like have no one length
        return 0
    return round(share) if share >= 1 and abs(share - round(share)) < 1e-9 else 0


def season_of(times: pd.Index, frequency: str) -> int:
    """Return the steps of the usual season: a day of hours, a week of days, a year of months.

    0 where none is usual, as for numbered steps.
    """
    daily = steps_per_day(times, frequency)
    if daily != 1 and daily:
        return daily
    if not isinstance(times, pd.DatetimeIndex):
        return 0
    offset = to_offset(frequency)
    return _SEASONS.get(offset.name.split("-")[0], 0) if offset.n == 1 else 0
