"""The workload of the authors' T-JEPA code, restated plainly, to measure beside ours.

What it does: masks drawn row by row in Python, rows collated one by one, post-norm layers, dropout
on the teacher as well, and four target masks that are copies of one. It is spared the authors'
one-hot detour for categories, so it is a little faster than they are.

Axes: b rows, f columns, c context, m target, d width.
"""

import copy

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

N_COPIES = 4


def layers(width: int, n_heads: int, hidden: int, depth: int, dropout: float) -> nn.Module:
    """Post-norm layers, then the authors' head of a linear layer between two norms."""
    layer = nn.TransformerEncoderLayer(width, n_heads, hidden, dropout, batch_first=True)
    return nn.Sequential(
        nn.TransformerEncoder(layer, depth, enable_nested_tensor=False),
        nn.Dropout(dropout),
        nn.LayerNorm(width),
        nn.Linear(width, width),
        nn.Dropout(dropout),
        nn.LayerNorm(width),
    )


def take(x: Tensor, index: Tensor) -> Tensor:
    """Pick tokens by index, row by row."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))


class Encoder(nn.Module):
    """A token for CLS and for each column, plus fixed positions."""

    def __init__(self, cardinalities, width, depth, n_heads, hidden, dropout):
        super().__init__()
        self.numbers = [i for i, n in enumerate(cardinalities) if not n]
        self.categories = [i for i, n in enumerate(cardinalities) if n]
        self.weight = nn.Parameter(torch.randn(1 + len(self.numbers), width) * 0.02)
        self.bias = nn.Parameter(torch.zeros(len(cardinalities), width))
        self.embeddings = nn.ModuleList(
            nn.Embedding(cardinalities[i], width) for i in self.categories
        )
        self.register_buffer("position", torch.randn(1, 1 + len(cardinalities), width))
        self.trunk = layers(width, n_heads, hidden, depth, dropout)

    def forward(self, x, visible=None):
        ones = torch.ones(len(x), 1)
        tokens = [self.weight * torch.cat([ones, x[:, self.numbers]], dim=1)[..., None]]
        for i, embedding in zip(self.categories, self.embeddings, strict=True):
            tokens.append(embedding(x[:, i].long())[:, None])
        tokens = torch.cat(tokens, dim=1)
        bias = torch.cat([torch.zeros(1, self.bias.shape[1]), self.bias])
        tokens = tokens + bias + self.position
        return self.trunk(tokens if visible is None else take(tokens, visible))


class Official(nn.Module):
    """Encoder, teacher in train mode, predictor on four copies; `step` is one training step."""

    def __init__(self, cardinalities, *, width, depth, n_heads, hidden, dropout, predictor):
        super().__init__()
        self.encoder = Encoder(cardinalities, width, depth, n_heads, hidden, dropout)
        self.teacher = copy.deepcopy(self.encoder)
        narrow = predictor["width"]
        self.narrow, self.widen = nn.Linear(width, narrow), nn.Linear(narrow, width)
        self.register_buffer("position", torch.randn(1, len(cardinalities), narrow))
        self.query = nn.Parameter(torch.zeros(1, 1, narrow))
        self.trunk = layers(
            narrow, predictor["n_heads"], predictor["hidden"], predictor["depth"], dropout
        )
        trained = [p for n, p in self.named_parameters() if not n.startswith("teacher.")]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-3)

    def collate(self, table: Tensor, rows: list[int], n_context: int, n_target: int):
        """Draw masks row by row in Python, as a DataLoader's collate function does."""
        contexts, targets = [], []
        for _ in rows:
            order = np.arange(table.shape[1])
            np.random.shuffle(order)
            context = order[:n_context].copy()
            rest = np.setdiff1d(order, context)
            np.random.shuffle(rest)
            contexts.append(torch.as_tensor(context))
            targets.append(torch.as_tensor(rest[:n_target].copy()))
        x = torch.utils.data.default_collate([table[row] for row in rows])
        return x, torch.stack(contexts), torch.stack(targets)

    def loss(self, x: Tensor, context: Tensor, target: Tensor) -> Tensor:
        """Predict the targets N_COPIES times."""
        with torch.no_grad():
            expected = take(self.teacher(x), target).repeat(N_COPIES, 1, 1)
        seen = self.narrow(self.encoder(x, context))
        position = self.position.expand(len(x), -1, -1)
        seen = (seen + take(position, context)).repeat(N_COPIES, 1, 1)
        queries = (self.query + take(position, target)).repeat(N_COPIES, 1, 1)
        codes = self.trunk(torch.cat([seen, queries], dim=1))[:, seen.shape[1] :]
        return F.mse_loss(self.widen(codes), expected)

    def step(self, table: Tensor, rows: list[int], n_context: int, n_target: int) -> None:
        """Train once."""
        loss = self.loss(*self.collate(table, rows, n_context, n_target))
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            pairs = zip(self.encoder.parameters(), self.teacher.parameters(), strict=True)
            for fast, slow in pairs:
                slow.mul_(0.996).add_(fast.detach(), alpha=0.004)
