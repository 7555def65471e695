"""Table columns to tokens: numbers, categories, missing values.

Gorishniy et al., "On Embeddings for Numerical Features in Tabular Deep Learning", NeurIPS 2022,
arXiv:2203.05556 (periodic: Sec. 3.3; piecewise: Sec. 3.2).

Axes: b rows, f columns, k columns asked for, q frequencies, p bins, d width.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from jepa.nn.checks import check_choice

FREQUENCY_SCALE = 0.01  # the default of the authors' package rtdl_num_embeddings 0.0.10


def table(*shape: int) -> nn.Parameter:
    """Draw a table of vectors, uniform in +-1/sqrt(width), as FT-Transformer's tokenizer."""
    bound = shape[-1] ** -0.5
    return nn.Parameter(torch.empty(shape).uniform_(-bound, bound))


class LinearNumbers(nn.Module):
    """A number times its column's vector; the bias is the column's own embedding."""

    def __init__(self, n_columns: int, width: int):
        super().__init__()
        self.slope = table(n_columns, width)

    def forward(
        self, x: Float[Tensor, "b k"], column: Int[Tensor, "b k"]
    ) -> Float[Tensor, "b k d"]:
        """Scale each column's vector."""
        return x[..., None] * F.embedding(column, self.slope)


class PeriodicNumbers(nn.Module):
    """Sines and cosines of learned frequencies, a linear layer shared by all columns, a ReLU.

    Raises:
        ValueError: if there is no frequency.
    """

    def __init__(self, n_columns: int, width: int, n_frequencies: int):
        super().__init__()
        if n_frequencies < 1:
            raise ValueError(f"model.n_frequencies must be at least 1, got {n_frequencies}")
        frequency = torch.empty(n_columns, n_frequencies)
        bound = 3 * FREQUENCY_SCALE
        nn.init.trunc_normal_(frequency, std=FREQUENCY_SCALE, a=-bound, b=bound)
        self.frequency = nn.Parameter(frequency)
        # the lite form: one layer for all columns, not one for each
        self.mix = nn.Linear(2 * n_frequencies, width)

    def forward(
        self, x: Float[Tensor, "b k"], column: Int[Tensor, "b k"]
    ) -> Float[Tensor, "b k d"]:
        """Encode the phase of each number."""
        phase = 2 * math.pi * x[..., None] * F.embedding(column, self.frequency)
        return F.relu(self.mix(torch.cat([phase.cos(), phase.sin()], dim=-1)))


class PiecewiseNumbers(nn.Module):
    """Piecewise-linear encoding over quantile bins, then a linear layer for each column.

    A number in bin t has encoding (1, .., 1, r, 0, .., 0), r at place t (Eq. 1), so the layer's
    output is the sum of the vectors before t plus r times vector t: two rows are looked up, and
    nothing is multiplied by zero.

    Args:
        quantiles: for each numeric column, its evenly spaced quantiles.

    Raises:
        ValueError: if there are fewer quantiles than bins ask for.
    """

    start: Tensor
    size: Tensor

    def __init__(self, quantiles: Sequence[Sequence[float]], width: int, n_bins: int):
        super().__init__()
        most = min((len(q) for q in quantiles), default=1) - 1
        if not 1 <= n_bins <= most:
            raise ValueError(
                f"model.n_bins must be in 1..{most} (the data has {most + 1} quantiles a column), "
                f"got {n_bins}"
            )
        start = torch.full((len(quantiles), n_bins), math.inf)
        size = torch.ones(len(quantiles), n_bins)
        for column, values in enumerate(quantiles):
            every = torch.linspace(0, len(values) - 1, n_bins + 1).round().long()
            edges = torch.tensor(values, dtype=torch.float32)[every].unique()
            n = max(len(edges) - 1, 1)  # a bin without rows, between equal quantiles, is dropped
            start[column, :n] = edges[:n]
            size[column, : len(edges) - 1] = edges.diff()
        self.register_buffer("start", start)
        self.register_buffer("size", size)
        self.slope = table(len(quantiles), n_bins, width)

    def forward(
        self, x: Float[Tensor, "b k"], column: Int[Tensor, "b k"]
    ) -> Float[Tensor, "b k d"]:
        """Look up the bin of each number; the outer bins go on for ever."""
        n_bins = self.start.shape[1]
        inner = F.embedding(column, self.start)[..., 1:]
        row = column * n_bins + (x[..., None] >= inner).sum(-1)
        inside = (x - self.start.flatten()[row]) / self.size.flatten()[row]
        before = self.slope.cumsum(1) - self.slope
        slope = F.embedding(row, self.slope.flatten(0, 1))
        return F.embedding(row, before.flatten(0, 1)) + inside[..., None] * slope


def build_numbers(
    kind: str,
    quantiles: Sequence[Sequence[float]],
    width: int,
    *,
    n_frequencies: int,
    n_bins: int,
) -> nn.Module | None:
    """Build what encodes the numeric columns; None where there are none.

    Raises:
        ValueError: if there is no such kind, or its size does not fit.
    """
    check_choice("model.numeric_embedding", kind, ("linear", "periodic", "piecewise"))
    if not quantiles:
        return None
    if kind == "linear":
        return LinearNumbers(len(quantiles), width)
    if kind == "periodic":
        return PeriodicNumbers(len(quantiles), width, n_frequencies)
    return PiecewiseNumbers(quantiles, width, n_bins)


class ColumnTokenizer(nn.Module):
    """One token for each column asked for: its value, plus a learned vector of the column.

    A number that is not finite is missing and has a learned token of its column; a category's code
    outside its range counts as unseen (1), and a missing code as 0.

    Args:
        cardinalities: 0 for a number, else how many codes the category has.
        numbers: encodes the numeric columns, counted on their own; None where there are none.
    """

    cardinality: Tensor
    first_row: Tensor
    rank: Tensor

    def __init__(self, cardinalities: Sequence[int], width: int, numbers: nn.Module | None):
        super().__init__()
        cardinality = torch.tensor(cardinalities)
        rows = cardinality.clamp(min=1)  # a number needs one row, its missing token
        self.register_buffer("cardinality", cardinality)
        # row 0 stays zero: a number that is there adds nothing from this table
        self.register_buffer("first_row", 1 + rows.cumsum(0) - rows)
        self.register_buffer("rank", ((cardinality == 0).cumsum(0) - 1).clamp(min=0))
        self.column = table(len(cardinalities), width)
        self.value = table(1 + int(rows.sum()), width)
        with torch.no_grad():
            self.value[0] = 0.0
        self.numbers = numbers

    def forward(
        self, x: Float[Tensor, "b f"], only: Int[Tensor, "b k"] | None = None
    ) -> Float[Tensor, "b k d"]:
        """Tokenize all columns, or `only` those asked for."""
        column = only
        if column is None:
            column = torch.arange(x.shape[1], device=x.device).expand(x.shape[0], -1)
        else:
            x = x.gather(1, column)
        known = x.isfinite()
        x = torch.where(known, x, 0.0)
        cardinality, first_row = self.cardinality[column], self.first_row[column]
        number = cardinality == 0
        code = torch.where((x < 0) | (x >= cardinality), 1.0, x).long()
        row = torch.where(number, torch.where(known, 0, first_row), first_row + code)
        tokens = F.embedding(column, self.column) + F.embedding(row, self.value, padding_idx=0)
        if self.numbers is None:
            return tokens
        shown = (number & known)[..., None]
        return tokens + shown * self.numbers(torch.where(number, x, 0.0), self.rank[column])
