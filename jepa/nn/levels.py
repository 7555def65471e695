"""What is predicted at each level: the teacher's features, averaged over squares of patches.

Axes: b images, n patches, r rectangles, p patches of one, o patches after averaging, d width.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from jepa.nn.blocks import Blocks, Masking, Shape
from jepa.nn.checks import check_choice, check_range
from jepa.nn.losses import NORMS, normalize
from jepa.nn.pyramid import pool, pooled_shape
from jepa.nn.transformer import take

SOURCES = ("last", "depths")


def source_depths(source: str, *, depth: int, levels: int) -> tuple[int, ...]:
    """Return the block, counted from 1, after which each level's target is taken.

    >>> source_depths("depths", depth=12, levels=3)
    (12, 8, 4)

    Raises:
        ValueError: if there is no such source, or the encoder is not deep enough.
    """
    check_choice("model.level_source", source, SOURCES)
    check_range("model.depth", depth, low=1)
    check_range("model.levels", levels, low=1)
    if source == "last":
        return (depth,) * levels
    if depth < levels:
        raise ValueError(
            f"model.level_source=depths takes each of model.levels={levels} from a block of its "
            f"own, but model.depth={depth}: take model.depth={levels} or more"
        )
    return tuple(round(depth * (levels - level) / levels) for level in range(levels))


class Levels:
    """The weights, the targets and the errors of all levels.

    Args:
        weights: of each level's error, finest first.
        source: `last`, or `depths` for coarser levels from earlier blocks.
        depth: blocks of the encoder.
        last_k: blocks averaged for a target.
        norm: `layer`, `batch` or `none`.

    Raises:
        ValueError: if a setting is out of its range.
    """

    def __init__(
        self, n: int, *, weights: Sequence[float], source: str, depth: int, last_k: int, norm: str
    ):
        self.depths = source_depths(source, depth=depth, levels=n)
        self.weights = tuple(float(weight) for weight in weights)
        if len(self.weights) != n or min(self.weights) < 0 or sum(self.weights) <= 0:
            raise ValueError(
                f"model.level_weights needs a weight of at least 0 for each of model.levels={n} "
                f"and one above 0, got {list(weights)}: give model.level_weights="
                f"[{','.join(['1.0'] * n)}]"
            )
        check_choice("model.target_norm", norm, NORMS)
        check_range("model.last_k_targets", last_k, low=1)
        if last_k > min(self.depths):
            raise ValueError(
                f"model.last_k_targets={last_k} averages more blocks than there are up to block "
                f"{min(self.depths)} of model.depth={depth}: take at most {min(self.depths)}"
            )
        self.n, self.depth, self.last_k, self.norm = n, depth, last_k, norm

    @property
    def reads_inside(self) -> bool:
        """Tell whether features from inside the teacher are read."""
        return self.last_k > 1 or len(set(self.depths)) > 1

    def check(self, masking: Masking, grid: Shape) -> None:
        """Refuse masks without rectangles, and levels that even the largest block is too small for.

        Raises:
            ValueError: then.
        """
        if self.n > 1 and not masking.rectangles:
            raise ValueError(
                f"model.levels={self.n} averages rectangles of patches, and masking=random has "
                "none: take model.levels=1 model.level_weights=[1.0], or masking=multiblock"
            )
        side = max(max(shape) for shape in masking.shapes(grid))
        most = 1
        while max(pooled_shape((side, side), most - 1)) > 1:
            most += 1
        if self.n > most:
            raise ValueError(
                f"model.levels={self.n} is more than the target blocks have: on a grid of "
                f"{grid[0]} x {grid[1]} patches their longest side of {side} is a single patch at "
                f"level {most - 1}; take model.levels={most} and as many model.level_weights, a "
                "smaller model.patch, or a larger masking.target_share_low"
            )

    def after(
        self, hidden: list[Float[Tensor, "b n d"]], depth: int, last_k: int = 1
    ) -> Float[Tensor, "b n d"]:
        """Return the features after block `depth`, averaged over the `last_k` blocks up to it.

        The last entry of `hidden` is the teacher's output. Features from inside it are normalised,
        so that no block outweighs another (as data2vec, arXiv:2202.03555).
        """
        if last_k == 1 and depth == self.depth:
            return hidden[-1]
        inside = hidden[depth - last_k : depth]
        return torch.stack([F.layer_norm(h.float(), h.shape[-1:]) for h in inside]).mean(0)

    @torch.no_grad()
    def targets(
        self, hidden: list[Float[Tensor, "b n d"]], blocks: Blocks, *, synchronise: bool
    ) -> list[Float[Tensor, "r o d"]]:
        """Average the features of every target block for each level, then normalise them.

        Nothing is learned here: with weights on this side both sides could agree on a constant.
        """
        places, taken = blocks.targets.flatten(1), {}
        for depth in dict.fromkeys(self.depths):
            features = take(self.after(hidden, depth, self.last_k), places).float()
            taken[depth] = features.unflatten(1, blocks.targets.shape[1:]).flatten(0, 1)
        averaged = [pool(taken[d], blocks.shape, level) for level, d in enumerate(self.depths)]
        return [normalize(part, self.norm, synchronise=synchronise) for part in averaged]

    def weigh(self, errors: list[Tensor]) -> Tensor:
        """Return the weighted mean of the errors."""
        pairs = zip(self.weights, errors, strict=True)
        return torch.stack([weight * error for weight, error in pairs]).sum() / sum(self.weights)
