"""Split a series in time. A split owns steps; a window belongs to it if its whole future does.

The look-back of a validation or test window may reach into the split before it, as with the
official borders: at the time of the forecast that is the known past.
"""

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pandas as pd

from jepa.data.series_frames import SeriesFrame
from jepa.data.series_times import read_times, steps_per_day

_MIN_VAL_WINDOWS = 100


@dataclass(frozen=True)
class Span:
    """Steps [begin, end) of a split; its windows may look back to `reach`."""

    begin: int
    end: int
    reach: int

    def starts(self, look_back: int, horizon: int) -> range:
        """First steps of the windows whose `horizon` lies in the span."""
        first = max(self.reach, self.begin - look_back)
        return range(first, max(first, self.end - look_back - horizon + 1))


Spans = dict[str, list[Span]]


@runtime_checkable
class Split(Protocol):
    """A rule that splits."""

    def spans(self, frame: SeriesFrame, *, look_back: int, horizon: int) -> Spans:
        """Return the spans of `train`, and of `val` and `test` where there are such splits."""
        ...


@dataclass(frozen=True)
class EttSplit:
    """The official borders of the ETT sets: 12, 4 and 4 months of 30 days; the rest is unused."""

    def spans(self, frame: SeriesFrame, *, look_back: int, horizon: int) -> Spans:
        """Split one series of dates."""
        daily = steps_per_day(frame.times[0], frame.frequency)
        month = 30 * daily
        if len(frame.series) > 1 or not daily or frame.lengths[0] < 20 * month:
            raise ValueError(
                "data.split=ett is 12, 4 and 4 months of 30 days of one series of dates, got "
                f"{len(frame.series)} series of {frame.lengths[0]} steps of {frame.frequency}: "
                "give data.split=ratio"
            )
        return _in_order([(0, frame.lengths[0])], [(12 * month, 16 * month, 20 * month)])


@dataclass(frozen=True)
class RatioSplit:
    """Shares of every series: train, then validation, then test. A share of 0: no such split."""

    val_share: float = 0.1
    test_share: float = 0.2

    def __post_init__(self):
        _check_shares(self.val_share, self.test_share)

    def spans(self, frame: SeriesFrame, *, look_back: int, horizon: int) -> Spans:
        """Round as the official code does: train and test down, validation takes the rest."""
        train_share = round(1.0 - self.val_share - self.test_share, 12)
        borders = []
        for n in frame.lengths:
            n_train, n_test = int(n * train_share), int(n * self.test_share)
            if not self.val_share:
                n_train = n - n_test
            borders.append((n_train, n - n_test, n))
        return _in_order(_places(frame), borders)


@dataclass(frozen=True)
class DateSplit:
    """Validation and test begin at given times; None for no test split.

    Args:
        val_start, test_start: dates, or numbers where the times are numbers.
        purge: steps before either that belong to no split.
    """

    val_start: str | int
    test_start: str | int | None = None
    purge: int = 0

    def __post_init__(self):
        if self.purge < 0:
            raise ValueError(f"data.purge must be at least 0, got {self.purge}")

    def spans(self, frame: SeriesFrame, *, look_back: int, horizon: int) -> Spans:
        """Split every series at the same times."""
        val = _time(frame, "val_start", self.val_start)
        test = None if self.test_start is None else _time(frame, "test_start", self.test_start)
        if test is not None and not val < test:
            raise ValueError(
                f"data.val_start={self.val_start} must come before data.test_start="
                f"{self.test_start}"
            )
        borders = []
        for times in frame.times:
            n_train = int(times.searchsorted(val))
            n_val = len(times) if test is None else int(times.searchsorted(test))
            borders.append((n_train, n_val, len(times)))
        return _in_order(_places(frame), borders, purge=self.purge)


@dataclass(frozen=True)
class ChunkSplit:
    """Whole chunks of `chunk` steps, drawn by lot; windows slide inside a chunk.

    The splits share no step, but training chunks lie on both sides of the others: the past is
    judged by a model that has seen its future. For a series whose seasons must be in every split.

    Args:
        chunk: steps; what is left at the end of a series is unused.
        val_share, test_share: of the chunks.
        split_seed: of the lot.
    """

    chunk: int
    val_share: float = 0.1
    test_share: float = 0.2
    split_seed: int = 0

    def __post_init__(self):
        _check_shares(self.val_share, self.test_share)

    def spans(self, frame: SeriesFrame, *, look_back: int, horizon: int) -> Spans:
        """Draw the chunks; refuse a validation split too small to choose by."""
        windows = self.chunk - look_back - horizon + 1
        if windows < 1:
            raise ValueError(
                f"data.chunk={self.chunk} holds no window of data.look_back={look_back} + "
                f"data.horizon={horizon} steps: raise data.chunk to at least {look_back + horizon}"
            )
        starts = [
            begin + step
            for begin, length in _places(frame)
            for step in range(0, length - self.chunk + 1, self.chunk)
        ]
        n = len(starts)
        n_val, n_test = (round(n * share) for share in (self.val_share, self.test_share))
        if self.val_share and n_val * windows < _MIN_VAL_WINDOWS:
            raise ValueError(
                f"data.split=chunks gives {n_val * windows} validation windows ({n_val} chunks of "
                f"{self.chunk} steps with {windows} windows each): fewer than {_MIN_VAL_WINDOWS} "
                "tell models apart by luck; raise data.chunk or data.val_share, or give "
                "data.split=ratio"
            )
        order = np.random.default_rng(self.split_seed).permutation(n)
        parts = {
            "train": order[n_val + n_test :],
            "val": order[:n_val],
            "test": order[n_val : n_val + n_test],
        }
        return {
            name: [Span(starts[i], starts[i] + self.chunk, starts[i]) for i in np.sort(part)]
            for name, part in parts.items()
            if len(part) or name == "train"
        }


_KINDS = {"ett": EttSplit, "ratio": RatioSplit, "dates": DateSplit, "chunks": ChunkSplit}


def choose_split(kind: str, settings: Mapping[str, object]) -> Split:
    """Return the rule of that name; a setting of None is left to it.

    Raises:
        ValueError: for another name, for a setting that it does not have or that it lacks.
    """
    if kind not in _KINDS:
        raise ValueError(f"data.split must be one of {', '.join(_KINDS)}, got {kind!r}")
    given = {key: value for key, value in settings.items() if value is not None}
    keys = {name: {field.name: field for field in fields(rule)} for name, rule in _KINDS.items()}
    for key, value in given.items():
        if key not in keys[kind]:
            fitting = next(name for name in _KINDS if key in keys[name])
            raise ValueError(
                f"data.{key}={value} has no effect with data.split={kind}: leave it out, or give "
                f"data.split={fitting}"
            )
    for key, field in keys[kind].items():
        if field.default is MISSING and key not in given:
            raise ValueError(f"data.split={kind} needs data.{key}=<value>")
    return _KINDS[kind](**given)


def _places(frame: SeriesFrame) -> list[tuple[int, int]]:
    return list(zip(frame.bounds[:-1], frame.lengths, strict=True))


def _in_order(
    places: list[tuple[int, int]], borders: list[tuple[int, int, int]], *, purge: int = 0
) -> Spans:
    """Return the spans up to the three borders of each series; a split without steps is absent."""
    spans: Spans = {"train": [], "val": [], "test": []}
    for (offset, _), (train, val, test) in zip(places, borders, strict=True):
        edges = (("train", 0, train), ("val", train, val), ("test", val, test))
        for name, begin, end in edges:
            last = end if name == "test" or end == test else max(begin, end - purge)
            if last > begin:
                spans[name].append(Span(offset + begin, offset + last, offset))
    return {name: part for name, part in spans.items() if part or name == "train"}


def _time(frame: SeriesFrame, key: str, value: str | int) -> Any:  # as the times of the series
    numbered = not isinstance(frame.times[0], pd.DatetimeIndex)
    text = str(value)
    try:
        time = read_times(pd.Series([int(text) if numbered else text], name=f"data.{key}"))[0]
    except ValueError as error:
        kind = "a whole number" if numbered else "a date such as 2024-12-31"
        raise ValueError(
            f"data.{key}={value} must be {kind}, as the times of this series are"
        ) from error
    low, high = min(t[0] for t in frame.times), max(t[-1] for t in frame.times)
    if not low < time <= high:
        raise ValueError(f"data.{key}={value} must lie within the series: {low} to {high}")
    return time


def _check_shares(val: float, test: float) -> None:
    if min(val, test) < 0 or val + test >= 1:
        raise ValueError(
            f"data.val_share={val} and data.test_share={test} must be at least 0 and leave a share "
            "for training"
        )
