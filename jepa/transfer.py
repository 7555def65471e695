"""Another data set's images, as a trained model takes them: its channels, its size, its scaling.

Axes: b images, c and k channels, h pixels high and wide.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Real
from torch import Tensor

from jepa.data.batches import Samples
from jepa.data.pixels import Inputs, ToInput

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow turns colours into gray


@dataclass(frozen=True)
class Recoloured:
    """Images as pixels, gray ones repeated or coloured ones averaged to `n_channels`."""

    images: Samples
    n_channels: int

    @property
    def device(self) -> torch.device:
        """Where the images lie."""
        return self.images.device

    def __len__(self) -> int:
        return len(self.images)

    def take(self, index: Tensor) -> dict[str, Tensor]:
        """Return these images as a batch of pixels, 0 to 255."""
        batch = self.images.take(index)
        return batch | {"x": recolour(batch["x"], self.n_channels)}

    def to(self, device: torch.device) -> "Recoloured":
        """Copy to a device."""
        return Recoloured(self.images.to(device), self.n_channels)


def recolour(x: Real[Tensor, "b c h h"], n_channels: int) -> Real[Tensor, "b k h h"]:
    """Return images with 1 or 3 channels."""
    if x.shape[1] < n_channels:
        return x.expand(-1, n_channels, -1, -1)
    if x.shape[1] == n_channels:
        return x
    luma = torch.tensor(LUMA, device=x.device)[:, None, None]
    return (x.float() * luma).sum(1, keepdim=True)


def as_trained(data: Any, *, n_channels: int, preprocessing: dict[str, Any]) -> None:
    """Let the splits of prepared images be those a model was trained on: scaled by its statistics.

    Raises:
        ValueError: for data that is no images, or has no labels to probe for.
    """
    if not all(isinstance(rows, Inputs) for rows in data.splits.values()):
        raise ValueError(
            "data=: codes of images are transferred to other images; name a set of images"
        )
    if not data.spec.n_classes:
        raise ValueError("data=: these images have no labels, so there is nothing to transfer to")
    fitted = ToInput(preprocessing["image_size"], preprocessing["mean"], preprocessing["std"])
    data.splits = {
        name: Inputs(Recoloured(rows.pixels, n_channels), fitted)
        for name, rows in data.splits.items()
    }
