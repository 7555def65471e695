"""How well a linear probe does with a few labels: mean and spread over seeded episodes.

Axes: n training rows, m scored rows, e features, s support rows, c classes.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor

from jepa.metrics import Measured, count_classes
from jepa.probes.linear import cholesky
from jepa.probes.prepare import Standardizer, encode_targets

_T95 = (math.inf, 12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)  # Student's t


def few_shot(
    x_train: Float[Tensor, "n e"],
    y_train: Num[Tensor, " n"],
    x_val: Float[Tensor, "m e"],
    y_val: Num[Tensor, " m"],
    *,
    shots: Sequence[int],
    rows: Sequence[int],
    n_episodes: int,
    l2: float,
    seed: int,
    n_bootstrap: int = 0,
) -> dict[str, float]:
    """Fit ridge regression on a few labelled rows; score it on the other rows, each episode anew.

    For each size: `accuracy_shot<s>` or `rmse_rows<s>`, the mean over the episodes, and `..._std`,
    their standard deviation. `error` (and `accuracy` or `rmse`) is of the largest size. Intervals
    are of the mean, over episodes, by Student's t: another draw of labels, the same scored rows.

    Args:
        x_train: features to draw from; standardised by the statistics of all of them, since it is
            the labels that are scarce.
        y_train: their targets: integers are classes, floats are values.
        x_val: features to score on; standardised like the training rows.
        y_val: their targets.
        shots: labelled rows of each class (all there are, if fewer); read for classes.
        rows: labelled rows; read for values.
        n_episodes: draws, at least 2.
        l2: weight of the squared weights, as in `ridge`.
        seed: of the draws.
        n_bootstrap: taken like every probe does; the intervals here come from the episodes.

    Raises:
        ValueError: for features that are not finite, or a setting below its least value.
    """
    if min(*shots, *rows) < 1 or n_episodes < 2 or l2 <= 0:
        raise ValueError(
            "probe.shots, probe.rows and probe.l2 must be positive and probe.n_episodes at least "
            f"2, got shots={list(shots)}, rows={list(rows)}, {n_episodes=}, {l2=}"
        )
    n_classes = count_classes(y_train, y_val)
    scale, a = Standardizer.fit(x_train, torch.float64)
    b, targets, generator = scale(x_val), encode_targets(y_train, n_classes), torch.Generator()
    generator.manual_seed(seed)
    y_train, y_val = y_train.cpu(), y_val.cpu()
    name, unit = ("accuracy", "shot") if n_classes else ("rmse", "rows")
    scores: dict[str, float] = {}
    mean = low = high = math.nan
    for size in sorted(shots if n_classes else rows):
        found = []
        for _ in range(n_episodes):
            support = draw(y_train, size, n_classes, generator)
            output = fit_and_predict(a[support], targets[support], b, l2)
            found.append(quality(output, y_val, n_classes))
        mean, low, high, std = summarize(found)
        scores[f"{name}_{unit}{size}"] = Measured(mean, low, high, len(y_val))
        scores[f"{name}_{unit}{size}_std"] = std
    best = Measured(mean, low, high, len(y_val))
    error = Measured(1 - mean, 1 - high, 1 - low, len(y_val)) if n_classes else best
    return {"error": error, name: best, **scores}


def draw(
    y: Num[Tensor, " n"], size: int, n_classes: int, generator: torch.Generator
) -> Int[Tensor, " s"]:
    """Return `size` rows of each class that occurs, or `size` rows of all; fewer where too few."""
    order = torch.randperm(len(y), generator=generator)
    if not n_classes:
        return order[:size]
    shuffled = y[order]
    return torch.cat([order[shuffled == c][:size] for c in range(n_classes)])


def fit_and_predict(
    a: Float[Tensor, "s e"], targets: Float[Tensor, "s c"], b: Float[Tensor, "m e"], l2: float
) -> Float[Tensor, "m c"]:
    """Return what ridge regression on a few rows predicts; solved in the rows, not the columns."""
    mean, offset = a.mean(0), targets.mean(0)
    centred = a - mean
    dual = torch.cholesky_solve(targets - offset, cholesky(centred @ centred.T, l2))
    return (b - mean) @ (centred.T @ dual) + offset


def quality(output: Float[Tensor, "m c"], y: Num[Tensor, " m"], n_classes: int) -> float:
    """Return the accuracy, or the RMSE in target units."""
    if n_classes:
        return (output.argmax(1) == y).double().mean().item()
    return (output[:, 0] - y).square().mean().sqrt().item()


def summarize(found: Sequence[float]) -> tuple[float, float, float, float]:
    """Return the mean, its 95 % interval (low, high), and the standard deviation."""
    values = torch.tensor(found, dtype=torch.float64)
    mean, std = values.mean().item(), values.std().item()
    freedom = min(len(found) - 1, len(_T95) - 1)  # past the table: its last, a little too wide
    half = _T95[freedom] * std / math.sqrt(len(found))
    return mean, mean - half, mean + half, std
