"""Parameter budgets: the width that gives a model its size, and what a search tries for a size."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from jepa.plan import PlanError, count_parameters
from jepa.step_memory import build_unallocated

SIZES = {"2m": 2_000_000, "20m": 20_000_000, "200m": 200_000_000, "2b": 2_000_000_000}
TOLERANCE = 0.05  # of a solved width
GRID_TOLERANCE = 0.25  # of a point of the listed grid


def parameters_of(size: str) -> int:
    """Return how many parameters a size stands for.

    Raises:
        ValueError: if there is no such size.
    """
    if size not in SIZES:
        raise ValueError(f"size must be one of {', '.join(SIZES)}, or null for none, got {size!r}")
    return SIZES[size]


def solve_width(build: Callable[[int], nn.Module], *, size: int, multiple: int) -> int:
    """Return the width, a multiple of `multiple`, whose trained parameters come nearest to `size`.

    Their exact number counts; nothing is allocated to find it. It grows nearly as the square of the
    width, so a few models are enough.

    Raises:
        PlanError: if the nearest number is more than 5 % off.
    """
    counts: dict[int, int] = {}
    steps = 8
    while steps not in counts:
        width = steps * multiple
        counts[steps] = count_parameters(build_unallocated(lambda width=width: build(width)))
        steps = max(1, round(steps * (size / counts[steps]) ** 0.5))
    best = min(counts, key=lambda steps: abs(counts[steps] - size))
    if abs(counts[best] - size) > TOLERANCE * size:
        raise PlanError(
            f"no width gives {size:,} parameters to {TOLERANCE:.0%}: the nearest multiple of "
            f"{multiple}, {best * multiple}, gives {counts[best]:,}: take fewer model.n_heads or "
            "another model.depth"
        )
    return best * multiple


def choose(size: str | None, *, otherwise: Sequence[Any], **by_size: Sequence[Any]) -> list[Any]:
    """Return what a search tries for a size; `otherwise` where the size is not fixed."""
    return list(by_size.get(str(size), otherwise))


def grid(
    size: str | None,
    *,
    width: Sequence[int],
    depth: Sequence[int],
    n_heads: Sequence[int],
    mlp_ratio: Sequence[float | int],
) -> list[dict[str, Any]]:
    """Return the points of the listed grid within 25 % of a size, all where there is none.

    A point is what it sets; `size` too, as the width is given.
    """
    points = [
        {"model.width": w, "model.depth": d, "model.n_heads": h, "model.mlp_ratio": r}
        for w in width
        for d in depth
        for h in n_heads
        for r in mlp_ratio
        if w % h == 0 and (size is None or in_budget(w, d, r, parameters_of(size)))
    ]
    return [{"size": "null"} | point for point in points]


def in_budget(width: int, depth: int, mlp_ratio: float | int, size: int) -> bool:
    """Tell whether the design document's model is within 25 % of a size."""
    return abs(document_parameters(width, depth, mlp_ratio) - size) <= GRID_TOLERANCE * size


def document_parameters(
    width: int,
    depth: int,
    mlp_ratio: float | int,
    *,
    n_features: int = 25,
    patch: int = 10,
    n: int = 11,
) -> int:
    """Count the parameters of the classifier that design document 004 searched.

    It joins `n_features` in each of `n` patches, has room for 10 more positions, pre-norm blocks
    with biases, and one logit from all tokens.
    """
    hidden = round(mlp_ratio * width)
    tokens = patch * n_features * width + width + (n + 10) * width
    attention, mlp = 4 * width**2 + 4 * width, 2 * width * hidden + hidden + width
    return tokens + depth * (attention + mlp + 4 * width) + 2 * width + width * n + 1
