"""How good codes look without labels, with intervals, and how much the levels of one model differ.

Axes: n samples, o patches of one, e and f features, g groups.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from jepa.metrics import Measured
from jepa.probes.label_free import label_free
from jepa.probes.prepare import gram, to_cpu

N_GROUPS = 10  # of samples, each left out once
MAX_ROWS = 20_000  # patches that are looked at, where a sample has several
T95 = 2.262  # Student's t, 9 degrees of freedom
PERCENTILES = {"std_p05": 0.05, "std_p50": 0.5, "std_p95": 0.95, "std_max": 1.0}


def quality(x: Float[Tensor, "n o e"], *, seed: int = 0) -> dict[str, Measured]:
    """Return what `label_free` does, `effective_rank` and percentiles of `std`, with intervals.

    Every patch is a row; samples that have several are thinned out to `MAX_ROWS` rows. The
    interval is the jackknife's over `N_GROUPS` groups of samples (Efron and Tibshirani, "An
    Introduction to the Bootstrap", 1993, Ch. 11); none for fewer samples than two groups need.

    Raises:
        ValueError: for no rows, or a value that is not finite.
    """
    n, o, _ = x.shape
    kept = n if o == 1 else min(n, max(MAX_ROWS // o, 1))
    x = x[torch.linspace(0, n - 1, kept).long()]
    return jackknife(kept, lambda rows: describe(x[rows].flatten(0, 1)), seed=seed)


def describe(x: Float[Tensor, "n e"]) -> dict[str, float]:
    """Return the values of `quality` without intervals."""
    values = to_cpu(x, torch.float64)
    std = values.std(0, correction=0)
    places = {name: std.quantile(share).item() for name, share in PERCENTILES.items()}
    return {**label_free(x), "effective_rank": effective_rank(values), **places}


def effective_rank(x: Float[Tensor, "n e"]) -> float:
    """Return exp(entropy of the variances along the principal directions), from 1 to min(n, e).

    Roy and Vetterli, "The Effective Rank: a Measure of Effective Dimensionality", EUSIPCO 2007, of
    the covariance matrix: RankMe takes the features as they lie, uncentred. 0 if all are constant.
    """
    spectrum = torch.linalg.eigvalsh(inner(x - x.mean(0))).clamp_min(0)
    total = spectrum.sum()
    return torch.special.entr(spectrum / total).sum().exp().item() if total else 0.0


def cka(x: Float[Tensor, "n e"], y: Float[Tensor, "n f"], *, seed: int = 0) -> Measured:
    """Return how alike two sets of codes of the same samples are, from 0 to 1.

    Linear centred kernel alignment: Kornblith et al., "Similarity of Neural Network
    Representations Revisited", ICML 2019, arXiv:1905.00414, Eq. 3 and Sec. 3. 1 where one is a
    rotation and scaling of the other; unrelated codes are above 0 where features are many beside
    samples. NaN where a set is constant. The interval is that of `quality`.
    """
    a, b = to_cpu(x, torch.float64), to_cpu(y, torch.float64)

    def alignment(rows: Int[Tensor, " r"]) -> dict[str, float]:
        p, q = (one[rows] - one[rows].mean(0) for one in (a, b))
        both = (p.T @ q).square().sum()
        alone = torch.linalg.matrix_norm(inner(p)) * torch.linalg.matrix_norm(inner(q))
        return {"cka": (both / alone).item() if alone else math.nan}

    return jackknife(len(a), alignment, seed=seed)["cka"]


def inner(x: Float[Tensor, "n e"]) -> Float[Tensor, "k k"]:
    """Return the inner products of columns or of rows, whichever are fewer: their norm is one."""
    return gram(x) if x.shape[1] <= x.shape[0] else gram(x.T)


def jackknife(
    n: int, statistic: Callable[[Int[Tensor, " r"]], dict[str, float]], *, seed: int
) -> dict[str, Measured]:
    """Return the statistics of all n samples, with the interval that leaving groups out gives."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    whole = statistic(order.sort().values)
    if n < 2 * N_GROUPS:
        return {name: Measured(value, n=n) for name, value in whole.items()}
    rest = [
        statistic(torch.cat([order[:start], order[end:]]).sort().values)
        for start, end in ((n * g // N_GROUPS, n * (g + 1) // N_GROUPS) for g in range(N_GROUPS))
    ]
    found: dict[str, Measured] = {}
    for name, value in whole.items():
        parts = torch.tensor([one[name] for one in rest], dtype=torch.float64)
        spread = (parts - parts.mean()).square().sum() * (N_GROUPS - 1) / N_GROUPS
        half = T95 * spread.sqrt().item()
        found[name] = Measured(value, value - half, value + half, n)
    return found
