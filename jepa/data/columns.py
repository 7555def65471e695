"""Read one column of a table as numbers, as text labels or as dates, whatever its dtype is."""

import re
from difflib import get_close_matches
from typing import cast

import numpy as np
import pandas as pd
from pandas.api import types

from jepa.data.quoting import kind_setting, list_setting

KINDS = ("number", "category", "date", "drop")
PARTS = ("year", "month", "day", "weekday", "hour", "days")  # days: since 1970-01-01, with fraction
_ISO = re.compile(
    r"\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d(\.\d{1,9})?)?\s?(Z|[+-]\d\d:?\d\d)?)?", re.ASCII
)
_WHOLE = re.compile(r"(-?(?:0|[1-9][0-9]{0,17}))(?:\.0*)?")
_NUMBERS = {"integer", "floating", "mixed-integer-float", "decimal", "timedelta", "empty"}
_DATES = {"datetime", "date", "datetime64"}


def column_of(frame: pd.DataFrame, name: str) -> pd.Series:
    """One column; the names of the frame are unique."""
    return cast(pd.Series, frame[name])


def nearest(name: str, names: list[str]) -> str:
    """Say which known names come closest: part of an error message."""
    close = get_close_matches(name, names, n=3, cutoff=0.5)
    return f"nearest: {', '.join(map(repr, close))}" if close else f"there are: {_some(names)}"


def infer_kind(column: pd.Series) -> str:
    """Say whether a column is a number, a category or a date, from dtype and values.

    bool, text and `category` dtypes are categories; integers and floats are numbers, also when they
    take few values; datetimes, and text in which every value is an ISO date, are dates.

    Raises:
        ValueError: for complex numbers.
    """
    dtype = column.dtype
    if types.is_bool_dtype(dtype) or isinstance(dtype, pd.CategoricalDtype):
        return "category"
    if types.is_complex_dtype(dtype):
        raise ValueError(
            f"column {column.name!r} holds complex numbers: split it into two real columns, "
            f"or leave it out with {list_setting('data.drop', str(column.name))}"
        )
    if types.is_numeric_dtype(dtype) or types.is_timedelta64_dtype(dtype):
        return "number"
    if types.is_datetime64_any_dtype(dtype) or isinstance(dtype, pd.PeriodDtype):
        return "date"
    content = types.infer_dtype(column, skipna=True)
    if content in _NUMBERS:
        return "number"
    return "date" if content in _DATES or _all_iso(column, content) else "category"


def _all_iso(column: pd.Series, content: str) -> bool:
    if content != "string":
        return False
    known = column.dropna().unique()
    if not all(_ISO.fullmatch(str(value)) for value in known):
        return False
    parsed = pd.to_datetime(pd.Series(known), format="ISO8601", utc=True, errors="coerce")
    return bool(parsed.notna().all())


def numbers(column: pd.Series) -> np.ndarray:
    """Read as float32 where it is stored so, else as float64; missing values are NaN.

    Raises:
        ValueError: where a value is no number, or is infinite.
    """
    values = _as_float(column)
    infinite = int(np.isinf(values).sum())
    if infinite:
        raise ValueError(
            f"column {column.name!r} holds {infinite} infinite values: leave those cells empty "
            "(missing values are fine), or leave the column out with "
            f"{list_setting('data.drop', str(column.name))}"
        )
    return values


def _as_float(column: pd.Series) -> np.ndarray:
    dtype = column.dtype
    if types.is_timedelta64_dtype(dtype):
        return np.asarray(column.dt.total_seconds(), dtype=np.float64)
    if dtype == np.float32:
        return column.to_numpy()
    if types.is_numeric_dtype(dtype) and not types.is_complex_dtype(dtype):
        return column.to_numpy(dtype=np.float64, na_value=np.nan)
    raw = column.to_numpy(dtype=object)
    values = np.array([_float_or_nan(value) for value in raw], dtype=np.float64)
    wrong = np.isnan(values) & ~_is_missing(column)
    if wrong.any():
        raise ValueError(
            f"column {column.name!r} is read as a number, but holds {raw[wrong][0]!r} "
            f"({int(wrong.sum())} such values): set {kind_setting(str(column.name), 'category')}"
        )
    return values


def _is_missing(column: pd.Series) -> np.ndarray:
    """Missing or blank text."""
    return labels(column)[0] < 0


def _float_or_nan(value: object) -> float:
    """Read one cell; NaN where it is missing or no number."""
    if isinstance(value, pd.Timedelta):
        return value.total_seconds()
    try:
        return float(value)  # pyright: ignore[reportArgumentType]
    except (TypeError, ValueError, OverflowError):
        return float("nan")


def labels(column: pd.Series) -> tuple[np.ndarray, list[str]]:
    """Read as text: (index into the texts, -1 where missing; the texts, which may repeat).

    3, 3.0, "3" and "3.0" are one text, so a file read with other dtypes has the same labels; blank
    text is missing.
    """
    content = types.infer_dtype(column, skipna=True) if column.dtype == object else ""
    if content not in ("", "string", "integer", "floating", "boolean"):
        column = column.map(_text, na_action="ignore")  # a hash takes True and 1 for one value
    index, known = pd.factorize(column)
    texts = [_text(value) for value in known]
    blank = np.array([text == "" for text in texts] + [True])  # the last one: -1, missing
    return np.where(blank[index], -1, index), texts


def _text(value: object) -> str:
    if isinstance(value, float | np.floating) and float(value).is_integer() and abs(value) < 1e15:
        return str(int(value))
    text = str(value).strip()
    whole = _WHOLE.fullmatch(text)
    return str(int(whole[1])) if whole else text


def date_parts(column: pd.Series) -> dict[str, np.ndarray]:
    """Split dates into numbers, NaN where missing. Times with a zone are read in UTC.

    Raises:
        ValueError: where a value is no date.
    """
    if isinstance(column.dtype, pd.PeriodDtype):
        column = column.dt.to_timestamp()
    form = None if types.is_datetime64_any_dtype(column.dtype) else "ISO8601"
    text = column if form is None else column.astype(object)
    dates = pd.to_datetime(text, format=form, utc=True, errors="coerce")
    wrong = dates.isna().to_numpy() & ~_is_missing(column)
    if wrong.any():
        first = column.to_numpy(dtype=object)[wrong][0]
        raise ValueError(
            f"column {column.name!r} is read as dates, but holds {first!r} "
            f"({int(wrong.sum())} such values): write dates as 2024-12-31 or 2024-12-31 23:59:00, "
            f"or set {kind_setting(str(column.name), 'category')}"
        )
    days = (dates - pd.Timestamp("1970-01-01", tz="UTC")) / pd.Timedelta(days=1)
    clock = dates.dt
    found = (clock.year, clock.month, clock.day, clock.day_of_week, clock.hour, days)
    parts = dict(zip(PARTS, found, strict=True))
    return {part: parts[part].to_numpy(dtype=np.float64) for part in PARTS}


def _some(names: list[str]) -> str:
    shown = ", ".join(map(repr, names[:8]))
    return shown + (f" and {len(names) - 8} more" if len(names) > 8 else "")
