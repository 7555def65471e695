"""Several sets of images at once, in given shares: pretrained on all, scored on the first."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch

from jepa.data.images import Collection, ImageData, Pixels
from jepa.data.pixels import Images, Slots, resize


class Mixture(ImageData):
    """Training batches drawn from several sets; classes, validation and test are the first set's.

    An epoch shows the set that is largest for its weight once; of the others, every image stands
    equally often in it, give or take one.

    Args:
        sets: by name, each takes the settings of `ImageData` and returns the data.
        weights: how often images of each set come, by the same names; any positive numbers.
        images: settings of `ImageData`, for all sets.

    Raises:
        ValueError: if the names differ, or a weight is not positive.
    """

    def __init__(
        self,
        *,
        sets: Mapping[str, Callable[..., ImageData]],
        weights: Mapping[str, float | int],
        **images,
    ):
        super().__init__(**images)
        if set(sets) != set(weights) or len(sets) < 2:
            raise ValueError(
                "data.weights needs one weight for each of two or more data.sets, got sets "
                f"{', '.join(sets)} and weights for {', '.join(weights)}"
            )
        for name, weight in weights.items():
            if not 0.0 < weight < float("inf"):
                raise ValueError(f"data.weights.{name} must be positive, got {weight}")
        members = {name: build(**images) for name, build in sets.items()}
        if any(isinstance(member, Mixture) for member in members.values()):
            raise ValueError("data.sets holds a mixture: name its sets themselves")
        self.members = members
        self.weights = {name: float(weights[name]) for name in sets}

    def collect(self) -> Collection:
        """Collect each set, and bring all to one size and one number of channels."""
        members = {name: member.collect() for name, member in self.members.items()}
        first = next(iter(members.values()))
        pools = {name: self._pool(one) for name, one in members.items()}
        side = max(pool.x.shape[-1] for pool in pools.values())
        n_channels = max(pool.x.shape[1] for pool in pools.values())
        whole = torch.cat([alike(pool, side, n_channels).x for pool in pools.values()])
        slots = fill_slots([len(pool) for pool in pools.values()], list(self.weights.values()))
        splits = {
            name: alike(in_memory(part), side, n_channels) for name, part in first.splits.items()
        }
        stamps = [f"{name}: {one.stamp}" for name, one in members.items() if one.stamp]
        shares = ", ".join(
            f"{w / sum(self.weights.values()):.3g} {name}" for name, w in self.weights.items()
        )
        return replace(
            first,
            splits=splits,
            unlabeled=Slots(Images(whole), slots),
            stamp="; ".join(stamps),
            notes=(f"mixture: {shares}", *(n for one in members.values() for n in one.notes)),
        )

    @staticmethod
    def _pool(one: Collection) -> Images:
        """Return what this set pretrains on."""
        if isinstance(one.unlabeled, Images):
            return one.unlabeled
        return in_memory(one.splits["train"])


def in_memory(images: Pixels) -> Images:
    """Refuse images that stay on the disk.

    Raises:
        ValueError: then.
    """
    if not isinstance(images, Images):
        raise ValueError("data.sets holds a set that stays on the disk: give it storage=memory")
    return images


def alike(images: Images, side: int, n_channels: int) -> Images:
    """Resize, and give gray images three equal channels, where others have that."""
    x = resize(images.x, side)
    return Images(x.expand(-1, n_channels, -1, -1), images.y)


def fill_slots(sizes: list[int], weights: list[float]) -> torch.Tensor:
    """Return numbers of rows of the concatenated sets, in which sets have shares by weight."""
    per_weight = max(size / weight for size, weight in zip(sizes, weights, strict=True))
    parts, start = [], 0
    for size, weight in zip(sizes, weights, strict=True):
        count = round(per_weight * weight)
        parts.append(start + torch.arange(count) % size)
        start += size
    return torch.cat(parts)
