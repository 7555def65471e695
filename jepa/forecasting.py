"""Errors of forecasts over the windows of a split, whatever the size of the batches.

Sums are kept in float64 on the CPU, per window and per step, never the forecasts themselves.

Axes: b windows, n windows of a split, c channels, l look-back, h horizon, k kinds of sums.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from jepa.metrics import Measured, mean_over_blocks

Forecaster = Callable[..., Float[Tensor, "b c h"]]  # (x, mask) to the future
UNITS = ("", "original/")  # of the training span's deviation, and of the file


class Errors:
    """Squared and absolute errors of one forecaster, in scaled and in original units.

    Args:
        scale: what the values of each channel were divided by.
    """

    def __init__(self, scale: Sequence[float]):
        self.scale = torch.tensor(scale, dtype=torch.float64)
        self.windows: list[Tensor] = []
        self.cells = torch.zeros(())

    def update(
        self,
        predicted: Float[Tensor, "b c h"],
        y: Float[Tensor, "b c h"],
        observed: Bool[Tensor, "b c h"] | None = None,
    ) -> None:
        """Add the windows of a batch; steps that were not observed do not count."""
        error = predicted.detach().cpu().double() - y.cpu().double()
        if observed is None:
            seen = torch.ones_like(error)
        else:
            seen = observed.cpu().double()
            error = error * seen
        parts = torch.stack([error.square(), error.abs(), seen])
        self.cells = self.cells + parts.sum(1)
        squares, absolutes, counts = parts.sum(3)
        original = squares @ self.scale.square(), absolutes @ self.scale
        sums = (squares.sum(1), absolutes.sum(1), *original, counts.sum(1))
        self.windows.append(torch.stack(sums))

    def metrics(
        self,
        *,
        block: int,
        n_bootstrap: int = 0,
        seed: int = 0,
        less: "Errors | None" = None,
    ) -> dict[str, Measured]:
        """Return `error` (the scaled MSE), `mse`, `mae` and `original/mse`, `original/mae`.

        Args:
            block: neighbouring windows that err together, see `mean_over_blocks`.
            n_bootstrap: resamples behind the intervals; 0 for none.
            seed: of the resamples.
            less: subtract the errors of this forecaster on the same windows, window by window.
        """
        *sums, counts = torch.cat(self.windows, dim=1)
        if less is not None:
            *others, _ = torch.cat(less.windows, dim=1)
            sums = [one - other for one, other in zip(sums, others, strict=True)]
        names = [f"{unit}{kind}" for unit in UNITS for kind in ("mse", "mae")]
        values = {
            name: mean_over_blocks(one, counts, block=block, n_bootstrap=n_bootstrap, seed=seed)
            for name, one in zip(names, sums, strict=True)
        }
        return {"error": values["mse"], **values}

    def breakdown(self) -> dict[str, dict[str, list[float | None]]]:
        """Return each metric per step of the horizon and per channel; None where none counts."""
        parts = {}
        for unit, factor in zip(UNITS, (torch.ones_like(self.scale), self.scale), strict=True):
            column = rearrange(factor, "c -> c 1")
            squares, absolutes, counts = self.cells
            for name, sums in (("mse", squares * column.square()), ("mae", absolutes * column)):
                parts[unit + name] = {
                    "per_step": plain(sums.sum(0) / counts.sum(0)),
                    "per_channel": plain(sums.sum(1) / counts.sum(1)),
                }
        return parts


def plain(values: Float[Tensor, " n"]) -> list[float | None]:
    """Return floats for a report, None where a value is not a number."""
    return [value if math.isfinite(value) else None for value in values.tolist()]


@torch.no_grad()
def score_forecasts(
    forecasters: Mapping[str, Forecaster],
    batches: Iterable[dict[str, Tensor]],
    *,
    scale: Sequence[float],
    device: Any = "cpu",
) -> dict[str, Errors]:
    """Return the errors of each forecaster, from one pass over the batches.

    A batch's `mask` covers the look-back and then the horizon; a forecaster gets the look-back's,
    or None.
    """
    errors = {name: Errors(scale) for name in forecasters}
    for batch in batches:
        x, mask = batch["x"].to(device), batch.get("mask")
        seen = future = None
        if mask is not None:
            seen, future = mask[..., : x.shape[-1]].to(device), mask[..., x.shape[-1] :]
        for name, forecaster in forecasters.items():
            errors[name].update(forecaster(x, seen), batch["y"], future)
    return errors
