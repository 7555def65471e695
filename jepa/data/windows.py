"""Windows of a series that lies on the device as one tensor: a batch is one gather a part.

Axes: b windows of a batch, n windows of a split, c channels, t time steps, l look-back, h horizon.
"""

from dataclasses import dataclass, replace

import torch
from einops import rearrange
from jaxtyping import Bool, Int, Shaped
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Windows:
    """A split: `look_back` steps in, and the `horizon` steps after them or a label of those.

    Args:
        values: every channel over all time steps; 0 where missing. The splits share it.
        starts: first step of each window.
        observed: where `values` are known; None where all are.
        labels: of each window; None where the target is the future itself.
    """

    values: Shaped[Tensor, "c t"]
    starts: Int[Tensor, " n"]
    look_back: int
    horizon: int
    observed: Bool[Tensor, "c t"] | None = None
    labels: Int[Tensor, " n"] | None = None

    @property
    def device(self) -> torch.device:
        """Where the series lies."""
        return self.values.device

    def __len__(self) -> int:
        return len(self.starts)

    def take(self, index: Int[Tensor, " b"]) -> dict[str, Tensor]:
        """Return these windows as a batch."""
        start = self.starts.index_select(0, index)
        batch = {"x": gather(self.values, start, self.look_back)}
        if self.labels is None:
            batch["y"] = gather(self.values, start + self.look_back, self.horizon)
        else:
            batch["y"] = self.labels.index_select(0, index)
        if self.observed is not None:
            length = self.look_back + (self.horizon if self.labels is None else 0)
            batch["mask"] = gather(self.observed, start, length)
        return batch

    def to(self, device: torch.device) -> "Windows":
        """Copy to a device; nothing is copied where the series is there already."""
        observed = None if self.observed is None else self.observed.to(device)
        return self.on(self.values.to(device), observed)

    def on(self, values: Tensor, observed: Tensor | None) -> "Windows":
        """Return these windows over a copy of the series, which other splits may share."""
        device = values.device
        return replace(
            self,
            values=values,
            observed=observed,
            starts=self.starts.to(device),
            labels=None if self.labels is None else self.labels.to(device),
        )


def gather(
    values: Shaped[Tensor, "c t"], start: Int[Tensor, " b"], length: int
) -> Shaped[Tensor, "b c {length}"]:
    """Copy `length` steps of every channel from each start, into one contiguous tensor.

    Rows of the strided view are copied whole: 15 to 40 times as fast on a CPU as an index for each
    value. The view itself takes no memory.
    """
    if values.device.type == "mps":  # copies the whole view before it selects
        return gather_points(values, start, length)
    return rearrange(values.unfold(-1, length, 1), "c w l -> w c l").index_select(0, start)


def gather_points(
    values: Shaped[Tensor, "c t"], start: Int[Tensor, " b"], length: int
) -> Shaped[Tensor, "b c {length}"]:
    """Do as `gather`, by an index for each value."""
    step = rearrange(start, "b -> b 1 1") + torch.arange(length, device=start.device)
    row = torch.arange(len(values), device=start.device) * values.shape[1]
    return values.flatten()[step + rearrange(row, "c -> c 1")]
