"""How much of the space the codes use, without labels: to see a collapse while it happens.

Axes: n rows, e features, k = min(n, e) eigenvalues.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from jepa.probes.prepare import gram, to_cpu

_EPSILON = 1e-7  # of RankMe, for float32 features


def label_free(x: Float[Tensor, "n e"]) -> dict[str, float]:
    """Return `rankme`, `alpha_req`, `spectrum_entropy`, `isotropy`, `mean_cosine` and `std_*`.

    The first three share one spectrum, that of the second moment x^T x / n (as RankMe: features
    are not centred), taken from a Gram matrix on the smaller side in float64 on the CPU.

    Raises:
        ValueError: for no rows, or a value that is not finite.
    """
    if not len(x):
        raise ValueError("label_free needs rows of features, got none")
    values = to_cpu(x, torch.float64)
    n, e = values.shape
    mean = values.mean(0)
    centred = values - mean
    if e <= n:
        inner = gram(centred)
        second = inner + n * torch.outer(mean, mean)  # adding loses no digits, subtracting would
    else:
        inner = gram(centred.T)
        shift = centred @ mean
        second = inner + shift + shift[:, None] + mean.square().sum()
    spectrum = torch.linalg.eigvalsh(second / n).clamp_min(0).flip(0)
    std = torch.linalg.vector_norm(centred, dim=0) / n**0.5
    return {
        "rankme": rankme(spectrum.sqrt()),
        "alpha_req": alpha_req(spectrum),
        "spectrum_entropy": spectrum_entropy(spectrum),
        "isotropy": isotropy(inner, n_features=e),
        "mean_cosine": mean_cosine(values),
        "std_mean": std.mean().item(),
        "std_min": std.min().item(),
    }


def rankme(singular_values: Float[Tensor, " k"]) -> float:
    """Return exp(entropy of the singular values), from 1 to k; 0 if all are zero.

    Garrido et al., "RankMe: Assessing the Downstream Performance of Pretrained Self-Supervised
    Representations by Their Rank", ICML 2023, arXiv:2210.02885, Eqs. 1-2.
    """
    total = singular_values.sum()
    if total == 0:
        return 0.0
    p = singular_values / total + _EPSILON
    return (-(p * p.log()).sum()).exp().item()


def alpha_req(spectrum: Float[Tensor, " k"]) -> float:
    """Return the exponent a of the decay lambda_i ~ i^-a: a least-squares line through the logs.

    Agrawal et al., "alpha-ReQ: Assessing Representation Quality in Self-Supervised Learning by
    Measuring Eigenspectrum Decay", NeurIPS 2022. Eigenvalues that are rounding errors are left
    out; NaN where fewer than two remain.
    """
    kept = spectrum[spectrum > 1e-12 * spectrum.max()]  # square of what float32 codes resolve
    if len(kept) < 2:
        return math.nan
    rank = torch.arange(1, len(kept) + 1, dtype=kept.dtype).log()
    rank = rank - rank.mean()
    return (-(rank @ kept.log()) / rank.square().sum()).item()


def spectrum_entropy(spectrum: Float[Tensor, " k"]) -> float:
    """Return the entropy of the eigenvalues over log k: 0 is one direction, 1 is all alike.

    Of eigenvalues, where RankMe takes singular values: less moved by the noise floor.
    """
    total = spectrum.sum()
    if total == 0 or len(spectrum) == 1:
        return 0.0
    return torch.special.entr(spectrum / total).sum().item() / math.log(len(spectrum))


def isotropy(inner: Float[Tensor, "k k"], *, n_features: int) -> float:
    """Return the share of the directions that carry the variance, from 1 / e to 1; 0 if none.

    (sum of the variances)^2 / (e * sum of their squares) over the principal directions: phi of
    IsoScore (Rudman et al., ACL Findings 2022, arXiv:2108.07344), before its rescaling to [0, 1].
    From the inner products of the centred columns (or rows), without an eigenvalue: the sums are
    a trace and a Frobenius norm.
    """
    squares = inner.square().sum().item()
    return inner.trace().item() ** 2 / (n_features * squares) if squares else 0.0


def mean_cosine(x: Float[Tensor, "n e"]) -> float:
    """Return the mean cosine between two different rows; 1 means that all point one way.

    A zero row counts as orthogonal to all. NaN for a single row.
    """
    if len(x) < 2:
        return math.nan
    unit = F.normalize(x, dim=1)
    own = unit.square().sum()
    return ((unit.sum(0).square().sum() - own) / (len(x) * (len(x) - 1))).item()
