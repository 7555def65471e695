"""The workload of the authors' PatchTST code, restated plainly, to measure beside ours.

What it does: one Python call and four numpy slices a window, float64 until the step, time marks and
a decoder's input that nothing reads; post-norm layers whose BatchNorm is reached by transposes,
attention written out with the scores of the layer before added, `nn.Dropout` in four places of a
layer; in evaluation every forecast is kept and joined at the end.

Axes: b windows, c channels, l look-back, h horizon, r = b * c rows, n patches, d width.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

LABEL = 48  # known steps that a decoder would be given


class WindowSet(torch.utils.data.Dataset):
    """Windows cut one by one."""

    def __init__(self, values: np.ndarray, look_back: int, horizon: int):
        self.values = values.astype(np.float64)
        self.marks = np.random.default_rng(0).normal(size=(len(values), 4))
        self.look_back, self.horizon = look_back, horizon

    def __len__(self):
        return len(self.values) - self.look_back - self.horizon + 1

    def __getitem__(self, start):
        end = start + self.look_back
        future = slice(end - LABEL, end + self.horizon)
        past = slice(start, end)
        return self.values[past], self.values[future], self.marks[past], self.marks[future]


class Transpose(nn.Module):
    """Swap the axes of tokens and width."""

    def forward(self, x):
        return x.transpose(1, 2)


def batch_norm(width: int) -> nn.Module:
    """BatchNorm of the width, which torch wants in the middle."""
    return nn.Sequential(Transpose(), nn.BatchNorm1d(width), Transpose())


class Layer(nn.Module):
    """Attention written out, then the hidden layer; post-norm."""

    def __init__(self, width: int, n_heads: int, hidden: int, dropout: float):
        super().__init__()
        self.n_heads = n_heads
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width) for _ in range(3))
        self.to_out = nn.Sequential(nn.Linear(width, width), nn.Dropout(dropout))
        self.attn_dropout, self.attn_norm = nn.Dropout(dropout), batch_norm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, width)
        )
        self.mlp_dropout, self.mlp_norm = nn.Dropout(dropout), batch_norm(width)

    def forward(self, x: Tensor, earlier: Tensor | None) -> tuple[Tensor, Tensor]:
        r, n, d = x.shape
        heads = (r, n, self.n_heads, d // self.n_heads)
        q = self.to_q(x).view(heads).transpose(1, 2)
        k = self.to_k(x).view(heads).permute(0, 2, 3, 1)
        v = self.to_v(x).view(heads).transpose(1, 2)
        scores = torch.matmul(q, k) * heads[-1] ** -0.5
        if earlier is not None:
            scores = scores + earlier
        mixed = torch.matmul(F.softmax(scores, dim=-1), v)
        branch = self.to_out(mixed.transpose(1, 2).contiguous().view(r, n, d))
        x = self.attn_norm(x + self.attn_dropout(branch))
        return self.mlp_norm(x + self.mlp_dropout(self.mlp(x))), scores


class Official(nn.Module):
    """The forecaster and its training step."""

    def __init__(self, n_channels, *, look_back, horizon, patch, stride, width, depth, n_heads,
                 hidden, dropout):  # fmt: skip
        super().__init__()
        self.patch, self.stride, self.horizon = patch, stride, horizon
        n_patches = (look_back - patch) // stride + 2
        self.pad = nn.ReplicationPad1d((0, stride))
        self.to_token = nn.Linear(patch, width)
        self.position = nn.Parameter(torch.empty(n_patches, width).uniform_(-0.02, 0.02))
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(Layer(width, n_heads, hidden, dropout) for _ in range(depth))
        self.head = nn.Linear(width * n_patches, horizon)
        self.optimizer = torch.optim.Adam(self.parameters(), lr=1e-4)

    def forward(self, x: Tensor) -> Tensor:
        """Forecast [b, h, c] from [b, l, c]."""
        mean = x.mean(1, keepdim=True).detach()
        deviation = torch.sqrt(x.var(1, keepdim=True, unbiased=False) + 1e-5).detach()
        z = self.pad(((x - mean) / deviation).permute(0, 2, 1))
        z = z.unfold(-1, self.patch, self.stride).permute(0, 1, 3, 2)
        tokens = self.to_token(z.permute(0, 1, 3, 2))
        b, c, n, d = tokens.shape
        code, scores = self.dropout(tokens.reshape(b * c, n, d) + self.position), None
        for layer in self.layers:
            code, scores = layer(code, scores)
        code = code.reshape(b, c, n, d).permute(0, 1, 3, 2)
        return self.head(code.flatten(2)).permute(0, 2, 1) * deviation + mean

    def predict(self, batch: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Return forecast and truth of a batch as the loader gives it."""
        x, y, _, y_mark = (one.float() for one in batch)
        torch.cat([y[:, :LABEL], torch.zeros_like(y[:, -self.horizon :])], dim=1), y_mark
        return self(x), y[:, -self.horizon :]

    def step(self, batch: list[Tensor]) -> None:
        """Train once."""
        self.optimizer.zero_grad()
        forecast, truth = self.predict(batch)
        F.mse_loss(forecast, truth).backward()
        self.optimizer.step()

    def evaluate(self, loader) -> float:
        """Return the error of all windows; forecasts and truths are kept until the end."""
        kept: tuple[list, list] = [], []
        with torch.no_grad():
            for batch in loader:
                for place, one in zip(kept, self.predict(batch), strict=True):
                    place.append(one.detach().numpy())
        forecasts, truths = (np.concatenate(one) for one in kept)
        return float(np.mean((forecasts - truths) ** 2))
