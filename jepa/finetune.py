"""Train a copy of an encoder and a linear head on labels; score it.

Settings follow the fine-tuning of He et al., "Masked Autoencoders Are Scalable Vision Learners",
CVPR 2022, arXiv:2111.06377, App. A.1: AdamW, a rate that decays layer by layer, smoothed labels.

Axes: b images, c channels, n rows.
"""

import copy
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from jepa.data.augmented import AugmentedBatches
from jepa.data.pixels import Slots
from jepa.metrics import Measured
from jepa.nn.checks import check_range
from jepa.nn.decay import decay_groups
from jepa.nn.vit import ViT
from jepa.probes.prepare import report
from jepa.schedules import warmup_cosine

HEAD_STD = 2e-5  # of the head's first weights, as MAE: the first steps leave the encoder alone


class Classifier(nn.Module):
    """A copy of an encoder, the mean of its patches' codes, and a linear layer."""

    def __init__(self, encoder: ViT, width: int, n_classes: int):
        super().__init__()
        self.encoder = copy.deepcopy(encoder).requires_grad_(True)
        self.head = nn.Linear(width, n_classes)
        nn.init.trunc_normal_(self.head.weight, std=HEAD_STD)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Float[Tensor, "b c y x"]) -> Float[Tensor, "b k"]:
        """Return a number for each class."""
        return self.head(self.encoder(x).mean(1))

    def layers(self) -> list[list[nn.Module]]:
        """Return what each layer trains, from the pixels to the head."""
        trunk = self.encoder.trunk
        blocks = [[block] for block in trunk.blocks]
        return [[self.encoder.to_token], *blocks, [trunk.norm, self.head]]


def finetune(
    encoder: ViT,
    data: Any,
    *,
    split: str,
    max_rows: int | None,
    max_split_rows: int | None,
    n_steps: int,
    batch_size: int,
    lr: float,
    layer_decay: float,
    weight_decay: float,
    warmup_share: float,
    smoothing: float,
    seed: int,
    n_bootstrap: int = 0,
) -> dict[str, Measured]:
    """Fine-tune on training images under the augmentations of `data`; score the last weights.

    Args:
        encoder: is copied, and stays as it is.
        data: prepared images with classes.
        split: the one that is scored.
        max_rows: images that are trained on, a seeded subset; None for all.
        max_split_rows: images that are scored, likewise.
        n_steps: of AdamW.
        batch_size: images of a step.
        lr: of the head, after a linear warm-up; then down a cosine.
        layer_decay: each layer below learns at this many times the rate of the one above it.
        weight_decay: of matrices.
        warmup_share: part of the steps spent warming up.
        smoothing: of the labels (Szegedy et al., 2016, arXiv:1512.00567).
        seed: of the rows, their order, their crops, and dropped paths.
        n_bootstrap: resamples behind the intervals.

    Raises:
        ValueError: for a setting out of its range.
    """
    check_range("finetune.n_steps", n_steps, low=1)
    check_range("finetune.batch_size", batch_size, low=1)
    shares = {"layer_decay": layer_decay, "warmup_share": warmup_share, "smoothing": smoothing}
    for name, value in shares.items():
        check_range(f"finetune.{name}", value, low=0, high=1)
    if not lr > 0:
        raise ValueError(f"finetune.lr must be positive, got {lr}")
    device = next(encoder.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        net = Classifier(encoder, encoder.to_token.out_features, data.spec.n_classes)
        net.to(device).train()
        optimizer = torch.optim.AdamW(groups(net, lr, layer_decay, weight_decay))
        factor = partial(warmup_cosine, warmup=round(warmup_share * n_steps), total=n_steps)
        rates = LambdaLR(optimizer, factor)
        for batch in batches(data, batch_size, n_steps, max_rows, seed, device):
            loss = F.cross_entropy(net(batch["x"]), batch["y"], label_smoothing=smoothing)
            if not torch.isfinite(loss):
                raise ValueError(f"finetune.lr={lr}: fine-tuning diverged; take a smaller one")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rates.step()
    p, y = predict(net.eval(), data, split, max_split_rows, seed, device)
    return report(p, y, n_classes=data.spec.n_classes, n_bootstrap=n_bootstrap)


def groups(net: Classifier, lr: float, decay: float, weight_decay: float) -> list[dict[str, Any]]:
    """Return the parameters of each layer with their rate and their weight decay."""
    found = []
    for below, layer in enumerate(reversed(net.layers())):
        matrices, rest = decay_groups(layer)
        rate = lr * decay**below
        found.append({"params": matrices, "lr": rate, "weight_decay": weight_decay})
        found.append({"params": rest, "lr": rate, "weight_decay": 0.0})
    return [group for group in found if group["params"]]


def subset(n: int, most: int | None, seed: int) -> Int[Tensor, " r"]:
    """Return a seeded choice of rows, in order; all where there are no more."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    return order[: n if most is None else most].sort().values


def batches(
    data: Any, size: int, n_steps: int, max_rows: int | None, seed: int, device: torch.device
) -> Iterator[dict[str, Tensor]]:
    """Yield augmented batches of training images, epoch after epoch."""
    rows = subset(len(data.splits["train"]), max_rows, seed)
    loader = AugmentedBatches(
        Slots(data.splits["train"].pixels, rows).to(device),
        min(size, len(rows)),
        augment=data.augment,
        to_input=data.to_input.to(device),
        seed=seed,
    )
    done = 0
    while done < n_steps:
        for batch in loader:
            yield batch
            done += 1
            if done == n_steps:
                return


@torch.no_grad()
def predict(
    net: Classifier, data: Any, split: str, max_rows: int | None, seed: int, device: torch.device
) -> tuple[Float[Tensor, "n k"], Int[Tensor, " n"]]:
    """Return probabilities and labels of a split, on the CPU."""
    rows = data.splits[split]
    index = subset(len(rows), max_rows, seed)
    found = [rows.take(part.to(rows.device)) for part in index.split(256)]
    p = [net(one["x"].to(device)).double().softmax(1).cpu() for one in found]
    return torch.cat(p), torch.cat([one["y"].cpu() for one in found])


def labels(data: Any, split: str, max_rows: int | None, seed: int = 0) -> Int[Tensor, " n"]:
    """Return the labels of the images of a split, or of a seeded subset of them."""
    rows = data.splits[split].pixels
    index = subset(len(rows), max_rows, seed).to(rows.device)
    return torch.cat([rows.take(part)["y"].cpu() for part in index.split(256)])
