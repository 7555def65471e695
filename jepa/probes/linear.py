"""Linear probes in float64 on the CPU: ridge in closed form, logistic regression by L-BFGS.

Axes: n training rows, m scored rows, e features, k coordinates, h held-out rows, c classes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from jaxtyping import Float, Num
from torch import Tensor
from torch.nn import functional as F

from jepa.metrics import count_classes
from jepa.probes.prepare import Predict, Standardizer, encode_targets, gram, report, shuffle

T = TypeVar("T")
L2_PATH = tuple(10.0**i for i in range(4, -3, -1))  # strong to weak
_JITTER = 1e-12  # of the mean diagonal: far below the least l2 of the path
_SHARPNESS = torch.logspace(-1, 2, 31, dtype=torch.float64)
_ROUGH, _FINE = 1e-2, 1e-6  # largest slope left, in units where the curvature is about 1


def ridge(
    x_train: Float[Tensor, "n e"],
    y_train: Num[Tensor, " n"],
    x_val: Float[Tensor, "m e"],
    y_val: Num[Tensor, " m"],
    *,
    l2: float | None = None,
    seed: int,
    n_bootstrap: int = 0,
) -> dict[str, float]:
    """Fit ridge regression (onto one-hot labels, if classes) and score it on the other rows.

    Args:
        x_train: features to fit on; standardised inside, by their own statistics.
        y_train: their targets: integers are classes, floats are values.
        x_val: features to score on; standardised like the training rows.
        y_val: their targets.
        l2: weight of the squared weights beside the sum of squared errors (scikit-learn's
            `alpha`); None walks down 1e4, 1e3, ..., 1e-2 until held-out training rows get worse.
        seed: of the choice of the held-out rows.
        n_bootstrap: resamples behind the intervals, 0 for none.

    Raises:
        ValueError: for features that are not finite, or an `l2` too small for collinear ones.
    """
    n_classes = count_classes(y_train, y_val)
    predict = fit_ridge(x_train, y_train, n_classes=n_classes, l2=l2, seed=seed)
    return dict(report(predict(x_val), y_val, n_classes=n_classes, n_bootstrap=n_bootstrap))


def fit_ridge(
    x: Float[Tensor, "n e"], y: Num[Tensor, " n"], *, n_classes: int, l2: float | None, seed: int
) -> Predict:
    """Return a function from features to class probabilities, or to values in one column.

    The Gram matrix of all rows is the sum of those of the fitted and the held-out rows, so the
    whole path costs one Gram matrix and a Cholesky factor per `l2`.
    """
    order, n_fit = shuffle(len(x), seed)
    space, a = Coordinates.fit(x.index_select(0, order.to(x.device)))
    targets = encode_targets(y, n_classes)[order]
    held = targets[n_fit:]
    offset = targets[:n_fit].mean(0)
    part, cross = gram(a[:n_fit]), times(a[:n_fit], targets[:n_fit] - offset)

    def held_out(l2: float) -> Tensor:
        return a[n_fit:] @ solve(part, cross, l2) + offset

    l2, output = walk(l2, held_out, lambda output: (output - held).square().sum())
    mean = targets.mean(0)
    weights = solve(part.add_(gram(a[n_fit:])), times(a, targets - mean), l2)
    if not n_classes:
        return lambda x: space(x) @ weights + mean
    sharpness = choose_sharpness(output, held)
    return lambda x: ((space(x) @ weights + mean) * sharpness).softmax(1)


def logistic(
    x_train: Float[Tensor, "n e"],
    y_train: Num[Tensor, " n"],
    x_val: Float[Tensor, "m e"],
    y_val: Num[Tensor, " m"],
    *,
    l2: float | None = None,
    max_iter: int,
    seed: int,
    n_bootstrap: int = 0,
) -> dict[str, float]:
    """Fit logistic regression (softmax, if more than two classes) and score it.

    Args:
        x_train: features to fit on; standardised inside, by their own statistics.
        y_train: their classes.
        x_val: features to score on; standardised like the training rows.
        y_val: their classes.
        l2: weight of half the squared weights beside the sum of log-losses (1 / `C` of
            scikit-learn); None walks down as `ridge` does.
        max_iter: iterations of L-BFGS for each `l2`, at most.
        seed: of the choice of the held-out rows.
        n_bootstrap: resamples behind the intervals, 0 for none.

    Raises:
        ValueError: for features that are not finite, or targets that are not classes.
    """
    n_classes = count_classes(y_train, y_val)
    if not n_classes:
        raise ValueError("probe=logistic needs classes, but the target is a number: probe=ridge")
    with torch.inference_mode(False), torch.no_grad():
        predict = fit_logistic(
            x_train, y_train, n_classes=n_classes, l2=l2, max_iter=max_iter, seed=seed
        )
    return dict(report(predict(x_val), y_val, n_classes=n_classes, n_bootstrap=n_bootstrap))


def fit_logistic(
    x: Float[Tensor, "n e"],
    y: Num[Tensor, " n"],
    *,
    n_classes: int,
    l2: float | None,
    max_iter: int,
    seed: int,
) -> Predict:
    """Return a function from features to class probabilities.

    Each `l2` starts from the weights of the one before.
    """
    order, n_fit = shuffle(len(x), seed)
    space, a = Coordinates.fit(x.index_select(0, order.to(x.device)))
    targets = encode_targets(y, n_classes)[order]
    targets = targets[:, 1:] if n_classes == 2 else targets
    part, held = gram(a[:n_fit]), targets[n_fit:]
    weights, bias = a.new_zeros(a.shape[1], targets.shape[1]), targets.new_zeros(targets.shape[1])

    def held_out(l2: float) -> tuple[Tensor, Tensor]:
        nonlocal weights, bias
        weights, bias = minimize_log_loss(
            a[:n_fit], targets[:n_fit], part, l2, (weights, bias), max_iter, _ROUGH
        )
        return weights, bias

    l2, start = walk(l2, held_out, lambda w: log_loss(a[n_fit:] @ w[0] + w[1], held)[0])
    whole = part.add_(gram(a[n_fit:]))
    weights, bias = minimize_log_loss(a, targets, whole, l2, start, max_iter, _FINE)

    def predict(x: Tensor) -> Tensor:
        logits = space(x) @ weights + bias
        if n_classes == 2:
            logits = torch.cat([torch.zeros_like(logits), logits], dim=1)
        return logits.softmax(1)

    return predict


def minimize_log_loss(
    a: Float[Tensor, "n k"],
    targets: Float[Tensor, "n c"],
    gram: Float[Tensor, "k k"],
    l2: float,
    start: tuple[Float[Tensor, "k c"], Float[Tensor, " c"]],
    max_iter: int,
    tolerance: float,
) -> tuple[Float[Tensor, "k c"], Float[Tensor, " c"]]:
    """Return the weights and bias that minimise sum(log-loss) + l2 / 2 * sum(weights^2).

    L-BFGS works on v = L^T weights, where L L^T = s * gram + l2 is the curvature at the class
    shares (s: their mean variance): a few iterations then do what hundreds do on the weights.
    """
    share = targets.mean(0)
    curvature = (share * (1 - share)).mean().clamp_min(1 / len(a)).item()
    factor = cholesky(gram * curvature, l2)
    bias_unit = (curvature * len(a)) ** -0.5
    v = torch.cat([factor.T @ start[0], start[1][None] / bias_unit])

    def parts() -> tuple[Tensor, Tensor]:
        return torch.linalg.solve_triangular(factor.T, v[:-1], upper=True), v[-1] * bias_unit

    def closure() -> float:
        weights, bias = parts()
        loss, residual = log_loss(a @ weights + bias, targets)
        slope = torch.linalg.solve_triangular(
            factor, times(a, residual) + l2 * weights, upper=False
        )
        v.grad = torch.cat([slope, residual.sum(0, keepdim=True) * bias_unit])
        return (loss + l2 / 2 * weights.square().sum()).item()

    torch.optim.LBFGS(
        [v], max_iter=max_iter, tolerance_grad=tolerance, line_search_fn="strong_wolfe"
    ).step(closure)
    return parts()


def times(a: Float[Tensor, "n k"], b: Float[Tensor, "n c"]) -> Float[Tensor, "k c"]:
    """Return a.T @ b, several times faster than so written: narrow `b`, rows of `a` in memory."""
    return (b.T @ a).T


def log_loss(
    logits: Float[Tensor, "n c"], targets: Float[Tensor, "n c"]
) -> tuple[Float[Tensor, ""], Float[Tensor, "n c"]]:
    """Return the sum of log-losses and its slope at the logits; one column is a binary task."""
    if logits.shape[1] == 1:
        return (F.softplus(logits) - targets * logits).sum(), logits.sigmoid() - targets
    logs = logits.log_softmax(1)
    return -(targets * logs).sum(), logs.exp() - targets


def walk(
    l2: float | None, fit: Callable[[float], T], loss: Callable[[T], Tensor]
) -> tuple[float, T]:
    """Return the best `l2` with its fit; from the strongest down, until the loss gets worse."""
    path = L2_PATH if l2 is None else (l2,)
    best_l2, best = path[0], fit(path[0])
    best_loss = loss(best).item()
    for weaker in path[1:]:
        found = fit(weaker)
        value = loss(found).item()
        if value > best_loss:
            break
        best_l2, best, best_loss = weaker, found, value
    return best_l2, best


def solve(
    gram: Float[Tensor, "k k"], cross: Float[Tensor, "k c"], l2: float
) -> Float[Tensor, "k c"]:
    """Return the weights of ridge regression.

    Raises:
        ValueError: if the matrix is singular at this `l2`.
    """
    return torch.cholesky_solve(cross, cholesky(gram, l2))


def cholesky(gram: Float[Tensor, "k k"], l2: float) -> Float[Tensor, "k k"]:
    """Return the lower factor of gram + l2.

    Raises:
        ValueError: if that is singular.
    """
    damped = gram.clone()
    damped.diagonal().add_(l2)
    factor, failed = torch.linalg.cholesky_ex(damped)
    if int(failed):
        raise ValueError(f"probe.l2={l2} is too small for collinear features; try probe.l2=1e-2")
    return factor


def choose_sharpness(
    output: Float[Tensor, "h c"], targets: Float[Tensor, "h c"]
) -> Float[Tensor, ""]:
    """Return the factor that makes softmax(factor * output) the best probabilities.

    Ridge predicts no probabilities. One factor for all classes leaves every label as it is
    (temperature scaling: Guo et al., 2017, arXiv:1706.04599, Sec. 4.2).
    """
    losses = [-(targets * (one * output).log_softmax(1)).sum() for one in _SHARPNESS]
    return _SHARPNESS[torch.stack(losses).argmin()]


@dataclass(frozen=True)
class Coordinates:
    """Standardised features; if there are more than rows, their coordinates in the rows' span.

    With K = a a^T = L L^T, L has the inner products of `a`, so a linear model with an L2 penalty
    is the same in both; solving there is the dual problem, and costs n^3 instead of e^3.
    """

    scale: Standardizer
    rows: Float[Tensor, "n e"] | None = None
    factor: Float[Tensor, "n n"] | None = None

    @classmethod
    def fit(cls, x: Float[Tensor, "n e"]) -> tuple["Coordinates", Float[Tensor, "n k"]]:
        """Return the map, and the coordinates of the training rows."""
        scale, a = Standardizer.fit(x, torch.float64)
        if a.shape[1] <= len(a):
            return cls(scale), a
        inner = gram(a.T)
        jitter = _JITTER * inner.diagonal().mean().item() or 1.0  # all features constant: K = 0
        factor = cholesky(inner, jitter)
        return cls(scale, a, factor), factor

    def __call__(self, x: Float[Tensor, "m e"]) -> Float[Tensor, "m k"]:
        """Return the coordinates of other rows."""
        a = self.scale(x)
        if self.rows is None or self.factor is None:
            return a
        return torch.linalg.solve_triangular(self.factor, self.rows @ a.T, upper=False).T
