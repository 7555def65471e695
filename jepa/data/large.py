"""Images that stay on the disk: decoded when a batch asks for them, or read from a packed file.

All are squares of one side with three channels. What is read depends on the row alone: how many
threads decode, and what they decode ahead, changes the time and nothing else.
Axes: n images of a split, b of a batch, s side of the stored squares.
"""

import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from lightning.pytorch.utilities import rank_zero_warn
from PIL import Image
from torch import Tensor

from jepa.data.decode import attempt, fit

CPU = torch.device("cpu")
GRAY = 128  # of an image that cannot be decoded
_MOST_AHEAD = 1024  # images decoded before they are asked for


@runtime_checkable
class Source(Protocol):
    """Where pixels come from, by the number of the image.

    `damaged` has the reason for each image known to be damaged.
    """

    side: int
    damaged: dict[str, str]

    def describe(self) -> str:
        """Say where the pixels come from, in a line."""
        ...

    def expect(self, rows: Sequence[int]) -> None:
        """Get ready for these images, in this order."""
        ...

    def read(self, rows: Sequence[int]) -> UInt8[Tensor, "b 3 s s"]:
        """Return the pixels of these images."""
        ...


class Decoder:
    """Image files, decoded by threads whenever they are asked for, and ahead of that.

    An image that cannot be decoded is a gray square, with a warning that names it.

    Args:
        files: by name, in the order of their numbers.
        side: of the squares.
        n_workers: threads.
        max_corrupt_share: part of the files that may be damaged.
    """

    def __init__(
        self, files: dict[str, Path], *, side: int, n_workers: int, max_corrupt_share: float | int
    ):
        self.names, self.files = list(files), list(files.values())
        self.side, self.max_corrupt_share = side, max_corrupt_share
        self.damaged: dict[str, str] = {}
        self.n_workers, self.pool = n_workers, ThreadPoolExecutor(n_workers)
        self.ahead: dict[int, Future] = {}
        self.lock = threading.Lock()

    def describe(self) -> str:
        """Say how files are decoded."""
        side = f"{self.side} x {self.side}"
        return f"files: decoded to {side} when they are needed, by {self.n_workers} threads"

    def expect(self, rows: Sequence[int]) -> None:
        """Start to decode them; what was expected before and is no more is dropped."""
        rows = rows[:_MOST_AHEAD]
        for row in self.ahead.keys() - set(rows):
            self.ahead.pop(row).cancel()
        for row in rows:
            if row not in self.ahead:
                self.ahead[row] = self.pool.submit(self.decode, row)

    def read(self, rows: Sequence[int]) -> UInt8[Tensor, "b 3 s s"]:
        """Return them, decoded ahead or now.

        Raises:
            ValueError: once more files are damaged than may be.
        """
        futures = [self.ahead.pop(row, None) or self.pool.submit(self.decode, row) for row in rows]
        return torch.from_numpy(np.stack([future.result() for future in futures]))

    def decode(self, row: int) -> UInt8[np.ndarray, "3 s s"]:
        """Return the pixels of one image."""
        pixels = attempt(self.files[row], side=self.side)
        if isinstance(pixels, str):
            self.note(self.names[row], pixels)
            return np.full((3, self.side, self.side), GRAY, dtype=np.uint8)
        return square(pixels, self.side)

    def note(self, name: str, why: str) -> None:
        """Say once that a file is damaged, and stop where too many are."""
        with self.lock:
            if name in self.damaged:
                return
            self.damaged[name] = why
        if len(self.damaged) > self.max_corrupt_share * len(self.files):
            raise ValueError(
                f"{len(self.damaged):,} of {len(self.files):,} images are damaged, the last one "
                f"{name} ({why}): mend or remove them, or raise data.max_corrupt_share="
                f"{self.max_corrupt_share}"
            )
        rank_zero_warn(f"{name} is damaged ({why}): a gray square stands for it")


def square(pixels: np.ndarray, side: int) -> UInt8[np.ndarray, "3 s s"]:
    """Return a decoded square [h, h] or [h, h, 3] with three channels, `side` high."""
    if len(pixels) != side:
        pixels = np.asarray(fit(Image.fromarray(pixels), side))
    if pixels.ndim == 2:
        return np.repeat(pixels[None], 3, axis=0)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


@dataclass(frozen=True)
class Large:
    """Some images of a source, with a label each where there are labels.

    Pixels are put onto `device` batch by batch; the images stay where they are.
    """

    source: Source
    numbers: Int64[Tensor, " n"]
    y: Int64[Tensor, " n"] | None = None
    device: torch.device = CPU

    def __len__(self) -> int:
        return len(self.numbers)

    def expect(self, index: Int64[Tensor, " b"]) -> None:
        """Tell the source which images come next."""
        self.source.expect(self.numbers[index.cpu()].tolist())

    def take(self, index: Int64[Tensor, " b"]) -> dict[str, Tensor]:
        """Return these images as a batch of pixels, 0 to 255."""
        x = self.source.read(self.numbers[index.cpu()].tolist()).to(self.device)
        return {"x": x} if self.y is None else {"x": x, "y": self.y[index.cpu()].to(self.device)}

    def to(self, device: torch.device) -> "Large":
        """Return the same images, whose batches come on a device."""
        return replace(self, device=device)

    def pick(self, rows: np.ndarray) -> "Large":
        """Return some of the images."""
        index = torch.from_numpy(rows)
        y = None if self.y is None else self.y[index]
        return replace(self, numbers=self.numbers[index], y=y)


def decode_squares(
    files: Iterable[Path], *, side: int, pool: ThreadPoolExecutor
) -> list[np.ndarray | str]:
    """Return the square of each file, or why there is none."""
    found = pool.map(partial(attempt, side=side), files)
    return [one if isinstance(one, str) else square(one, side) for one in found]
