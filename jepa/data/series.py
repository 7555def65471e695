"""What every series shares: read, checked, split in time, scaled by the training steps, windowed.

Axes: c channels, t time steps.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from jepa.data.base import DataModule
from jepa.data.batches import Batches
from jepa.data.quoting import list_setting
from jepa.data.series_frames import SeriesFrame, read_series
from jepa.data.series_splits import RatioSplit, Spans, Split, choose_split
from jepa.data.series_times import season_of
from jepa.data.windows import Windows
from jepa.spec import SeriesSpec

PROTOCOLS = ("corrected", "official_drop_last")
_LIMIT = 1e6  # largest scaled value: its square is still far from the end of float32
_PROBE_ROWS = 4096  # windows x channels embedded at a time where the training batch is smaller
_ROUNDING = 1e-12  # a spread this small beside the values is rounding, not variation


class SeriesData(DataModule):
    """A series: read by `load`, split in time, scaled by its training steps, cut into windows.

    Args:
        look_back: time steps of a window that a model sees.
        horizon: time steps after them that it is to tell.
        batch_size, effective_batch_size, seed: see `DataModule`; rows are windows.
        protocol: `corrected`, or `official_drop_last`, which leaves the last incomplete batch of
            validation and test windows out, as published tables do; every number is then stamped.
        period: steps of a season, for the seasonal-naive forecast; 0 for none. None: the usual
            one of the frequency, where the look-back holds it.
        drop: columns to leave out.
    """

    spec: SeriesSpec
    split: Split = RatioSplit()
    season: int | None = None  # of a published set
    classes: ClassVar[tuple[str, ...]] = ()  # of a set with labels
    reading: Mapping[str, Any] = {"format": "wide", "time_column": "date", "gaps": "refuse"}

    def __init__(
        self,
        *,
        look_back: int,
        horizon: int,
        batch_size: int,
        effective_batch_size: int | None = None,
        seed: int = 0,
        protocol: str = "corrected",
        period: int | None = None,
        drop: Sequence[str] | None = None,
    ):
        super().__init__(
            batch_size=batch_size, effective_batch_size=effective_batch_size, seed=seed
        )
        for key, value in (("look_back", look_back), ("horizon", horizon)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"data.{key} must be a whole number of steps from 1, got {value}")
        if protocol not in PROTOCOLS:
            raise ValueError(
                f"data.protocol must be one of {', '.join(PROTOCOLS)}, got {protocol!r}"
            )
        if period is not None and not 0 <= period <= look_back:
            raise ValueError(
                f"data.period must be at least 0 and at most data.look_back={look_back}, which "
                f"holds the last season, got {period}"
            )
        self.look_back = look_back
        self.horizon = horizon
        self.protocol = protocol
        self.period = period
        self.drop = [str(column) for column in drop or ()]
        self.splits: dict[str, Windows] = {}

    @property
    def stamp(self) -> str:
        """What every number must say of the protocol; empty where it is the corrected one."""
        return "" if self.protocol == "corrected" else self.protocol

    def load(self) -> SeriesFrame:
        """Read the file, or draw the series."""
        raise NotImplementedError

    def labels(self, frame: SeriesFrame) -> Int[np.ndarray, " t"] | None:
        """Return for each step the label of a window that ends with it; -1 where it has none."""
        return None

    def prepare(self) -> None:
        """Read, check, split, fit on the training steps and scale. A second call does nothing.

        Raises:
            ValueError: for a series that cannot be learnt from; the message names the fix.
        """
        if self.splits:
            return
        frame = self.load()
        spans = self.split.spans(frame, look_back=self.look_back, horizon=self.horizon)
        _check_lengths(frame, spans, look_back=self.look_back, horizon=self.horizon)
        steps = np.concatenate([np.arange(one.begin, one.end) for one in spans["train"]])
        location, scale = fit_scale(frame.values[:, steps], frame.channels)
        self.spec = self._spec(frame, location, scale)
        self.preprocessing = self._state(frame)
        self.splits = self._windows(frame, spans)
        if self.batch_size > len(self.splits["train"]):
            Batches(self.splits["train"], self.batch_size, seed=self.seed)  # says what to change

    def setup(self, stage: str) -> None:
        """Move the series to the device of the trainer, once for all splits."""
        self.prepare()
        if self.trainer is not None:
            first = self.splits["train"].to(self.trainer.strategy.root_device)
            self.on_device = {
                name: part.on(first.values, first.observed) for name, part in self.splits.items()
            }

    def probe_batches(
        self, split: str, *, max_rows: int | None = None, seed: int = 0
    ) -> Iterator[dict[str, Tensor]]:
        """Yield a seeded subset of a split in order; `max_rows` counts windows x channels."""
        windows, n_channels = self._rows(split), self.spec.n_channels
        n_windows = len(windows) if max_rows is None else max(1, max_rows // n_channels)
        index = torch.arange(len(windows))
        if n_windows < len(windows):
            order = torch.randperm(len(windows), generator=torch.Generator().manual_seed(seed))
            index = order[:n_windows].sort().values
        size = max(self.batch_size, _PROBE_ROWS // n_channels)  # of many channels a few windows
        for part in index.to(windows.device).split(size):
            yield windows.take(part)

    def describe(self) -> str:
        """Channels, times, missing values, and the windows of each split."""
        state, windows = self.preprocessing, next(iter(self.splits.values()))
        shown = ", ".join(self.spec.channels[:8]) + (", ..." if self.spec.n_channels > 8 else "")
        missing = 0.0 if windows.observed is None else 1.0 - windows.observed.float().mean().item()
        panel = "" if len(state["series"]) == 1 else f" in {len(state['series'])} series"
        target = (
            f"to tell {', '.join(self.spec.classes)} within" if self.spec.classes else "to forecast"
        )
        return (
            f"channels: {self.spec.n_channels} ({shown}); {windows.values.shape[1]:,} steps of "
            f"{state['frequency']}{panel}, up to {state['last'][-1]}; missing: {missing:.2%}\n"
            f"windows of {self.look_back} steps, {target} {self.horizon}: "
            + ", ".join(f"{name} {len(part):,}" for name, part in self.splits.items())
            + (f" ({self.stamp})" if self.stamp else "")
        )

    def _spec(self, frame: SeriesFrame, location: np.ndarray, scale: np.ndarray) -> SeriesSpec:
        period = self.season if self.period is None else self.period
        if period is None:
            period = season_of(frame.times[0], frame.frequency)
        return SeriesSpec(
            channels=frame.channels,
            look_back=self.look_back,
            horizon=self.horizon,
            location=tuple(location.tolist()),
            scale=tuple(scale.tolist()),
            period=period if period <= self.look_back else 0,
            task="binary" if self.classes else "forecast",
            classes=self.classes,
        )

    def _state(self, frame: SeriesFrame) -> dict[str, Any]:
        """Return what a forecast of a new file needs, as plain tensors and text."""
        return {
            "location": torch.tensor(self.spec.location, dtype=torch.float64),
            "scale": torch.tensor(self.spec.scale, dtype=torch.float64),
            "channels": list(frame.channels),
            "series": list(frame.series),
            "frequency": frame.frequency,
            "first": [str(times[0]) for times in frame.times],
            "last": [str(times[-1]) for times in frame.times],
            "reading": dict(self.reading),
            "drop": list(self.drop),
        }

    def _windows(self, frame: SeriesFrame, spans: Spans) -> dict[str, Windows]:
        location, scale = (np.array(part) for part in (self.spec.location, self.spec.scale))
        values, observed = scaled(frame, location, scale)
        labels = self.labels(frame)
        splits = {}
        for name, parts in spans.items():
            ranges = [one.starts(self.look_back, self.horizon) for one in parts]
            starts = np.concatenate([np.arange(r.start, r.stop) for r in ranges])
            if self.stamp and name != "train":
                starts = starts[: len(starts) // self.batch_size * self.batch_size]
            own = None if labels is None else labels[starts + self.look_back - 1]
            splits[name] = Windows(
                values=values,
                observed=None if observed.all() else observed,
                starts=torch.from_numpy(starts),
                labels=None if own is None else torch.from_numpy(own),
                look_back=self.look_back,
                horizon=self.horizon,
            )
            if own is not None and name == "train" and len(np.unique(own)) < 2:
                raise ValueError(
                    f"every training window is {self.classes[own[0]]!r}: there is nothing to tell "
                    "apart; change data.threshold"
                )
            if not len(starts):
                raise ValueError(
                    f"data.protocol={self.protocol} leaves no {name} window: the split is smaller "
                    f"than one batch; lower data.batch_size={self.batch_size}"
                )
        return splits


class Series(SeriesData):
    """Any series or panel of yours: `data=series data.path=<csv|tsv|parquet>`.

    Series of different times are one channel with one scale; each is split on its own.

    Args:
        path: the file, relative to the working directory.
        format, time_column, id_column, value_column, gaps, sentinel: see `read_series`.
        split: `ratio`, `dates`, `chunks` or `ett`; see `jepa/data/series_splits.py`.
        val_share, test_share, val_start, test_start, purge, chunk, split_seed: settings of the
            split. None: as there.
        series: settings of `SeriesData`.
    """

    def __init__(
        self,
        *,
        path: str,
        format: str = "wide",
        time_column: str | None = None,
        id_column: str | None = None,
        value_column: str | None = None,
        gaps: str = "refuse",
        sentinel: float | int | None = None,
        split: str = "ratio",
        val_share: float | int | None = None,
        test_share: float | int | None = None,
        val_start: str | int | None = None,
        test_start: str | int | None = None,
        purge: int | None = None,
        chunk: int | None = None,
        split_seed: int | None = None,
        **series,
    ):
        super().__init__(**series)
        self.path = path
        self.reading = {
            "format": format,
            "time_column": time_column,
            "id_column": id_column,
            "value_column": value_column,
            "gaps": gaps,
            "sentinel": sentinel,
        }
        settings = {
            "val_share": val_share,
            "test_share": test_share,
            "val_start": val_start,
            "test_start": test_start,
            "purge": purge,
            "chunk": chunk,
            "split_seed": split_seed,
        }
        self.split = choose_split(split, settings)

    def load(self) -> SeriesFrame:
        """Read the file."""
        return read_series(self.path, drop=self.drop, **self.reading)


def fit_scale(
    values: Float[np.ndarray, "c t"], channels: Sequence[str]
) -> tuple[Float[np.ndarray, " c"], Float[np.ndarray, " c"]]:
    """Return mean and standard deviation of each channel over its known values.

    A channel that never changes keeps its unit: its deviation is taken as 1, with one warning.

    Raises:
        ValueError: for a channel without a known value.
    """
    empty = np.isnan(values).all(axis=1)
    if empty.any():
        name = channels[int(empty.argmax())]
        raise ValueError(
            f"channel {name!r} has no value in the training steps ({int(empty.sum())} such "
            f"channels): leave it out with {list_setting('data.drop', name)}"
        )
    unit = np.nanmax(np.abs(values), axis=1)  # squares of the values themselves may overflow
    unit[unit == 0.0] = 1.0
    location = np.nanmean(values / unit[:, None], axis=1)
    scale = np.nanstd(values / unit[:, None], axis=1)
    constant = scale <= _ROUNDING
    if constant.any():
        names = [name for name, one in zip(channels, constant, strict=True) if one]
        rank_zero_warn(
            f"{len(names)} channels never change in the training steps, and are not divided by "
            f"their deviation: {', '.join(map(repr, names[:5]))}"
        )
    return location * unit, np.where(constant, 1.0, scale * unit)


def scaled(
    frame: SeriesFrame, location: Float[np.ndarray, " c"], scale: Float[np.ndarray, " c"]
) -> tuple[Float[Tensor, "c t"], Bool[Tensor, "c t"]]:
    """Return (float32 values in training deviations, 0 where missing; where they are known).

    Raises:
        ValueError: where a value is a million deviations away: a model would see nothing else.
    """
    observed = ~np.isnan(frame.values)
    values = (frame.values - location[:, None]) / scale[:, None]
    values = np.where(observed, values, 0.0)
    far = np.abs(values) > _LIMIT
    if far.any():
        row, step = (int(part[0]) for part in np.nonzero(far))
        raise ValueError(
            f"channel {frame.channels[row]!r} holds {frame.values[row, step]:g} in step "
            f"{step + 1}, over {_LIMIT:g} times the deviation {scale[row]:g} of its training "
            "steps: leave wrong cells empty, or leave the channel out with "
            f"{list_setting('data.drop', frame.channels[row])}"
        )
    return torch.from_numpy(values.astype(np.float32)), torch.from_numpy(observed)


def _check_lengths(frame: SeriesFrame, spans: Spans, *, look_back: int, horizon: int) -> None:
    """Refuse a split without a window; say how long a window may be."""
    longest = max(frame.lengths)
    asked = f"data.look_back={look_back} + data.horizon={horizon}"
    for name, parts in spans.items():
        if any(len(one.starts(look_back, horizon)) for one in parts):
            continue
        steps = max((one.end - one.begin for one in parts), default=0)
        need, fix = horizon, f"data.horizon to at most {steps}"
        if name == "train":
            need, fix = look_back + horizon, f"both to at most {steps} together"
            if steps > horizon:
                fix = f"data.look_back to at most {steps - horizon}"
        raise ValueError(
            f"the series has {longest} steps, {steps} of them in the {name} split, but {asked} "
            f"need {need} there: lower {fix}, or give a longer series or other splits"
        )
    short = sum(length < look_back + horizon for length in frame.lengths)
    if short:
        rank_zero_warn(
            f"{short} of {len(frame.series)} series are shorter than {asked} and give no window"
        )
