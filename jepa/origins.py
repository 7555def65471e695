"""Forecast a file from one or several origins, and score what has come true since.

Axes: b windows at a time, n windows, c channels, t time steps, l look-back, h horizon, q quantiles.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from jepa.baselines import fill, repeat_last, seasonal_naive
from jepa.data.series import scaled
from jepa.data.series_frames import SeriesFrame
from jepa.data.series_times import future_index
from jepa.data.windows import Windows
from jepa.forecasting import UNITS, Errors, plain
from jepa.spec import SeriesSpec


@dataclass(frozen=True, kw_only=True)
class Origins:
    """Where forecasts begin: window i has seen the first `seen[i]` steps of series `series[i]`.

    Args:
        frame: the file, its channels in the order of the model.
        look_back, horizon: steps of a window and of a forecast.
        known: whether the file holds the steps forecast.
    """

    frame: SeriesFrame
    series: Int[np.ndarray, " n"]
    seen: Int[np.ndarray, " n"]
    look_back: int
    horizon: int
    known: bool

    def __len__(self) -> int:
        return len(self.series)

    @property
    def starts(self) -> Int[np.ndarray, " n"]:
        """First step of each window on the time axis of the file."""
        return np.asarray(self.frame.bounds)[self.series] + self.seen - self.look_back

    def windows(self, spec: SeriesSpec) -> Windows:
        """Return the scaled windows; their futures are empty where they are not known."""
        values, observed = scaled(self.frame, np.array(spec.location), np.array(spec.scale))
        return Windows(
            values=values,
            observed=None if observed.all() else observed,
            starts=torch.from_numpy(self.starts),
            look_back=self.look_back,
            horizon=self.horizon if self.known else 0,
        )

    def cutoff(self, window: int) -> Any:
        """Return the last time a window has seen."""
        return self.frame.times[self.series[window]][self.seen[window] - 1]

    def ahead(self, window: int) -> pd.Index:
        """Return the times of its forecast."""
        times, n = self.frame.times[self.series[window]], int(self.seen[window])
        if self.known:
            return times[n : n + self.horizon]
        last = times[-1]
        last = last if isinstance(last, pd.Timestamp) else int(last)
        return future_index(last, self.frame.frequency, self.horizon)


@dataclass(frozen=True, kw_only=True)
class Forecasts:
    """Forecasts of every window, in the units of the file; NaN where nothing was seen.

    Args:
        point: the forecast.
        quantiles: beside it; empty along q where the model has none.
        levels: their probabilities.
    """

    point: Float[np.ndarray, "n c h"]
    quantiles: Float[np.ndarray, "n c h q"]
    levels: tuple[float, ...]


def place_origins(
    frame: SeriesFrame, *, look_back: int, horizon: int, windows: int = 0, step: int | None = None
) -> Origins:
    """Return the end of every series; or `windows` origins, the last one `horizon` before the end.

    Args:
        frame: the file.
        look_back: steps of a window.
        horizon: steps of a forecast.
        windows: origins of each series, of which the future is known; 0: the end alone.
        step: from one origin to the next; None: `horizon`.

    Raises:
        ValueError: if no series is long enough; says how many windows there may be.
    """
    step = horizon if step is None else step
    back = [horizon + step * i for i in reversed(range(windows))] or [0]
    need = look_back + back[0]
    fits = [i for i, length in enumerate(frame.lengths) if length >= need]
    longest = max(frame.lengths)
    if not fits:
        most = (longest - look_back - horizon) // step + 1
        asked = f" for {windows=} of horizon {horizon} with {step=}" if windows else ""
        fix = f"; at most windows={most}" if windows and most > 0 else ": give a longer file"
        raise ValueError(
            f"the file has {longest} steps, but the model looks back {look_back} and so needs "
            f"{need}{asked}{fix}"
        )
    if len(fits) < len(frame.lengths):
        rank_zero_warn(
            f"{len(frame.lengths) - len(fits)} of {len(frame.lengths)} series are shorter than the "
            f"{need} steps needed and are not forecast"
        )
    ends = [frame.lengths[i] - one for i in fits for one in back]
    return Origins(
        frame=frame,
        series=np.repeat(fits, len(back)),
        seen=np.array(ends),
        look_back=look_back,
        horizon=horizon,
        known=bool(windows),
    )


def find_blind(windows: Windows) -> Bool[Tensor, "n c"]:
    """Mark where a window holds no known value of a channel: there is nothing to go by.

    Raises:
        ValueError: if that is so everywhere.
    """
    shape = len(windows), len(windows.values)
    if windows.observed is None:
        return torch.zeros(shape, dtype=torch.bool)
    counts = torch.nn.functional.pad(windows.observed.cumsum(1), (1, 0))
    ends = windows.starts + windows.look_back
    blind = rearrange(counts[:, ends] == counts[:, windows.starts], "c n -> n c")
    if blind.all():
        raise ValueError(
            f"no channel has a value in the last {windows.look_back} steps: nothing to forecast "
            "from; cut the empty rows off the end of the file"
        )
    if blind.any():
        rank_zero_warn(
            f"{int(blind.sum())} of {blind.numel()} channel windows hold no value in "
            f"{windows.look_back} steps; their forecasts stay empty"
        )
    return blind


def roll_out(
    predict: Callable[..., Tensor],
    x: Float[Tensor, "b c l"],
    mask: Bool[Tensor, "b c l"] | None,
    *,
    horizon: int,
) -> Float[Tensor, "b c h"]:
    """Forecast `horizon` steps, each further part from the forecasts before it as if known."""
    parts: list[Tensor] = []
    while sum(part.shape[-1] for part in parts) < horizon:
        parts.append(predict(x, mask))
        x = torch.cat([x, parts[-1]], dim=-1)[..., -x.shape[-1] :]
        if mask is not None:
            seen = torch.ones_like(parts[-1], dtype=torch.bool)
            mask = torch.cat([mask, seen], dim=-1)[..., -mask.shape[-1] :]
    return torch.cat(parts, dim=-1)[..., :horizon]


@torch.inference_mode()
def forecast_windows(
    model: Any,
    windows: Windows,
    parts: Iterable[Int[Tensor, " b"]],
    *,
    spec: SeriesSpec,
    horizon: int,
    device: torch.device,
) -> tuple[Forecasts, dict[str, Errors]]:
    """Forecast every window; return the forecasts, and the errors of each forecaster.

    The errors are those of the model (`model`) and of the forecasts without one, over the futures
    that are known; none where no future is.

    Args:
        model: on `device`, in eval mode.
        windows: on the CPU.
        parts: windows to take together, all of them in order.
        spec: of the model.
        horizon: steps; quantiles are given as far as the model was trained for.
        device: of the forward pass.
    """
    blind, levels = find_blind(windows), tuple(getattr(model, "quantiles", None) or ())
    levels = levels if horizon <= spec.horizon else ()  # they would not widen with the way
    others = naive(spec, horizon) if windows.horizon else {}
    errors = {name: Errors(spec.scale) for name in ("model", *others) if windows.horizon}
    points, fans = [], []
    for index in parts:
        batch = windows.take(index)
        x, seen, future = batch["x"], None, None
        if "mask" in batch:
            seen, future = batch["mask"].split([windows.look_back, windows.horizon], dim=-1)
            future = future & ~blind[index][..., None]
        inputs = x.to(device), None if seen is None else seen.to(device)
        point = roll_out(model.predict, *inputs, horizon=horizon).float().cpu()
        if levels:
            fans.append(model.predict_quantiles(*inputs)[..., :horizon, :].float().cpu())
        points.append(point)
        if errors:
            errors["model"].update(point, batch["y"], future)
        for name, other in others.items():
            errors[name].update(other(fill(x, seen)), batch["y"], future)
    point = in_units(torch.cat(points), spec, blind)
    fan = in_units(torch.cat(fans), spec, blind) if levels else np.empty((*point.shape, 0))
    return Forecasts(point=point, quantiles=fan, levels=levels), errors


def naive(spec: SeriesSpec, horizon: int) -> dict[str, Callable[[Tensor], Tensor]]:
    """Return the forecasts to beat: the last value, and the last season where there is one."""
    others: dict[str, Callable[[Tensor], Tensor]] = {
        "repeat_last": partial(repeat_last, horizon=horizon)
    }
    if spec.period:
        others["seasonal_naive"] = partial(seasonal_naive, horizon=horizon, period=spec.period)
    return others


def in_units(
    values: Float[Tensor, "n c ..."], spec: SeriesSpec, blind: Bool[Tensor, "n c"]
) -> Float[np.ndarray, "n c ..."]:
    """Put scaled values back into the units of the file, in float64; NaN where blind."""
    shape = (1, -1, *[1] * (values.ndim - 2))
    location, scale = (np.reshape(part, shape) for part in (spec.location, spec.scale))
    original = values.numpy().astype(np.float64) * scale + location
    original[blind.numpy()] = np.nan
    return original


def names_of(origins: Origins) -> list[tuple[str, int, Int[np.ndarray, " k"]]]:
    """Return (unique_id, channel, its windows) for every channel of every series."""
    frame, found = origins.frame, []
    for number in np.unique(origins.series):
        own = np.flatnonzero(origins.series == number)
        for row, channel in enumerate(frame.channels):
            found.append((frame.series[number] or channel, row, own))
    return found


def long_frames(origins: Origins, forecasts: Forecasts, *, n_rows: int) -> Iterator[pd.DataFrame]:
    """Yield `unique_id, ds, cutoff, y_hat`, quantiles, and `y` where known, ~`n_rows` at a time."""
    times = {i: origins.ahead(i) for i in range(len(origins))}
    held, n_held = [], 0
    for name, row, own in names_of(origins):
        held.append(_long_frame(origins, forecasts, times, name, row, own))
        n_held += len(held[-1])
        if n_held >= n_rows:
            yield pd.concat(held, ignore_index=True)
            held, n_held = [], 0
    if held:
        yield pd.concat(held, ignore_index=True)


def _long_frame(
    origins: Origins,
    forecasts: Forecasts,
    times: Mapping[int, pd.Index],
    name: str,
    row: int,
    own: Int[np.ndarray, " k"],
) -> pd.DataFrame:
    columns: dict[str, Any] = {
        "unique_id": name,
        "ds": np.concatenate([times[i].to_numpy() for i in own]),
        "cutoff": np.repeat(pd.Index([origins.cutoff(int(i)) for i in own]), origins.horizon),
        "y_hat": forecasts.point[own, row].ravel(),
    }
    for i, level in enumerate(forecasts.levels):
        columns[f"q{level:g}"] = forecasts.quantiles[own, row, :, i].ravel()
    if origins.known:
        steps = origins.starts[own, None] + origins.look_back + np.arange(origins.horizon)
        columns["y"] = origins.frame.values[row, steps.ravel()]
    return pd.DataFrame(columns)


def score_cutoffs(origins: Origins, errors: Errors) -> list[dict[str, Any]]:
    """Return the errors of each cutoff, over the series and channels that have it."""
    names = pd.Index([origins.cutoff(i) for i in range(len(origins))])
    cutoffs = names.unique().sort_values()
    *sums, counts = torch.cat(errors.windows, dim=1)
    place = torch.from_numpy(cutoffs.get_indexer(names))
    keys = [f"{unit}{kind}" for unit in UNITS for kind in ("mse", "mae")]

    def total(one: Tensor) -> Tensor:
        return one.new_zeros(len(cutoffs)).index_add_(0, place, one)

    n = total(counts)
    means = {key: plain(total(one) / n) for key, one in zip(keys, sums, strict=True)}
    return [
        {"cutoff": str(cutoff), **{key: means[key][i] for key in keys}, "n": int(n[i])}
        for i, cutoff in enumerate(cutoffs)
    ]
