"""One optimizer step, forward and back, outside of a trainer, with an eye on every value."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from jepa.plan import types_of


@dataclass
class Replay:
    """What a step did.

    Args:
        losses: of its micro-batches, as far as they were taken.
        inputs: which parts of the batches hold infinite values, or numbers that are none.
        activation: the first module whose output is not finite; empty where there is none.
        gradient: the first parameter, on the way back, whose gradient is not finite.
    """

    losses: list[float] = field(default_factory=list)
    inputs: list[str] = field(default_factory=list)
    activation: str = ""
    gradient: str = ""

    @property
    def broken(self) -> bool:
        """Tell whether the loss or a gradient was not finite."""
        return bool(self.gradient) or not all(map(math.isfinite, self.losses))


def replay(model: L.LightningModule, content: dict[str, Any], device: torch.device) -> Replay:
    """Take the step of a dump again: its batches, random numbers and precision, on a device."""
    weights, operations = types_of(content["precision"])
    model = model.to(device, weights).train()
    attach(model, content)
    found, n = Replay(), len(content["batches"])
    with watched(model, found):
        for one, random in zip(content["batches"], content["random"], strict=True):
            set_generators(random, device)
            batch = {key: moved(value, device, weights) for key, value in one["batch"].items()}
            found.inputs += [text for key, x in batch.items() if (text := odd(key, x))]
            with autocast(device, operations):
                loss: Any = model.training_step(batch, one["batch_idx"])
            (loss / n * content["scale"]).backward()
            found.losses.append(loss.item() / n * content["scale"])
    return found


def autocast(device: torch.device, dtype: torch.dtype | None) -> torch.autocast:
    """Return the precision of the forward pass, as Lightning sets it."""
    return torch.autocast(device.type, dtype, enabled=dtype is not None, cache_enabled=False)


def attach(model: L.LightningModule, content: dict[str, Any]) -> None:
    """Tell the model where in a run it is, as a trainer would; what it logs is lost."""
    model._trainer = SimpleNamespace(  # pyright: ignore[reportAttributeAccessIssue]
        current_epoch=content["epoch"], global_rank=content["rank"], world_size=1
    )
    model.log = lambda *_, **__: None


def moved(value: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return a part of a batch as the trainer hands it over."""
    value = value.to(device)
    return value.to(dtype) if value.is_floating_point() else value


def odd(name: str, x: Tensor) -> str:
    """Say what of a tensor is not finite; nothing where all is."""
    n_nan, n_inf = int(x.isnan().sum()), int(x.isinf().sum())
    return f"{name}: {n_nan} NaN and {n_inf} infinite of {x.numel()}" if n_nan + n_inf else ""


def set_generators(random: dict[str, Tensor], device: torch.device) -> None:
    """Put the generators of a forward pass back."""
    torch.set_rng_state(random["torch"].clone())
    if device.type == "cuda" and "cuda" in random:
        torch.cuda.set_rng_state(random["cuda"].clone(), device)
    elif device.type == "mps" and "mps" in random:
        torch.mps.set_rng_state(random["mps"].clone())


@contextmanager
def watched(model: nn.Module, found: Replay) -> Iterator[None]:
    """Note the first output and the first gradient that is not finite."""

    def see_output(name: str):
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if not found.activation and isinstance(output, Tensor) and not is_finite(output):
                found.activation = name

        return hook

    def see_gradient(name: str):
        def hook(parameter: Tensor) -> None:
            if not found.gradient and not is_finite(parameter.grad):
                found.gradient = name

        return hook

    handles = [m.register_forward_hook(see_output(n)) for n, m in model.named_modules() if n]
    handles += [
        p.register_post_accumulate_grad_hook(see_gradient(n))
        for n, p in model.named_parameters()
        if p.requires_grad
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def is_finite(x: Tensor | None) -> bool:
    """Tell whether every value is finite."""
    return x is None or bool(x.isfinite().all())
