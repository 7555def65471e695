"""Whether a step is made of numbers, and how to drop one that is not.

What a step read is kept until it is over, so that a broken one can be looked at.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

State = dict[str, Tensor]


@dataclass
class Step:
    """What one optimizer step read, micro-batch by micro-batch.

    Args:
        batches: with their index in the epoch.
        random: the generators of torch before each.
        losses: of each, divided by their number.
        norms: running statistics before the first: a forward pass changes them.
    """

    batches: list[tuple[int, Any]] = field(default_factory=list)
    random: list[State] = field(default_factory=list)
    losses: list[Tensor] = field(default_factory=list)
    norms: list[tuple[Tensor, Tensor]] = field(default_factory=list)


def generators(device: torch.device) -> State:
    """Return the states of the generators that a forward pass draws from."""
    states = {"torch": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        states["mps"] = torch.mps.get_rng_state()
    return states


def running_statistics(model: nn.Module) -> list[Tensor]:
    """Return the buffers that training changes without a gradient."""
    norms = (one for one in model.modules() if isinstance(one, _BatchNorm))
    return [buffer for norm in norms for buffer in norm.buffers()]


def gradients(optimizer: Optimizer) -> list[Tensor]:
    """Return what the optimizer is to step by."""
    groups = optimizer.param_groups
    return [p.grad for group in groups for p in group["params"] if p.grad is not None]


def broken(tensors: list[Tensor]) -> Tensor:
    """Return 1 if any value is infinite or no number, else 0, without waiting for the device."""
    device = tensors[0].device
    found = torch.zeros(1, device=device)
    if device.type in ("cpu", "cuda"):  # made for loss scaling: one kernel for all of them
        one = torch.ones(1, device=device)
        torch._amp_foreach_non_finite_check_and_unscale_(tensors, found, one)  # pyright: ignore[reportPrivateImportUsage]
        return found[0]
    return 1.0 - torch.nn.utils.get_total_norm(tensors).isfinite().float()


def look(trainer: L.Trainer, step: Step, optimizer: Optimizer) -> tuple[float, bool]:
    """Return the loss of the whole group, and whether its gradient is made of numbers.

    Both are those of all ranks together, so that they decide alike.
    """
    loss = torch.stack(step.losses).sum().float()
    every = gradients(optimizer)
    both = torch.stack([loss, broken(every) if every else torch.zeros_like(loss)])
    if trainer.world_size > 1:
        both = trainer.strategy.reduce(both, reduce_op="mean")
    value, found = both.tolist()
    return value / scale_of(trainer), found == 0.0


def scale_of(trainer: Any) -> float:
    """Return the factor of the losses in float16; 1 elsewhere."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return 1.0 if scaler is None else scaler.get_scale()


def verdict(trainer: Any, loss: float, finite: bool) -> str:
    """Return `good`, `broken`, or `scaled`: the scaler's own overflow, which it heals itself."""
    if finite and math.isfinite(loss):
        return "good"
    return "scaled" if math.isfinite(loss) and scale_of(trainer) > 1.0 else "broken"


def drop(step: Step, optimizer: Optimizer) -> None:
    """Leave nothing of a step: without gradients no optimizer moves, and no teacher after it."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = None
    for buffer, before in step.norms:
        buffer.copy_(before)
