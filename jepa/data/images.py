"""What every set of images shares: read, checked, split, normalised, and augmented for training.

Axes: n images, c channels, h pixels high and wide.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from jepa.data.augment import Augment
from jepa.data.augmented import AugmentedBatches, LocalViews
from jepa.data.base import DataModule
from jepa.data.batches import Batches, Samples
from jepa.data.large import Large
from jepa.data.pixels import Images, Inputs, ToInput, moments, resize
from jepa.data.splits import split_rows
from jepa.spec import ImageSpec

_TEST_SHARE = 0.2
_VAL_SHARE = 0.1
_N_MEASURED = 2048  # images that tell mean and deviation of those that stay on the disk

Pixels = Images | Large


@dataclass(frozen=True, kw_only=True)
class Collection:
    """Images as `load` returns them.

    Args:
        splits: the published ones by name; without any, `train` has all.
        classes: names of the labels; empty where there are none.
        unlabeled: further images for pretraining, used in place of those of `train`.
        stamp: what is to be said with every number measured on these images.
        notes: what is to be said once.
    """

    splits: Mapping[str, Pixels]
    classes: tuple[str, ...] = ()
    unlabeled: Samples | None = None
    stamp: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Card:
    """What a published set must hold, as `load` returns it."""

    source: str
    images: dict[str, int]
    shape: tuple[int, int, int]
    classes: tuple[str, ...]


class ImageData(DataModule):
    """Images of one size: read by `load`, split, and normalised as the training images ask for.

    Smaller images are enlarged when a batch is made, larger ones are shrunk once. Training batches
    are augmented, all others are not.

    Args:
        image_size: height and width of the model's input.
        batch_size, effective_batch_size, seed: see `DataModule`; `seed` also sets the crops.
        n_workers: threads that decode image files. None: one for each core.
        augment: what training images go through. None: nothing.
        two_views: training batches also hold `view`, another augmentation of the same images.
        n_local_views, local_size, local_area: training batches also hold `local`, so many small
            crops of each image: their side, and least and largest part of the image they cover.
        normalize: subtract mean and divide by standard deviation of the training images, channel
            by channel; otherwise inputs are in [0, 1].
        val_share, test_share: parts of the images that come without such a split, 0 for no split.
            None: the published split; without one a tenth for `val`, and a fifth for `test` unless
            other splits are published.
        split_seed: of the split; runs that differ in `seed` share one split.
    """

    card: Card | None = None

    def __init__(
        self,
        *,
        image_size: int,
        batch_size: int,
        effective_batch_size: int | None = None,
        n_workers: int | None = None,
        augment: Augment | None = None,
        two_views: bool = False,
        n_local_views: int = 0,
        local_size: int = 96,
        local_area: Sequence[float] = (0.05, 0.3),
        normalize: bool = True,
        val_share: float | int | None = None,
        test_share: float | int | None = None,
        split_seed: int = 0,
        seed: int = 0,
    ):
        super().__init__(
            batch_size=batch_size, effective_batch_size=effective_batch_size, seed=seed
        )
        if image_size < 1:
            raise ValueError(f"data.image_size must be at least 1, got {image_size}")
        if n_workers is not None and n_workers < 1:
            raise ValueError(f"data.n_workers must be at least 1, or null, got {n_workers}")
        check_views(augment, two_views, n_local_views, local_size, local_area)
        self.image_size = image_size
        self.n_workers = n_workers
        self.augment = augment
        self.two_views = two_views
        low, high = local_area
        local = LocalViews(n_local_views, local_size, (low, high))
        self.local = local if n_local_views else None
        self.normalize = normalize
        self.shares = {"test": test_share, "val": val_share}
        self.split_seed = split_seed
        self.splits: dict[str, Inputs] = {}
        self.unlabeled: Samples | None = None
        self.stamp = ""
        self.notes: tuple[str, ...] = ()

    def load(self) -> Collection:
        """Read the files; images may have any one size."""
        raise NotImplementedError

    def prepare(self) -> None:
        """Read, check, split and measure the training images. A second call does nothing.

        Raises:
            ValueError: for images that cannot be learnt from; the message names the fix.
        """
        if self.splits:
            return
        images = self.collect()
        train = images.splits["train"]
        measured = some_of(train)
        mean, std = moments(measured)
        n_channels = measured.shape[1]
        self.spec = ImageSpec(
            n_channels=n_channels,
            height=self.image_size,
            width=self.image_size,
            mean=mean,
            std=std,
            task={0: "none", 2: "binary"}.get(len(images.classes), "multiclass"),
            classes=images.classes,
            two_views=self.two_views,
            n_local_views=self.local.n if self.local else 0,
            local_size=self.local.side if self.local else 0,
        )
        subtract, divide = (mean, std) if self.normalize else ([0.0] * 3, [1.0] * 3)
        to_input = ToInput(
            self.image_size,
            torch.tensor(subtract[:n_channels], dtype=torch.float32),
            torch.tensor(divide[:n_channels], dtype=torch.float32),
        )
        self.preprocessing = self._preprocessing(to_input, images)
        self.unlabeled, self.stamp, self.notes = images.unlabeled, images.stamp, images.notes
        self.splits = {name: Inputs(part, to_input) for name, part in images.splits.items()}
        self.to_input = to_input
        if self.batch_size > len(self.training_images()):
            Batches(self.training_images(), self.batch_size, seed=0)  # says what to change

    def collect(self) -> Collection:
        """Read, check, split, and shrink what is larger than the model's input."""
        images = self.load()
        self._check_card(images)
        images = replace(images, splits=self._split(images.splits))
        train = images.splits["train"]
        side = min(self.image_size, train.x.shape[-1]) if isinstance(train, Images) else 0
        small = {name: shrunk(part, side) for name, part in images.splits.items()}
        more = images.unlabeled
        if isinstance(more, Images):
            more = shrunk(more, side)
        return replace(images, splits=small, unlabeled=more)

    def training_images(self) -> Samples:
        """Return what is pretrained on, as pixels."""
        rows = self._rows("train")
        assert isinstance(rows, Inputs)
        return rows.pixels if self.unlabeled is None else self.unlabeled

    def setup(self, stage: str) -> None:
        """Move the images to the device of the trainer."""
        super().setup(stage)
        if self.trainer is not None:
            device = self.trainer.strategy.root_device
            self.to_input = self.to_input.to(device)
            if self.unlabeled is not None:
                self.unlabeled = self.unlabeled.to(device)

    def train_dataloader(self) -> AugmentedBatches:
        """Shuffled and augmented; whole batches and whole accumulation groups only."""
        trainer = self.trainer
        return AugmentedBatches(
            self.training_images(),
            self.batch_size,
            augment=self.augment,
            to_input=self.to_input,
            two_views=self.two_views,
            local=self.local,
            seed=self.seed,
            group=1 if trainer is None else trainer.accumulate_grad_batches,
            reshuffle=trainer is None or not trainer.overfit_batches,  # pyright: ignore
            **self._place(),
        )

    def describe(self) -> str:
        """Size, classes, stamp and the images of each split."""
        pixels = self.splits["train"].pixels.take(torch.zeros(1, dtype=torch.long))["x"]
        n_channels, side = pixels.shape[1:3]
        stamp = f" ({self.stamp})" if self.stamp else ""
        word = "enlarged from" if side < self.image_size else "cut from"
        stored = "" if side == self.image_size else f", {word} {side} x {side}"
        counts = [f"{name} {len(part):,}" for name, part in self.splits.items()]
        if self.unlabeled is not None:
            counts.append(f"pretraining without labels {len(self.unlabeled):,}")
        lines = [
            f"images{stamp}: {self.image_size} x {self.image_size} x {n_channels}"
            f"{stored}, {self.spec.n_classes or 'no'} classes",
            "images: " + ", ".join(counts),
            *self.notes,
        ]
        return "\n".join(lines)

    def _preprocessing(self, to_input: ToInput, images: Collection) -> dict[str, Any]:
        return {
            "image_size": to_input.side,
            "mean": to_input.mean,
            "std": to_input.std,
            "stamp": images.stamp,
            "n_images": {name: len(part) for name, part in images.splits.items()},
        }

    def _split(self, splits: Mapping[str, Pixels]) -> Mapping[str, Pixels]:
        default = {"test": _TEST_SHARE if list(splits) == ["train"] else 0.0, "val": _VAL_SHARE}
        shares = {}
        for name, share in self.shares.items():
            if name in splits and share is not None:
                raise ValueError(
                    f"data.{name}_share={share} has no effect: this set has a {name} split of "
                    f"{len(splits[name]):,} images, which is kept; leave the key out"
                )
            if name not in splits:
                shares[name] = default[name] if share is None else float(share)
        if not any(shares.values()):
            return splits
        whole = splits["train"]
        labels = None if whole.y is None else whole.y.numpy()
        parts = split_rows(len(whole), shares, labels=labels, seed=self.split_seed)
        drawn = {name: pick(whole, rows) for name, rows in parts.items()}
        every = dict(splits) | drawn
        return {name: every[name] for name in ("train", "val", "test") if name in every}

    def _check_card(self, images: Collection) -> None:
        if self.card is None:
            return
        counts = {name: len(part) for name, part in images.splits.items()}
        shapes = {tuple(p.x.shape[1:]) for p in images.splits.values() if isinstance(p, Images)}
        found = (counts, shapes, images.classes)
        if found != (self.card.images, {self.card.shape}, self.card.classes):
            raise ValueError(
                f"{type(self).__name__} must have {self.card.images} images of shape "
                f"{self.card.shape} and {len(self.card.classes)} classes, found {counts}, "
                f"{sorted(shapes)} and {len(images.classes)}: this is not the published set "
                f"({self.card.source})"
            )


def check_views(
    augment: Augment | None, two_views: bool, n_local: int, side: int, area: Sequence[float]
) -> None:
    """Refuse further views of an image that would show nothing else.

    Raises:
        ValueError: naming the setting.
    """
    if two_views and (augment is None or not augment.varies):
        raise ValueError(
            "data.two_views=true gives a second augmentation of the same images, but none is "
            "drawn: take augment=plain, or data.two_views=false"
        )
    if n_local < 0 or side < 1 or len(area) != 2 or not 0.0 < area[0] <= area[1] <= 1.0:
        raise ValueError(
            "data.n_local_views must be at least 0, data.local_size at least 1, and "
            "data.local_area=[low,high] with 0 < low <= high <= 1, got "
            f"data.n_local_views={n_local} data.local_size={side} data.local_area={list(area)}"
        )
    if n_local and augment is None:
        raise ValueError(
            f"data.n_local_views={n_local} are crops, but augment is null: take augment=plain"
        )


def shrunk(images: Pixels, side: int) -> Pixels:
    """Return the images resized, where they are in memory."""
    return Images(resize(images.x, side), images.y) if isinstance(images, Images) else images


def some_of(images: Pixels) -> UInt8[Tensor, "m c h h"]:
    """Return the pixels of all images, or of evenly spaced ones where they stay on the disk."""
    if isinstance(images, Images):
        return images.x
    index = torch.linspace(0, len(images) - 1, min(_N_MEASURED, len(images))).round().long()
    return images.take(index)["x"]


def pick(images: Pixels, rows: np.ndarray) -> Pixels:
    """Return some of the images."""
    if isinstance(images, Large):
        return images.pick(rows)
    index = torch.from_numpy(rows)
    return Images(images.x[index], None if images.y is None else images.y[index])
