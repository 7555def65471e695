"""Which patches of an image the context encoder sees, and which it has to predict.

Assran et al., "Self-Supervised Learning from Images with a Joint-Embedding Predictive
Architecture" (I-JEPA), CVPR 2023, arXiv:2301.08243.

One block shape and one context count hold for a whole batch, drawn from a CPU generator, so that
no device is waited for; places are drawn for each image on its device.
Axes: b images, y rows and x columns of patches, k context, m target blocks, n patches of a block,
a attempts.
"""

import math
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Int
from torch import Generator, Tensor

from jepa.nn.checks import check_range, check_shares
from jepa.nn.masking import split_tokens

N_DRAWS = 33  # evenly spaced shares and ratios that occur, so that every shape is known beforehand
N_ATTEMPTS = 6  # places tried at once for the blocks of an image; the last always leaves a context
NO_CONTEXT = "takes the whole image, so that no context is left"

Shape = tuple[int, int]


class Blocks(NamedTuple):
    """Context patches, target blocks in raster order, and the shape that all blocks have."""

    context: Int[Tensor, "b k"]
    targets: Int[Tensor, "b m n"]
    shape: Shape

    def to(self, device: torch.device) -> "Blocks":
        """Return them on a device."""
        return Blocks(self.context.to(device), self.targets.to(device), self.shape)


@runtime_checkable
class Masking(Protocol):
    """Draws blocks for a batch of images.

    `rectangles` tells whether a block is a rectangle of the image, which can be pooled; `on_cpu`,
    whether places have to be drawn there.
    """

    rectangles: bool
    on_cpu: bool

    def check(self, grid: Shape) -> None:
        """Refuse a grid of patches that the settings do not fit."""
        ...

    def shapes(self, grid: Shape) -> frozenset[Shape]:
        """Return every shape that a block can have."""
        ...

    def draw(self, batch: int, grid: Shape, *, counts: Generator, places: Generator) -> Blocks:
        """Draw blocks: shapes and numbers from `counts`, places from `places`, on its device."""
        ...


def spaced(low: float, high: float, *, logarithmic: bool = False) -> list[float]:
    """Return the values between `low` and `high`, both included, that a draw can give."""
    steps = [i / (N_DRAWS - 1) for i in range(N_DRAWS)]
    if logarithmic:
        return [low * (high / low) ** step for step in steps]
    return [low + (high - low) * step for step in steps]


def pick(values: Sequence[float], generator: Generator) -> float:
    """Draw one of the values."""
    return values[int(torch.randint(len(values), (), generator=generator))]


def check_ratios(low: float, high: float) -> None:
    """Refuse ratios of height to width that are not positive, or in the wrong order.

    Raises:
        ValueError: then.
    """
    if not 0 < low <= high:
        raise ValueError(
            "masking.aspect_ratio_low must be positive and at most masking.aspect_ratio_high, got "
            f"masking.aspect_ratio_low={low}, masking.aspect_ratio_high={high}"
        )


def refuse(grid: Shape, why: str, fix: str) -> ValueError:
    """Word the refusal of a grid."""
    return ValueError(
        f"masks leave no context on a grid of {grid[0]} x {grid[1]} patches: {why}; {fix}"
    )


def rectangles(
    top: Int[Tensor, "b m"], left: Int[Tensor, "b m"], shape: Shape, grid: Shape
) -> Int[Tensor, "b m n"]:
    """Number the patches of each rectangle, in raster order."""
    rows = torch.arange(shape[0], device=top.device)[:, None] * grid[1]
    inside = rows + torch.arange(shape[1], device=top.device)
    return (top * grid[1] + left)[..., None] + inside.flatten()


def cover(
    top: Int[Tensor, "*s m"], left: Int[Tensor, "*s m"], shape: Shape, grid: Shape
) -> Bool[Tensor, "*s n"]:
    """Tell which patches lie in any of the m rectangles."""
    row = torch.arange(grid[0], device=top.device) - top[..., None]
    column = torch.arange(grid[1], device=top.device) - left[..., None]
    rows = ((row >= 0) & (row < shape[0])).float()
    columns = ((column >= 0) & (column < shape[1])).float()
    return (rows.transpose(-1, -2) @ columns).flatten(-2) > 0


def draw_corners(
    size: tuple[int, ...], shape: Shape, grid: Shape, places: Generator
) -> tuple[Tensor, Tensor]:
    """Draw top and left of rectangles; every place in the grid is as likely as any other."""
    top, left = (
        torch.randint(whole - side + 1, size, generator=places, device=places.device)
        for whole, side in zip(grid, shape, strict=True)
    )
    return top, left


class MultiBlock:
    """Several target blocks, and a context drawn from a large window without them.

    A number of visible patches that is the same for every image replaces cutting to the smallest of
    the batch; it also spares the first rows from being kept more often than the last.

    Args:
        n_targets: blocks to predict in each image; they may overlap one another.
        target_share_low, target_share_width: each batch draws the part of the image that a block
            takes from [low, low + width].
        aspect_ratio_low, aspect_ratio_high: height to width of a block, uniform in the logarithm.
        window_share_low, window_share_width: likewise the part of the image that the square takes
            from which the context is drawn, as long as it holds enough patches.
        context_share: part of the patches that the context encoder sees.

    Raises:
        ValueError: if a setting is out of its range.
    """

    rectangles = True
    on_cpu = False

    def __init__(
        self,
        *,
        n_targets: int,
        target_share_low: float,
        target_share_width: float,
        aspect_ratio_low: float,
        aspect_ratio_high: float,
        window_share_low: float,
        window_share_width: float,
        context_share: float,
    ):
        check_range("masking.n_targets", n_targets, low=1)
        check_shares(
            "masking.target_share", target_share_low, target_share_width, all_taken=NO_CONTEXT
        )
        check_ratios(aspect_ratio_low, aspect_ratio_high)
        check_shares("masking.window_share", window_share_low, window_share_width)
        check_shares("masking.context_share", context_share, 0.0)
        self.n_targets = n_targets
        self.target_shares = spaced(target_share_low, target_share_low + target_share_width)
        self.aspect_ratios = spaced(aspect_ratio_low, aspect_ratio_high, logarithmic=True)
        self.window_shares = spaced(window_share_low, window_share_low + window_share_width)
        self.context_share = context_share

    def n_context(self, grid: Shape) -> int:
        """Patches that the context encoder sees."""
        return max(1, round(self.context_share * grid[0] * grid[1]))

    def shapes(self, grid: Shape) -> frozenset[Shape]:
        """Return every shape that a block can have."""
        return frozenset(
            block_shape(grid, share, ratio)
            for share in self.target_shares
            for ratio in self.aspect_ratios
        )

    def check(self, grid: Shape) -> None:
        """Refuse a grid on which one block leaves fewer patches than the context takes.

        Raises:
            ValueError: then.
        """
        n_context, n_patches = self.n_context(grid), grid[0] * grid[1]
        height, width = max(self.shapes(grid), key=math.prod)
        left = n_patches - height * width
        if left < n_context:
            raise refuse(
                grid,
                f"a block of {height} x {width} leaves {left}, and the context takes {n_context} "
                f"(masking.context_share={self.context_share})",
                f"take masking.context_share of at most {left / n_patches:.2f}, a smaller "
                "masking.target_share_low or masking.target_share_width, or a smaller model.patch",
            )

    def draw(self, batch: int, grid: Shape, *, counts: Generator, places: Generator) -> Blocks:
        """Draw blocks; `N_ATTEMPTS` sets of places are tried for each image at once.

        The first that leaves a context in the window is taken. In the last all blocks of an image
        coincide, so that there is always room for the context.
        """
        ratio = pick(self.aspect_ratios, counts)
        shape = block_shape(grid, pick(self.target_shares, counts), ratio)
        window = block_shape(grid, pick(self.window_shares, counts), 1.0)
        n_context = self.n_context(grid)
        size = (batch, N_ATTEMPTS, self.n_targets)
        top, left = draw_corners(size, shape, grid, places)
        top[:, -1], left[:, -1] = top[:, -1, :1], left[:, -1, :1]
        free = ~cover(top, left, shape, grid)
        corners = draw_corners((batch, N_ATTEMPTS, 1), window, grid, places)
        candidates = free & cover(*corners, window, grid)
        enough = candidates.sum(-1) >= n_context
        enough[:, -1] = True
        first = torch.arange(N_ATTEMPTS, 0, -1, device=enough.device)
        chosen = (enough * first).argmax(1)
        image = torch.arange(batch, device=chosen.device)
        # patches outside the window come in only where it holds too few, targets never
        order = torch.rand(free[:, 0].shape, generator=places, device=places.device)
        order = order + free[image, chosen] + candidates[image, chosen]
        context = order.topk(n_context, dim=1).indices.sort(dim=1).values
        targets = rectangles(top[image, chosen], left[image, chosen], shape, grid)
        return Blocks(context, targets, shape)


@cache
def block_shape(grid: Shape, share: float, ratio: float) -> Shape:
    """Return height and width of a block that takes `share` of the grid, cut to the grid."""
    area = share * grid[0] * grid[1]
    height = min(max(round(math.sqrt(area * ratio)), 1), grid[0])
    return height, min(max(round(math.sqrt(area / ratio)), 1), grid[1])


class MultiBlockOfficial:
    """The masks of the authors' code, with what is wrong in them, for comparison with it.

    The sides of a block stay below those of the grid and the last row and column are never drawn;
    share and ratio of a block come from one number; all images are cut to the smallest context
    of the batch, which keeps the first rows. See github.com/facebookresearch/ijepa,
    src/masks/multiblock.py.

    Args:
        n_targets: blocks to predict in each image.
        target_share_low, target_share_width: the part of the image that a block takes.
        aspect_ratio_low, aspect_ratio_high: height to width of a block.
        window_share_low, window_share_width: the part that the square of the context takes.
        min_keep: a block or a context needs more patches than this.

    Raises:
        ValueError: if a setting is out of its range.
    """

    rectangles = True
    on_cpu = True  # the smallest context of a batch is a number that a device would be waited for

    def __init__(
        self,
        *,
        n_targets: int,
        target_share_low: float,
        target_share_width: float,
        aspect_ratio_low: float,
        aspect_ratio_high: float,
        window_share_low: float,
        window_share_width: float,
        min_keep: int,
    ):
        check_range("masking.n_targets", n_targets, low=1)
        check_range("masking.min_keep", min_keep, low=0)
        check_shares("masking.target_share", target_share_low, target_share_width)
        check_ratios(aspect_ratio_low, aspect_ratio_high)
        check_shares("masking.window_share", window_share_low, window_share_width)
        self.n_targets = n_targets
        self.target_shares = spaced(target_share_low, target_share_low + target_share_width)
        self.aspect_ratios = spaced(aspect_ratio_low, aspect_ratio_high)
        self.window_shares = spaced(window_share_low, window_share_low + window_share_width)
        self.min_keep = min_keep

    def shapes(self, grid: Shape) -> frozenset[Shape]:
        """Return every shape that a block can have."""
        pairs = zip(self.target_shares, self.aspect_ratios, strict=True)
        return frozenset(self._shape(grid, share, ratio) for share, ratio in pairs)

    def check(self, grid: Shape) -> None:
        """Refuse a grid on which the authors' code would look for a larger block for ever.

        Raises:
            ValueError: then.
        """
        windows = {self._shape(grid, share, 1.0) for share in self.window_shares}
        height, width = min(self.shapes(grid) | windows, key=math.prod)
        if height * width <= self.min_keep:
            raise refuse(
                grid,
                f"a block of {height} x {width} is not larger than "
                f"masking.min_keep={self.min_keep}",
                f"take masking.min_keep={max(height * width - 1, 0)}, a larger "
                "masking.target_share_low, or a smaller model.patch",
            )

    def draw(self, batch: int, grid: Shape, *, counts: Generator, places: Generator) -> Blocks:
        """Draw blocks; where they leave too little, the last of them are let into the context.

        DIFF(code): one place of the window is tried for an image, not up to 20; with the published
        shares it has one place only.
        """
        index = int(torch.randint(N_DRAWS, (), generator=counts))
        shape = self._shape(grid, self.target_shares[index], self.aspect_ratios[index])
        window = self._shape(grid, pick(self.window_shares, counts), 1.0)
        smaller = (grid[0] - 1, grid[1] - 1)
        top, left = draw_corners((batch, self.n_targets), shape, smaller, places)
        corners = draw_corners((batch, 1), window, smaller, places)
        inside = cover(*corners, window, grid)
        candidates = torch.stack(
            [
                inside & ~cover(top[:, :n], left[:, :n], shape, grid)
                for n in range(self.n_targets, -1, -1)
            ],
            dim=1,
        )
        chosen = (candidates.sum(-1) > self.min_keep).int().argmax(1)
        context = candidates[torch.arange(batch), chosen]
        kept = int(context.sum(-1).min())
        raster = torch.arange(context.shape[1], 0, -1)
        order = (context * raster).topk(kept, dim=1).indices.sort(dim=1).values
        return Blocks(order, rectangles(top, left, shape, grid), shape)

    @staticmethod
    def _shape(grid: Shape, share: float, ratio: float) -> Shape:
        area = int(grid[0] * grid[1] * share)
        height, width = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        return min(height, grid[0] - 1), min(width, grid[1] - 1)


class RandomPatches:
    """Scattered patches to predict and to see, as in the ablation of I-JEPA (Table 6, `random`).

    Args:
        target_share: part of the patches that are predicted, as one block without a shape.
        context_share: part of the patches that the context encoder sees.

    Raises:
        ValueError: if a share is out of its range.
    """

    rectangles = False
    on_cpu = False

    def __init__(self, *, target_share: float, context_share: float):
        for key, value in (("target_share", target_share), ("context_share", context_share)):
            check_shares(f"masking.{key}", value, 0.0)
        self.target_share, self.context_share = target_share, context_share

    def shapes(self, grid: Shape) -> frozenset[Shape]:
        """Return the one shape there is: a row of that many patches."""
        return frozenset({(1, max(1, round(self.target_share * grid[0] * grid[1])))})

    def n_context(self, grid: Shape) -> int:
        """Patches that the context encoder sees."""
        return max(1, round(self.context_share * grid[0] * grid[1]))

    def check(self, grid: Shape) -> None:
        """Refuse shares that do not fit into the grid together.

        Raises:
            ValueError: then.
        """
        ((_, n_target),) = self.shapes(grid)
        n_patches = grid[0] * grid[1]
        if self.n_context(grid) + n_target > n_patches:
            raise refuse(
                grid,
                f"masking.target_share={self.target_share} takes {n_target} and "
                f"masking.context_share={self.context_share} {self.n_context(grid)} of {n_patches}",
                "take shares that add up to at most 1",
            )

    def draw(self, batch: int, grid: Shape, *, counts: Generator, places: Generator) -> Blocks:
        """Draw a context and a target for each image."""
        ((_, n_target),) = self.shapes(grid)
        masks = split_tokens(
            batch,
            grid[0] * grid[1],
            n_context=self.n_context(grid),
            n_target=n_target,
            generator=places,
        )
        return Blocks(masks.context.sort(dim=1).values, masks.targets, (1, n_target))
