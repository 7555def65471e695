"""Random crops, flips and colours of a whole batch of images at once, on its device.

Axes: b images, c channels, h and w pixels, s side of the result, k draws of one image.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Generator, Tensor

N_DRAWS = 8  # area, aspect, top, left, flip, brightness, contrast, saturation
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


class Augment:
    """A random resized crop and a flip in one bilinear grid sample; then brightness and colours.

    Args:
        crop_area_low, crop_area_high: part of the image's area that a crop covers, drawn evenly.
        crop_aspect: width by height of a crop is drawn between 1 / `crop_aspect` and this, evenly
            in its logarithm; of this range only what fits into the image.
        flip_share: part of the images that are mirrored left to right.
        brightness, contrast, saturation: largest relative change; 0 for none. Saturation does
            nothing to gray images.

    Raises:
        ValueError: for a setting outside its range.
    """

    def __init__(
        self,
        *,
        crop_area_low: float,
        crop_area_high: float,
        crop_aspect: float,
        flip_share: float,
        brightness: float,
        contrast: float,
        saturation: float,
    ):
        if not 0.0 < crop_area_low <= crop_area_high <= 1.0:
            raise ValueError(
                "augment.crop_area_low and crop_area_high must satisfy 0 < low <= high <= 1, got "
                f"{crop_area_low=}, {crop_area_high=}"
            )
        if not 1.0 <= crop_aspect < math.inf:
            raise ValueError(f"augment.crop_aspect must be at least 1 (1: square), {crop_aspect=}")
        if not 0.0 <= flip_share <= 1.0:
            raise ValueError(f"augment.flip_share must be between 0 and 1, got {flip_share}")
        self.area = (crop_area_low, crop_area_high)
        self.log_aspect = math.log(crop_aspect)
        self.flip_share = flip_share
        self.jitter = {"brightness": brightness, "contrast": contrast, "saturation": saturation}
        for name, strength in self.jitter.items():
            if not 0.0 <= strength <= 1.0:
                raise ValueError(f"augment.{name} must be between 0 and 1, got {strength}")

    @property
    def varies(self) -> bool:
        """Tell whether two draws can give different results."""
        return self.area[0] < 1.0 or 0.0 < self.flip_share < 1.0 or any(self.jitter.values())

    def draw(self, n_images: int, generator: Generator) -> Float[Tensor, "b k"]:
        """Draw what decides the crop, flip and colours of each image, evenly from [0, 1)."""
        return torch.rand(n_images, N_DRAWS, generator=generator)

    def __call__(
        self, x: UInt8[Tensor, "b c h w"], draws: Float[Tensor, "b k"], *, side: int
    ) -> Float[Tensor, "b c s s"]:
        """Apply the draws; values stay in [0, 255]. Equal draws give equal results."""
        area, aspect, top, left, flip, brightness, contrast, saturation = draws.unbind(1)
        x = sample(x.float(), self.grid(area, aspect, top, left, flip, side=side))
        if not any(self.jitter.values()):
            return x
        x = x * self.factor("brightness", brightness)
        x = blend(x, gray(x).mean((1, 2, 3), keepdim=True), self.factor("contrast", contrast))
        x = blend(x, gray(x), self.factor("saturation", saturation))
        return x.clamp(0.0, 255.0)

    def grid(
        self,
        area: Float[Tensor, " b"],
        aspect: Float[Tensor, " b"],
        top: Float[Tensor, " b"],
        left: Float[Tensor, " b"],
        flip: Float[Tensor, " b"],
        *,
        side: int,
    ) -> Float[Tensor, "b s s 2"]:
        """Return where to look for each pixel, as `F.grid_sample` counts: -1 to 1."""
        low, high = self.area
        log_area = (low + (high - low) * area).log()
        # DIFF(Szegedy et al., arXiv:1409.4842): drawn from what fits, instead of drawing
        # until one fits; given the area, this is the same distribution
        widest = (-log_area).clamp(max=self.log_aspect)
        log_aspect = widest * (2.0 * aspect - 1.0)
        width = ((log_area + log_aspect) / 2.0).exp().clamp(max=1.0)
        height = ((log_area - log_aspect) / 2.0).exp().clamp(max=1.0)
        centre_x = (1.0 - width) * (2.0 * left - 1.0)
        centre_y = (1.0 - height) * (2.0 * top - 1.0)
        width = torch.where(flip < self.flip_share, -width, width)
        centres = (2.0 * torch.arange(side, device=area.device) + 1.0) / side - 1.0
        x = centre_x[:, None] + width[:, None] * centres
        y = centre_y[:, None] + height[:, None] * centres
        shape = (len(x), side, side)
        return torch.stack([x[:, None, :].expand(shape), y[:, :, None].expand(shape)], dim=-1)

    def factor(self, name: str, draw: Float[Tensor, " b"]) -> Float[Tensor, "b 1 1 1"]:
        """Return what to multiply by: evenly around 1."""
        return (1.0 + self.jitter[name] * (2.0 * draw - 1.0))[:, None, None, None]


def sample(x: Float[Tensor, "b c h w"], grid: Float[Tensor, "b s s 2"]) -> Float[Tensor, "b c s s"]:
    """Interpolate between pixels; beyond the outermost centres their value goes on."""
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)


def gray(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 1 h w"]:
    """Return the brightness of each pixel."""
    if x.shape[1] == 1:
        return x
    red, green, blue = (weight * x[:, [i]] for i, weight in enumerate(_LUMA))
    return red + green + blue


def blend(
    x: Float[Tensor, "b c h w"], base: Float[Tensor, "b 1 _h _w"], factor: Float[Tensor, "b 1 1 1"]
) -> Float[Tensor, "b c h w"]:
    """Move away from (above 1) or towards (below 1) the base."""
    return base + factor * (x - base)
