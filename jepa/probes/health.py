"""How alive a representation is, on a few hundred held-out rows: what the collapse watch looks at.

Axes: n rows, e features.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Num
from torch import Tensor

from jepa.probes.label_free import label_free


def health(codes: Float[Tensor, "n e"], y: Num[Tensor, " n"] | None) -> dict[str, float]:
    """Return `std`, `rankme`, `spread` and, with class labels, `knn`: each 0 in a full collapse.

    `std` is the mean standard deviation of a dimension; `rankme` is RankMe - 1, for 1 is a single
    direction; `spread` is 1 - mean cosine; `knn` is the accuracy of the nearest other row's label
    above what two random rows agree on.
    """
    measured = label_free(codes)
    values = {
        "std": measured["std_mean"],
        "rankme": max(measured["rankme"] - 1.0, 0.0),
        "spread": 1.0 - measured["mean_cosine"],
    }
    if y is not None and len(y) == len(codes) and not y.is_floating_point():
        values["knn"] = nearest_agreement(codes, y)
    return values


def nearest_agreement(codes: Float[Tensor, "n e"], y: Num[Tensor, " n"]) -> float:
    """Return how often a row and its nearest other row (by cosine) share a label, above chance."""
    unit = F.normalize(codes.float(), dim=1)
    near = (unit @ unit.T).fill_diagonal_(-torch.inf).argmax(1)
    shares = torch.bincount(y.long()).double() / len(y)
    agreement = (y[near] == y).double().mean()
    return max((agreement - shares.square().sum()).item(), 0.0)
