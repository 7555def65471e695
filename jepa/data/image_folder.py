"""Any images of yours: `data=image_folder data.path=<folder|tar|tar.xz|zip>`."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from jepa.data.archives import SUFFIXES, read_files
from jepa.data.decode import Decoded, decode_files
from jepa.data.images import Collection, ImageData
from jepa.data.pixels import Images, ToInput
from jepa.data.tree import Tree, arrange

_NAMED = 5  # damaged files that are named
_PART = 1024  # files decoded at a time where they are streamed
_NOTHING = np.empty(0, dtype=np.uint8)


class ImageFolder(ImageData):
    """Files as `split/class/...`, as `class/...`, or without classes; .jpg .jpeg .png in any case.

    Images of one shape up to `image_size` are kept as they are; else each is cut to its central
    square and shrunk to `image_size`. Gray images only give one channel, all others three.

    Args:
        path: a folder, or a .tar, .tar.gz, .tar.bz2, .tar.xz or .zip file.
        max_corrupt_share: part of the files that may be damaged; they are left out and named.
        images: settings of `ImageData`.
    """

    def __init__(self, *, path: str, max_corrupt_share: float | int, **images):
        super().__init__(**images)
        if not 0.0 <= max_corrupt_share < 1.0:
            raise ValueError(
                f"data.max_corrupt_share must be at least 0 and below 1, got {max_corrupt_share}"
            )
        self.path = path
        self.max_corrupt_share = max_corrupt_share

    def load(self) -> Collection:
        """Read the files, once."""
        images, tree, damaged = read_images(
            self.path,
            side=self.image_size,
            n_workers=self.n_workers,
            max_corrupt_share=self.max_corrupt_share,
        )
        notes = (f"damaged, left out: {len(damaged):,}",) if damaged else ()
        return Collection(splits=images, classes=tree.classes, notes=notes)


def read_images(
    path: str | Path, *, side: int, n_workers: int | None, max_corrupt_share: float | int
) -> tuple[dict[str, Images], Tree, tuple[str, ...]]:
    """Decode all images below a folder or in an archive, and place them by their names.

    Return the splits, what the names say, and the names of the damaged files.

    Raises:
        ValueError: for a tree without images, with too many damaged ones, or without a clear
            meaning; and whatever `read_files` refuses.
    """
    others: list[str] = []
    decoded = decode_files(_images(path, others), side=side, n_workers=n_workers)
    check_damage(path, decoded, others, max_corrupt_share)
    unread = [name for name in others if not name.endswith("/")] + list(decoded.damaged)
    folders = {name for name in others if name.endswith("/")}
    tree = arrange(decoded.pixels, folders | {str(PurePosixPath(name).parent) for name in unread})
    order = [name for names in tree.splits.values() for name in names]
    decoded.pixels = {name: decoded.pixels[name] for name in order}
    x = torch.from_numpy(decoded.stack(side))
    y = torch.tensor([tree.labels[name] for name in order]) if tree.classes else None
    splits, start = {}, 0
    for split, names in tree.splits.items():
        rows = slice(start, start + len(names))
        splits[split] = Images(x[rows], None if y is None else y[rows])
        start = rows.stop
    return splits, tree, tuple(decoded.damaged)


def stream_images(
    path: str | Path,
    to_input: ToInput,
    *,
    n_channels: int,
    n_workers: int | None = None,
    max_corrupt_share: float | int,
    names: list[str],
) -> Iterator[Tensor]:
    """Yield model input of all images below a folder or in an archive, some at a time.

    Each is cut and resized on its own, so nothing depends on what lies beside it. `names` receives
    the name of each image that was read, in their order.

    Raises:
        ValueError: for images of other channels than the model's, too many damaged ones, or none;
            and whatever `read_files` refuses.
    """
    others: list[str] = []
    files, every = _images(path, others), Decoded()
    while part := list(islice(files, _PART)):
        decoded = decode_files(part, side=to_input.side, n_workers=n_workers)
        every.damaged |= decoded.damaged
        for name, pixels in decoded.pixels.items():
            if pixels.ndim == 3 and n_channels == 1:
                raise ValueError(
                    f"{name} in {path} has colours, but the model was trained on gray images: "
                    "convert the images"
                )
        if decoded.pixels:
            names.extend(decoded.pixels)
            yield torch.cat([_input(one, to_input, n_channels) for one in decoded.pixels.values()])
        every.pixels |= dict.fromkeys(decoded.pixels, _NOTHING)
    check_damage(path, every, others, max_corrupt_share)


def _input(pixels: np.ndarray, to_input: ToInput, n_channels: int) -> Tensor:
    """Return one image as model input; a gray one gets three equal channels where asked for."""
    x = torch.from_numpy(np.array(pixels))  # Pillow's own memory is not to be written to
    x = x[None] if x.ndim == 2 else x.permute(2, 0, 1)
    return to_input(x.expand(n_channels, -1, -1)[None])


def _images(path: str | Path, others: list[str]) -> Iterator[tuple[str, bytes | Path]]:
    """Yield the images; put the names of everything else into `others`."""
    for name, content in read_files(path):
        if content is None:
            others.append(name)
        else:
            yield name, content


def check_damage(
    path: str | Path, decoded: Decoded, others: list[str], max_corrupt_share: float | int
) -> None:
    """Say which files are damaged, up to a share of them.

    Raises:
        ValueError: if there are more, or no images at all.
    """
    n_files = len(decoded.pixels) + len(decoded.damaged)
    if not n_files:
        kinds = sorted({PurePosixPath(name).suffix for name in others if name[-1] != "/"} - {""})
        raise ValueError(
            f"data.path={str(path)!r} holds no {', '.join(SUFFIXES)} files"
            + (f", only {', '.join(kinds[:_NAMED])}: convert them" if kinds else "")
        )
    if not decoded.damaged:
        return
    named = "; ".join(f"{n} ({why})" for n, why in list(decoded.damaged.items())[:_NAMED])
    more = ", ..." if len(decoded.damaged) > _NAMED else ""
    text = f"{len(decoded.damaged):,} of {n_files:,} images in {path} are damaged: {named}{more}"
    if not decoded.pixels or len(decoded.damaged) > max_corrupt_share * n_files:
        raise ValueError(
            f"{text}; mend or remove them, or raise data.max_corrupt_share={max_corrupt_share}"
        )
    rank_zero_warn(f"{text}; they are left out")
