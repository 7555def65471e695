"""What every table shares: read, checked, split, and encoded by a transform of the training rows.

Axes: b rows, f features.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from jepa.data.base import DataModule
from jepa.data.batches import Batches, Rows
from jepa.data.columns import column_of, labels, nearest
from jepa.data.splits import split_rows
from jepa.data.tables import TableTransform, named
from jepa.data.targets import choose_task


@dataclass(frozen=True, kw_only=True)
class Card:
    """What a published table must hold, as `load` returns it: rows by split, feature columns."""

    source: str
    rows: dict[str, int]
    columns: int
    classes: int
    metric: str


class TableData(DataModule):
    """A table: read by `load`, split, and encoded by a transform fitted on the training rows.

    Args:
        batch_size, effective_batch_size, seed: see `DataModule`.
        val_share, test_share: parts of the rows that come without such a split, 0 for no split.
            None: as `default_shares` says, or the published split where there is one.
        split_seed: of the split; runs that differ in `seed` share one split. None: 0.
        scaler, kinds, min_count, max_categories: see `TableTransform`. None: as there.
        drop: columns to leave out.
    """

    card: Card | None = None
    target: str | None = None  # the column to predict
    task: str = "auto"
    default_shares: ClassVar[dict[str, float]] = {"test": 0.2, "val": 0.15}

    def __init__(
        self,
        *,
        batch_size: int,
        effective_batch_size: int | None = None,
        seed: int = 0,
        val_share: float | int | None = None,
        test_share: float | int | None = None,
        split_seed: int | None = None,
        scaler: str | None = None,
        kinds: Mapping[str, str] | None = None,
        min_count: int | None = None,
        max_categories: int | None = None,
        drop: Sequence[str] | None = None,
    ):
        super().__init__(
            batch_size=batch_size, effective_batch_size=effective_batch_size, seed=seed
        )
        self.shares = {"val": val_share, "test": test_share}
        self.split_seed = split_seed or 0
        self.drop = [str(column) for column in drop or ()]
        given = {
            "scaler": scaler,
            "kinds": kinds,
            "min_count": min_count,
            "max_categories": max_categories,
        }
        settings: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
        self.transform = TableTransform(target=self.target, task=self.task, **settings)
        self.splits = {}

    def load(self) -> dict[str, pd.DataFrame]:
        """Read the files. Return the published splits by name; without any, `train` has all."""
        raise NotImplementedError

    def prepare(self) -> None:
        """Read, check, split, fit on the training rows and encode. A second call does nothing.

        Raises:
            ValueError: for a table that cannot be learnt from; the message names the fix.
        """
        if self.splits:
            return
        frames = self.load()
        self._check_size(frames)
        frames = {name: self._checked(frame, name) for name, frame in frames.items()}
        task = self._choose_task(frames)
        frames = self._split(frames, task)
        self.transform.fit(frames["train"])
        self._check_classes()
        self.spec = self.transform.spec
        self.preprocessing = self.transform.state()
        self.splits = {
            name: Rows(self.transform.encode(frame), self.transform.encode_target(frame))
            for name, frame in frames.items()
        }
        if self.batch_size > len(self.splits["train"]):
            Batches(self.splits["train"], self.batch_size, seed=self.seed)  # says what to change

    def describe(self) -> str:
        """Kinds of the columns, the target, and the rows of each split."""
        return f"{self.transform.describe()}\n{super().describe()}"

    def _checked(self, frame: pd.DataFrame, name: str) -> pd.DataFrame:
        frame = named(frame)
        if not len(frame) or not len(frame.columns):
            raise ValueError(
                f"the table is empty ({len(frame)} rows, {len(frame.columns)} columns; split "
                f"{name}): give a table with a header and at least 2 rows"
            )
        absent = [column for column in self.drop if column not in frame]
        if absent:
            raise ValueError(
                f"data.drop names {absent[0]!r}, which the table lacks; "
                f"{nearest(absent[0], list(frame.columns))}"
            )
        return frame.drop(columns=self.drop)

    def _choose_task(self, frames: dict[str, pd.DataFrame]) -> str:
        target = self.transform.target
        if len(frames["train"]) < 2:
            raise ValueError("the table has one row: learning and testing need at least 2")
        task = choose_task(frames["train"], target.column, target.task)
        self.transform.target = type(target)(target.column, task)
        return task

    def _split(self, frames: dict[str, pd.DataFrame], task: str) -> dict[str, pd.DataFrame]:
        shares = {}
        for name in ("test", "val"):
            share = self.shares[name]
            if name in frames and share is not None:
                raise ValueError(
                    f"data.{name}_share={share} has no effect: this set has a published {name} "
                    f"split of {len(frames[name])} rows, which is kept; leave the key out"
                )
            if name not in frames:
                shares[name] = self.default_shares[name] if share is None else float(share)
        if not any(shares.values()):
            return frames
        whole = frames["train"]
        classes = None
        if task in ("binary", "multiclass"):
            index, texts = labels(column_of(whole, self.transform.target.column or ""))
            classes = np.unique(np.array(texts), return_inverse=True)[1][index]
        parts = split_rows(len(whole), shares, labels=classes, seed=self.split_seed)
        drawn = {name: whole.iloc[rows] for name, rows in parts.items()}
        order = (
            {"train": drawn["train"]} | drawn | {k: v for k, v in frames.items() if k != "train"}
        )
        return {name: order[name] for name in ("train", "val", "test") if name in order}

    def _check_size(self, frames: dict[str, pd.DataFrame]) -> None:
        if self.card is None:
            return
        has_target = self.transform.target.column is not None
        rows = {name: len(frame) for name, frame in frames.items()}
        columns = {len(frame.columns) - has_target for frame in frames.values()}
        if rows != self.card.rows or columns != {self.card.columns}:
            raise ValueError(
                f"{type(self).__name__} must have {self.card.rows} rows and {self.card.columns} "
                f"feature columns, found {rows} and {columns}: this is not the published table "
                f"({self.card.source})"
            )

    def _check_classes(self) -> None:
        target = self.transform.target
        if self.card and target.classes and len(target.classes) != self.card.classes:
            raise ValueError(
                f"{type(self).__name__} must have {self.card.classes} classes, found "
                f"{len(target.classes)}: this is not the published table ({self.card.source})"
            )
