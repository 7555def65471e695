"""Reversible instance normalisation, as functions: no statistic outlives a call.

Kim et al., "Reversible Instance Normalization for Accurate Time-Series Forecasting against
Distribution Shift", ICLR 2022 (without the learned affine map, as PatchTST uses it).
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

EPS = 1e-5  # added to the variance, so that a constant window has a scale


def normalize(
    x: Float[Tensor, "*rows l"], observed: Bool[Tensor, "*rows l"] | None = None
) -> tuple[Float[Tensor, "*rows l"], Float[Tensor, "*rows 1"], Float[Tensor, "*rows 1"]]:
    """Return (x normalised over its last axis, location, scale), from the observed values only.

    What is not observed becomes 0, the mean. A row without any observation has location 0.
    """
    location, scale = moments(x, observed)
    return standardize(x, location, scale, observed), location, scale


def moments(
    x: Float[Tensor, "*rows l"], observed: Bool[Tensor, "*rows l"] | None = None
) -> tuple[Float[Tensor, "*rows 1"], Float[Tensor, "*rows 1"]]:
    """Return the mean and the standard deviation of the observed values of each row."""
    if observed is None:
        variance, location = torch.var_mean(x, dim=-1, correction=0, keepdim=True)
        return location, (variance + EPS).sqrt()
    n = observed.sum(-1, keepdim=True).clamp(min=1)
    location = torch.where(observed, x, 0.0).sum(-1, keepdim=True) / n
    variance = torch.where(observed, x - location, 0.0).square().sum(-1, keepdim=True) / n
    return location, (variance + EPS).sqrt()


def standardize(
    x: Float[Tensor, "*rows l"],
    location: Float[Tensor, "*rows 1"],
    scale: Float[Tensor, "*rows 1"],
    observed: Bool[Tensor, "*rows l"] | None = None,
) -> Float[Tensor, "*rows l"]:
    """Subtract the location and divide by the scale; what is not observed becomes 0."""
    z = (x - location) / scale
    return z if observed is None else torch.where(observed, z, 0.0)


def restore(
    z: Float[Tensor, "*shape"], location: Float[Tensor, "..."], scale: Float[Tensor, "..."]
) -> Float[Tensor, "*shape"]:
    """Undo `standardize`, for what has the location and the scale of a row."""
    return z * scale + location
