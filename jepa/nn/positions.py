"""Where the patches of an image lie: codes to add to tokens, or angles for the attention.

Axes: b images, n patches, k tokens, d width, h heads, e width of a head, r rotations (half of e).
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from jepa.nn.checks import check_choice

SINCOS_BASE, ROPE_BASE = 10_000.0, 100.0
POSITIONS = ("sincos", "rope")

Rotation = tuple[Tensor, Tensor]  # cosines and sines, [b or 1, n, r] each


def coordinates(grid: tuple[int, int], trained: tuple[int, int]) -> Float[Tensor, "n 2"]:
    """Return row and column of each patch, in raster order, measured on the `trained` grid.

    Another grid covers the same image, so that its patches lie between those of training.
    """
    row, column = (
        (torch.arange(n, dtype=torch.float64, device="cpu") + 0.5) * (known / n) - 0.5
        for n, known in zip(grid, trained, strict=True)
    )
    return torch.stack(torch.meshgrid(row, column, indexing="ij"), dim=-1).flatten(0, 1).float()


def frequencies(n: int, base: float) -> Float[Tensor, " n"]:
    """Return base ** -(i / n) for i in 0..n-1, computed in float64 on the CPU."""
    return base ** -(torch.arange(n, dtype=torch.float64, device="cpu") / n)


def sincos(places: Float[Tensor, "n 2"], width: int) -> Float[Tensor, "n d"]:
    """Code positions by sines and cosines of the column, then of the row (Vaswani et al., 2017).

    The order of the authors' code of I-JEPA, so that its checkpoints fit.
    """
    steps = frequencies(width // 4, SINCOS_BASE)
    row, column = (place.double()[:, None] * steps for place in places.unbind(1))
    return torch.cat([column.sin(), column.cos(), row.sin(), row.cos()], dim=1).float()


def rope(places: Float[Tensor, "n 2"], head_width: int) -> Float[Tensor, "two n r"]:
    """Return cosines and sines that turn a half of each head by the row and a half by the column.

    Heo et al., "Rotary Position Embedding for Vision Transformer", ECCV 2024, arXiv:2403.13298
    (RoPE-Axial); the base is that of their code, since rows and columns are few.
    """
    steps = frequencies(head_width // 4, ROPE_BASE)
    angle = (places.double()[..., None] * steps).flatten(1)
    return torch.stack([angle.cos(), angle.sin()]).float()


def rotate(x: Float[Tensor, "b h n e"], rotation: Rotation) -> Float[Tensor, "b h n e"]:
    """Turn pairs of entries, one from each half of a head, by the angles of their token."""
    cos, sin = (part[:, None].to(x.dtype) for part in rotation)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


class Positions(nn.Module):
    """Where the patches of an image lie: a code to add to tokens, or angles for the attention.

    Args:
        kind: `sincos` or `rope`.
        grid: rows and columns of patches in training; another grid is laid over it.

    Raises:
        ValueError: if the width cannot be split between rows and columns.
    """

    table: Tensor

    def __init__(self, kind: str, grid: tuple[int, int], width: int, n_heads: int):
        super().__init__()
        check_choice("model.position", kind, POSITIONS)
        self.kind, self.grid, self.width, self.n_heads = kind, grid, width, n_heads
        part, what = (width, "width") if kind == "sincos" else (width // n_heads, "width / n_heads")
        if part % 4:
            raise ValueError(
                f"model.position={kind} needs sine and cosine of row and column: {what} must be a "
                f"multiple of 4, got {part} ({width=}, {n_heads=})"
            )
        # computed from the settings: no part of a checkpoint
        self.register_buffer("table", self.make(grid), persistent=False)

    def make(self, grid: tuple[int, int]) -> Tensor:
        """Compute the codes [n, d] or the cosines and sines [2, n, r] of a grid."""
        places = coordinates(grid, self.grid)
        if self.kind == "sincos":
            return sincos(places, self.width)
        return rope(places, self.width // self.n_heads)

    def of(self, grid: tuple[int, int] | None = None) -> Tensor:
        """Return the table of a grid, by default that of training."""
        if grid is None or grid == self.grid:
            return self.table
        return self.make(grid).to(self.table.device)

    def add(
        self,
        x: Float[Tensor, "b k d"],
        index: Int[Tensor, "b k"] | None = None,
        grid: tuple[int, int] | None = None,
    ) -> Float[Tensor, "b k d"]:
        """Add each token's code, where codes are added; all tokens in order without an index."""
        if self.kind != "sincos":
            return x
        table = self.of(grid)
        return x + (table if index is None else F.embedding(index, table))

    def rotation(
        self, index: Int[Tensor, "b k"] | None = None, grid: tuple[int, int] | None = None
    ) -> Rotation | None:
        """Return each token's angles, where there are angles."""
        if self.kind != "rope":
            return None
        cos, sin = self.of(grid)
        if index is None:
            return cos[None], sin[None]
        return F.embedding(index, cos), F.embedding(index, sin)
