"""What a table's target column asks for, and its values as a tensor."""

from dataclasses import dataclass
from difflib import get_close_matches

import numpy as np
import pandas as pd
import torch
from pandas.api import types
from torch import Tensor

from jepa.data.columns import column_of, infer_kind, labels, nearest, numbers
from jepa.data.quoting import text_setting

TASKS = ("binary", "multiclass", "regression", "none")
MAX_AUTO_CLASSES = 20


@dataclass(frozen=True)
class Target:
    """The target column: its name, its task, and the class names in the order of the labels."""

    column: str | None
    task: str
    classes: tuple[str, ...] = ()

    def encode(self, frame: pd.DataFrame) -> Tensor | None:
        """Labels as int64, numbers as float32 in the unit of the column, None without a task.

        Raises:
            ValueError: for missing values, for classes the training rows lack, and for numbers
                beyond float32.
        """
        if self.task == "none":
            return None
        column = _complete(frame, self.column)
        if self.task == "regression":
            with np.errstate(over="ignore"):  # said below
                y = torch.from_numpy(numbers(column).astype(np.float32))
            if not bool(torch.isfinite(y).all()):
                raise ValueError(f"data.target={self.column!r} holds numbers beyond 3e38: rescale")
            return y
        index, texts = labels(column)
        known = {name: code for code, name in enumerate(self.classes)}
        unknown = sorted(set(texts) - known.keys())
        if unknown:
            raise ValueError(
                f"data.target={self.column!r} holds the classes {unknown[:5]}, which no training "
                f"row has (known: {list(self.classes)[:5]} ...): remove those rows, or change the "
                "split (data.val_share, data.test_share, data.split_seed)"
            )
        codes = np.array([known[text] for text in texts], dtype=np.int64)
        return torch.from_numpy(codes[index])


def choose_task(frame: pd.DataFrame, column: str | None, task: str) -> str:
    """Say what to predict from the target column.

    `auto`: text, bool and categories are classes (two: `binary`, more: `multiclass`), and so are
    whole numbers of at most 20 distinct values, also when stored as floats; all other numbers are
    `regression`; no target is `none`.

    Raises:
        ValueError: when task and target do not fit together, and for a target that is absent,
            incomplete, constant, or has a class of one row.
    """
    if task not in (*TASKS, "auto"):
        raise ValueError(f"data.task must be auto or one of {', '.join(TASKS)}, got {task!r}")
    if column is None:
        if task not in ("none", "auto"):
            raise ValueError(f"data.task={task} needs a target: set data.target=<column>")
        return "none"
    if column not in frame:
        names = [str(name) for name in frame.columns]
        raise ValueError(
            f"data.target={column!r} is not in the table; {nearest(column, names)}. A name with "
            "spaces, brackets, commas or = needs two pairs of quotes: "
            f"{text_setting('data.target', (get_close_matches(column, names) or names)[0])}"
        )
    if task == "none":
        return task
    target = _complete(frame, column)
    if task == "auto":
        task = _guess(target)
    if task == "regression":
        _check_spread(numbers(target), column)
    else:
        _check_classes(target, column, task)
    return task


def class_names(column: pd.Series) -> tuple[str, ...]:
    """Sort the distinct labels: by value if all are whole numbers, else as text."""
    names = set(labels(column)[1])
    whole = all(name.removeprefix("-").isdecimal() for name in names)
    return tuple(sorted(names, key=int if whole else str))


def _complete(frame: pd.DataFrame, column: str | None) -> pd.Series:
    if column is None or column not in frame:
        raise ValueError(f"data.target={column!r} is not in the table")
    target = column_of(frame, column)
    missing = int((labels(target)[0] < 0).sum())
    if missing:
        raise ValueError(
            f"data.target={column!r} has {missing} missing values in {len(frame)} rows: remove "
            "those rows, or learn without labels with data.task=none"
        )
    return target


def _guess(target: pd.Series) -> str:
    kind = infer_kind(target)
    if kind == "date":
        raise ValueError(
            f"data.target={target.name!r} holds dates: give a number, or set data.task=multiclass"
        )
    n_distinct = len(set(labels(target)[1]))
    if kind == "number":
        values = numbers(target)
        if n_distinct > MAX_AUTO_CLASSES or (values != np.floor(values)).any():
            return "regression"
    return "binary" if n_distinct == 2 else "multiclass"


def _check_spread(values: np.ndarray, column: str) -> None:
    if len(values) and values.min() == values.max():
        raise ValueError(
            f"data.target={column!r} is constant ({values[0]:g} in every row): there is nothing to "
            "predict; choose another column, or data.task=none"
        )


def _check_classes(target: pd.Series, column: str, task: str) -> None:
    index, texts = labels(target)
    counts = pd.Series(texts, dtype=object).iloc[index].value_counts()
    if len(counts) < 2:
        raise ValueError(
            f"data.target={column!r} is constant ({counts.index[0]!r} in every row): there is "
            "nothing to predict; choose another column, or data.task=none"
        )
    if task == "binary" and len(counts) != 2:
        raise ValueError(
            f"data.task=binary needs 2 classes, data.target={column!r} has {len(counts)}: "
            "set data.task=multiclass"
        )
    single = [str(name) for name in counts.index[counts == 1]]
    if single:
        hint = " or set data.task=regression" if types.is_numeric_dtype(target.dtype) else ""
        raise ValueError(
            f"data.target={column!r} has {len(single)} classes of one row, e.g. {single[0]!r}, "
            f"which cannot be both learnt and tested: remove or merge them{hint}"
        )
