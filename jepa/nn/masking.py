"""Which tokens the context encoder sees and which are predicted.

Counts come from a CPU generator, so that shapes are plain integers and no device is waited for;
indices come from a generator on the device of the data.
Axes: b rows, n tokens, c context, u hidden tokens asked for, k target masks, m target.
"""

import hashlib
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Generator, Tensor


class Masks(NamedTuple):
    """Context tokens, hidden tokens, and which of the hidden ones form each target mask.

    A hidden token that lies in several target masks appears once in `hidden`.
    """

    context: Int[Tensor, "b c"]
    hidden: Int[Tensor, "b u"]
    slots: Int[Tensor, "k m"]

    @property
    def targets(self) -> Int[Tensor, "b k m"]:
        """The token indices of each target mask."""
        return self.hidden[:, self.slots]


def stream(*key: int | str) -> int:
    """Turn a key such as (seed, epoch, step) into a seed of its own, in [0, 2**63)."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def draw_count(
    n: int, share: tuple[float, float], *, most: int, generator: Generator, n_levels: int = 0
) -> int:
    """Draw a share from [low, low + width], and return that part of `n`, between 1 and `most`.

    If `n_levels` is positive, only so many evenly spaced shares occur, so that a compiler meets few
    shapes.
    """
    low, width = share
    draw = torch.rand((), generator=generator).item()
    if n_levels:
        draw = min(int(draw * n_levels), n_levels - 1) / max(n_levels - 1, 1)
    return max(1, min(round((low + width * draw) * n), most))


def split_tokens(
    batch: int,
    n_tokens: int,
    *,
    n_context: int,
    n_target: int,
    n_masks: int = 1,
    generator: Generator | None = None,
) -> Masks:
    """Draw a context and `n_masks` distinct target masks, for each row on its own.

    The hidden tokens lie on a circle in random order; a mask is an arc of it, and the arcs begin at
    even distances. So each mask alone is a uniform draw, no two are equal, and together they cover
    as many tokens as they can. Where fewer distinct masks exist, there are fewer.

    Raises:
        ValueError: if a context and a target do not fit into `n_tokens`.
    """
    if n_context + n_target > n_tokens or min(n_context, n_target, n_masks) < 1:
        raise ValueError(
            "context and target need a token each and must not overlap: got "
            f"{n_context=}, {n_target=}, {n_masks=}, {n_tokens=}"
        )
    device = generator.device if generator is not None else None
    order = torch.rand(batch, n_tokens, generator=generator, device=device).argsort(dim=1)
    n_hidden = n_tokens - n_context
    n_masks = min(n_masks, n_hidden) if n_target < n_hidden else 1
    n_asked = min(n_masks * n_target, n_hidden)
    # arcs that do not touch are laid end to end, so that every hidden token drawn is asked for
    starts = torch.arange(n_masks, device=device) * n_asked // n_masks
    slots = (starts[:, None] + torch.arange(n_target, device=device)) % n_asked
    return Masks(order[:, :n_context], order[:, n_context : n_context + n_asked], slots)


def split_future(
    batch: int, n_tokens: int, *, n_target: int, device: torch.device | None = None
) -> Masks:
    """Show the first tokens and hide the last `n_target`, in every row alike.

    Raises:
        ValueError: if that leaves nothing to see or nothing to predict.
    """
    if not 0 < n_target < n_tokens:
        raise ValueError(f"some tokens must be seen and some hidden: {n_target=}, {n_tokens=}")
    order = torch.arange(n_tokens, device=device).expand(batch, -1)
    slots = torch.arange(n_target, device=device)[None]
    return Masks(order[:, :-n_target], order[:, -n_target:], slots)
