"""What every model does around an optimizer step: groups, schedules, and what it logs of them."""

from collections.abc import Callable
from typing import Any

import lightning as L
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from jepa.nn.decay import decay_groups
from jepa.schedules import cosine

Stepped = Optimizer | LightningOptimizer


def bounded_steps(trainer: Any) -> int:
    """Return how many optimizer steps the run has.

    Raises:
        ValueError: if their number is not bounded; the schedules need an end.
    """
    total = trainer.estimated_stepping_batches
    if total == float("inf"):
        raise ValueError(
            "the schedules need an end, but trainer.max_epochs and trainer.max_steps are both "
            "unlimited: set trainer.max_epochs or trainer.max_steps"
        )
    return int(total)


def build_optimizer(
    build: Callable[..., Optimizer], nets: list[nn.Module]
) -> tuple[Optimizer, float]:
    """Return the optimizer of all that is trained, and its weight decay.

    Only the matrices of linear layers decay; they are the first group.
    """
    matrices, rest = ([p for p in group if p.requires_grad] for group in decay_groups(nets))
    optimizer = build([{"params": matrices}, {"params": rest, "weight_decay": 0.0}])
    return optimizer, optimizer.param_groups[0].get("weight_decay", 0.0)


def scheduled(optimizer: Optimizer, factor: Callable[[int], float]) -> dict[str, Any]:
    """Return what `configure_optimizers` does: the learning rate times `factor` of the step."""
    schedule = {"scheduler": LambdaLR(optimizer, factor), "interval": "step"}
    return {"optimizer": optimizer, "lr_scheduler": schedule}


def set_weight_decay(
    optimizer: Stepped, step: int, *, total: int, start: float, end: float | None
) -> None:
    """Set the weight decay of this step, along half a cosine; `end` None leaves it as it is."""
    if end is not None:
        decay = cosine(step, total=total, start=start, end=end)
        optimizer.param_groups[0]["weight_decay"] = decay


def log_step(module: L.LightningModule, optimizer: Stepped, step: int, **noted: float) -> None:
    """Log learning rate, weight decay and what else was noted, where somebody will read it."""
    every = module.trainer.log_every_n_steps  # pyright: ignore[reportAttributeAccessIssue]
    if (step + 1) % every:
        return
    group = optimizer.param_groups[0]
    module.log("train/lr", group["lr"])
    module.log("train/weight_decay", group.get("weight_decay", 0.0))
    for name, value in noted.items():
        module.log(f"train/{name}", value)
