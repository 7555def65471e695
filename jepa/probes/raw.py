"""The raw columns as features: the control that every representation of a table has to beat.

Axes: n training rows, m scored rows, f columns, e features.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

MAX_CODES = 256  # of a category, the most frequent ones; the others share one indicator


def raw_features(
    x_train: Float[Tensor, "n f"], x_val: Float[Tensor, "m f"], cardinalities: Sequence[int]
) -> tuple[Float[Tensor, "n e"], Float[Tensor, "m e"]]:
    """Return both splits as numbers and indicators; only the training rows decide on the columns.

    A number stays as it is, 0 where missing, with an indicator of missing beside it if a training
    row misses it. A category becomes an indicator for each of the (at most 256 most frequent)
    codes that occur in training, and one for any other code if there are more, or if other codes
    exist.

    Args:
        x_train: a table's batch contract: scaled numbers, NaN where missing; codes of categories.
        x_val: the rows to score on, in the same columns.
        cardinalities: 0 for a number, else how many codes the category has.

    Raises:
        ValueError: if `cardinalities` does not match the columns.
    """
    if len(cardinalities) != x_train.shape[1]:
        raise ValueError(
            f"one cardinality for each column: got {len(cardinalities)} for {x_train.shape[1]}"
        )
    parts = [
        encode_category(x_train[:, i], x_val[:, i], n_codes)
        if n_codes
        else encode_number(x_train[:, i], x_val[:, i])
        for i, n_codes in enumerate(cardinalities)
    ]
    train, val = zip(*parts, strict=True)
    return torch.cat(train, dim=1), torch.cat(val, dim=1)


def encode_number(
    train: Float[Tensor, " n"], val: Float[Tensor, " m"]
) -> tuple[Float[Tensor, "n k"], Float[Tensor, "m k"]]:
    """Return the values, and where they are missing if a training row misses one."""
    with_indicator = bool(train.isnan().any())

    def encode(x: Tensor) -> Tensor:
        columns = [x.nan_to_num(nan=0.0), *([x.isnan().to(x.dtype)] if with_indicator else [])]
        return torch.stack(columns, dim=1)

    return encode(train), encode(val)


def encode_category(
    train: Float[Tensor, " n"], val: Float[Tensor, " m"], n_codes: int
) -> tuple[Float[Tensor, "n k"], Float[Tensor, "m k"]]:
    """Return one indicator for each frequent code, and one for the rest."""
    counts = torch.bincount(train.long(), minlength=n_codes)
    frequent = counts.argsort(descending=True, stable=True)[:MAX_CODES]
    frequent = frequent[counts[frequent] > 0]
    place = torch.full((n_codes,), len(frequent), device=train.device)
    place[frequent] = torch.arange(len(frequent), device=train.device)

    def encode(x: Tensor) -> Tensor:
        return F.one_hot(place[x.long()], len(frequent) + 1).to(x.dtype)

    return encode(train), encode(val)
