"""Turn a table into one float32 matrix; everything is fitted on the training rows alone.

Axes: n rows, f features.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from jepa.data.columns import KINDS, column_of, date_parts, infer_kind, labels, nearest, numbers
from jepa.data.quoting import list_setting
from jepa.data.scalers import SCALERS, Scaler, quantiles
from jepa.data.targets import Target, choose_task, class_names
from jepa.spec import TabularSpec

MISSING, UNSEEN, FIRST = 0, 1, 2  # codes of a category
_LEVELS = np.linspace(0.0, 1.0, 65)
_CHUNK = 1 << 20  # rows scaled at a time: bounds the float64 copies


@dataclass(frozen=True)
class Feature:
    """One column of the matrix: a scaled number, or a category with its vocabulary."""

    name: str
    column: str
    part: str = ""  # of a date
    scaler: Scaler | None = None
    quantiles: tuple[float, ...] = ()
    vocabulary: tuple[str, ...] = ()

    @property
    def cardinality(self) -> int:
        """Number of codes; 0 for a number."""
        return 0 if self.scaler else FIRST + len(self.vocabulary)

    @property
    def kind(self) -> str:
        """`number`, `category` or `date`."""
        return "date" if self.part else "number" if self.scaler else "category"


class TableTransform:
    """Columns to features: numbers scaled, categories as codes, dates as numeric parts.

    Args:
        target: the column to predict, which is no feature; None if there is none.
        task: `auto` or one of `binary`, `multiclass`, `regression`, `none`; see `choose_task`.
        scaler: `quantile` (to a normal distribution), `standard` or `minmax`.
        kinds: overrides of the inferred kinds, {column: number | category | date | drop}.
        min_count: a category seen in fewer training rows shares the code of unseen ones.
        max_categories: more distinct values than this are taken for an identifier and refused.
    """

    def __init__(
        self,
        *,
        target: str | None = None,
        task: str = "auto",
        scaler: str = "quantile",
        kinds: Mapping[str, str] | None = None,
        min_count: int = 1,
        max_categories: int = 1000,
    ):
        if scaler not in SCALERS:
            raise ValueError(f"data.scaler must be one of {', '.join(SCALERS)}, got {scaler!r}")
        if min_count < 1 or max_categories < 1:
            raise ValueError(
                "data.min_count and data.max_categories must be at least 1, "
                f"got {min_count=}, {max_categories=}"
            )
        self.target = Target(target, task)
        self.scaler = scaler
        self.kinds = {str(column): kind for column, kind in (kinds or {}).items()}
        self.min_count = min_count
        self.max_categories = max_categories
        self.features: tuple[Feature, ...] = ()
        self.dropped: tuple[str, ...] = ()

    def fit(self, frame: pd.DataFrame) -> "TableTransform":
        """Learn kinds, scales, vocabularies and classes from the training rows.

        Raises:
            ValueError: for a table nothing can be learnt from; names the column and the fix.
        """
        frame = named(frame)
        column = self.target.column
        task = choose_task(frame, column, self.target.task)
        classes = (
            class_names(column_of(frame, column or "")) if task in ("binary", "multiclass") else ()
        )
        self.target = Target(column, task, classes)
        self._check_kinds(frame)
        features: list[Feature] = []
        constant: list[str] = []
        for name in frame.columns.drop(column) if column is not None else frame.columns:
            kind = self.kinds.get(name) or infer_kind(column_of(frame, name))
            if kind == "drop":
                continue
            found = self._fit_column(column_of(frame, name), kind)
            features += found
            if not found:
                constant.append(name)
        self.features, self.dropped = tuple(features), tuple(constant)
        self._check_features(len(frame))
        return self

    def encode(self, frame: pd.DataFrame) -> Float[Tensor, "n f"]:
        """Encode rows of a table with the same column names, in any order and of any dtype.

        Numbers are scaled, NaN where missing. Categories are codes: 0 missing, 1 unseen or rare,
        2.. known. Other columns are ignored.

        Raises:
            ValueError: if columns are absent (all are named), or hold what they cannot.
        """
        frame = named(frame)
        self._check_columns(frame)
        out = np.empty((len(frame), len(self.features)), dtype=np.float32)
        parts: dict[str, dict[str, np.ndarray]] = {}
        for j, feature in enumerate(self.features):
            column = column_of(frame, feature.column)
            if feature.scaler is None:
                out[:, j] = _codes(column, feature.vocabulary)
                continue
            if feature.part and feature.column not in parts:
                parts = {feature.column: date_parts(column)}  # only one date at a time
            raw = parts[feature.column][feature.part] if feature.part else numbers(column)
            for start in range(0, len(raw), _CHUNK):
                rows = slice(start, start + _CHUNK)
                out[rows, j] = feature.scaler.apply(raw[rows])
        return torch.from_numpy(out)

    def encode_target(self, frame: pd.DataFrame) -> Tensor | None:
        """Labels (int64) or numbers in the unit of the target (float32); None without a task."""
        return self.target.encode(named(frame))

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Names of the columns of the matrix; a date gives several, as `day.month`."""
        return tuple(feature.name for feature in self.features)

    @property
    def spec(self) -> TabularSpec:
        """What a model must know of this table."""
        return TabularSpec(
            columns=self.feature_names,
            cardinalities=tuple(feature.cardinality for feature in self.features),
            quantiles=tuple(feature.quantiles for feature in self.features),
            task=self.target.task,
            classes=self.target.classes,
        )

    def state(self) -> dict[str, Any]:
        """Everything `encode` needs, as tensors, text and numbers: loads with weights_only=True."""
        return {
            "target": self.target.column,
            "task": self.target.task,
            "classes": list(self.target.classes),
            "scaler": self.scaler,
            "dropped": list(self.dropped),
            "features": [_feature_state(feature) for feature in self.features],
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "TableTransform":
        """Rebuild a fitted transform."""
        transform = cls(scaler=state["scaler"])
        transform.target = Target(state["target"], state["task"], tuple(state["classes"]))
        transform.dropped = tuple(state["dropped"])
        transform.features = tuple(_feature(entry) for entry in state["features"])
        return transform

    def describe(self, *, max_lines: int = 40) -> str:
        """Kinds of the columns as a text table, neighbours of one kind together, target last."""
        rows = []
        for (kind, values), run in groupby(self.features, self._values):
            names = [feature.name for feature in run]
            several = f"{names[0]} .. {names[-1]} ({len(names)})"
            rows.append(
                f"{several if len(names) > 2 else ', '.join(names):<44} {kind:<10} {values}"
            )
        hidden = len(rows) - max_lines
        rows = rows[:max_lines] + ([f"... and {hidden} more lines"] if hidden > 0 else [])
        target = self.target
        classes = f"{len(target.classes)} classes" if target.classes else ""
        rows.append(f"{target.column or '(no target)':<44} {target.task:<10} {classes}")
        return "\n".join(row.rstrip() for row in [f"{'column':<44} {'kind':<10} values", *rows])

    def _values(self, feature: Feature) -> tuple[str, str]:
        scaled = feature.scaler is not None
        return feature.kind, self.scaler if scaled else f"{feature.cardinality} codes"

    def _check_kinds(self, frame: pd.DataFrame) -> None:
        names = list(frame.columns)
        for column, kind in self.kinds.items():
            if column not in names:
                raise ValueError(
                    f"data.kinds names {column!r}, which the table lacks; {nearest(column, names)}"
                )
            if kind not in KINDS:
                raise ValueError(
                    f"data.kinds.{column} must be one of {', '.join(KINDS)}, got {kind!r}"
                )

    def _fit_column(self, column: pd.Series, kind: str) -> list[Feature]:
        name = str(column.name)
        if kind == "category":
            return self._fit_category(column, name)
        parts = {"": numbers(column)} if kind == "number" else date_parts(column)
        fitted = (self._fit_number(values, name, part) for part, values in parts.items())
        return [feature for feature in fitted if feature]

    def _fit_number(self, values: np.ndarray, column: str, part: str) -> Feature | None:
        ordered = np.sort(values[~np.isnan(values)])
        complete = len(ordered) == len(values)
        if not len(ordered) or (complete and ordered[0] == ordered[-1]):
            return None
        if part and ordered[0] == ordered[-1]:
            return None  # the other parts of the date already say where it is missing
        scaler = Scaler.fit(self.scaler, ordered)
        levels = quantiles(ordered, _LEVELS, scaler)
        name = f"{column}.{part}" if part else column
        return Feature(name, column, part, scaler, tuple(levels.tolist()))

    def _fit_category(self, column: pd.Series, name: str) -> list[Feature]:
        index, texts = labels(column)
        counts = np.bincount(index[index >= 0], minlength=len(texts))
        total: dict[str, int] = {}
        for text, count in zip(texts, counts.tolist(), strict=True):
            if text:
                total[text] = total.get(text, 0) + count
        known = sorted(text for text, count in total.items() if count >= self.min_count)
        if len(known) > self.max_categories:
            raise ValueError(
                f"column {name!r} holds {len(known)} distinct values in {len(column)} rows: an "
                f"identifier? Leave it out with {list_setting('data.drop', name)}, or allow it "
                f"with data.max_categories={len(known)}, or join rare values with data.min_count=10"
            )
        feature = Feature(name, name, vocabulary=tuple(known))
        used = np.unique(_codes(column, feature.vocabulary))
        return [feature] if len(used) > 1 else []

    def _check_features(self, n_rows: int) -> None:
        if not self.features:
            raise ValueError(
                f"no column of the table varies over its {n_rows} training rows "
                f"(constant or empty: {', '.join(map(repr, self.dropped)) or 'none'}): there is "
                "nothing to learn from"
            )
        names = pd.Index(self.feature_names)
        if not names.is_unique:
            raise ValueError(
                f"the parts of a date and a column share the name {names[names.duplicated()][0]!r}:"
                " rename the column"
            )
        if self.dropped:
            warnings.warn(
                f"{len(self.dropped)} columns are constant or empty in the training rows and are "
                f"left out: {', '.join(self.dropped)}",
                stacklevel=3,
            )

    def _check_columns(self, frame: pd.DataFrame) -> None:
        if not self.features:
            raise ValueError("the table transform is not fitted yet: call fit(frame) first")
        needed = dict.fromkeys(feature.column for feature in self.features)
        missing = [name for name in needed if name not in frame]
        if missing:
            raise ValueError(
                f"the table lacks {len(missing)} of {len(needed)} columns: "
                f"{', '.join(map(repr, missing))}; {nearest(missing[0], list(frame.columns))}"
            )


def named(frame: pd.DataFrame) -> pd.DataFrame:
    """The same table with text for column names.

    Raises:
        ValueError: if two columns share a name.
    """
    if not all(type(name) is str for name in frame.columns):
        frame = frame.set_axis([str(name) for name in frame.columns], axis=1)
    if not frame.columns.is_unique:
        twice = frame.columns[frame.columns.duplicated()].unique()
        raise ValueError(
            f"column names must be unique, the table has several of: "
            f"{', '.join(map(repr, twice))}; rename them"
        )
    return frame


def _codes(column: pd.Series, vocabulary: tuple[str, ...]) -> np.ndarray:
    index, texts = labels(column)
    known = {text: code for code, text in enumerate(vocabulary, start=FIRST)}
    codes = [known.get(text, UNSEEN) for text in texts]
    return np.array([*codes, MISSING], dtype=np.float32)[index]  # -1 is the last: missing


def _feature_state(feature: Feature) -> dict[str, Any]:
    state: dict[str, Any] = {"name": feature.name, "column": feature.column}
    if feature.scaler is None:
        return state | {"vocabulary": list(feature.vocabulary)}
    return state | {
        "part": feature.part,
        "scaler": feature.scaler.kind,
        "values": feature.scaler.values,
        "n_rows": feature.scaler.n_rows,
        "quantiles": list(feature.quantiles),
    }


def _feature(state: dict[str, Any]) -> Feature:
    name, column = state["name"], state["column"]
    if "vocabulary" in state:
        return Feature(name, column, vocabulary=tuple(state["vocabulary"]))
    scaler = Scaler(state["scaler"], state["values"], state["n_rows"])
    return Feature(name, column, state["part"], scaler, tuple(state["quantiles"]))
