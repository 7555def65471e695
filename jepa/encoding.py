"""What probes are given: codes of the trained encoder, of the untrained one, or the raw input.

Axes: b windows or rows, c channels, l look-back, h w pixels, n training rows, m scored rows,
e features.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from jepa import baselines
from jepa.callbacks.probe import embed_all
from jepa.features import Codes, cached, fingerprint
from jepa.models.hjepa_codes import OWN
from jepa.nn.norm import normalize
from jepa.probes.raw import raw_features
from jepa.spec import ImageSpec, SeriesSpec

RAW_SIDE = 32  # largest side of an image whose pixels stand as features
IMAGES = 256  # coded at a time
ROLES = ("trained", "untrained")


class Encoding:
    """Codes and labels of the splits of some data.

    Args:
        model, untrained: the two encoders.
        data: prepared.
        sizes: rows of each split that are coded, a seeded subset; None for all.
        seed: of the subset.
        names: representations that a pass over the images codes together; `own` for the model's.
        folder: keeps the codes in files; None keeps nothing.
        origin: what the weights of both encoders came from, as the sha256 of a checkpoint.
    """

    def __init__(
        self,
        model: Any,
        untrained: Any,
        data: Any,
        *,
        sizes: dict[str, int | None],
        seed: int,
        names: Sequence[str] = (OWN,),
        folder: Path | None = None,
        origin: str = "",
    ):
        self.models: dict[str, Any] = dict(zip(ROLES, (model, untrained), strict=True))
        self.data, self.sizes, self.seed, self.names = data, sizes, seed, names
        self.folder, self.origin = folder, origin
        self.prints: dict[str, str] = {}

    def codes(self, role: str, split: str, name: str = OWN) -> Codes:
        """Return codes and labels of a split; all of `names` are coded if one of them is not yet.

        `role` is `trained` or `untrained`.
        """
        names = dict.fromkeys((name, *self.names))

        def make(missing: Sequence[str]) -> dict[str, Codes]:
            return encode(self.models[role], self.batches(split), missing)

        keys = {one: self.key(split, role=role, representation=one) for one in names}
        return cached(self.folder, keys, make, wanted=[name])[name]

    def both(self, role: str, split: str, name: str = OWN) -> tuple[Codes, Codes]:
        """Return the codes and labels of `train` and of this split."""
        return self.codes(role, "train", name), self.codes(role, split, name)

    def raw(self, split: str, *, n_rows: int) -> tuple[Tensor, Tensor]:
        """Return the input as features, of `train` and of this split; it is kept in no file.

        `n_rows` is how many rows the codes of the split have: one for each window, or channel.
        """
        return raw_inputs(self.data.spec, self.batches("train"), self.batches(split), n_rows=n_rows)

    def key(self, split: str, **more: Any) -> dict[str, Any]:
        """Return what the codes of a split depend on."""
        if not self.folder:
            return {}
        if split not in self.prints:
            self.prints[split] = fingerprint(self.data, split)
        rows = {"split": split, "max_rows": self.sizes[split], "seed": self.seed}
        return {"origin": self.origin, "data": self.prints[split], **rows, **more}

    def batches(self, split: str) -> Iterator[dict[str, Tensor]]:
        """Yield the rows of a split that probes see."""
        return self.data.probe_batches(split, max_rows=self.sizes[split], seed=self.seed)


def encode(
    model: Any, batches: Iterable[dict[str, Tensor]], names: Sequence[str]
) -> dict[str, Codes]:
    """Return the codes of each representation with the labels, on the CPU, in one pass."""
    if list(names) == [OWN]:
        return {OWN: embed_all(model, batches)}
    parts: dict[str, list[Tensor]] = {name: [] for name in names}
    labels = []
    for batch in batches:
        labels.append(batch["y"].cpu() if "y" in batch else torch.empty(0))
        for x in batch["x"].split(IMAGES):
            for name, code in model.embed_each(x.to(model.device), names).items():
                parts[name].append(code.float().cpu())
    y = torch.cat(labels)
    return {name: (torch.cat(codes), y) for name, codes in parts.items()}


def collect(batches: Iterable[dict[str, Tensor]]) -> Tensor:
    """Return the inputs of all batches as one tensor on the CPU; missing steps are filled."""
    inputs = []
    for batch in batches:
        x = batch["x"]
        if "mask" in batch:
            x = baselines.fill(x, batch["mask"][..., : x.shape[-1]])
        inputs.append(x.cpu())
    return torch.cat(inputs)


def raw_inputs(
    spec: Any, train: Iterable[dict[str, Tensor]], val: Iterable[dict[str, Tensor]], *, n_rows: int
) -> tuple[Float[Tensor, "n e"], Float[Tensor, "m e"]]:
    """Return the input itself as features: columns, windows or pixels.

    `n_rows` is how many rows the codes of `val` have: one for each window, or for each channel.
    """
    x_train, x_val = collect(train), collect(val)
    if isinstance(spec, SeriesSpec):
        apart = n_rows != len(x_val)
        return raw_windows(x_train, apart=apart), raw_windows(x_val, apart=apart)
    if isinstance(spec, ImageSpec):
        return raw_pixels(x_train), raw_pixels(x_val)
    return raw_features(x_train, x_val, spec.cardinalities)


def raw_windows(x: Float[Tensor, "b c l"], *, apart: bool) -> Float[Tensor, "n e"]:
    """Return windows normalised as a model sees them, then what normalisation took from them.

    A row for each channel if `apart`, else a row for each window.
    """
    z, location, scale = normalize(x)
    if apart:
        return rearrange(torch.cat([z, location, scale], dim=-1), "b c l -> (b c) l")
    return torch.cat([part.flatten(1) for part in (z, location, scale)], dim=1)


def raw_pixels(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b e"]:
    """Return the pixels, averaged where an image is larger than 32 x 32."""
    height, width = x.shape[-2:]
    size = (min(height, RAW_SIDE), min(width, RAW_SIDE))
    return F.adaptive_avg_pool2d(x.float(), size).flatten(1)
