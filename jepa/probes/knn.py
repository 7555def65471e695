"""k nearest neighbours by cosine, weighted by similarity.

Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination" (InstDisc),
CVPR 2018, arXiv:1805.01978, Sec. 3.4.

Optionally on principal components that are whitened in part (Jegou & Chum, "Negative Evidences and
Co-occurrences in Image Retrieval: the Benefit of PCA and Whitening", ECCV 2012): a wide code
repeats itself, and cosines of it are those of its few loudest directions.

Axes: n training rows, m scored rows, e features, k neighbours, c classes.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Num
from torch import Tensor

from jepa.metrics import count_classes
from jepa.probes.prepare import Standardizer, encode_targets, report

_QUERIES = 512  # compared with all training rows at once


def knn(
    x_train: Float[Tensor, "n e"],
    y_train: Num[Tensor, " n"],
    x_val: Float[Tensor, "m e"],
    y_val: Num[Tensor, " m"],
    *,
    k: int,
    ks: Sequence[int],
    temperature: float,
    components: int | None,
    power: float,
    n_bootstrap: int = 0,
) -> dict[str, float]:
    """Score a vote (classes) or a weighted mean (values) of the nearest training rows.

    Every metric is of `k`; beside it stands `accuracy_k<j>` (or `rmse_k<j>`) for each j of `ks`.
    Where there are fewer training rows, all of them are asked.

    Args:
        x_train: features of the neighbours; standardised inside, by their own statistics.
        y_train: their targets: integers are classes, floats are values.
        x_val: features to score on; standardised like the training rows.
        y_val: their targets.
        k: neighbours behind the metrics without a suffix.
        ks: further numbers of neighbours.
        temperature: neighbours weigh exp(cosine / temperature).
        components: how many principal components of the standardised training rows are compared,
            as many as there are at most; None: the features themselves.
        power: each component is divided by this power of its singular value: 0 leaves it as it is,
            1 whitens it.
        n_bootstrap: resamples behind the intervals, 0 for none.

    Raises:
        ValueError: for features that are not finite, or a setting that is not positive.
    """
    if min(k, *ks) < 1 or temperature <= 0:
        raise ValueError(
            "probe.k, probe.ks and probe.temperature must be positive, "
            f"got {k=}, ks={list(ks)}, {temperature=}"
        )
    if (components is not None and components < 1) or not 0 <= power <= 1:
        raise ValueError(
            "probe.components must be at least 1, or null, and probe.power in [0, 1], "
            f"got {components=}, {power=}"
        )
    n_classes = count_classes(y_train, y_val)
    targets = encode_targets(y_train, n_classes)
    similarity, index = find_neighbours(
        x_train, x_val, k=min(max(k, *ks), len(x_train)), components=components, power=power
    )
    scores = {
        one: report(
            vote(similarity[:, :one], index[:, :one], targets, temperature, smooth=n_classes > 0),
            y_val,
            n_classes=n_classes,
            n_bootstrap=n_bootstrap,
        )
        for one in dict.fromkeys([k, *ks])
    }
    headline = "accuracy" if n_classes else "rmse"
    return {**scores[k], **{f"{headline}_k{one}": scores[one][headline] for one in ks}}


def find_neighbours(
    x_train: Float[Tensor, "n e"],
    x: Float[Tensor, "m e"],
    *,
    k: int,
    components: int | None = None,
    power: float = 0.0,
) -> tuple[Float[Tensor, "m k"], Int[Tensor, "m k"]]:
    """Return the cosines and indices of the k nearest training rows, nearest first."""
    # DIFF(paper): standardised first, so that no column outweighs the rest by its unit.
    scale, bank = Standardizer.fit(x_train, torch.float32)
    queries = scale(x)
    if components is not None:
        basis = principal(bank, components, power)
        bank, queries = bank @ basis, queries @ basis
    bank = F.normalize(bank, dim=1).T
    found = [(q @ bank).topk(k, dim=1) for q in F.normalize(queries, dim=1).split(_QUERIES)]
    return torch.cat([f.values for f in found]), torch.cat([f.indices for f in found])


def principal(x: Float[Tensor, "n e"], components: int, power: float) -> Float[Tensor, "e p"]:
    """Return the leading principal directions of centred rows, divided by a power of their size.

    Those without a size are left out. The solver's random numbers are seeded: the same rows have
    the same directions.
    """
    from sklearn.decomposition import PCA

    model = PCA(min(components, *x.shape), random_state=0).fit(x.numpy())
    size = torch.from_numpy(model.singular_values_)
    kept = size > 1e-5 * size[0]
    return torch.from_numpy(model.components_).T[:, kept] / size[kept] ** power


def vote(
    similarity: Float[Tensor, "m k"],
    index: Int[Tensor, "m k"],
    targets: Float[Tensor, "n c"],
    temperature: float,
    *,
    smooth: bool,
) -> Float[Tensor, "m c"]:
    """Return the weighted mean of the neighbours' targets.

    Smoothed for classes: one further vote, shared by all classes, keeps a class that no neighbour
    has from being impossible, and leaves the order of the classes as it is.
    """
    weights = (similarity.double() / temperature).softmax(1)
    mean = targets.new_zeros(len(index), targets.shape[1])
    for one, weight in zip(index.T, weights.T, strict=True):  # never [m, k, c] at once
        mean += weight[:, None] * targets[one]
    if not smooth:
        return mean
    k, c = index.shape[1], targets.shape[1]
    return (k * mean + 1 / c) / (k + 1)
