"""Compute a function slice by slice of its rows, and again when gradients are asked for.

What lies between the function's inputs and its outputs is never kept: less than half the memory,
for a third more products. On a CPU a slice stays in the cache, which makes up for some of that.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

Rows = tuple[Tensor, ...]


def by_slices(function: Callable[..., Rows], rows: Rows, *, net: nn.Module, size: int) -> Rows:
    """Return `function(*rows)`, computed `size` rows at a time.

    Args:
        function: treats every row alone; its outputs have a row for each row of the inputs.
        rows: tensors of equal length.
        net: holds the parameters that `function` reads.
        size: rows of a slice, on the CPU; elsewhere all are one slice.
    """
    if torch.compiler.is_compiling():  # the compiler chooses what to keep
        return function(*rows)
    size = size if rows[0].device.type == "cpu" else len(rows[0])
    trained = _trained(net)
    if not torch.is_grad_enabled() or not (trained or any(row.requires_grad for row in rows)):
        return _compute(function, rows, size)
    return _Slices.apply(function, net, size, len(rows), *rows, *trained)  # pyright: ignore


def _trained(net: nn.Module) -> list[Tensor]:
    """Return the parameters that take a gradient."""
    return [parameter for parameter in net.parameters() if parameter.requires_grad]


def _compute(function: Callable[..., Rows], rows: Rows, size: int) -> Rows:
    """Fill the outputs slice by slice."""
    n = len(rows[0])
    if n <= size:
        return function(*rows)
    outputs: Rows = ()
    for start in range(0, n, size):
        parts = function(*(row[start : start + size] for row in rows))
        outputs = outputs or tuple(part.new_empty(n, *part.shape[1:]) for part in parts)
        for output, part in zip(outputs, parts, strict=True):
            output[start : start + size] = part
    return outputs


class _Slices(torch.autograd.Function):
    """Keep the inputs and the state of the random numbers; compute the rest twice."""

    @staticmethod
    def forward(ctx, function, net: nn.Module, size: int, n_rows: int, *tensors: Tensor) -> Rows:
        rows = tensors[:n_rows]
        ctx.function, ctx.net, ctx.size = function, net, size
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*rows)
        ctx.device = rows[0].device
        ctx.random = _random_state(ctx.device)
        ctx.precision = _precision(ctx.device)
        return _compute(function, rows, size)

    @staticmethod
    def backward(ctx, *grads: Tensor | None):  # pyright: ignore[reportIncompatibleMethodOverride]
        rows, trained = ctx.saved_tensors, _trained(ctx.net)
        asked = ctx.needs_input_grad[4 : 4 + len(rows)]
        totals = [torch.empty_like(row) for row, ask in zip(rows, asked, strict=True) if ask]
        sums: list[Tensor] = []
        with _as_it_was(ctx.device, ctx.random, ctx.precision):
            for start in range(0, len(rows[0]), ctx.size):
                part = slice(start, start + ctx.size)
                inputs = [
                    row[part].detach().requires_grad_(ask)
                    for row, ask in zip(rows, asked, strict=True)
                ]
                found = _gradients(
                    ctx.function(*inputs),
                    [None if grad is None else grad[part] for grad in grads],
                    [one for one in inputs if one.requires_grad] + trained,
                )
                for total, one in zip(totals, found, strict=False):
                    total[part] = one
                sums = _add(sums, found[len(totals) :])
        given = iter(totals)
        return None, None, None, None, *(next(given) if ask else None for ask in asked), *sums


def _gradients(outputs: Rows, grads: list[Tensor | None], inputs: list[Tensor]) -> list[Tensor]:
    """Return the gradient of every input; an output that nobody used adds nothing."""
    used = [(o, g) for o, g in zip(outputs, grads, strict=True) if g is not None]
    return list(
        torch.autograd.grad(
            [output for output, _ in used],
            inputs,
            [grad for _, grad in used],
            allow_unused=True,
            materialize_grads=True,
        )
    )


def _add(sums: list[Tensor], parts: list[Tensor]) -> list[Tensor]:
    """Add the parts to the sums; the first parts are the sums."""
    if sums:
        torch._foreach_add_(sums, parts)  # pyright: ignore[reportPrivateImportUsage]
    return sums or parts


def _random_state(device: torch.device) -> list[Tensor]:
    """Return the states of the default generators: the CPU's and, elsewhere, the device's."""
    states = [torch.get_rng_state()]
    if device.type in ("cuda", "mps"):
        states.append(getattr(torch, device.type).get_rng_state(device))
    return states


def _set_random_state(device: torch.device, states: list[Tensor]) -> None:
    """Bring back what `_random_state` returned."""
    torch.set_rng_state(states[0])
    if len(states) > 1:
        getattr(torch, device.type).set_rng_state(states[1], device)


def _precision(device: torch.device) -> dict[str, Any]:
    """Return the arguments of the autocast that is in force; a meta device has none of its own."""
    kind = device.type if torch.amp.is_autocast_available(device.type) else "cpu"
    enabled, dtype = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
    return {"device_type": kind, "dtype": dtype, "enabled": enabled}


@contextmanager
def _as_it_was(
    device: torch.device, states: list[Tensor], precision: dict[str, Any]
) -> Iterator[None]:
    """Compute with gradients, under the random numbers and the precision of the first time."""
    now = _random_state(device)
    _set_random_state(device, states)
    try:
        with torch.enable_grad(), torch.autocast(**precision):
            yield
    finally:
        _set_random_state(device, now)
