"""metrics.csv as a run has written it: rows of text, and the numbers of a column over the steps."""

import csv
import io
import math
from pathlib import Path

Rows = list[dict[str, str]]
Points = list[tuple[float, float]]


def read_rows(path: Path) -> Rows:
    """Return the rows; a last one that was being written when the run was killed is left out.

    Raises:
        FileNotFoundError: if there is no file.
        ValueError: for a file of another kind, naming the line.
    """
    text = path.read_bytes().decode("utf-8", errors="replace")
    whole = text[: text.rfind("\n") + 1]
    rows = list(csv.DictReader(io.StringIO(whole, newline="")))
    if rows and not {"epoch", "step"} <= rows[0].keys():
        raise ValueError(f"{path} has no columns epoch and step: it is not the metrics of a run")
    for line, row in enumerate(rows, start=2):
        for name, value in row.items():
            if not is_number(value):
                raise ValueError(f"{path}, line {line}, column {name}: {value!r} is no number")
    return rows


def is_number(value: str | None) -> bool:
    """Tell whether a cell holds a number (also nan and inf) or nothing."""
    if not value:
        return True
    try:
        float(value)
    except (TypeError, ValueError):  # a row with more cells than the head has names
        return False
    return True


def column(rows: Rows, name: str) -> list[float]:
    """Return the values of a column, in order; most rows have none."""
    return [float(row[name]) for row in rows if row.get(name)]


def points(rows: Rows, name: str, over: str = "step") -> Points:
    """Return (step, value) of a column in order, values that are no finite number left out.

    Args:
        rows: of the file.
        name: of the column.
        over: another column to stand for the step; rows without it are left out.
    """
    pairs = [
        (float(row[over]), float(row[name])) for row in rows if row.get(name) and row.get(over)
    ]
    return [(x, y) for x, y in pairs if math.isfinite(x) and math.isfinite(y)]


def n_broken(rows: Rows, name: str) -> int:
    """Return how many values of a column are no finite number."""
    return sum(not math.isfinite(value) for value in column(rows, name))


def names(rows: Rows, prefix: str) -> list[str]:
    """Return the columns that start so and hold a number."""
    filled = {name: None for row in rows for name, value in row.items() if value}
    return [name for name in filled if name and name.startswith(prefix)]
