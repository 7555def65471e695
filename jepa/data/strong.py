"""Stronger changes of a batch of images: RandAugment, 3-Augment, erased rectangles.

Each image has its own draws, numbers in [0, 1) that decide everything: equal draws give equal
images, on any device and in any batch.
Axes: b images, c channels, h and w pixels, k draws of one image.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

MOST_MAGNITUDE = 30
DRAWS_OF_OP, DRAWS_OF_THREE, DRAWS_OF_ERASE = 2, 3, 5
ERASE_AREA = (0.02, 1.0 / 3.0)  # Random Erasing, arXiv:1708.04896, as torchvision has it
ERASE_LOG_ASPECT = math.log(10.0 / 3.0)
BLUR_SIGMA = (0.1, 2.0)  # pixels of an image of BLUR_SIDE, as the code of DeiT III draws them
BLUR_SIDE = 224
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601

_SIGNED = (
    *("shear_x", "shear_y", "translate_x", "translate_y", "rotate"),
    *("brightness", "color", "contrast", "sharpness"),
)
OPS = ("identity", *_SIGNED, "posterize", "solarize", "autocontrast", "equalize")


def rand_augment(
    x: Float[Tensor, "b c h w"], draws: Float[Tensor, "b k"], magnitude: int
) -> Float[Tensor, "b c h w"]:
    """Change every image by k / 2 of `OPS`, each drawn evenly, up or down.

    Cubuk et al., "RandAugment", arXiv:1909.13719, with the ranges of torchvision.

    Args:
        x: values in [0, 255]; they become whole numbers.
        draws: for each change, which and in which direction.
        magnitude: 0 to `MOST_MAGNITUDE`.
    """
    x = x.round().to(torch.uint8)
    which = (draws[:, ::DRAWS_OF_OP] * len(OPS)).long()
    up = draws[:, 1::DRAWS_OF_OP] < 0.5
    for ops, ups in zip(which.T.tolist(), up.T.tolist(), strict=True):
        groups: dict[tuple[str, bool], list[int]] = {}
        for image, (op, positive) in enumerate(zip(ops, ups, strict=True)):
            name = OPS[op]
            groups.setdefault((name, positive or name not in _SIGNED), []).append(image)
        y = x.clone()
        for (name, positive), images in groups.items():
            index = torch.tensor(images, device=x.device)
            y[index] = operation(name, magnitude, 1 if positive else -1, x.shape[-1])(x[index])
        x = y
    return x.float()


def operation(name: str, magnitude: int, sign: int, side: int) -> Callable[[Tensor], Tensor]:
    """Return one of `OPS` on uint8 images of a height and width."""
    from torchvision.transforms import InterpolationMode  # here: importing it takes a second
    from torchvision.transforms.v2 import functional as tv

    share = magnitude / MOST_MAGNITUDE
    shear = math.degrees(math.atan(0.3 * share)) * sign
    shift = float(int(150.0 / 331.0 * side * share) * sign)
    factor = 1.0 + 0.9 * share * sign
    bilinear = InterpolationMode.BILINEAR

    def move(x: Tensor, shears: list[float], shifts: list[float]) -> Tensor:
        return tv.affine(x, 0.0, shifts, 1.0, shears, bilinear, center=still)

    still = [0.0, 0.0]
    known: dict[str, Callable[[Tensor], Tensor]] = {
        "identity": lambda x: x,
        "shear_x": lambda x: move(x, [shear, 0.0], still),
        "shear_y": lambda x: move(x, [0.0, shear], still),
        "translate_x": lambda x: move(x, still, [shift, 0.0]),
        "translate_y": lambda x: move(x, still, [0.0, shift]),
        "rotate": lambda x: tv.rotate(x, 30.0 * share * sign, interpolation=bilinear),
        "brightness": lambda x: tv.adjust_brightness(x, factor),
        "color": lambda x: tv.adjust_saturation(x, factor),
        "contrast": lambda x: tv.adjust_contrast(x, factor),
        "sharpness": lambda x: tv.adjust_sharpness(x, factor),
        "posterize": lambda x: tv.posterize(x, 8 - round(4 * share)),
        "solarize": lambda x: tv.solarize(x, 255.0 * (1.0 - share)),
        "autocontrast": tv.autocontrast,
        "equalize": tv.equalize,
    }
    return known[name]


def three_augment(
    x: Float[Tensor, "b c h w"], draws: Float[Tensor, "b k"], share: float
) -> Float[Tensor, "b c h w"]:
    """Make a part of the images gray, inverted above half, or blurred, one of the three each.

    3-Augment of Touvron et al., "DeiT III", arXiv:2204.07118, Sec. 3.3.

    Args:
        x: values in [0, 255].
        draws: whether, which, and how blurred.
        share: part of the images.
    """
    chosen, which, strength = draws.unbind(1)
    kind = torch.where(chosen < share, (3.0 * which).long(), -1)
    low, high = BLUR_SIGMA
    sigma = (low + (high - low) * strength) * x.shape[-1] / BLUR_SIDE
    x = x.clone()
    # each change for its own images alone: a blur of all would be most of the time
    grayed, solarised, blurred = ((kind == number).nonzero()[:, 0] for number in range(3))
    x[grayed] = gray(x[grayed]).expand(-1, x.shape[1], -1, -1)
    x[solarised] = solarise(x[solarised])
    if len(blurred):
        x[blurred] = blur(x[blurred], sigma[blurred])
    return x


def solarise(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """Invert what is above the half of [0, 255]."""
    return torch.where(x >= 128.0, 255.0 - x, x)


def blur(x: Float[Tensor, "b c h w"], sigma: Float[Tensor, " b"]) -> Float[Tensor, "b c h w"]:
    """Blur each image by a Gaussian of its own; beyond the edges the images are mirrored."""
    b, c, h, w = x.shape
    radius = max(1, math.ceil(3.0 * BLUR_SIGMA[1] * w / BLUR_SIDE))
    offsets = torch.arange(-radius, radius + 1, device=x.device)
    kernel = torch.softmax(-0.5 * (offsets / sigma[:, None]).square(), dim=1)
    kernel = kernel.repeat_interleave(c, 0)[:, None]
    rows = F.pad(x.reshape(1, b * c, h, w), (radius,) * 4, mode="reflect")
    rows = F.conv2d(rows, kernel[..., None], groups=b * c)
    return F.conv2d(rows, kernel[:, :, None], groups=b * c).view(b, c, h, w)


def erase(
    x: Float[Tensor, "b c h w"], draws: Float[Tensor, "b k"], share: float
) -> Float[Tensor, "b c h w"]:
    """Fill a rectangle of a part of the images with the image's mean colour.

    Zhong et al., "Random Erasing Data Augmentation", arXiv:1708.04896.

    Args:
        x: any values.
        draws: whether, area, aspect, top, left.
        share: part of the images.
    """
    chosen, area, aspect, top, left = (one[:, None] for one in draws.unbind(1))
    low, high = ERASE_AREA
    log_area = (low + (high - low) * area).log()
    log_aspect = ERASE_LOG_ASPECT * (2.0 * aspect - 1.0)
    sides = [((log_area + sign * log_aspect) / 2.0).exp().clamp(max=1.0) for sign in (1, -1)]
    inside = []
    for start, length, n in zip((top, left), sides, x.shape[2:], strict=True):
        centres = (torch.arange(n, device=x.device) + 0.5) / n
        begin = start * (1.0 - length)
        inside.append((centres >= begin) & (centres < begin + length))
    within = inside[0][:, None, :, None] & inside[1][:, None, None, :]
    within = within & (chosen < share)[:, :, None, None]
    return torch.where(within, x.mean((2, 3), keepdim=True), x)


def gray(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 1 h w"]:
    """Return the brightness of each pixel."""
    if x.shape[1] == 1:
        return x
    red, green, blue = x.split(1, dim=1)
    return _LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue
