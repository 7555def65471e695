"""Forecasts without a network, beside which every forecaster is reported.

Windows are in scaled space, 0 where a value is missing. Nothing here is tuned.

Axes: b windows, n windows of a split, c channels, t time steps, l look-back, h horizon, r runs,
z = l + h.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

DAMPING = 1e-3  # of the closed form: ridge penalty over the mean diagonal of the Gram matrix
_ROWS = 4096  # windows multiplied at a time


def repeat_last(x: Float[Tensor, "b c l"], *, horizon: int) -> Float[Tensor, "b c h"]:
    """Forecast the last value for every step."""
    return x[..., -1:].expand(*x.shape[:-1], horizon)


def seasonal_naive(
    x: Float[Tensor, "b c l"], *, horizon: int, period: int
) -> Float[Tensor, "b c h"]:
    """Forecast the last season, again and again.

    Raises:
        ValueError: if the window does not hold a season.
    """
    if not 0 < period <= x.shape[-1]:
        raise ValueError(f"a season must be from 1 step to the {x.shape[-1]} seen, got {period=}")
    step = torch.arange(horizon, device=x.device) % period
    return x[..., -period:].index_select(-1, step)


def linear_forecast(
    x: Float[Tensor, "b c l"], weights: Float[Tensor, "l h"]
) -> Float[Tensor, "b c h"]:
    """Map what lies above the window's mean to the horizon, the same way for every channel."""
    mean = x.mean(-1, keepdim=True)
    return (x - mean) @ weights.to(x) + mean


def fit_linear(
    values: Float[Tensor, "c t"],
    starts: Int[Tensor, " n"],
    *,
    look_back: int,
    horizon: int,
    observed: Bool[Tensor, "c t"] | None = None,
) -> Float[Tensor, "l h"]:
    """Return the closed-form linear forecaster of these windows, in float64 on the CPU.

    Ridge regression of the future on the look-back, both less the look-back's mean; one matrix for
    all channels, the penalty `DAMPING` times the mean diagonal of the Gram matrix. Windows with a
    missing value are left out.

    Raises:
        ValueError: if no window is complete.
    """
    values, length = values.cpu().double(), look_back + horizon
    chosen = complete_windows(values, starts.cpu(), observed, length)
    if not chosen.any():
        raise ValueError(f"no training window of {length} steps is without a missing value")
    moments = second_moments(values, chosen, look_back=look_back, length=length)
    # sum of (x - m)(z - m)^T, where m is the mean of x, a linear function of the window z
    rows, columns = moments[:, :look_back].mean(1, keepdim=True), moments.mean(0)
    centred = moments - rows - columns + columns[:look_back].mean()
    gram, cross = centred.split([look_back, horizon], dim=1)
    penalty = DAMPING * gram.diagonal().mean().item() or 1.0  # constant windows: any will do
    factor = torch.linalg.cholesky(gram + penalty * torch.eye(look_back, dtype=gram.dtype))
    return torch.cholesky_solve(cross, factor)


def complete_windows(
    values: Float[Tensor, "c t"],
    starts: Int[Tensor, " n"],
    observed: Bool[Tensor, "c t"] | None,
    length: int,
) -> Bool[Tensor, "c t"]:
    """Mark for each channel the first step of each window without a missing value."""
    chosen = torch.zeros(values.shape, dtype=torch.bool)
    chosen[:, starts] = True
    if observed is not None:
        missing = F.pad((~observed.cpu()).cumsum(1), (1, 0))
        whole = missing[:, length:] == missing[:, :-length]
        chosen[:, : whole.shape[1]] &= whole
    return chosen


def second_moments(
    values: Float[Tensor, "c t"], chosen: Bool[Tensor, "c t"], *, look_back: int, length: int
) -> Float[Tensor, "l z"]:
    """Return the first `look_back` rows of the sum of z z^T over the chosen windows z.

    Windows overlap, so entry (i + 1, j + 1) is entry (i, j), less the products at the start of
    each run of neighbouring windows, plus those after its end. One row and these products give
    the rest: seconds become milliseconds, and no window is materialised.
    """
    first = values.new_zeros(length)
    for series, mask in zip(values, chosen, strict=True):  # correlations by FFT, a channel a time
        spectrum = torch.fft.rfft(series * mask).conj() * torch.fft.rfft(series)
        first += torch.fft.irfft(spectrum, n=len(series))[:length]
    before = F.pad(chosen, (1, 0))[:, :-1]
    step = products(values, before & ~chosen, look_back - 1, length - 1)
    step -= products(values, chosen & ~before, look_back - 1, length - 1)
    moments = values.new_empty(look_back, length)
    moments[0] = first
    for i in range(1, look_back):
        moments[i, 1:] = moments[i - 1, :-1] + step[i - 1]
        moments[i, 0] = first[i]
    return moments


def products(
    values: Float[Tensor, "c t"], chosen: Bool[Tensor, "c t"], look_back: int, length: int
) -> Float[Tensor, "k z"]:
    """Return the first rows of the sum of z z^T over the windows at these steps, by products."""
    total = values.new_zeros(look_back, length)
    windows = values.unfold(1, length, 1) if length else values.new_zeros(*values.shape, 0)
    for channel, start in zip(*(part.split(_ROWS) for part in chosen.nonzero(as_tuple=True)), strict=True):  # fmt: skip  # noqa: E501
        z = windows[channel, start]
        total += z[:, :look_back].T @ z
    return total


def fill(
    x: Float[Tensor, "b c l"], observed: Bool[Tensor, "b c l"] | None
) -> Float[Tensor, "b c l"]:
    """Let missing steps repeat the last known value; before the first one, that one, else 0."""
    if observed is None:
        return x
    step = torch.arange(x.shape[-1], device=x.device)
    last = torch.where(observed, step, -1).cummax(-1).values
    first = observed.int().argmax(-1, keepdim=True)
    return x.gather(-1, torch.where(last < 0, first, last))
