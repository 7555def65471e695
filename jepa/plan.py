"""How many samples fit: the memory of a device to a micro-batch and an accumulation."""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from jepa.step_memory import converted, trace_step

# (type of the weights, type of the operations under autocast) by Lightning's name
PRECISIONS: dict[str, tuple[torch.dtype, torch.dtype | None]] = {
    "32-true": (torch.float32, None),
    "16-mixed": (torch.float32, torch.float16),
    "bf16-mixed": (torch.float32, torch.bfloat16),
    "16-true": (torch.float16, None),
    "bf16-true": (torch.bfloat16, None),
    "64-true": (torch.float64, None),
}
SHORT_PRECISIONS = {"32": "32-true", "16": "16-mixed", "bf16": "bf16-mixed", "64": "64-true"}
SAFETY = 0.85  # share of the device that may be used


class PlanError(ValueError):
    """No batch fits the device, or no width the budget; a sweep prunes such a trial."""


@dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """A micro-batch, and how many of them make one optimizer step.

    Args:
        micro_batch, accumulate, effective: the first times the second is the third, always.
        static_bytes: weights, buffers, gradients and optimizer state.
        per_sample_bytes: what autograd keeps of each sample until the way back; 0 where the static
            bytes alone are too many, for then it is not measured.
        peak_bytes: the most that a step holds at this micro-batch.
        fits: whether that is within the share of the device that may be used.
        advice: what would make it fit, or what to know; empty where there is nothing to say.
    """

    micro_batch: int
    accumulate: int
    effective: int
    static_bytes: int
    per_sample_bytes: int
    peak_bytes: int
    fits: bool
    advice: str


def plan_batch(
    model: nn.Module,
    *,
    effective_batch: int,
    device_bytes: int,
    precision: str = "32-true",
    optimizer: Callable[..., Optimizer] | None = None,
    checkpointing: bool = False,
    safety: float = SAFETY,
    device: torch.device | str = "cpu",
    max_batch: int | None = None,
) -> BatchPlan:
    """Return the largest divisor of `effective_batch` whose training step fits the device.

    Accumulated steps equal a step of the whole batch, but for BatchNorm, whose statistics are those
    of a micro-batch, and for losses that compare samples.

    Args:
        model: has a `spec` and a `loss(x)`. It is not changed, and may be without memory
            (`build_unallocated`).
        effective_batch: samples of one optimizer step.
        device_bytes: what the device has left for this process.
        precision: as Lightning's.
        optimizer: builds it from parameter groups; None takes the model's own.
        checkpointing: plan as if every block of a module list were checkpointed.
        safety: the share of `device_bytes` that may be used.
        device: where training will run; it must be there.
        max_batch: the largest micro-batch that is wanted.

    Raises:
        ValueError: for a setting out of its range.
    """
    if effective_batch < 1 or not 0 < safety <= 1 or (max_batch is not None and max_batch < 1):
        raise ValueError(
            "a plan needs effective_batch >= 1, 0 < safety <= 1 and max_batch >= 1, got "
            f"{effective_batch=}, {safety=}, {max_batch=}"
        )
    usable, place = int(safety * device_bytes), torch.device(device)
    weights, operations = types_of(precision)
    build: Callable[..., Optimizer] = optimizer or model.optimizer  # pyright: ignore
    static, stepping = static_bytes(model, build, dtype=weights, device=place)
    peaks, per_sample = {1: static + stepping}, 0
    if static + stepping <= usable:  # else a model of billions is refused within a second
        most = min(max_batch or effective_batch, effective_batch)
        memory = trace_step(
            model,
            device=place,
            dtype=weights,
            autocast=operations,
            checkpointing=checkpointing,
            most=most,
        )
        divisors = [n for n in range(1, most + 1) if effective_batch % n == 0]
        peaks = {n: static + max(stepping, memory.peak(n)) for n in divisors}
        per_sample = memory.per_sample
    micro = max((n for n, size in peaks.items() if size <= usable), default=1)
    return BatchPlan(
        micro_batch=micro,
        accumulate=effective_batch // micro,
        effective=effective_batch,
        static_bytes=static,
        per_sample_bytes=per_sample,
        peak_bytes=peaks[micro],
        fits=peaks[micro] <= usable,
        advice=(
            note(model, micro, effective_batch)
            if peaks[micro] <= usable
            else refusal(model, peaks[1], static, device_bytes, usable, precision)
        ),
    )


def types_of(precision: str | int) -> tuple[torch.dtype, torch.dtype | None]:
    """Return the types of the weights and, under autocast, of the operations.

    Raises:
        ValueError: for a precision that cannot be planned for.
    """
    name = SHORT_PRECISIONS.get(str(precision), str(precision))
    if name not in PRECISIONS:
        raise ValueError(
            f"trainer.precision must be one of {', '.join(PRECISIONS)} to be planned for, got "
            f"{precision!r}"
        )
    return PRECISIONS[name]


def static_bytes(
    model: nn.Module,
    optimizer: Callable[..., Optimizer],
    *,
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[int, int]:
    """Return the bytes held between steps, and what a step of the optimizer adds for a moment."""
    held = [*model.parameters(), *model.buffers()]
    trained = [p.numel() for p in model.parameters() if p.requires_grad]
    state, at_once = optimizer_bytes(optimizer, dtype=dtype, device=device)
    static = sum(t.numel() * converted(t, dtype).itemsize for t in held)
    static += sum(trained) * dtype.itemsize + round(sum(trained) * state)
    stepping = sum(trained) if at_once else 2 * max(trained, default=0)
    return static, stepping * dtype.itemsize


def optimizer_bytes(
    optimizer: Callable[..., Optimizer], *, dtype: torch.dtype, device: torch.device
) -> tuple[float, bool]:
    """Return the state's bytes for each parameter, and whether a step handles all at once.

    One step on a small matrix shows the state, whatever the optimizer. On an accelerator torch
    handles all parameters at once (`foreach`), with a copy of them on the way, unless told not to.
    """
    matrix = nn.Parameter(torch.zeros(64, 64, dtype=dtype))
    matrix.grad = torch.zeros_like(matrix)
    built = optimizer([{"params": [matrix]}])
    built.step()
    state = [v for v in built.state[matrix].values() if isinstance(v, Tensor) and v.numel() > 1]
    foreach, fused = (built.defaults.get(key) for key in ("foreach", "fused"))
    at_once = not fused and (device.type != "cpu" if foreach is None else foreach)
    return sum(v.nbytes for v in state) / matrix.numel(), at_once


def count_parameters(model: nn.Module) -> int:
    """Return how many numbers are trained; a slow copy (EMA) is not."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def device_bytes(device: torch.device | str) -> int:
    """Return the memory that the device has left for this process.

    On the CPU: the smallest of what the machine has, what control groups allow and what SLURM has
    granted, less what the process holds already.
    """
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(0, min(physical, *cgroup_limits(), *slurm_limits(os.environ)) - resident())


def cgroup_limits(root: Path = Path("/")) -> Iterator[int]:
    """Yield the memory limits of this process's control groups and of those above them (v1, v2)."""
    groups = root / "proc/self/cgroup"
    for line in groups.read_text().splitlines() if groups.exists() else []:
        _, kinds, path = line.split(":", 2)
        if kinds not in ("", "memory"):
            continue
        folder, name = ("memory", "limit_in_bytes") if kinds else ("", "max")
        top = root / "sys/fs/cgroup" / folder
        group = top / path.lstrip("/")
        for place in (group, *group.parents):
            limit = place / f"memory.{name}"
            if place.is_relative_to(top) and limit.exists() and limit.read_text().strip() != "max":
                yield int(limit.read_text())


def slurm_limits(variables: Mapping[str, str]) -> Iterator[int]:
    """Yield what SLURM has granted on this node, which it writes in MiB; 0 is all of it."""
    node = int(variables.get("SLURM_MEM_PER_NODE", 0))
    cpu = int(variables.get("SLURM_MEM_PER_CPU", 0)) * int(variables.get("SLURM_CPUS_ON_NODE", 1))
    yield from (size * 2**20 for size in (node, cpu) if size)


def resident() -> int:
    """Return the bytes that this process holds now; 0 where the system does not tell."""
    pages = Path("/proc/self/statm")
    return int(pages.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if pages.exists() else 0


def note(model: nn.Module, micro: int, effective: int) -> str:
    """Say what accumulation changes."""
    if micro == effective or not any(isinstance(m, _BatchNorm) for m in model.modules()):
        return ""
    return (
        f"BatchNorm takes its statistics over {micro} samples, not over {effective}: another norm "
        "(model.norm=layer or rms) makes accumulated steps equal to whole ones"
    )


def refusal(
    model: nn.Module, need: int, static: int, there: int, usable: int, precision: str | int
) -> str:
    """Say what one sample needs, what is there, and what would do."""
    cures = ["a device with more memory", "a smaller model (size=, model.depth=, model.width=)"]
    if types_of(precision)[0].itemsize > 2:
        cures.append("trainer.precision=bf16-true (half of the weights, gradients and state)")
    return (
        f"no batch fits: {count_parameters(model):,} trained parameters need {show(static)} for "
        f"weights, gradients and optimizer state, and a step on one sample {show(need)}; the "
        f"device has {show(there)}, of which {show(usable)} may be used: take {', or '.join(cures)}"
    )


def show(n_bytes: int) -> str:
    """Write bytes as GiB or MiB."""
    return f"{n_bytes / 2**30:.1f} GiB" if n_bytes >= 2**30 else f"{n_bytes / 2**20:.1f} MiB"


def get_memory_safe_batch_config(
    d_model: int, n_layers: int, target_effective_batch: int = 256
) -> dict[str, int]:
    """Return the batch that design document 004 gives a model by its width and depth.

    Kept as a documented strategy; `plan_batch` replaces it. Its score, width squared times depth in
    billions, follows the number of weights, not the activations it is meant for: within a parameter
    budget it is nearly one constant. It knows neither device, precision nor the shape of a sample,
    the accumulation is rounded down, and a micro-batch may exceed the target (tests/test_plan.py).
    """
    score = d_model**2 * n_layers / 1e9
    tiers = ((0.1, 256), (0.5, 128), (1.5, 64), (3.0, 32))
    micro_batch = next((batch for most, batch in tiers if score <= most), 16)
    steps = max(1, target_effective_batch // micro_batch)
    return {
        "micro_batch": micro_batch,
        "accumulation_steps": steps,
        "effective_batch": micro_batch * steps,
    }
