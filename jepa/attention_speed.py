"""What the fused attention kernel gains in the training step of a model, measured on its device."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

KERNELS = ("sdpa", "plain")
N_SAMPLES = 16  # of a step that is timed
SECONDS = 1.0  # for each kernel, and at least three steps


def compare_attention(model: Any, x: Tensor, *, precision: str) -> dict[str, float] | None:
    """Return the seconds of a step with each kernel, `ratio` = plain / sdpa, and its `n` samples.

    A step is the loss and its gradients, without the optimizer. The kernels take turns, and each
    time is the least of its steps: other work on the machine only adds. None for a model without
    such a choice. Weights stay as they are; gradients are gone afterwards.
    """
    blocks = [module for module in model.modules() if getattr(module, "attention", "") in SETTINGS]
    if not blocks:
        return None
    x = x[:N_SAMPLES]
    chosen = [block.attention for block in blocks]
    kind = torch.bfloat16 if precision.startswith("bf16") else torch.float16

    def step() -> None:
        with torch.autocast(x.device.type, dtype=kind, enabled="mixed" in precision):
            loss = model.loss(x)
        loss.backward()
        if x.device.type == "cuda":
            torch.cuda.synchronize()

    seconds: dict[str, list[float]] = {kernel: [] for kernel in KERNELS}
    with left_alone(model):
        for kernel in KERNELS:  # the first step of each is a warm-up
            set_all(blocks, [kernel] * len(blocks))
            step()
        while not enough(seconds):
            for kernel in KERNELS:
                set_all(blocks, [kernel] * len(blocks))
                seconds[kernel].append(timed(step))
        set_all(blocks, chosen)
    least = {kernel: min(found) for kernel, found in seconds.items()}
    return {**least, "ratio": least["plain"] / least["sdpa"], "n": len(x)}


SETTINGS = ("auto", *KERNELS)


def set_all(blocks: list[nn.Module], kernels: list[str]) -> None:
    """Choose the kernel of each block."""
    for block, kernel in zip(blocks, kernels, strict=True):
        block.attention = kernel  # pyright: ignore[reportArgumentType]


def enough(seconds: dict[str, list[float]]) -> bool:
    """Tell whether each kernel was timed three times and for long enough."""
    return all(len(found) >= 3 and sum(found) >= SECONDS for found in seconds.values())


def timed(step: Callable[[], None]) -> float:
    """Return the seconds of one step."""
    started = time.perf_counter()
    step()
    return time.perf_counter() - started


@contextmanager
def left_alone(model: nn.Module) -> Iterator[None]:
    """Train for a moment; put mode, buffers, gradients and random numbers back."""
    training, states = model.training, torch.get_rng_state()
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    model.train()
    try:
        yield
    finally:
        model.train(training)
        model.zero_grad(set_to_none=True)
        for buffer, before in buffers:
            buffer.copy_(before)
        torch.set_rng_state(states)
