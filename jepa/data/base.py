"""The contract every data set keeps: a spec known after `prepare()`, splits, and batches.

A batch is a dict: `x` is always there, `y` only where labels exist, `mask` where values can be
absent. A split is a `Samples`: rows, windows or images that lie on one device.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import lightning as L
import torch
from torch import Tensor

from jepa.data.batches import Batches, OrderedBatches, Samples
from jepa.spec import Spec

_PROBE_ROWS = 1024  # rows embedded at a time where the training batch is smaller


class DataModule(L.LightningDataModule):
    """Splits and batches. A data set adds `prepare`, which sets `spec`, `splits`, `preprocessing`.

    Args:
        batch_size: rows of one forward pass.
        effective_batch_size: rows of one optimizer step over all processes; the entry point
            derives `trainer.accumulate_grad_batches` from it. None: as the trainer says.
        seed: of the order of the training rows.
    """

    spec: Spec
    splits: Mapping[str, Samples]
    preprocessing: dict[str, Any]

    def __init__(self, *, batch_size: int, effective_batch_size: int | None = None, seed: int = 0):
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"data.batch_size must be at least 1, got {batch_size}")
        self.batch_size = batch_size
        self.effective_batch_size = effective_batch_size
        self.seed = seed
        self.on_device: dict[str, Samples] = {}

    def prepare(self) -> None:
        """Read, check, split, fit on the training rows and encode. A second call does nothing."""
        raise NotImplementedError

    def setup(self, stage: str) -> None:
        """Move the splits to the device of the trainer."""
        self.prepare()
        if self.trainer is not None:
            device = self.trainer.strategy.root_device
            self.on_device = {name: rows.to(device) for name, rows in self.splits.items()}

    def train_dataloader(self) -> Batches:
        """Shuffled; whole batches and whole accumulation groups only."""
        trainer = self.trainer
        return Batches(
            self._rows("train"),
            self.batch_size,
            seed=self.seed,
            group=1 if trainer is None else trainer.accumulate_grad_batches,
            reshuffle=trainer is None or not trainer.overfit_batches,  # pyright: ignore
            **self._place(),
        )

    def val_dataloader(self) -> OrderedBatches | list:
        """In order, every row once; no batches without a validation split."""
        return self._ordered("val")

    def test_dataloader(self) -> OrderedBatches | list:
        """In order, every row once; no batches without a test split."""
        return self._ordered("test")

    def describe(self) -> str:
        """Say what was prepared, in a few lines for the screen."""
        return "rows: " + ", ".join(f"{name} {len(rows)}" for name, rows in self.splits.items())

    def probe_batches(
        self, split: str, *, max_rows: int | None = None, seed: int = 0
    ) -> Iterator[dict[str, Tensor]]:
        """Yield a seeded subset of a split (all rows if None) in order, the same on every rank."""
        rows = self._rows(split)
        n_rows = len(rows) if max_rows is None else min(max_rows, len(rows))
        index = torch.arange(len(rows))
        if n_rows < len(rows):
            order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
            index = order[:n_rows].sort().values
        for part in index.to(rows.device).split(max(self.batch_size, _PROBE_ROWS)):
            yield rows.take(part)

    def _rows(self, split: str) -> Samples:
        if split not in self.splits:
            raise ValueError(f"there is no {split!r} split; there are {list(self.splits)}")
        return self.on_device.get(split, self.splits[split])

    def _ordered(self, split: str) -> OrderedBatches | list:
        if split not in self.splits:
            return []
        return OrderedBatches(self._rows(split), self.batch_size, **self._place())

    def _place(self) -> dict[str, int]:
        if self.trainer is None:
            return {"rank": 0, "world_size": 1}
        return {"rank": self.trainer.global_rank, "world_size": self.trainer.world_size}
