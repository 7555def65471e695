"""Images of one size as one uint8 tensor on one device, and what makes model input of them.

Axes: n images of a split, b of a batch, c channels, h and w pixels, s side of the input.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, Real, UInt8
from torch import Tensor

from jepa.data.batches import Samples

_PART = 1024  # images turned into floats at a time


@dataclass(frozen=True)
class Images:
    """Square images as they lie, with a label each where there are labels."""

    x: UInt8[Tensor, "n c h h"]
    y: Int64[Tensor, " n"] | None = None

    @property
    def device(self) -> torch.device:
        """Where the images lie."""
        return self.x.device

    def __len__(self) -> int:
        return len(self.x)

    def take(self, index: Int64[Tensor, " b"]) -> dict[str, Tensor]:
        """Return these images as a batch of pixels, 0 to 255."""
        batch = {"x": self.x.index_select(0, index)}
        return batch if self.y is None else batch | {"y": self.y.index_select(0, index)}

    def to(self, device: torch.device) -> "Images":
        """Copy to a device; nothing is copied where the images are there already."""
        return Images(self.x.to(device), None if self.y is None else self.y.to(device))


@dataclass(frozen=True)
class Slots:
    """Images by way of a list of their numbers, in which one may stand several times."""

    images: Images
    numbers: Int64[Tensor, " n"]

    @property
    def device(self) -> torch.device:
        """Where the images lie."""
        return self.images.device

    def __len__(self) -> int:
        return len(self.numbers)

    def take(self, index: Int64[Tensor, " b"]) -> dict[str, Tensor]:
        """Return the images of these slots as a batch of pixels."""
        return self.images.take(self.numbers.index_select(0, index))

    def to(self, device: torch.device) -> "Slots":
        """Copy to a device."""
        return Slots(self.images.to(device), self.numbers.to(device))


@dataclass(frozen=True)
class ToInput:
    """Enlarge to `side`, then subtract `mean` and divide by `std` (both in [0, 1]) per channel."""

    side: int
    mean: Float[Tensor, " c"]
    std: Float[Tensor, " c"]

    def __call__(self, x: Real[Tensor, "b c h w"]) -> Float[Tensor, "b c s s"]:
        """Return model input from pixels between 0 and 255."""
        if x.shape[-1] != self.side:
            x = F.interpolate(x.float(), (self.side, self.side), mode="bilinear")
        factor = (1.0 / (255.0 * self.std))[:, None, None]
        return torch.addcmul((-self.mean / self.std)[:, None, None], x.float(), factor)

    def to(self, device: torch.device) -> "ToInput":
        """Copy to a device."""
        return ToInput(self.side, self.mean.to(device), self.std.to(device))


@dataclass(frozen=True)
class Inputs:
    """A split as a model takes it: resized and normalised, never augmented."""

    pixels: Samples
    to_input: ToInput

    @property
    def device(self) -> torch.device:
        """Where the images lie."""
        return self.pixels.device

    def __len__(self) -> int:
        return len(self.pixels)

    def take(self, index: Int64[Tensor, " b"]) -> dict[str, Tensor]:
        """Return these images as a batch of model input."""
        batch = self.pixels.take(index)
        return batch | {"x": self.to_input(batch["x"])}

    def to(self, device: torch.device) -> "Inputs":
        """Copy to a device."""
        return Inputs(self.pixels.to(device), self.to_input.to(device))


def resize(x: UInt8[Tensor, "n c h h"], side: int) -> UInt8[Tensor, "n c s s"]:
    """Resize whole images, smoothed before they shrink."""
    if x.shape[-1] == side:
        return x
    parts = (
        F.interpolate(part.float(), (side, side), mode="bilinear", antialias=True)
        for part in x.split(_PART)
    )
    return torch.cat([part.round_().clamp_(0.0, 255.0).to(torch.uint8) for part in parts])


def moments(x: UInt8[Tensor, "n c h w"]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel in [0, 1], exactly, from its histogram.

    The deviation is at least one step of 255, so that one flat colour does not become infinite.
    """
    levels = torch.arange(256, dtype=torch.float64) / 255.0
    means, deviations = [], []
    for channel in range(x.shape[1]):
        counts = sum(
            torch.bincount(part[:, channel].flatten(), minlength=256) for part in x.split(_PART)
        )
        shares = torch.as_tensor(counts).double() / (x[:, 0].numel())
        mean = (shares * levels).sum()
        means.append(mean.item())
        deviations.append(max((shares * (levels - mean) ** 2).sum().sqrt().item(), 1.0 / 255.0))
    return tuple(means), tuple(deviations)
