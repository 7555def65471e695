"""What a training step holds in memory beside weights, gradients and optimizer state.

Nothing is computed and nothing large is allocated: the model is copied onto fake tensors, which
have shapes, types and a device but no memory, and steps forward and back are taken at small
batches, every storage counted once, from its birth to its end. So the paths of the real device are
followed: our dropout keeps two bytes an element on the CPU and one elsewhere, some blocks are
computed again on the way back, and what saved-tensor hooks cannot see, as gradients on their way,
is counted as well.
"""

import copy
import inspect
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from jepa.spec import ImageSpec, SeriesSpec, Spec, TabularSpec

FIRST = 2  # samples of the first trace: with one, some copies are views
GROWTH = 4  # from trace to trace
STRAIGHT = 0.02  # a peak that continues the line through the two before, up to this share
MOST_CHANGES = 20_000  # in a trace after the first two: ten seconds
N_DRAWS = 16  # masks tried, to plan for a crowded draw
# On the CPU, freed pieces go back to malloc's heap and not to the system (jepa/allocator.py), and
# little fits where they lay (posix_memalign): 1.3 to 1.8 times the live activations are resident
# (glibc 2.36, `make bench only=plan`), depending on what a step allocates in which order, and on
# whether its shapes change from step to step: models say so by `heap_share`.
HEAP_PIECE, HEAP_SHARE = 2**30, 1.5
CONSTRUCTORS = {torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn}


@dataclass(frozen=True)
class Trace:
    """Changes of the bytes held in a step on `n` samples; `n_forward` of them until the loss."""

    n: int
    changes: list[int]
    n_forward: int

    def peak(self, n: int, *, heap: float) -> float:
        """Return the most held at a time, pieces of malloc's heap counted `heap` times.

        What lies there is told by the size that a piece has at `n` samples.
        """
        total = most = 0.0
        for change in self.changes:
            small = abs(change) * n < HEAP_PIECE * self.n
            total += heap * change if small else change
            most = max(most, total)
        return most

    @property
    def kept(self) -> int:
        """What is held at the end of the way forward."""
        return sum(self.changes[: self.n_forward])


@dataclass(frozen=True)
class StepMemory:
    """Traces of steps on 2, 8, 32, ... samples, until the peak grows along a line."""

    traces: list[Trace]
    heap: float

    def peak(self, n: int) -> int:
        """Return the most that a step on `n` samples holds, on the line through the two nearest."""
        at = next((i for i, t in enumerate(self.traces[1:-1], 1) if t.n >= n), len(self.traces) - 1)
        low, high = self.traces[at - 1 : at + 1]
        a, b = (trace.peak(n, heap=self.heap) for trace in (low, high))
        return max(0, round(a + (n - low.n) * (b - a) / (high.n - low.n)))

    @property
    def per_sample(self) -> int:
        """What one sample more adds to what is kept for the way back."""
        low, high = self.traces[-2:]
        return (high.kept - low.kept) // (high.n - low.n)


class _Ledger(TorchDispatchMode):
    """Write down every storage that operations make, when it comes and when it goes."""

    def __init__(self, known: list[Tensor]):
        super().__init__()
        self.held = {t.untyped_storage()._cdata for t in known}
        self.changes: list[int] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self.add(tensor.untyped_storage())
        return made

    def add(self, storage: torch.UntypedStorage) -> None:
        """Write a storage down that is not known yet, and its end when that comes."""
        place, size = storage._cdata, storage.nbytes()
        if place not in self.held:
            self.held.add(place)
            self.changes.append(size)
            weakref.finalize(storage, self._drop, place, size)

    def _drop(self, place: int, size: int) -> None:
        self.held.discard(place)
        self.changes.append(-size)


class _Unallocated(TorchFunctionMode):
    """Put what constructors make on the meta device, and leave constants where they are.

    Under `torch.device("meta")` constants would be lost as well, and what is computed from them.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in CONSTRUCTORS and kwargs.get("device") is None:
            kwargs = kwargs | {"device": "meta"}
        return func(*args, **kwargs)


def build_unallocated(build: Callable[[], nn.Module]) -> nn.Module:
    """Return the model that `build` makes, its parameters without memory, and draw nothing."""
    with torch.random.fork_rng(devices=[]), _Unallocated():
        return build()


def trace_step(
    model: nn.Module,
    *,
    device: torch.device,
    dtype: torch.dtype,
    autocast: torch.dtype | None,
    checkpointing: bool,
    most: int,
) -> StepMemory:
    """Trace steps on more and more samples, to `most`, until the peak grows along a line.

    Gradients are there from the start, as in a step of several micro-batches, and as Lightning
    holds them on the way forward. The model and the random numbers of the process stay as they are.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    copied = fake_copy(model, mode, device=device, dtype=dtype)
    if checkpointing:
        checkpoint_blocks(copied)
    cast = nullcontext if autocast is None else partial(torch.autocast, device.type, autocast)
    heap = getattr(model, "heap_share", HEAP_SHARE) if device.type == "cpu" else 1.0
    memory = StepMemory([], heap)
    n = FIRST
    with torch.random.fork_rng(devices=[]), default_dtype(dtype):
        while True:
            arguments = loss_arguments(copied, n, device=device, dtype=dtype)
            arguments["x"] = mode.from_tensor(arguments["x"])
            memory.traces.append(trace_once(copied, arguments, n, cast))
            if len(memory.traces) > 1 and (n >= most or is_straight(memory)):
                return memory
            n = min(GROWTH * n, max(2 * n, most))


def is_straight(memory: StepMemory) -> bool:
    """Tell whether the last trace continues the line of those before, or the next is too long.

    It is long where rows are computed in slices; the line then lies too high rather than too low.
    """
    *before, last = memory.traces
    lengths = [len(trace.changes) for trace in memory.traces[-2:]]
    if lengths[1] + GROWTH * (lengths[1] - lengths[0]) > MOST_CHANGES:
        return True
    if len(before) < 2:
        return False
    expected = StepMemory(before, memory.heap).peak(last.n)
    return abs(memory.peak(last.n) - expected) <= STRAIGHT * expected


def trace_once(
    model: nn.Module, arguments: dict[str, Any], n: int, cast: Callable[[], Any]
) -> Trace:
    """Take one step forward and back."""
    known = [*model.parameters(), *model.buffers()]
    known += [p.grad for p in model.parameters() if p.grad is not None]
    with torch.compiler.set_stance("force_eager"), _Ledger(known) as ledger:
        for tensor in tree_leaves(arguments):
            if isinstance(tensor, Tensor):
                ledger.add(tensor.untyped_storage())
        with cast():
            loss = model.loss(**arguments)  # pyright: ignore[reportCallIssue]
        n_forward = len(ledger.changes)
        loss.backward()
    return Trace(n, ledger.changes, n_forward)


def fake_copy(
    model: nn.Module, mode: FakeTensorMode, *, device: torch.device, dtype: torch.dtype
) -> nn.Module:
    """Copy a model for training, with fake tensors on `device` as parameters and gradients."""

    def fake(t: Tensor) -> Tensor:
        with mode:
            empty = torch.empty(t.shape, dtype=converted(t, dtype), device=device)
            if not isinstance(t, nn.Parameter):
                return empty
            parameter = nn.Parameter(empty, requires_grad=t.requires_grad)
            parameter.grad = torch.empty_like(empty) if t.requires_grad else None
        return parameter

    memo = {id(t): fake(t) for t in [*model.parameters(), *model.buffers()]}
    return copy.deepcopy(model, memo).train()


def converted(t: Tensor, dtype: torch.dtype) -> torch.dtype:
    """Return the type of a tensor where floating-point numbers take the type `dtype`."""
    return dtype if t.is_floating_point() else t.dtype


def checkpoint_blocks(model: nn.Module) -> None:
    """Compute the blocks of every module list again on the way back, instead of keeping all."""
    for blocks in [m for m in model.modules() if isinstance(m, nn.ModuleList)]:
        for block in blocks:
            block.forward = partial(
                checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False
            )


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Make new tensors of this type, as Lightning does in a `-true` precision."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def loss_arguments(
    model: nn.Module, n: int, *, device: torch.device, dtype: torch.dtype
) -> dict[str, Any]:
    """Return what to call `loss` with: made-up samples, and masks where the model draws masks.

    A loss takes them last. Counts of masked tokens may differ between draws; the draw with the most
    indices is taken.
    """
    x = example_batch(model.spec, n, device)["x"].to(dtype)  # pyright: ignore
    if not hasattr(model, "masks"):
        return {"x": x}
    draws = [model.masks(x, draw) for draw in range(N_DRAWS)]  # pyright: ignore
    last = list(inspect.signature(model.loss).parameters)[-1]  # pyright: ignore
    return {"x": x, last: max(draws, key=n_indices)}


def n_indices(masks: Any) -> int:
    """Return how many indices masks hold."""
    return sum(t.numel() for t in tree_leaves(masks) if isinstance(t, Tensor))


def example_batch(spec: Spec, n: int, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """Return `n` made-up samples of the shapes and types of the data: `x`, and `y` if it has any.

    Raises:
        ValueError: for a spec of another kind.
    """
    if isinstance(spec, TabularSpec):
        shape, target = (spec.n_features,), ()
    elif isinstance(spec, SeriesSpec):
        shape, target = (spec.n_channels, spec.look_back), (spec.n_channels, spec.horizon)
    elif isinstance(spec, ImageSpec):
        shape, target = (spec.n_channels, spec.height, spec.width), ()
    else:
        raise ValueError(f"no samples can be made up from a {type(spec).__name__}")
    batch = {"x": torch.zeros(n, *shape, device=device)}
    if spec.task in ("forecast", "regression"):
        batch["y"] = torch.zeros(n, *target, device=device)
    elif spec.task != "none":
        batch["y"] = torch.zeros(n, dtype=torch.int64, device=device)
    return batch
