"""Bring one numeric column to a common scale. What is fitted is one tensor per column."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

SCALERS = ("quantile", "standard", "minmax")
N_QUANTILES = 1000
LIMIT = 1e6  # largest size of a scaled value: its square is still far from the end of float32
_EDGE = 1e300  # larger inputs are cut here, so that differences of two of them stay finite


@dataclass(frozen=True)
class Scaler:
    """A fitted scale of one column.

    `values` (float64) holds evenly spaced quantiles for `quantile`, and (unit, offset, range) for
    `standard` and `minmax`: scaled = (x / unit - offset) / range.
    """

    kind: str
    values: Tensor
    n_rows: int

    @classmethod
    def fit(cls, kind: str, ordered: np.ndarray) -> "Scaler":
        """Fit to the finite values of a column, given in ascending order and not empty."""
        if kind not in SCALERS:
            raise ValueError(f"data.scaler must be one of {', '.join(SCALERS)}, got {kind!r}")
        ordered = _cut(ordered)
        if kind == "quantile":
            levels = np.linspace(0.0, 1.0, min(N_QUANTILES, len(ordered)))
            values = quantiles(ordered, levels)
        else:
            values = _line(kind, ordered)
        return cls(kind, torch.from_numpy(values), len(ordered))

    def apply(self, x: np.ndarray) -> np.ndarray:
        """Scale to float32; NaN stays NaN. Values beyond the fitted range stay within LIMIT."""
        x, values = _cut(x), self.values.numpy()
        if self.kind == "quantile":
            return _normal_scores(x, values, self.n_rows)
        unit, offset, width = values
        with np.errstate(over="ignore"):
            scaled = (x / unit - offset) / width
        return np.clip(scaled, -LIMIT, LIMIT).astype(np.float32)


def quantiles(ordered: np.ndarray, levels: np.ndarray, scaler: Scaler | None = None) -> np.ndarray:
    """Quantiles of ascending values, linear between neighbours, as `numpy.quantile` has them.

    With a scaler: of the scaled values, without scaling (or sorting) all of them.
    """
    position = levels * (len(ordered) - 1)
    below = np.floor(position).astype(np.int64)
    above = np.minimum(below + 1, len(ordered) - 1)
    share = position - below
    near = [ordered[i] if scaler is None else scaler.apply(ordered[i]) for i in (below, above)]
    lower, upper = (values.astype(np.float64) for values in near)
    # rounding may break the order of equal neighbours; a lookup needs it
    return np.maximum.accumulate(lower * (1.0 - share) + upper * share)


def _cut(x: np.ndarray) -> np.ndarray:
    return x if x.dtype == np.float32 else np.clip(x, -_EDGE, _EDGE)


def _line(kind: str, ordered: np.ndarray) -> np.ndarray:
    unit = float(np.abs(ordered[[0, -1]].astype(np.float64)).max()) or 1.0
    x = ordered.astype(np.float64) / unit
    if kind == "standard":
        offset, width = x.mean(), x.std()
    else:
        offset, width = x[0], x[-1] - x[0]
    return np.array([unit, offset, width if width > 0.0 else 1.0])


def _normal_scores(x: np.ndarray, grid: np.ndarray, n_rows: int) -> np.ndarray:
    """Map ranks to a normal distribution; tied values share their middle rank.

    As scikit-learn's `QuantileTransformer(output_distribution="normal")`, except at the ends: there
    it sends the lowest and highest value to -5.2 and 5.2, even where half of all rows are tied at
    the lowest. Here ties at the ends are ties like others, and the outermost rank is half a row.
    """
    levels = np.linspace(0.0, 1.0, len(grid))
    rank = np.interp(x, grid, levels)
    if (np.diff(grid) == 0.0).any():  # the lookup above takes the last of equal quantiles
        rank = 0.5 * (rank - np.interp(-x, -grid[::-1], -levels[::-1]))
    edge = 0.5 / n_rows
    rank = np.clip(rank, edge, 1.0 - edge)
    return torch.special.ndtri(torch.from_numpy(rank)).to(torch.float32).numpy()
