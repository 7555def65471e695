"""Levels of a hierarchy: rectangles of patches, averaged in two dimensions.

Lin et al., "Feature Pyramid Networks for Object Detection", CVPR 2017, arXiv:1612.03144: a way down
from the coarsest level, whose features are enlarged and joined to those of the next.

Axes: r rectangles, n patches of one in raster order, o patches after averaging, p width in, d out.
"""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from jepa.nn.checks import check_choice

PYRAMIDS = ("none", "add", "concat")


def pooled_shape(shape: tuple[int, int], level: int) -> tuple[int, int]:
    """Return rows and columns that are left at a level.

    >>> [pooled_shape((3, 4), level) for level in (0, 1, 2)]
    [(3, 4), (2, 2), (1, 1)]
    """
    return math.ceil(shape[0] / 2**level), math.ceil(shape[1] / 2**level)


def pool(x: Float[Tensor, "r n p"], shape: tuple[int, int], level: int) -> Float[Tensor, "r o p"]:
    """Average squares of 2 ** level patches a side; those at the edges may be smaller."""
    if level == 0:
        return x
    grid = rearrange(x, "r (y x) p -> r p y x", y=shape[0], x=shape[1])
    small = F.avg_pool2d(grid, 2**level, ceil_mode=True, count_include_pad=False)
    return rearrange(small, "r p y x -> r (y x) p")


def enlarge(
    x: Float[Tensor, "r o p"], coarse: tuple[int, int], fine: tuple[int, int]
) -> Float[Tensor, "r n p"]:
    """Give each patch of the fine grid the features of the coarse patch over it."""
    grid = rearrange(x, "r (y x) p -> r y x p", y=coarse[0], x=coarse[1])
    rows, columns = (torch.arange(n, device=x.device) // 2 for n in fine)
    return grid[:, rows][:, :, columns].flatten(1, 2)


class Pyramid(nn.Module):
    """Predicted features of rectangles to predictions for every level.

    Only predictions pass through it. With weights of its own on the targets, it could make both
    sides constant.

    Args:
        width, width_out: of the features and of the targets.
        levels: how many.
        kind: `none` gives each level one linear layer on the averaged features; in `add` and
            `concat` a coarser level informs the finer one, by a sum or by a joint linear layer.

    Raises:
        ValueError: if there is no such kind, or no second level for it.
    """

    def __init__(self, width: int, width_out: int, *, levels: int, kind: str):
        super().__init__()
        check_choice("model.pyramid", kind, PYRAMIDS)
        if kind != "none" and levels < 2:
            raise ValueError(
                f"model.pyramid={kind} joins levels, but model.levels={levels}: take "
                "model.pyramid=none, or more levels"
            )
        self.levels, self.kind = levels, kind
        self.heads = nn.ModuleList(nn.Linear(width, width_out) for _ in range(levels))
        n_lateral = 0 if kind == "none" else levels
        n_down = {"none": 0, "add": levels - 1, "concat": levels - 1}[kind]
        self.lateral = nn.ModuleList(nn.Linear(width, width) for _ in range(n_lateral))
        narrow = width if kind == "add" else 2 * width
        self.down = nn.ModuleList(nn.Linear(narrow, width) for _ in range(n_down))
        self.norm = nn.ModuleList(nn.LayerNorm(width) for _ in range(n_down))

    def forward(
        self, x: Float[Tensor, "r n p"], shape: tuple[int, int]
    ) -> list[Float[Tensor, "r o d"]]:
        """Predict every level, the finest first."""
        features = [pool(x, shape, level) for level in range(self.levels)]
        if self.kind != "none":
            features = self._join(features, shape)
        return [head(part) for head, part in zip(self.heads, features, strict=True)]

    def _join(self, features: list[Tensor], shape: tuple[int, int]) -> list[Tensor]:
        """Inform each level by the one above it, from the coarsest down."""
        joined = [layer(part) for layer, part in zip(self.lateral, features, strict=True)]
        for level in range(self.levels - 2, -1, -1):
            above = enlarge(
                joined[level + 1], pooled_shape(shape, level + 1), pooled_shape(shape, level)
            )
            down, norm = self.down[level], self.norm[level]
            if self.kind == "add":
                joined[level] = joined[level] + norm(down(above))
            else:
                joined[level] = norm(down(torch.cat([joined[level], above], dim=-1)))
        return joined
