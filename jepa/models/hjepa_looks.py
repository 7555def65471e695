"""What there is to see in an H-JEPA: where it attends, its features by level, its predictions.

Axes: b images, c channels, n patches, m blocks, o patches after averaging, d width, i j rows and
columns of patches.
"""

from dataclasses import dataclass
from typing import Any, cast

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from jepa.nn.blocks import Blocks
from jepa.nn.pyramid import pool, pooled_shape
from jepa.nn.vit import ViT


@dataclass(frozen=True, kw_only=True)
class Looks:
    """Some images as the model sees them, on the CPU.

    Args:
        blocks: what was visible and what was to be predicted.
        patch: side of a patch in pixels.
        attention: how much each patch weighs in the mean code, by attention rollout.
        levels: the teacher's features, finest level first.
        targets, predicted: for each level, what a block's features are, normalised, and what the
            student predicts from the visible patches.
    """

    blocks: Blocks
    patch: int
    attention: Float[Tensor, "b i j"]
    levels: list[Float[Tensor, "b _ _ d"]]
    targets: list[Float[Tensor, "b m _ d"]]
    predicted: list[Float[Tensor, "b m _ d"]]


@torch.no_grad()
def look(model: Any, x: Float[Tensor, "b c y x"], blocks: Blocks) -> Looks:
    """Look at some images under these masks."""
    net, levels = cast(ViT, model.teacher.net), model.levels
    grid, hidden = net.grid_of(*x.shape[2:]), net.hidden(x)
    maps = []
    for level, depth in enumerate(levels.depths):
        rows, columns = pooled_shape(grid, level)
        features = pool(levels.after(hidden, depth).float(), grid, level)
        maps.append(rearrange(features, "b (i j) d -> b i j d", i=rows, j=columns).cpu())
    context = model.encoder(x, blocks.context)
    features = model.predictor(context, blocks.context, blocks.targets).flatten(0, 1)
    predicted = model.pyramid(features, blocks.shape)
    targets = levels.targets(hidden, blocks, synchronise=False)
    b = len(x)
    return Looks(
        blocks=blocks.to(torch.device("cpu")),
        patch=net.patch,
        attention=rearrange(rollout(net, x).mean(1), "b (i j) -> b i j", i=grid[0]).cpu(),
        levels=maps,
        targets=[rearrange(t.float(), "(b m) o d -> b m o d", b=b).cpu() for t in targets],
        predicted=[rearrange(p.float(), "(b m) o d -> b m o d", b=b).cpu() for p in predicted],
    )


def rollout(net: ViT, x: Float[Tensor, "b c y x"]) -> Float[Tensor, "b n n"]:
    """Return how much of each input patch each output token holds: rows add up to 1.

    Abnar and Zuidema, "Quantifying Attention Flow in Transformers", ACL 2020, arXiv:2005.00928,
    Sec. 3: the product over the blocks of half the attention, averaged over heads, and half the
    token itself.
    """
    tokens, rotation = net.tokens(x)
    own = torch.eye(tokens.shape[1], device=x.device)
    flow = own.expand(len(x), -1, -1)
    for block in net.trunk.blocks:
        attended = cast(Any, block).weights(tokens, rotation).float().mean(1)
        flow = (attended + own) / 2 @ flow
        tokens = block(tokens, rotation)
    return flow
