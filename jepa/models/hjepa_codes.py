"""The codes of an image that a trained H-JEPA offers, from one pass of its teacher.

`mean`: the mean of the patches' codes; `last4`: those means after each of the last four blocks, as
the evaluation of I-JEPA joins them; `level<l>`: the coarser grid of a level, averaged over squares
of 2^l patches and flattened; `levels`: the mean and all of these; `patches`: all patches' codes.

Axes: b images, c channels, n patches, d width, e code.
"""

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from jepa.nn.pyramid import pool, pooled_shape
from jepa.nn.vit import ViT

LAST = 4  # blocks behind `last4`
OWN = "own"  # the one that the model's settings name


def representations(model: Any) -> list[str]:
    """Return the names of all that a model of these sizes offers."""
    last = ["last4"] if model.levels.depth >= LAST else []
    return ["mean", *last, *(f"level{level}" for level in range(1, model.levels.n)), "patches"]


def parts_of(model: Any, name: str) -> list[str]:
    """Return what a representation is joined from, in order; each part is as wide as the model."""
    depth = model.levels.depth
    if name == OWN:
        return parts_of(model, model.representation)
    if name == "last4":
        return [f"block{i}" for i in range(depth - LAST + 1, depth + 1)]
    if name == "mean":
        return ["mean"]
    if name == "patches":
        return [f"patch{i}" for i in range(math.prod(model.encoder.grid))]
    wanted = range(1, model.levels.n) if name == "levels" else [int(name.removeprefix("level"))]
    parts = ["mean"] if name == "levels" else []
    for level in wanted:
        rows, columns = pooled_shape(model.encoder.grid, level)
        parts += [f"level{level}patch{i}" for i in range(rows * columns)]
    return parts


def embed_each(
    model: Any, x: Float[Tensor, "b c y x"], names: Sequence[str]
) -> dict[str, Float[Tensor, "b _"]]:
    """Return these representations of images; another image size is taken as well."""
    settled = {name: model.representation if name == OWN else name for name in names}
    if set(settled.values()) == {"mean"}:  # nothing inside the teacher is kept
        mean: Tensor = model.teacher(x).mean(1)
        return {name: mean for name in names}
    net, levels = cast(ViT, model.teacher.net), model.levels
    hidden = net.hidden(x)

    def coarse(level: int) -> Tensor:
        features = levels.after(hidden, levels.depths[level])
        return pool(features, net.grid_of(*x.shape[2:]), level).flatten(1)

    def code(name: str) -> Tensor:
        if name == "mean":
            return hidden[-1].mean(1)
        if name == "patches":
            return hidden[-1].flatten(1)
        if name == "last4":
            last = range(levels.depth - LAST + 1, levels.depth + 1)
            return torch.cat([levels.after(hidden, i).mean(1) for i in last], dim=1)
        if name == "levels":
            return torch.cat([code("mean"), *(coarse(i) for i in range(1, levels.n))], dim=1)
        return coarse(int(name.removeprefix("level")))

    return {name: code(one) for name, one in settled.items()}
