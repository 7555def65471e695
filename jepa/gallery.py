"""Which pictures a model of images is shown in, and what of model and data goes into each.

Axes: b images, c channels, h w pixels, n rows, e code.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from jepa import pictures
from jepa.pictures import Box, Row
from jepa.probes.knn import find_neighbours

N_NEIGHBOURS = 5
PART = 128  # images coded at a time
COLOURS = ("tab:orange", "tab:cyan", "tab:pink", "tab:olive", "tab:red", "tab:purple")
SAME, OTHER = "tab:green", "tab:red"


class Gallery:
    """The pictures of one model and one data set.

    Args:
        model: codes images by `embed`, and shows itself by `look`.
        data: prepared images.
        n_images: in a row of a picture; held-out ones, of the training images where there are none.
        n_bank: training images among which neighbours are looked for, and held-out ones behind a
            spectrum.
        seed: of the choice of the images.
        reference: eigenvalues of the codes before training; None where they are not known.
        metrics: the metrics.csv of the run.
    """

    def __init__(
        self,
        model: Any,
        data: Any,
        *,
        n_images: int,
        n_bank: int,
        seed: int,
        reference: Tensor | None = None,
        metrics: Path | None = None,
    ):
        self.model, self.data, self.n_bank = model, data, n_bank
        self.held = "val" if "val" in data.splits else "train"
        self.seed, self.reference, self.metrics = seed, reference, metrics
        index = self.choose(self.held, n_images)
        self.batch = self.take(self.held, index)
        self.images = self.to_images(self.batch["x"])
        self.looks: Any = None

    def draw(self, names: Sequence[str]) -> Iterator[tuple[str, Any]]:
        """Yield the name and the figure of each picture that there is something to draw for."""
        for name in names:
            figure = DRAW[name](self)
            if figure is not None:
                yield name, figure

    def choose(self, split: str, n: int) -> Int[Tensor, " n"]:
        """Return a seeded choice of images of a split."""
        rows = self.rows(split)
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(self.seed))
        return order[:n].sort().values

    def rows(self, split: str) -> Any:
        """Return a split where it lies: on the device of the trainer, if there is one."""
        return self.data.on_device.get(split, self.data.splits[split])

    def take(self, split: str, index: Int[Tensor, " n"]) -> dict[str, Tensor]:
        """Return images as a batch."""
        rows = self.rows(split)
        return rows.take(index.to(rows.device))

    def to_images(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b h w 3"]:
        """Return model input as colours from 0 to 1, on the CPU."""
        to_input = self.data.to_input
        x = x.cpu().float() * to_input.std.cpu()[:, None, None] + to_input.mean.cpu()[:, None, None]
        return rearrange(x.expand(-1, 3, -1, -1), "b c h w -> b h w c").clamp(0, 1)

    def codes(self, split: str, index: Int[Tensor, " n"]) -> Float[Tensor, "n e"]:
        """Return codes of images, on the CPU."""
        parts = (self.take(split, part)["x"] for part in index.split(PART))
        return torch.cat([self.model.embed(x.to(self.model.device)).float().cpu() for x in parts])

    def look(self) -> Any:
        """Return what the model shows of the images, computed once."""
        if self.looks is None:
            self.looks = self.model.look(self.batch["x"].to(self.model.device))
        return self.looks


def draw_masks(gallery: Gallery) -> Any:
    """Draw images, what the context encoder sees of them, and the rectangles to predict."""
    looks, images = gallery.look(), gallery.images
    seen = torch.zeros(looks.attention.flatten(1).shape)
    seen.scatter_(1, looks.blocks.context, 1.0)
    cells = seen.reshape(looks.attention.shape)[..., None].expand(-1, -1, -1, 3)
    shown = pictures.enlarge(cells, (images.shape[1], images.shape[2]))
    visible = images * shown + pictures.GRAY * (1 - shown)
    rows = [
        Row(label="input", images=list(images)),
        Row(label="visible", images=list(visible)),
        Row(label="to predict", images=list(faded(images)), boxes=target_boxes(looks)),
    ]
    return pictures.draw_grid("What is seen, and what is predicted from it", rows)


def target_boxes(looks: Any) -> list[list[Box]]:
    """Return the frames of the target rectangles of each image; none where they have no shape."""
    height, width = looks.blocks.shape
    columns, side = looks.attention.shape[2], looks.patch
    found = []
    for image in looks.blocks.targets[:, :, 0].tolist():
        corners = [(first % columns * side, first // columns * side) for first in image]
        found.append(
            [
                Box(
                    colour=COLOURS[number % len(COLOURS)],
                    place=(left, top, width * side, height * side),
                )
                for number, (left, top) in enumerate(corners)
            ]
        )
    return found


def faded(images: Float[Tensor, "b h w 3"]) -> Float[Tensor, "b h w 3"]:
    """Return images in pale gray, for what is drawn on them."""
    return 0.5 + 0.4 * (images.mean(-1, keepdim=True) - 0.5).expand(-1, -1, -1, 3)


def draw_neighbours(gallery: Gallery) -> Any:
    """Draw the nearest training images of each image, framed by whether they share its label."""
    bank = gallery.choose("train", gallery.n_bank)
    queries = gallery.model.embed(gallery.batch["x"].to(gallery.model.device)).float().cpu()
    k = min(N_NEIGHBOURS, len(bank))
    cosines, nearest = find_neighbours(gallery.codes("train", bank), queries, k=k)
    found = gallery.take("train", bank[nearest.flatten()])
    images = rearrange(gallery.to_images(found["x"]), "(b k) h w c -> k b h w c", k=k)
    names, label = gallery.data.spec.classes, gallery.batch.get("y")
    rows = [Row(label="input", images=list(gallery.images), titles=titles(names, label))]
    for place in range(k):
        same = None if label is None else found["y"].view(-1, k)[:, place] == label
        boxes = [] if same is None else [[Box(colour=SAME if one else OTHER)] for one in same]
        near = [f"{one:.2f}" for one in cosines[:, place].tolist()]
        rows.append(
            Row(label=f"nearest {place + 1}", images=list(images[place]), boxes=boxes, titles=near)
        )
    told = "" if label is None else "; green: the same class, red: another"
    title = f"Nearest of {len(bank):,} training images by cosine{told}"
    return pictures.draw_grid(title, rows)


def titles(names: tuple[str, ...], label: Tensor | None) -> list[str]:
    """Return the name of each image's class, short enough to stand above it."""
    return [] if label is None else [names[i][:12] for i in label.tolist()]


def draw_attention(gallery: Gallery) -> Any:
    """Draw how much each patch weighs in the mean code."""
    looks, images = gallery.look(), gallery.images
    rows = [
        Row(label="input", images=list(images)),
        Row(label="rollout", images=list(pictures.heat(images, looks.attention))),
    ]
    return pictures.draw_grid("Attention rollout: what the mean code is made of", rows)


def draw_features(gallery: Gallery) -> Any:
    """Draw the teacher's features of each level as colours."""
    looks, images = gallery.look(), gallery.images
    size = (images.shape[1], images.shape[2])
    rows = [Row(label="input", images=list(images))]
    for level, features in enumerate(looks.levels):
        height, width = features.shape[1:3]
        # what all patches of an image share would outweigh what tells them apart
        within = features - features.mean((1, 2), keepdim=True)
        for text, part in (("across images", features), ("within each", within)):
            cells = pictures.enlarge(pictures.to_rgb(part), size)
            label = f"level {level}, {height} x {width}\n{text}"
            rows.append(Row(label=label, images=list(cells)))
    title = "Features of the teacher: three principal components of each level as colours"
    return pictures.draw_grid(title, rows)


def draw_pyramid(gallery: Gallery) -> Any:
    """Draw, in the target rectangles, the teacher's features of each level and their prediction."""
    looks, images = gallery.look(), gallery.images
    if not gallery.model.masking.rectangles:
        return None
    rows = [Row(label="input", images=list(images), boxes=target_boxes(looks))]
    for level, pair in enumerate(zip(looks.targets, looks.predicted, strict=True)):
        both = pictures.to_rgb(torch.stack(pair))
        for name, colours in zip(("teacher", "predicted"), both, strict=True):
            painted = paint(faded(images), looks, colours, level)
            rows.append(Row(label=f"level {level}\n{name}", images=list(painted)))
    title = "The pyramid: features of hidden rectangles, and what is predicted from the rest"
    return pictures.draw_grid(title, rows)


def paint(
    canvas: Float[Tensor, "b h w 3"], looks: Any, colours: Float[Tensor, "b m o 3"], level: int
) -> Float[Tensor, "b h w 3"]:
    """Fill the target rectangles with the colours of their patches at a level."""
    (height, width), side = looks.blocks.shape, looks.patch
    columns, step = looks.attention.shape[2], 2**level
    across = -(-width // step)
    canvas = canvas.clone()
    for b, image in enumerate(looks.blocks.targets[:, :, 0].tolist()):
        for m, first in enumerate(image):
            top, left = first // columns * side, first % columns * side
            for o, colour in enumerate(colours[b, m]):
                y, x = o // across * step, o % across * step
                down, right = min(y + step, height), min(x + step, width)
                rows = slice(top + y * side, top + down * side)
                canvas[b, rows, left + x * side : left + right * side] = colour
    return canvas


def spectrum(gallery: Gallery) -> Float[Tensor, " k"]:
    """Return the eigenvalues of the covariance of held-out codes, the largest first."""
    codes = gallery.codes(gallery.held, gallery.choose(gallery.held, gallery.n_bank)).double()
    values = torch.linalg.svdvals(codes - codes.mean(0)).square() / len(codes)
    return values.float()


def draw_spectrum(gallery: Gallery) -> Any:
    """Draw how the variance of the codes is spread, beside that before training."""
    curves = {"now": spectrum(gallery)}
    if gallery.reference is not None:
        curves["untrained"] = gallery.reference
    n = min(gallery.n_bank, len(gallery.rows(gallery.held)))
    return pictures.draw_spectrum(curves, n=n)


def draw_losses(gallery: Gallery) -> Any:
    """Draw the training loss of each level."""
    return None if gallery.metrics is None else pictures.draw_losses(gallery.metrics)


DRAW: dict[str, Callable[[Gallery], Any]] = {
    "masks": draw_masks,
    "neighbours": draw_neighbours,
    "attention": draw_attention,
    "features": draw_features,
    "pyramid": draw_pyramid,
    "spectrum": draw_spectrum,
    "losses": draw_losses,
}
