"""Random crops, flips, turns, colours and more of a whole batch of images at once, on its device.

Axes: b images, c channels, h and w pixels, s side of the result, k draws of one image.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Generator, Tensor

from jepa.data import strong
from jepa.data.strong import gray

N_DRAWS = 8  # area, aspect, top, left, flip, brightness, contrast, saturation
DRAWS_OF_TURN = 2  # rotation, shear
_MOST_SHEAR = 80.0  # degrees; at 90 nothing would be left of an image


class Augment:
    """A random resized crop, flip and turn in one bilinear grid sample; then colours, and more.

    The order is: crop, flip, rotation and shear, RandAugment, 3-Augment, brightness and colours,
    erasing.

    Args:
        crop_area_low, crop_area_high: part of the image's area that a crop covers, drawn evenly.
        crop_aspect: width by height of a crop is drawn between 1 / `crop_aspect` and this, evenly
            in its logarithm; of this range only what fits into the image.
        flip_share: part of the images that are mirrored left to right.
        brightness, contrast, saturation: largest relative change; 0 for none. Saturation does
            nothing to gray images.
        rand_ops, rand_magnitude: changes of RandAugment for each image, 0 for none, and how strong,
            0 to 30.
        three_share: part of the images that become gray, solarised or blurred (3-Augment).
        erase_share: part of the images in which a rectangle is erased.
        rotation, shear: largest angle in degrees by which an image is turned around the middle of
            its crop, and by which its upright lines lean; either way, drawn evenly. What lies
            beyond the image's edge looks as the edge does.

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
        rand_ops: int,
        rand_magnitude: int,
        three_share: float,
        erase_share: float,
        rotation: float = 0.0,  # runs stored before there were turns have no such key
        shear: float = 0.0,
    ):
        if not 0.0 < crop_area_low <= crop_area_high <= 1.0:
            raise ValueError(
                "augment.crop_area_low and crop_area_high must satisfy 0 < low <= high <= 1, got "
                f"{crop_area_low=}, {crop_area_high=}"
            )
        if not 1.0 <= crop_aspect < math.inf:
            raise ValueError(f"augment.crop_aspect must be at least 1 (1: square), {crop_aspect=}")
        shares = {"flip": flip_share, "three": three_share, "erase": erase_share}
        for name, share in shares.items():
            if not 0.0 <= share <= 1.0:
                raise ValueError(f"augment.{name}_share must be between 0 and 1, got {share}")
        if rand_ops < 0 or not 0 <= rand_magnitude <= strong.MOST_MAGNITUDE:
            raise ValueError(
                "augment.rand_ops must be at least 0, and augment.rand_magnitude between 0 and "
                f"{strong.MOST_MAGNITUDE}, got {rand_ops=}, {rand_magnitude=}"
            )
        if not (0.0 <= rotation <= 180.0 and 0.0 <= shear <= _MOST_SHEAR):
            raise ValueError(
                "augment.rotation must be between 0 and 180 degrees, and augment.shear between 0 "
                f"and {_MOST_SHEAR:g}, got {rotation=}, {shear=}"
            )
        self.area = (crop_area_low, crop_area_high)
        self.rotation, self.shear = math.radians(rotation), math.radians(shear)
        self.log_aspect = math.log(crop_aspect)
        self.flip_share = flip_share
        self.rand_ops, self.rand_magnitude = rand_ops, rand_magnitude
        self.three_share, self.erase_share = three_share, erase_share
        self.jitter = {"brightness": brightness, "contrast": contrast, "saturation": saturation}
        for name, strength in self.jitter.items():
            if not 0.0 <= strength <= 1.0:
                raise ValueError(f"augment.{name} must be between 0 and 1, got {strength}")

    @property
    def varies(self) -> bool:
        """Tell whether two draws can give different results."""
        placed = self.area[0] < 1.0 or 0.0 < self.flip_share < 1.0
        more = self.rand_ops or self.three_share or self.erase_share
        return bool(placed or self.turns or more or any(self.jitter.values()))

    @property
    def turns(self) -> bool:
        """Tell whether images are rotated or sheared."""
        return bool(self.rotation or self.shear)

    def draw(self, n_images: int, generator: Generator) -> Float[Tensor, "b k"]:
        """Draw what decides what happens to each image, evenly from [0, 1)."""
        sizes = (N_DRAWS, *self._further())
        return torch.cat([torch.rand(n_images, n, generator=generator) for n in sizes], dim=1)

    def __call__(
        self,
        x: UInt8[Tensor, "b c h w"],
        draws: Float[Tensor, "b k"],
        *,
        side: int,
        area: tuple[float, float] | None = None,
    ) -> Float[Tensor, "b c s s"]:
        """Apply the draws; values stay in [0, 255]. Equal draws give equal results.

        `area` takes the place of the part of the image that a crop covers.
        """
        place, colours = draws[:, :5].unbind(1), draws[:, 5:N_DRAWS].unbind(1)
        ops, three, erased, turn = draws[:, N_DRAWS:].split(self._further(), dim=1)
        grid = self.grid(*place, side=side, area_range=area)
        if self.turns:
            grid = self.turned(grid, *turn.unbind(1), ratio=x.shape[-2] / x.shape[-1])
        x = sample(x.float(), grid)
        if self.rand_ops:
            x = strong.rand_augment(x, ops, self.rand_magnitude)
        if self.three_share:
            x = strong.three_augment(x, three, self.three_share)
        if any(self.jitter.values()):
            x = self.recolour(x, *colours)
        return strong.erase(x, erased, self.erase_share) if self.erase_share else x

    def _further(self) -> list[int]:
        """Return how many draws RandAugment, 3-Augment, erasing and turning take."""
        return [
            strong.DRAWS_OF_OP * self.rand_ops,
            strong.DRAWS_OF_THREE if self.three_share else 0,
            strong.DRAWS_OF_ERASE if self.erase_share else 0,
            DRAWS_OF_TURN if self.turns else 0,
        ]

    def recolour(
        self,
        x: Float[Tensor, "b c s s"],
        brightness: Float[Tensor, " b"],
        contrast: Float[Tensor, " b"],
        saturation: Float[Tensor, " b"],
    ) -> Float[Tensor, "b c s s"]:
        """Change brightness, contrast and saturation."""
        x = x * self.factor("brightness", brightness)
        # the mean of what is gray is what is gray of the means
        base = gray(x.mean((2, 3), keepdim=True))
        x = blend(x, base, self.factor("contrast", contrast))
        if x.shape[1] > 1 and self.jitter["saturation"]:
            x = blend(x, gray(x), self.factor("saturation", saturation))
        return x.clamp_(0.0, 255.0)

    def grid(
        self,
        area: Float[Tensor, " b"],
        aspect: Float[Tensor, " b"],
        top: Float[Tensor, " b"],
        left: Float[Tensor, " b"],
        flip: Float[Tensor, " b"],
        *,
        side: int,
        area_range: tuple[float, float] | None = None,
    ) -> Float[Tensor, "b s s 2"]:
        """Return where to look for each pixel, as `F.grid_sample` counts: -1 to 1."""
        low, high = area_range or self.area
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

    def turned(
        self,
        grid: Float[Tensor, "b s s 2"],
        rotation: Float[Tensor, " b"],
        shear: Float[Tensor, " b"],
        *,
        ratio: float,
    ) -> Float[Tensor, "b s s 2"]:
        """Turn and shear a grid around its middle; `ratio` is the image's height by its width."""
        angle = self.rotation * (2.0 * rotation - 1.0)
        lean = torch.tan(self.shear * (2.0 * shear - 1.0))
        cos, sin = angle.cos(), angle.sin()
        # of pixels: R(angle) [[1, lean], [0, 1]]; the grid counts half widths and half heights
        rows = (cos, (cos * lean - sin) * ratio, sin / ratio, sin * lean + cos)
        matrix = torch.stack(rows, dim=1).view(-1, 1, 2, 2)
        middle = grid.mean((1, 2), keepdim=True)
        return middle + (grid - middle) @ matrix.mT

    def factor(self, name: str, draw: Float[Tensor, " b"]) -> Float[Tensor, "b 1 1 1"]:
        """Return what to multiply by: evenly around 1."""
        return (1.0 + self.jitter[name] * (2.0 * draw - 1.0))[:, None, None, None]


def sample(x: Float[Tensor, "b c h w"], grid: Float[Tensor, "b s s 2"]) -> Float[Tensor, "b c s s"]:
    """Interpolate between pixels; beyond the outermost centres their value goes on."""
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)


def blend(
    x: Float[Tensor, "b c h w"], base: Float[Tensor, "b 1 _h _w"], factor: Float[Tensor, "b 1 1 1"]
) -> Float[Tensor, "b c h w"]:
    """Move away from (above 1) or towards (below 1) the base."""
    return torch.lerp(base, x, factor)
