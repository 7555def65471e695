"""Probes trained by gradient descent: a linear layer, and a network with one hidden layer.

Axes: n training rows, m scored rows, b batch, e features, o outputs, c classes.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Num
from torch import Tensor

from jepa.metrics import count_classes
from jepa.probes.prepare import Standardizer, report, shuffle

_FINAL_LR = 1e-6


def sgd_linear(
    x_train: Float[Tensor, "n e"],
    y_train: Num[Tensor, " n"],
    x_val: Float[Tensor, "m e"],
    y_val: Num[Tensor, " m"],
    *,
    lr: float,
    weight_decay: float,
    n_epochs: int,
    batch_size: int,
    seed: int,
    n_bootstrap: int = 0,
) -> dict[str, float]:
    """Train a linear layer by AdamW and score its last weights.

    One output for a binary task (binary cross-entropy) and for values (squared error of the
    standardised values), one for each class otherwise.

    Args:
        x_train: features to fit on; standardised inside, by their own statistics.
        y_train: their targets: integers are classes, floats are values.
        x_val: features to score on; standardised like the training rows.
        y_val: their targets.
        lr: at the first step; it falls to 1e-6 along half a cosine.
        weight_decay: of the weights; biases have none.
        n_epochs: passes over the training rows.
        batch_size: rows of a step.
        seed: of the first weights and the order of the rows.
        n_bootstrap: resamples behind the intervals, 0 for none.

    Raises:
        ValueError: for features that are not finite, or a setting below its least value.
    """
    descent = Descent(
        lr=lr, weight_decay=weight_decay, n_epochs=n_epochs, batch_size=batch_size, seed=seed
    )
    with torch.inference_mode(False), torch.enable_grad():
        scale, a = Standardizer.fit(x_train, torch.float32)
        targets = Targets(y_train, count_classes(y_train, y_val))
        network = Network([a.shape[1], targets.n_outputs], dropout=0.0, seed=seed)
        for _ in descent.run(network, a, targets, torch.arange(len(a))):
            pass
    output = targets.decode(network.predict(scale(x_val)))
    return dict(report(output, y_val, n_classes=targets.n_classes, n_bootstrap=n_bootstrap))


def mlp(
    x_train: Float[Tensor, "n e"],
    y_train: Num[Tensor, " n"],
    x_val: Float[Tensor, "m e"],
    y_val: Num[Tensor, " m"],
    *,
    width: int,
    dropout: float,
    lr: float,
    weight_decay: float,
    n_epochs: int,
    patience: int,
    batch_size: int,
    seed: int,
    n_bootstrap: int = 0,
) -> dict[str, float]:
    """Train a network with one hidden layer; score the weights that were best on held-out rows.

    Args:
        x_train: features to fit on; standardised inside, by their own statistics.
        y_train: their targets: integers are classes, floats are values.
        x_val: features to score on; standardised like the training rows.
        y_val: their targets.
        width: of the hidden layer.
        dropout: of the hidden layer.
        lr: at the first step; it falls to 1e-6 along half a cosine.
        weight_decay: of the weights; biases have none.
        n_epochs: passes over the training rows, at most.
        patience: epochs without a lower loss on a held-out fifth of the training rows, then stop.
        batch_size: rows of a step.
        seed: of the held-out rows, the first weights, the order of the rows and the dropout.
        n_bootstrap: resamples behind the intervals, 0 for none.

    Raises:
        ValueError: for features that are not finite, or a setting outside its range.
    """
    if width < 1 or patience < 1 or not 0 <= dropout < 1:
        raise ValueError(
            "probe.width and probe.patience must be at least 1, probe.dropout in [0, 1), "
            f"got {width=}, {patience=}, {dropout=}"
        )
    descent = Descent(
        lr=lr, weight_decay=weight_decay, n_epochs=n_epochs, batch_size=batch_size, seed=seed
    )
    with torch.inference_mode(False), torch.enable_grad():
        scale, a = Standardizer.fit(x_train, torch.float32)
        targets = Targets(y_train, count_classes(y_train, y_val))
        network = Network([a.shape[1], width, targets.n_outputs], dropout=dropout, seed=seed)
        order, n_fit = shuffle(len(a), seed)
        held = order[n_fit:] if n_fit < len(a) else order
        best, best_loss, since = network.copy(), math.inf, 0
        for _ in descent.run(network, a, targets, order[:n_fit]):
            loss = targets.loss(network.predict(a[held]), held).item()
            since += 1
            if loss < best_loss:
                best, best_loss, since = network.copy(), loss, 0
            if since == patience:
                break
    output = targets.decode(best.predict(scale(x_val)))
    return dict(report(output, y_val, n_classes=targets.n_classes, n_bootstrap=n_bootstrap))


class Targets:
    """Training targets in the form of a loss: labels, or standardised values."""

    def __init__(self, y: Num[Tensor, " n"], n_classes: int):
        self.n_classes = n_classes
        self.n_outputs = n_classes if n_classes > 2 else 1
        self.y = y.detach().cpu().clone()
        self.mean, self.std = 0.0, 1.0
        if not n_classes:
            values = self.y.double()
            self.mean, self.std = values.mean().item(), values.std(correction=0).item() or 1.0
            self.y = (values - self.mean) / self.std
        self.y = self.y.long() if n_classes > 2 else self.y.float()

    def loss(self, output: Float[Tensor, "b o"], rows: Int[Tensor, " b"]) -> Float[Tensor, ""]:
        """Return the mean loss of the outputs of these rows."""
        y = self.y[rows]
        if self.n_classes > 2:
            return F.cross_entropy(output, y)
        if self.n_classes == 2:
            return F.binary_cross_entropy_with_logits(output[:, 0], y)
        return F.mse_loss(output[:, 0], y)

    def decode(self, output: Float[Tensor, "m o"]) -> Float[Tensor, "m c"]:
        """Return probabilities, one column for each class, or values in target units."""
        output = output.double()
        if self.n_classes > 2:
            return output.softmax(1)
        if self.n_classes == 2:
            return torch.cat([(-output).sigmoid(), output.sigmoid()], dim=1)
        return output * self.std + self.mean


class Network:
    """Linear layers with ReLU and dropout between; draws from a generator of its own."""

    def __init__(self, sizes: Sequence[int], *, dropout: float, seed: int):
        self.generator = torch.Generator().manual_seed(seed)
        self.dropout = dropout
        self.weights = [
            torch.empty(fan_out, fan_in)
            .uniform_(-(fan_in**-0.5), fan_in**-0.5, generator=self.generator)
            .requires_grad_()
            for fan_in, fan_out in pairwise(sizes)
        ]
        self.biases = [torch.zeros(size, requires_grad=True) for size in sizes[1:]]

    def forward(self, x: Float[Tensor, "b e"], *, train: bool) -> Float[Tensor, "b o"]:
        """Return the outputs; drop hidden units if `train`."""
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            x = F.relu(F.linear(x, weight, bias))
            if train and self.dropout:
                kept = torch.rand(x.shape, generator=self.generator) >= self.dropout
                x = x * kept / (1 - self.dropout)
        return F.linear(x, self.weights[-1], self.biases[-1])

    @torch.no_grad()
    def predict(self, x: Float[Tensor, "m e"]) -> Float[Tensor, "m o"]:
        """Return the outputs without dropout or gradient."""
        return self.forward(x, train=False)

    def copy(self) -> "Network":
        """Return a copy that further training leaves alone."""
        other = Network([], dropout=self.dropout, seed=0)
        other.weights = [weight.detach().clone() for weight in self.weights]
        other.biases = [bias.detach().clone() for bias in self.biases]
        return other


@dataclass(frozen=True, kw_only=True)
class Descent:
    """AdamW along half a cosine, with seeded batches.

    Raises:
        ValueError: for a setting below its least value.
    """

    lr: float
    weight_decay: float
    n_epochs: int
    batch_size: int
    seed: int

    def __post_init__(self):
        if min(self.n_epochs, self.batch_size) < 1 or self.lr <= 0 or self.weight_decay < 0:
            raise ValueError(
                "probe.lr, probe.n_epochs and probe.batch_size must be positive and "
                f"probe.weight_decay not negative, got {self}"
            )

    def run(
        self, network: Network, a: Float[Tensor, "n e"], targets: Targets, rows: Int[Tensor, " r"]
    ) -> Iterator[None]:
        """Train on these rows of `a`; yield after every epoch."""
        generator = torch.Generator().manual_seed(self.seed)
        groups = [
            {"params": network.weights, "weight_decay": self.weight_decay},
            {"params": network.biases, "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=self.lr, fused=True)
        total = self.n_epochs * math.ceil(len(rows) / self.batch_size)
        step = 0
        for _ in range(self.n_epochs):
            order = rows[torch.randperm(len(rows), generator=generator)]
            for batch in order.split(self.batch_size):
                lr = _FINAL_LR + (self.lr - _FINAL_LR) * (1 + math.cos(math.pi * step / total)) / 2
                for group in optimizer.param_groups:
                    group["lr"] = lr
                optimizer.zero_grad()
                targets.loss(
                    network.forward(a.index_select(0, batch), train=True), batch
                ).backward()
                optimizer.step()
                step += 1
            yield
