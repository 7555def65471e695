"""JPEG and PNG files to square uint8 pixels; damaged files are set aside, with the reason.

Axes: n images, c channels, h height and width.
"""

import io
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

MAX_PIXELS = 64_000_000  # of one image; a file that claims more is taken for a decompression bomb
MAX_BYTES = 1 << 28  # of one file
_PORTION = 64  # files that a thread takes at a time, fewer
_PORTION_BYTES = 1 << 24  # where they are large and in memory


class Decoded:
    """What came of some files: pixels by name, and the reason for each one that is damaged."""

    def __init__(self) -> None:
        self.pixels: dict[str, np.ndarray] = {}
        self.damaged: dict[str, str] = {}

    def add(self, name: str, result: np.ndarray | str) -> None:
        """Keep pixels, or the reason why there are none."""
        if isinstance(result, str):
            self.damaged[name] = result
        else:
            self.pixels[name] = result

    def stack(self, side: int) -> np.ndarray:
        """Return uint8 [n, c, h, h] in the order of `pixels`, which is emptied on the way.

        All get one size: their own if they agree, else `side`. Gray ones get three equal channels
        if any has colours.
        """
        shapes = {pixels.shape for pixels in self.pixels.values()}
        sides = {shape[0] for shape in shapes}
        side = sides.pop() if len(sides) == 1 else side
        n_channels = max(len(shape) for shape in shapes) * 2 - 3  # [h, h] or [h, h, 3]
        x = np.empty((len(self.pixels), n_channels, side, side), dtype=np.uint8)
        for i, name in enumerate(list(self.pixels)):
            pixels = self.pixels.pop(name)
            if len(pixels) != side:
                pixels = np.asarray(fit(Image.fromarray(pixels), side))
            x[i] = pixels if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
        return x


def decode_files(
    files: Iterable[tuple[str, bytes | Path]], *, side: int, n_workers: int | None = None
) -> Decoded:
    """Decode files, given by name and content or place; larger images are shrunk to `side`.

    Files are read as they are needed, so an archive is never in memory as a whole. The result does
    not depend on `n_workers`, the number of threads; None: one for each core.

    Raises:
        ValueError: if the pixels do not fit into memory.
    """
    done, n_bytes = Decoded(), 0
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    n_workers = n_workers or os.cpu_count() or 1
    parts = portions(files)
    with ThreadPoolExecutor(n_workers) as pool:
        while now := list(islice(parts, n_workers)):
            for results in pool.map(partial(attempt_all, side=side), now):
                for name, result in results:
                    done.add(name, result)
                    n_bytes += 0 if isinstance(result, str) else result.nbytes
            if 2 * n_bytes > memory:  # once as files are decoded, once more as one tensor
                raise ValueError(
                    f"the first {len(done.pixels):,} images take {n_bytes / 1e9:.1f} GB, too much "
                    f"for {memory / 1e9:.1f} GB of memory: lower data.image_size={side}, or give "
                    "fewer images"
                )
    return done


def portions(
    files: Iterable[tuple[str, bytes | Path]],
) -> Iterator[list[tuple[str, bytes | Path]]]:
    """Yield the files in lists, short enough for every thread to hold one."""
    part, n_bytes = [], 0
    for name, content in files:
        part.append((name, content))
        n_bytes += len(content) if isinstance(content, bytes) else 0
        if len(part) == _PORTION or n_bytes >= _PORTION_BYTES:
            yield part
            part, n_bytes = [], 0
    yield part


def attempt_all(
    files: list[tuple[str, bytes | Path]], *, side: int
) -> list[tuple[str, np.ndarray | str]]:
    """Return the pixels of each file, or why there are none."""
    return [(name, attempt(content, side=side)) for name, content in files]


def attempt(content: bytes | Path, *, side: int) -> np.ndarray | str:
    """Return the pixels, or why there are none."""
    try:
        return decode(content, side=side)
    except Exception as error:  # a damaged file can fail anywhere inside a decoder
        return str(error).replace("\n", " ") or type(error).__name__


def decode(content: bytes | Path, *, side: int) -> np.ndarray:
    """Return the central square as uint8 [h, h] or [h, h, 3], at most `side` high.

    The orientation that a camera noted is applied, 16 bits become 8, CMYK becomes RGB, and what is
    transparent shows white.

    Raises:
        Exception: whatever the decoder raises for a damaged file; ValueError for one too large.
    """
    n_bytes = content.stat().st_size if isinstance(content, Path) else len(content)
    if n_bytes > MAX_BYTES:
        raise ValueError(f"{n_bytes:,} bytes are more than {MAX_BYTES:,}")
    source = content if isinstance(content, Path) else io.BytesIO(content)
    with Image.open(source, formats=("JPEG", "PNG")) as image:
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise ValueError(f"{width} x {height} pixels are more than {MAX_PIXELS:,}")
        image.draft(None, (2 * side, 2 * side))  # skips detail of a large JPEG while decoding
        ImageOps.exif_transpose(image, in_place=True)
        return np.asarray(fit(eight_bits(image), min(side, *image.size)))


def eight_bits(image: Image.Image) -> Image.Image:
    """Return it as gray or RGB with 8 bits a channel."""
    if image.mode.startswith("I"):  # Pillow would clip 16 bits, not scale them
        values = np.asarray(image).astype(np.uint32).clip(0, 0xFFFF)
        return Image.fromarray(((values + 128) // 257).astype(np.uint8))
    if image.mode in ("1", "L"):
        return image.convert("L")
    if image.mode in ("LA", "La"):
        return over_white(image, "L")
    if image.mode in ("RGBA", "PA") or "transparency" in image.info:
        return over_white(image.convert("RGBA"), "RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def over_white(image: Image.Image, mode: str) -> Image.Image:
    """Return what shows in front of white."""
    white = Image.new(mode, image.size, "white")
    white.paste(image.convert(mode), mask=image.getchannel("A"))
    return white


def fit(image: Image.Image, side: int) -> Image.Image:
    """Cut out the central square and resize it, smoothed where it shrinks."""
    if image.size == (side, side):
        return image
    return ImageOps.fit(image, (side, side), Image.Resampling.BILINEAR)
