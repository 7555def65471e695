"""What the probes share: checked, standardised features; targets; the held-out training rows.

Axes: n training rows, m scored rows, e features, c classes.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Num
from torch import Tensor

from jepa.metrics import Measured, score, task_of

HELD_OUT_SHARE = 0.2  # of the training rows: settings are chosen on them, never on the scored split
_BLOCK = 256
Predict = Callable[[Float[Tensor, "m e"]], Float[Tensor, "m c"]]


@dataclass(frozen=True)
class Standardizer:
    """Zero mean and unit variance per feature; a constant feature becomes zero."""

    mean: Float[Tensor, " e"]
    std: Float[Tensor, " e"]

    @classmethod
    def fit(
        cls, x: Float[Tensor, "n e"], dtype: torch.dtype
    ) -> tuple["Standardizer", Float[Tensor, "n e"]]:
        """Take the statistics of `x`; return them and the standardised `x`, both on the CPU.

        Raises:
            ValueError: for no rows, or a value that is not finite.
        """
        if not len(x):
            raise ValueError("a probe needs training rows, got none")
        values = to_cpu(x, dtype)
        mean = values.mean(0)
        values.sub_(mean)
        std = torch.linalg.vector_norm(values, dim=0) / len(x) ** 0.5
        constant = std <= torch.finfo(torch.float32).eps * mean.abs()  # rounding of float32 codes
        std[constant] = 1.0
        values[:, constant] = 0.0
        return cls(mean, std), values.div_(std)

    def __call__(self, x: Float[Tensor, "m e"]) -> Float[Tensor, "m e"]:
        """Return other rows standardised, on the CPU, in the precision of the statistics."""
        return to_cpu(x, self.mean.dtype).sub_(self.mean).div_(self.std)


def to_cpu(x: Float[Tensor, "n e"], dtype: torch.dtype) -> Float[Tensor, "n e"]:
    """Copy features to the CPU, then cast: other devices may know no float64.

    Raises:
        ValueError: if a value is not finite.
    """
    values = x.detach().cpu()
    if not torch.isfinite(values.sum()):  # a sum may overflow, so ask the rows before complaining
        n_bad = int((~torch.isfinite(values).all(dim=1)).sum())
        if n_bad:
            raise ValueError(
                f"{n_bad} of {len(values)} rows of features are not finite: the encoder has "
                "diverged, or its input holds infinite values; try a lower model.optimizer.lr"
            )
    return values.to(dtype, copy=True)


def encode_targets(y: Num[Tensor, " n"], n_classes: int) -> Float[Tensor, "n c"]:
    """Return one column per class, or the values as one column if `n_classes` is 0; float64."""
    if n_classes:
        return F.one_hot(y.detach().cpu().long(), n_classes).double()
    return y.detach().cpu().double()[:, None]


def shuffle(n: int, seed: int) -> tuple[Int[Tensor, " n"], int]:
    """Return a seeded order of n rows, and how many at its front to fit on; the rest is held out.

    A single row would stand on both sides: the caller's slices [:1] and [-1:].
    """
    n_held = min(max(1, round(HELD_OUT_SHARE * n)), n - 1)
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed)), n - n_held


def gram(a: Float[Tensor, "n e"]) -> Float[Tensor, "e e"]:
    """Return a.T @ a. Only blocks on and above the diagonal are multiplied: half the work."""
    e = a.shape[1]
    out = a.new_empty(e, e)
    for i in range(0, e, _BLOCK):
        j = min(i + _BLOCK, e)
        out[i:j, i:] = a[:, i:j].T @ a[:, i:]
        out[j:, i:j] = out[i:j, j:].T
    return out


def report(
    output: Float[Tensor, "m c"], y: Num[Tensor, " m"], *, n_classes: int, n_bootstrap: int
) -> dict[str, Measured]:
    """Score probabilities, one column per class, or values in one column."""
    task = task_of(n_classes=n_classes)
    predicted = output if task == "multiclass" else output[:, -1]
    return score(predicted, y, task=task, n_bootstrap=n_bootstrap)
