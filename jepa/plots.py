"""Pictures of forecasts: what was seen, the forecast with its fan, and what came."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped

_INK, _FORECAST = "0.25", "tab:blue"


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One channel around one cutoff.

    Args:
        title: above it.
        times: dates or numbers, of `history` and then of `forecast`.
        history: the values seen.
        forecast: the values after them.
        fan: quantiles of the forecast, ascending; empty along q for none.
        levels: their probabilities.
        truth: what came; None where it is not known yet.
    """

    title: str
    times: Shaped[np.ndarray, " t"]
    history: Float[np.ndarray, " l"]
    forecast: Float[np.ndarray, " h"]
    fan: Float[np.ndarray, "h q"]
    levels: tuple[float, ...] = ()
    truth: Float[np.ndarray, " h"] | None = None


def draw_forecasts(path: Path, panels: Sequence[Panel]) -> None:
    """Write a picture with one panel below the other."""
    from matplotlib.figure import Figure  # takes a second; no window and no global state

    figure = Figure(figsize=(10.0, 2.2 * len(panels) + 0.6), layout="constrained")
    rows = figure.subplots(len(panels), squeeze=False)[:, 0]
    for axes, panel in zip(rows, panels, strict=True):
        _draw(axes, panel)
    rows[0].legend(loc="upper left", frameon=False, ncols=4, fontsize="small")
    figure.savefig(path, format="png", dpi=120)


def _draw(axes: Any, panel: Panel) -> None:
    n = len(panel.history)
    # the forecast is joined to the last value seen
    after, last = panel.times[n - 1 :], panel.history[-1:]
    axes.plot(panel.times[:n], panel.history, color=_INK, linewidth=1.0, label="seen")
    for low in range(len(panel.levels) // 2):
        high = len(panel.levels) - 1 - low
        between = (np.concatenate([last, panel.fan[:, i]]) for i in (low, high))
        axes.fill_between(
            after, *between, color=_FORECAST, alpha=0.18, linewidth=0.0,
            label=f"{panel.levels[low]:g} to {panel.levels[high]:g}",
        )  # fmt: skip
    if panel.truth is not None:
        truth = np.concatenate([last, panel.truth])
        axes.plot(after, truth, color=_INK, linewidth=1.0, linestyle=":", label="came")
    forecast = np.concatenate([last, panel.forecast])
    axes.plot(after, forecast, color=_FORECAST, linewidth=1.5, label="forecast")
    axes.axvline(panel.times[n - 1], color="0.7", linewidth=0.8)
    axes.set_title(panel.title, loc="left", fontsize="medium")
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.0)
