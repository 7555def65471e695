"""Pictures of what a model of images has learnt. Arrays in, figures out.

Axes: b images, h w pixels, i j rows and columns of patches, n patches, d features, k eigenvalues.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor

from jepa import history

GRAY = 0.5  # of what is hidden
DPI = 100
CELL, GAP, HEAD, TITLE = 112, 8, 28, 12  # sides of an image, and what is around it, in dots
LEAST_SHARE = 1e-8  # of the variance: less is rounding
SMOOTHED = 50  # points of a curve that is drawn


@dataclass(frozen=True, kw_only=True)
class Box:
    """A frame around pixels, or around the whole image where it has no place."""

    colour: str
    place: tuple[int, int, int, int] | None = None  # left, top, width, height


@dataclass(frozen=True, kw_only=True)
class Row:
    """Images in a row, with frames and a title each where there are any."""

    label: str
    images: Sequence[Float[Tensor, "_ _ 3"]]
    boxes: Sequence[Sequence[Box]] = ()
    titles: Sequence[str] = field(default=())


def draw_grid(title: str, rows: Sequence[Row]) -> Any:
    """Return a figure with one row of images below the other."""
    from matplotlib.figure import Figure  # takes a second; no window and no global state

    n = max(len(row.images) for row in rows)
    left = 14 + 6 * max(len(line) for row in rows for line in row.label.split("\n"))
    width = left + n * (CELL + GAP)
    height = HEAD + sum(CELL + GAP + TITLE * bool(row.titles) for row in rows)
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
    # one pair of axes, in pixels from the top left: many would take seconds
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.text(8, HEAD / 2, title, va="center", fontsize=10)
    top = HEAD
    for row in rows:
        top += TITLE * bool(row.titles)
        middle = top + CELL / 2
        axes.text(left - 8, middle, row.label, ha="right", va="center", fontsize=8)
        for place, image in enumerate(row.images):
            x, shape = left + place * (CELL + GAP), image.shape[:2]
            sides = (x, x + CELL, top + CELL, top)
            axes.imshow(image.clamp(0, 1).numpy(), extent=sides, interpolation="nearest")
            if row.titles:
                axes.text(x + CELL / 2, top - 3, row.titles[place], ha="center", fontsize=7)
            for box in row.boxes[place] if row.boxes else ():
                add_box(axes, box, corner=(x, top), shape=(shape[0], shape[1]))
        top += CELL + GAP
    axes.set(xlim=(0, width), ylim=(height, 0), aspect="auto")
    return figure


def add_box(axes: Any, box: Box, *, corner: tuple[int, int], shape: tuple[int, int]) -> None:
    """Draw a frame on the image of so many rows and columns that lies at a corner."""
    from matplotlib.patches import Rectangle

    x, y, width, height = box.place or (0, 0, shape[1], shape[0])
    across, down = CELL / shape[1], CELL / shape[0]
    axes.add_patch(
        Rectangle(
            (corner[0] + x * across, corner[1] + y * down),
            width * across,
            height * down,
            fill=False,
            edgecolor=box.colour,
            linewidth=1.6,
        )
    )


def to_rgb(features: Float[Tensor, "*b d"]) -> Float[Tensor, "*b 3"]:
    """Return features as colours: their three principal components, each from its 2 % to its 98 %.

    The components are those of all rows together, so equal colours are equal features.
    """
    rows = features.flatten(0, -2).double()
    centred = rows - rows.mean(0)
    components = principal(centred, 3)
    values = centred @ components
    low, high = values.quantile(0.02, dim=0), values.quantile(0.98, dim=0)
    colours = ((values - low) / (high - low).clamp_min(1e-12)).clamp(0, 1)
    return colours.float().reshape(*features.shape[:-1], 3)


def principal(centred: Float[Tensor, "n d"], k: int) -> Float[Tensor, "d 3"]:
    """Return the first k principal directions, each with its largest entry positive."""
    _, vectors = torch.linalg.eigh(centred.T @ centred)
    found = vectors[:, -k:].flip(1)
    found = F.pad(found, (0, k - found.shape[1]))
    largest = found.gather(0, found.abs().argmax(0, keepdim=True))
    return found * torch.where(largest < 0, -1.0, 1.0)


def enlarge(cells: Float[Tensor, "b i j 3"], size: tuple[int, int]) -> Float[Tensor, "b h w 3"]:
    """Return a map of patches in pixels; the last row and column may be cut."""
    x = rearrange(cells, "b i j c -> b c i j")
    return rearrange(F.interpolate(x, size, mode="nearest"), "b c h w -> b h w c")


def heat(
    images: Float[Tensor, "b h w 3"], values: Float[Tensor, "b i j"]
) -> Float[Tensor, "b h w 3"]:
    """Lay values over images: blue for the least, yellow for the most of each image."""
    from matplotlib import colormaps

    size = (images.shape[1], images.shape[2])
    smooth = F.interpolate(values[:, None].float(), size, mode="bicubic", align_corners=False)[:, 0]
    low, high = smooth.amin((1, 2), keepdim=True), smooth.amax((1, 2), keepdim=True)
    shares = (smooth - low) / (high - low).clamp_min(1e-12)
    colours = torch.from_numpy(colormaps["plasma"](shares.numpy())[..., :3]).float()
    gray = images.mean(-1, keepdim=True)
    return 0.35 * gray + 0.65 * colours


def draw_spectrum(curves: Mapping[str, Float[Tensor, " k"]], *, n: int) -> Any:
    """Return a figure of eigenvalues of the covariance of codes, each over their sum."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.8), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    for (label, values), style in zip(curves.items(), ("-", "--", ":"), strict=False):
        shares = (values / values.sum().clamp_min(1e-30)).numpy()
        shares, rank = shares[shares > LEAST_SHARE], effective(values)
        axes.plot(
            np.arange(1, len(shares) + 1),
            shares,
            style,
            label=f"{label}: effective rank {rank:.1f}",
        )
    axes.set(
        xscale="log", yscale="log", xlabel="principal direction", ylabel="share of the variance"
    )
    axes.set_title(f"Spectrum of the codes of {n:,} held-out images", loc="left", fontsize="medium")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize="small")
    return figure


def effective(values: Float[Tensor, " k"]) -> float:
    """Return exp(entropy) of eigenvalues: over how many directions the variance is spread."""
    total = values.sum()
    return torch.special.entr(values / total).sum().exp().item() if total else 0.0


def draw_losses(metrics: Path) -> Any:
    """Return a figure of the training loss of each level in a metrics.csv; None where none is."""
    curves = read_losses(metrics)
    if not curves:
        return None
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.8), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    for name, (steps, values) in curves.items():
        steps, values = smooth(steps, values)
        axes.plot(steps, values, label=name.removeprefix("train/").replace("_", " "))
    axes.set(xlabel="optimizer step", ylabel="loss")
    axes.set_ylim(bottom=0.0)
    axes.set_title("Training loss of each level", loc="left", fontsize="medium")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize="small")
    return figure


def read_losses(metrics: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return (steps, values) of each `train/loss_level_<l>` that is positive and finite."""
    if not metrics.exists():
        return {}
    rows = history.read_rows(metrics)
    found = {
        name: [one for one in history.points(rows, name) if one[1] > 0]
        for name in sorted(history.names(rows, "train/loss_level_"))
    }
    arrays = {name: np.array(points) for name, points in found.items() if len(points) > 1}
    return {name: (one[:, 0], one[:, 1]) for name, one in arrays.items()}


def smooth(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the means of equal parts of a curve: what one batch gave says little."""
    parts = min(SMOOTHED, len(steps))

    def means(points: np.ndarray) -> np.ndarray:
        return np.array([part.mean() for part in np.array_split(points, parts)])

    return means(steps), means(values)


def pixels(figure: Any) -> UInt8[np.ndarray, "h w 3"]:
    """Return a figure as an RGB image."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def save(image: UInt8[np.ndarray, "h w 3"], path: Path) -> None:
    """Write an image as a PNG file."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, format="PNG", optimize=True)


def found(run_dir: Path, names: Iterable[str]) -> list[str]:
    """Return the files of pictures that a run directory has, as they are linked from its root."""
    paths = [f"plots/{name}.png" for name in names]
    return [path for path in paths if (run_dir / path).exists()]
