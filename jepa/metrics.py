"""Scores of predictions, with 95 % intervals: pure functions of tensors.

Every value is of the whole set, never an average over batches. Computed on the CPU in float64.

Axes: n rows, c classes, r resamples.
"""

import math
from collections.abc import Callable

import torch
import torchmetrics.functional as tm
from jaxtyping import Float, Int, Num, Shaped
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc

_Z95 = 1.959963984540054  # two-sided 95 % of the normal distribution
_FLOOR = 1e-15  # the least probability, so that log-loss stays finite
_CHUNK = 2**21  # resample weights held at once: 16 MB in float64

Statistic = Callable[[Float[Tensor, "r n"]], Float[Tensor, " r"]]


class Measured(float):
    """A float with its 95 % interval (`low`, `high`; None where not computed) and `n` rows.

    An error also has the loss of each row (`rows`, whose mean it is, or the `root` of that), and
    how many neighbours err together (`block`). Arithmetic gives plain floats.
    """

    low: float | None
    high: float | None
    n: int | None
    rows: Float[Tensor, " n"] | None = None
    root: bool = False
    block: int = 1

    def __new__(
        cls,
        value: float,
        low: float | None = None,
        high: float | None = None,
        n: int | None = None,
    ) -> "Measured":
        """Attach the interval to the value."""
        self = super().__new__(cls, value)
        self.low, self.high, self.n = low, high, n
        return self


def count_classes(*labels: Num[Tensor, " _"]) -> int:
    """Return how many classes the labels of all splits span (at least 2); 0 for float targets.

    Raises:
        ValueError: for a negative label.
    """
    if any(y.is_floating_point() for y in labels):
        return 0
    present = torch.cat([y.cpu() for y in labels])
    if len(present) and present.min() < 0:
        raise ValueError(f"labels must be 0, 1, 2, ..., got {int(present.min())}")
    return max(2, int(present.max()) + 1) if len(present) else 2


def task_of(*targets: Num[Tensor, " _"], n_classes: int | None = None) -> str:
    """Return `regression` for float targets, else `binary` or `multiclass`.

    Pass the targets of all splits, or `n_classes`, where one split may lack a class.
    """
    n_classes = count_classes(*targets) if n_classes is None else n_classes
    return "regression" if n_classes == 0 else "binary" if n_classes == 2 else "multiclass"


def score(
    predicted: Shaped[Tensor, "n ..."],
    y: Num[Tensor, " n"],
    *,
    task: str,
    n_bootstrap: int = 0,
    seed: int = 0,
) -> dict[str, Measured]:
    """Score predictions; always with an `error` (1 - accuracy, or RMSE in target units).

    Args:
        predicted: `binary`: probabilities of class 1 `[n]`; `multiclass`: probabilities `[n, c]`,
            or labels `[n]` (no log-loss then); `regression`: values `[n]` in target units.
        y: labels, or values in target units.
        task: `binary` (accuracy, roc_auc, log_loss), `multiclass` (accuracy, macro_f1, log_loss) or
            `regression` (rmse, r2).
        n_bootstrap: resamples behind the interval of everything but accuracy, whose interval is
            Wilson's; 0 leaves those intervals out.
        seed: of the resamples; the same seed and n draw the same resamples, so that two
            predictions of one set can be compared in pairs.

    What is undefined (ROC-AUC where one class is absent, R2 of a constant) is NaN.

    Raises:
        ValueError: for an unknown task or no rows.
    """
    kinds = {"binary": _binary, "multiclass": _multiclass, "regression": _regression}
    if task not in kinds or not len(y):
        raise ValueError(f"score needs rows and a task of {sorted(kinds)}, got {task=}, n={len(y)}")
    values, statistics = kinds[task](predicted.detach().cpu(), y.detach().cpu())
    bounds = _bootstrap(statistics, len(y), n_bootstrap, seed)
    scores = {
        key: Measured(value, *bounds.get(key, (None, None)), len(y))
        for key, value in values.items()
    }
    if task == "regression":
        error = scores["rmse"]
        error.rows, error.root = (predicted.detach().cpu().double() - y.cpu()).square(), True
        return {"error": error, **scores}
    low, high = wilson(values["accuracy"], len(y))
    accuracy = Measured(values["accuracy"], low, high, len(y))
    error = Measured(1.0 - accuracy, 1.0 - high, 1.0 - low, len(y))
    error.rows = (labels_of(predicted.detach().cpu(), task) != y.cpu()).double()
    return {"error": error, **scores, "accuracy": accuracy}


def labels_of(predicted: Shaped[Tensor, "n ..."], task: str) -> Shaped[Tensor, " n"]:
    """Return the labels that predictions stand for."""
    if task == "binary":
        return (predicted.double() > 0.5).long()
    return predicted.argmax(1) if predicted.ndim == 2 else predicted.long()


def chance(y_train: Num[Tensor, " n"], y_val: Num[Tensor, " m"]) -> dict[str, Measured]:
    """Score the best guess that sees no feature: class frequencies, or the mean, of training."""
    n_classes, m = count_classes(y_train, y_val), len(y_val)
    task = task_of(n_classes=n_classes)
    if task == "regression":
        return score(y_train.double().mean().repeat(m), y_val, task=task)
    shares = torch.bincount(y_train.cpu().long(), minlength=n_classes).double() / len(y_train)
    return score(shares[1].repeat(m) if task == "binary" else shares.repeat(m, 1), y_val, task=task)


def wilson(share: float, n: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share of n (1927, JASA 22, 209-212), within [0, 1]."""
    z2 = _Z95**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))


def _binary(p: Float[Tensor, " n"], y: Int[Tensor, " n"]) -> tuple[dict, dict[str, Statistic]]:
    p, y = p.double(), y.long()
    loss = -torch.where(y == 1, p, 1 - p).clamp_min(_FLOOR).log()
    both = 0 < int(y.sum()) < len(y)
    values = {
        "accuracy": tm.accuracy(labels_of(p, "binary"), y, task="binary").item(),
        "roc_auc": float(binary_auroc(p, y)) if both else math.nan,
        "log_loss": loss.mean().item(),
    }
    auc = {"roc_auc": weighted_auc(p, y)} if both else {}
    return values, {**auc, "log_loss": lambda w: w @ loss / w.sum(1)}


def _multiclass(
    predicted: Shaped[Tensor, "n ..."], y: Int[Tensor, " n"]
) -> tuple[dict, dict[str, Statistic]]:
    y = y.long()
    labels = labels_of(predicted, "multiclass")
    n_classes = 1 + max(int(labels.max()), int(y.max()))
    values = {
        "accuracy": (labels == y).double().mean().item(),
        "macro_f1": tm.f1_score(
            labels, y, task="multiclass", num_classes=max(n_classes, 2), average="macro"
        ).item(),
    }
    statistics: dict[str, Statistic] = {"macro_f1": weighted_macro_f1(labels, y)}
    if predicted.ndim == 2:
        p = predicted.double().gather(1, y[:, None])[:, 0]
        loss = -p.clamp_min(_FLOOR).log()
        values["log_loss"] = loss.mean().item()
        statistics["log_loss"] = lambda w: w @ loss / w.sum(1)
    return values, statistics


def _regression(
    predicted: Float[Tensor, " n"], y: Float[Tensor, " n"]
) -> tuple[dict, dict[str, Statistic]]:
    predicted, y = predicted.double(), y.double()
    varies = bool((y != y[0]).any())
    values = {
        "rmse": tm.mean_squared_error(predicted, y, squared=False).item(),
        "r2": tm.r2_score(predicted, y).item() if varies else math.nan,
    }
    squares = (predicted - y).square()
    statistics: dict[str, Statistic] = {"rmse": lambda w: (w @ squares / w.sum(1)).sqrt()}
    if varies:
        statistics["r2"] = weighted_r2(squares, y)
    return values, statistics


def weighted_auc(p: Float[Tensor, " n"], y: Int[Tensor, " n"]) -> Statistic:
    """Return the area under the ROC curve as a function of row weights; ties count a half."""
    order = p.argsort()
    positive = (y[order] == 1).double()
    group = torch.unique_consecutive(p[order], return_inverse=True)[1]
    n_groups = int(group[-1]) + 1

    def by_score(w: Tensor) -> Tensor:
        if n_groups == len(p):
            return w
        return w.new_zeros(len(w), n_groups).index_add_(1, group, w)

    def statistic(w: Tensor) -> Tensor:
        w = w[:, order]
        ones, zeros = by_score(w * positive), by_score(w * (1 - positive))
        below = zeros.cumsum(1) - zeros / 2
        return (ones * below).sum(1) / (ones.sum(1) * zeros.sum(1))  # 0 / 0: undefined, NaN

    return statistic


def weighted_macro_f1(labels: Int[Tensor, " n"], y: Int[Tensor, " n"]) -> Statistic:
    """Return macro-F1 over the classes that occur, as a function of row weights."""
    n_classes = 1 + max(int(labels.max()), int(y.max()))
    hit = (labels == y).double()

    def statistic(w: Tensor) -> Tensor:
        def totals(index: Tensor, weights: Tensor) -> Tensor:
            return w.new_zeros(len(w), n_classes).index_add_(1, index, weights)

        said_or_true = totals(labels, w) + totals(y, w)
        f1 = 2 * totals(y, w * hit) / said_or_true.clamp_min(_FLOOR)
        return f1.sum(1) / (said_or_true > 0).sum(1)

    return statistic


def weighted_r2(squares: Float[Tensor, " n"], y: Float[Tensor, " n"]) -> Statistic:
    """Return R2 as a function of row weights, from squared residuals and targets."""
    centred = y - y.mean()  # so that the difference of squares below loses no digits
    moments = torch.stack([squares, centred, centred.square()], dim=1)

    def statistic(w: Tensor) -> Tensor:
        residual, mean, square = (w @ moments / w.sum(1, keepdim=True)).unbind(1)
        return 1 - residual / (square - mean.square())

    return statistic


def _bootstrap(
    statistics: dict[str, Statistic], n: int, n_bootstrap: int, seed: int
) -> dict[str, tuple[float, float]]:
    """Return the 2.5 and 97.5 percentiles of each statistic over resamples of the rows."""
    if not n_bootstrap:
        return {}
    generator = torch.Generator().manual_seed(seed)
    drawn: dict[str, list[Tensor]] = {key: [] for key in statistics}
    rows_at_once = max(1, _CHUNK // n)
    for start in range(0, n_bootstrap, rows_at_once):
        r = min(rows_at_once, n_bootstrap - start)
        picks = torch.randint(n, (r, n), generator=generator)
        weights = torch.zeros(r, n, dtype=torch.float64).scatter_add_(
            1, picks, torch.ones(r, n, dtype=torch.float64)
        )
        for key, statistic in statistics.items():
            drawn[key].append(statistic(weights))
    limits = torch.tensor([0.025, 0.975], dtype=torch.float64)
    bounds = {}
    for key, parts in drawn.items():
        low, high = torch.cat(parts).nanquantile(limits).tolist()
        bounds[key] = (low, high)
    return bounds


def mean_over_blocks(
    sums: Float[Tensor, " n"],
    counts: Float[Tensor, " n"],
    *,
    block: int,
    n_bootstrap: int = 0,
    seed: int = 0,
) -> Measured:
    """Return sum / count over all rows, with a moving-block bootstrap interval.

    Rows are in time order, and windows that overlap err together: whole blocks of neighbours are
    drawn (Kuensch, 1989, Annals of Statistics 17, 1217-1241). NaN where nothing is counted; no
    interval where the rows do not make two blocks.

    Args:
        sums: error of each row, summed over what it holds.
        counts: how much that is.
        block: rows of a block.
        n_bootstrap: resamples behind the interval; 0 for none.
        seed: of the resamples; the same seed, n and block draw the same ones.
    """
    n = len(sums)
    totals = torch.stack([sums, counts]).double()
    found = Measured((totals[0].sum() / totals[1].sum()).item(), n=n)
    found.rows, found.block = totals[0] / totals[1].mean(), block
    if not n_bootstrap or n < 2 * block:
        return found
    generator = torch.Generator().manual_seed(seed)
    first = torch.randint(n - block + 1, (n_bootstrap, round(n / block)), generator=generator)
    ends = torch.nn.functional.pad(totals.cumsum(1), (1, 0))
    drawn, counted = (ends[:, first + block] - ends[:, first]).sum(-1)
    limits = torch.tensor([0.025, 0.975], dtype=torch.float64)
    found.low, found.high = (drawn / counted).nanquantile(limits).tolist()
    return found
