"""Toy images drawn from a seed: a bright bar on noise, whose slope is the class."""

import torch

from jepa.data.images import Collection, ImageData
from jepa.data.pixels import Images


class ToyImages(ImageData):
    """Bars through a random point, in a random colour: tests and smoke runs.

    Args:
        n_images: in all splits together.
        n_channels: 1 or 3.
        n_classes: slopes to tell apart, at least 2.
        draw_seed: of the images.
        images: settings of `ImageData`.
    """

    def __init__(
        self, *, n_images: int, n_channels: int, n_classes: int, draw_seed: int = 0, **images
    ):
        super().__init__(**images)
        if n_channels not in (1, 3):
            raise ValueError(f"data.n_channels must be 1 or 3, got {n_channels}")
        if not 2 <= n_classes <= n_images:
            raise ValueError(
                "data.n_classes must be at least 2 and at most data.n_images, got "
                f"{n_classes=}, {n_images=}"
            )
        self.n_images = n_images
        self.n_channels = n_channels
        self.n_classes = n_classes
        self.draw_seed = draw_seed

    def load(self) -> Collection:
        """Draw the images."""
        generator = torch.Generator().manual_seed(self.draw_seed)
        y = torch.arange(self.n_images) % self.n_classes
        side, angle = self.image_size, y * (torch.pi / self.n_classes)
        centre = 0.5 + 0.5 * (torch.rand(self.n_images, 2, 1, 1, generator=generator) - 0.5)
        points = (torch.arange(side) + 0.5) / side
        rows, columns = points[:, None] - centre[:, 0], points[None, :] - centre[:, 1]
        off = rows * angle.cos()[:, None, None] - columns * angle.sin()[:, None, None]
        bar = (-((off / 0.1) ** 2)).exp()[:, None]
        colour = 0.5 + 0.5 * torch.rand(self.n_images, self.n_channels, 1, 1, generator=generator)
        noise = torch.rand(self.n_images, self.n_channels, side, side, generator=generator)
        x = (255.0 * (0.7 * bar * colour + 0.3 * noise)).to(torch.uint8)
        names = tuple(f"slope {i}" for i in range(self.n_classes))
        return Collection(splits={"train": Images(x, y)}, classes=names)
