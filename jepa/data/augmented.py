"""Training batches of images: gathered as pixels, augmented and scaled on their device."""

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Generator, Tensor

from jepa.data.augment import Augment
from jepa.data.batches import Batches, Samples
from jepa.data.pixels import ToInput


class LocalViews(NamedTuple):
    """Small crops of each image: how many, their side, and the part of the image they cover."""

    n: int
    side: int
    area: tuple[float, float]


class AugmentedBatches(Batches):
    """Shuffled training batches under random crops, flips and colours.

    What is drawn depends on the seed, epoch, position and rank alone. So a resumed run sees the
    crops that it would have seen, on any device, and no other randomness is touched.

    Args:
        rows: images as they lie, `x` uint8.
        batch_size: images of a batch.
        augment: None for none.
        to_input: makes model input of pixels.
        two_views: a batch also holds `view`, another augmentation of the same images.
        local: a batch also holds `local` [b, n, c, s, s], small crops of them. None: it does not.
        order: see `Batches`.
    """

    def __init__(
        self,
        rows: Samples,
        batch_size: int,
        *,
        augment: Augment | None,
        to_input: ToInput,
        two_views: bool = False,
        local: LocalViews | None = None,
        **order: Any,
    ):
        super().__init__(rows, batch_size, **order)
        self.augment = augment
        self.to_input = to_input
        self.two_views = two_views
        self.local = local

    def make(self, index: Tensor) -> dict[str, Tensor]:
        """Gather the pixels of these images, augment and scale them."""
        batch = super().make(index)
        x = batch["x"]
        views = {"view": self._view(x, 1)} if self.two_views else {}
        if self.local is not None:
            small = [self._view(x, 2 + i, self.local) for i in range(self.local.n)]
            views["local"] = torch.stack(small, dim=1)
        return batch | {"x": self._view(x, 0)} | views

    def _view(self, x: Tensor, number: int, local: LocalViews | None = None) -> Tensor:
        """Return model input of pixels; each number has crops of its own."""
        if self.augment is None:
            return self.to_input(x)
        draws = self.augment.draw(len(x), self._generator(number)).to(x.device)
        if local is None:
            return self.to_input(self.augment(x, draws, side=self.to_input.side))
        x = self.augment(x, draws, side=local.side, area=local.area)
        return replace(self.to_input, side=local.side)(x)

    def _generator(self, number: int) -> Generator:
        """Return the stream of the batch just taken; `position` is already the next one's."""
        epoch = self.epoch if self.reshuffle else 0
        key = (self.seed % (1 << 64), epoch, self.position, self.rank)
        if number:
            key = (*key, number)
        seed = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])
        return torch.Generator().manual_seed(seed >> 1)
