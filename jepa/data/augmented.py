"""Training batches of images: gathered as pixels, augmented and scaled on their device."""

from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from jepa.data.augment import Augment
from jepa.data.batches import Batches, Samples
from jepa.data.pixels import ToInput


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
        **order: Any,
    ):
        super().__init__(rows, batch_size, **order)
        self.augment = augment
        self.to_input = to_input
        self.two_views = two_views

    def make(self, index: Tensor) -> dict[str, Tensor]:
        """Gather the pixels of these images, augment and scale them."""
        batch = super().make(index)
        x = batch["x"]
        view = {"view": self._view(x, 1)} if self.two_views else {}
        return batch | {"x": self._view(x, 0)} | view

    def _view(self, x: Tensor, number: int) -> Tensor:
        """Return model input of pixels; each number has crops of its own."""
        if self.augment is not None:
            draws = self.augment.draw(len(x), self._generator(number)).to(x.device)
            x = self.augment(x, draws, side=self.to_input.side)
        return self.to_input(x)

    def _generator(self, number: int) -> Generator:
        """Return the stream of the batch just taken; `position` is already the next one's."""
        epoch = self.epoch if self.reshuffle else 0
        key = (self.seed % (1 << 64), epoch, self.position, self.rank)
        if number:
            key = (*key, number)
        seed = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])
        return torch.Generator().manual_seed(seed >> 1)
