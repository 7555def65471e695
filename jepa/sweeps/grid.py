"""What a grid of `jepa.evaluate -m` leaves to read: grid.csv, grid.png and grid.md.

`python -m jepa.sweeps.report run=<its directory>` writes them from what its jobs have left so far.
"""

import csv
import io
import itertools
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser

from jepa.config import UserError
from jepa.report import digits, interval, write_text

GRID = "grid.json"  # what its jobs are, written before the first starts


@dataclass(frozen=True)
class Cell:
    """One job of a grid.

    Args:
        number: of the job, and its directory.
        values: of the keys that the grid varies.
        report: what it has left, None for one that failed or is still to come.
        bound: the error up to which it is a success.
    """

    number: int
    values: dict[str, str]
    report: dict[str, Any] | None
    bound: float | None

    @property
    def error(self) -> float | None:
        """The objective, None where there is none."""
        return None if self.report is None else self.report["objective"]["value"]

    @property
    def is_success(self) -> bool:
        """Whether its error is at most the bound."""
        return self.error is not None and self.bound is not None and self.error <= self.bound


def record(folder: Path, arguments: Sequence[str], success: float | None) -> None:
    """Write what the jobs of a grid are.

    Raises:
        UserError: if the directory cannot be written.
    """
    overrides = get_args_parser().parse_intermixed_args(list(arguments)).overrides
    parsed = OverridesParser.create().parse_overrides(overrides)
    own = [one for one in parsed if not one.key_or_group.startswith("hydra")]
    keys = [one.get_key_element() for one in own if one.is_sweep_override()]
    (cells,) = BasicSweeper.split_arguments(own, None)
    content = {"swept": keys, "cells": cells, "success": success}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / GRID, json.dumps(content, indent=1) + "\n")
    except OSError as error:
        raise UserError(f"hydra.sweep.dir={folder} cannot be written: {error}") from error


def read(folder: Path) -> list[Cell]:
    """Return the cells of a grid in the order of their jobs."""
    known = json.loads((folder / GRID).read_text(encoding="utf-8"))
    reports = []
    for number in range(len(known["cells"])):
        path = folder / str(number) / "evaluation.json"
        reports.append(json.loads(path.read_text(encoding="utf-8")) if path.exists() else None)
    bound = known["success"] if known["success"] is not None else raw_error(reports)
    cells = []
    for number, (overrides, report) in enumerate(zip(known["cells"], reports, strict=True)):
        every = dict(one.split("=", 1) for one in overrides)
        cells.append(Cell(number, {key: every[key] for key in known["swept"]}, report, bound))
    return cells


def raw_error(reports: Sequence[dict[str, Any] | None]) -> float | None:
    """Return the least error of the probe on the raw input, None where it has none."""
    found = [
        one["controls"].get("raw", {}).get(one["objective"]["name"], {}).get("value")
        for one in reports
        if one is not None
    ]
    return min((value for value in found if value is not None), default=None)


def write(folder: Path) -> str:
    """Write grid.csv, grid.png and grid.md; return the text of the last.

    Raises:
        UserError: if no job has left a number.
    """
    cells = read(folder)
    done = [one for one in cells if one.error is not None]
    if not done:
        raise UserError(f"run={folder}: none of its {len(cells)} jobs has left a number yet")
    write_text(folder / "grid.csv", table(cells))
    text = "\n".join(summarize(cells, done))
    keys = list(cells[0].values)
    if keys and draw(folder / "grid.png", done, keys):
        text += "\n\n![errors](grid.png)"
    write_text(folder / "grid.md", text + "\n")
    return text


def table(cells: Sequence[Cell]) -> str:
    """Return a line for each cell: its settings, its error, and all its metrics."""
    metrics = sorted({key for one in cells for key in (one.report or {}).get("metrics", {})})
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["number", *cells[0].values, "error", "success", *metrics])
    for one in cells:
        found = (one.report or {}).get("metrics", {})
        values = [found.get(key, {}).get("value") for key in metrics]
        success = "" if one.error is None else str(one.is_success).lower()
        rows.writerow([one.number, *one.values.values(), one.error, success, *values])
    return text.getvalue()


def summarize(cells: Sequence[Cell], done: Sequence[Cell]) -> list[str]:
    """Return the best cell, the spread, the success rates and the trends, as Markdown."""
    errors = [error for one in done if (error := one.error) is not None]
    best = min(done, key=lambda one: one.error or 0.0)
    assert best.report is not None  # it is done
    name = best.report["objective"]["name"]
    own = best.report["metrics"].get(name, {"low": None, "high": None})
    low, high = digits(min(errors)), digits(max(errors))
    spread = f", standard deviation {digits(statistics.stdev(errors))}" if len(errors) > 1 else ""
    lines = [
        f"# {name}: {len(done)} of {len(cells)} cells",
        "",
        f"Best: {label(best)} with {low} ({interval(own)}).",
        f"Spread: {low} to {high}, median {digits(statistics.median(errors))}{spread}.",
    ]
    if near := [one for one in done if one is not best and within(one.error, own["high"])]:
        lines.append(f"Inside the best cell's 95 % interval: {len(near)} of the others.")
    if best.bound is not None:
        total = sum(one.is_success for one in cells)
        lines.append(f"Success (at most {digits(best.bound)}): {total} of {len(cells)}.")
    lines += ["", "| parameter | value | cells | success | mean error |", "|---|---|---|---|---|"]
    trends = []
    for key in cells[0].values:
        means = []
        for value in dict.fromkeys(one.values[key] for one in cells):
            part = [one for one in cells if one.values[key] == value]
            found = [error for one in part if (error := one.error) is not None]
            rate = sum(one.is_success for one in part) / len(part)
            mean = statistics.fmean(found) if found else None
            shown = "-" if mean is None else digits(mean)
            lines.append(f"| {key} | {value} | {len(part)} | {rate:.0%} | {shown} |")
            means += [] if mean is None else [(value, mean)]
        trends.append(trend(key, means, nothing=changes_nothing(key, done)))
    failed = [
        f"- cell {one.number} ({label(one)}) has no result" for one in cells if not one.report
    ]
    return [*lines, "", *trends, *failed]


def within(error: float | None, high: float | None) -> bool:
    """Tell whether an error is below the upper end of an interval."""
    return error is not None and high is not None and error <= high


def label(cell: Cell) -> str:
    """Return the settings of a cell."""
    return " ".join(f"{key}={value}" for key, value in cell.values.items())


def changes_nothing(key: str, done: Sequence[Cell]) -> bool:
    """Tell whether cells that differ in this parameter alone agree in every metric."""
    groups: dict[tuple[str, ...], list[Any]] = {}
    for one in done:
        rest = tuple(value for name, value in one.values.items() if name != key)
        groups.setdefault(rest, []).append((one.report or {})["metrics"])
    return all(one == group[0] for group in groups.values() for one in group)


def trend(key: str, means: Sequence[tuple[str, float]], *, nothing: bool) -> str:
    """Say how the mean error follows a parameter, in the order of its values."""
    try:
        ordered = sorted(means, key=lambda one: float(one[0]))
    except ValueError:
        ordered = list(means)
    errors = [error for _, error in ordered]
    steps = [after - before for before, after in itertools.pairwise(errors)]
    if not steps:
        what = "only one value"
    elif nothing:
        what = "CHANGES NOTHING, in no metric"
    elif not any(steps):
        what = "the error stays, other metrics change"
    elif all(step <= 0 for step in steps):
        what = "the more, the better"
    elif all(step >= 0 for step in steps):
        what = "the less, the better"
    else:
        what = f"best at {min(ordered, key=lambda one: one[1])[0]}"
    shown = ", ".join(f"{digits(error)} at {value}" for value, error in ordered)
    return f"- {key}: {what} ({shown})"


def draw(path: Path, done: Sequence[Cell], keys: Sequence[str]) -> bool:
    """Write a heat map over the first two keys, the mean over any others; false for one value."""
    import numpy as np
    from matplotlib.figure import Figure

    first, second = keys[0], keys[1] if len(keys) > 1 else None
    rows = list(dict.fromkeys(one.values[first] for one in done))
    columns = list(dict.fromkeys(one.values[second] if second else "" for one in done))
    if len(rows) * len(columns) < 2:
        return False
    values = np.full((len(rows), len(columns)), np.nan)
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            found = [
                error
                for one in done
                if (error := one.error) is not None
                and one.values[first] == row
                and (second is None or one.values[second] == column)
            ]
            if found:
                values[i, j] = statistics.fmean(found)
    size = (2.5 + 1.1 * len(columns), 1.5 + 0.7 * len(rows))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(values, cmap="viridis_r", aspect="auto")
    for (i, j), value in np.ndenumerate(values):
        text = "-" if np.isnan(value) else digits(float(value))
        axes.text(j, i, text, ha="center", va="center", backgroundcolor="1", fontsize="small")
    axes.set_yticks(range(len(rows)), rows)
    axes.set_xticks(range(len(columns)), columns)
    axes.set_ylabel(first)
    axes.set_xlabel(second or "")
    others = f", mean over {', '.join(keys[2:])}" if len(keys) > 2 else ""
    axes.set_title(f"error{others}", fontsize="medium")
    figure.colorbar(image, ax=axes)
    figure.savefig(path, format="png", dpi=100)
    return True
