"""Any images of yours: `data=image_folder data.path=<folder|tar|tar.xz|zip>`."""

import os
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from jepa.data.archives import SUFFIXES, read_files
from jepa.data.decode import Decoded, decode_files
from jepa.data.images import Collection, ImageData, Pixels
from jepa.data.large import Decoder, Large, Source
from jepa.data.packed import pack
from jepa.data.pixels import Images, ToInput
from jepa.data.tree import Tree, arrange

STORAGES = ("memory", "files", "packed")
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
        storage: `memory` decodes all images once; `files`, those of a folder for every batch;
            `packed` keeps the decoded ones in one file, built once. The last two give three
            channels, and take little memory.
        stored_size: side of the squares that `files` and `packed` give; crops of larger ones show
            more detail. None: `image_size`.
        cache_dir: folder of packed files.
        images: settings of `ImageData`.
    """

    def __init__(
        self,
        *,
        path: str,
        max_corrupt_share: float | int,
        storage: str,
        stored_size: int | None,
        cache_dir: str,
        **images,
    ):
        super().__init__(**images)
        if storage not in STORAGES:
            raise ValueError(f"data.storage must be one of {', '.join(STORAGES)}, got {storage}")
        if stored_size is not None and (storage == "memory" or stored_size < 1):
            raise ValueError(
                f"data.stored_size={stored_size} is the side of squares of data.storage=files or "
                "packed, at least 1; leave it out"
            )
        if not 0.0 <= max_corrupt_share < 1.0:
            raise ValueError(
                f"data.max_corrupt_share must be at least 0 and below 1, got {max_corrupt_share}"
            )
        self.path = path
        self.max_corrupt_share = max_corrupt_share
        self.storage, self.cache_dir = storage, Path(cache_dir)
        self.stored_size = self.image_size if stored_size is None else stored_size

    def load(self) -> Collection:
        """Read the files, once; or their names."""
        if self.storage != "memory":
            return self.index()
        images, tree, damaged = read_images(
            self.path,
            side=self.image_size,
            n_workers=self.n_workers,
            max_corrupt_share=self.max_corrupt_share,
        )
        notes = (f"damaged, left out: {len(damaged):,}",) if damaged else ()
        return Collection(splits=images, classes=tree.classes, notes=notes)

    def index(self, classes: Sequence[str] | None = None) -> Collection:
        """Return the images of a folder where they are, or out of the packed file.

        Args:
            classes: folders that count; None: all.

        Raises:
            ValueError: for an archive, and for what `read_images` refuses.
        """
        if Path(self.path).is_file():
            raise ValueError(
                f"data.storage={self.storage} reads a folder, but data.path={self.path} is a file: "
                "unpack it, or give data.storage=memory"
            )
        others: list[str] = []
        found = {n: place for n, place in _images(self.path, others) if isinstance(place, Path)}
        if classes is not None:
            found = {
                n: place for n, place in found.items() if not set(classes).isdisjoint(parts(n))
            }
            others = [n for n in others if not set(classes).isdisjoint(parts(n))]
        if not found:
            check_damage(self.path, Decoded(), others, self.max_corrupt_share)
        source = self.source(found)
        decoded = Decoded()
        decoded.pixels = {name: _NOTHING for name in found if name not in source.damaged}
        decoded.damaged = source.damaged
        check_damage(self.path, decoded, others, self.max_corrupt_share)
        return arranged(source, list(found), arrange_all(decoded, others))

    def source(self, files: dict[str, Path]) -> Source:
        """Return where the pixels come from."""
        side, n_workers = self.stored_size, self.n_workers or os.cpu_count() or 1
        if self.storage == "packed":
            label = Path(self.path).name or "images"
            return pack(files, self.cache_dir, label=label, side=side, n_workers=n_workers)
        share = self.max_corrupt_share
        return Decoder(files, side=side, n_workers=n_workers, max_corrupt_share=share)


def parts(name: str) -> tuple[str, ...]:
    """Return the folders and the file of a name."""
    return PurePosixPath(name).parts


def arranged(source: Source, names: list[str], tree: Tree) -> Collection:
    """Return the images of a source by split, with their labels."""
    number = {name: i for i, name in enumerate(names)}
    splits: dict[str, Pixels] = {}
    for split, own in tree.splits.items():
        numbers = torch.tensor([number[name] for name in own])
        y = torch.tensor([tree.labels[name] for name in own]) if tree.classes else None
        splits[split] = Large(source, numbers, y)
    notes = [source.describe()]
    if source.damaged:
        notes.append(f"damaged, left out: {len(source.damaged):,}")
    return Collection(splits=splits, classes=tree.classes, notes=tuple(notes))


def arrange_all(decoded: Decoded, others: list[str]) -> Tree:
    """Place the images by their names; folders in which nothing could be read are noticed."""
    unread = [name for name in others if not name.endswith("/")] + list(decoded.damaged)
    folders = {name for name in others if name.endswith("/")}
    return arrange(decoded.pixels, folders | {str(PurePosixPath(name).parent) for name in unread})


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
    tree = arrange_all(decoded, others)
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
