"""What metrics.csv says of a finished run's health, judged by the bands of `bands.yaml`."""

import statistics
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jepa.bands import Band, bands
from jepa.history import Rows, column, read_rows


def read_vitals(metrics: Path) -> list[dict[str, Any]]:
    """Return name, value, state and bounds of everything that has a band and was logged."""
    if not metrics.exists():
        return []
    try:
        return judge(read_rows(metrics))
    except ValueError as error:  # it must not cost a run its report
        warnings.warn(f"the health of the run is not judged: {error}", stacklevel=2)
        return []


def judge(rows: Rows) -> list[dict[str, Any]]:
    """Return the same of rows that are read already."""
    found = []
    for name, value, band in (*of_run(rows), *of_features(rows)):
        state = band.state(value)
        found.append({"name": name, "value": value, "state": state})
        found[-1] |= {"warn": band.warn, "critical": band.critical}
    return found


def of_run(rows: Rows) -> Iterator[tuple[str, float, Band]]:
    """Yield what concerns the run as a whole, where enough was logged.

    The loss against a teacher that moves may rise while the codes get better: it is not judged.
    """
    values: dict[str, float] = {}
    losses = column(rows, "val/loss") or column(rows, "train/loss")
    judged = not any(row.get(name) for row in rows for name in row if name.startswith("health/"))
    if judged and len(losses) > 1 and min(losses) > 0:
        values["loss_rise"] = losses[-1] / min(losses)
    if judged and (since := epochs_since_best(rows)) is not None:
        values["flat_epochs"] = since
    speeds = column(rows, "time/samples_per_s")
    if len(speeds) > 2:
        values["epoch_time"] = statistics.median(speeds) / speeds[-1]
        values["speed_noise"] = statistics.stdev(speeds) / statistics.mean(speeds)
    if shares := column(rows, "memory/share"):
        values["memory_share"] = max(shares)
    if norms := column(rows, "train/grad_norm"):
        values["grad_norm"] = statistics.median(norms[-20:])
    for name, band in bands("run").items():
        if name in values:
            yield name, values[name], band


def epochs_since_best(rows: Rows) -> float | None:
    """Return the epochs since the lowest loss of a validation, else of training."""
    name = "val/loss" if any(row.get("val/loss") for row in rows) else "train/loss"
    losses = [(float(row[name]), int(row["epoch"])) for row in rows if row.get(name)]
    return float(losses[-1][1] - min(losses)[1]) if losses else None


def of_features(rows: Rows) -> Iterator[tuple[str, float, Band]]:
    """Yield the last values of the collapse watch, relative to step 0."""
    known = bands("features")
    for name in rows[-1] if rows else ():
        if name.startswith("health/") and (values := column(rows, name)):
            short = name.removeprefix("health/")
            band = known.get(short) or known[short.removeprefix("teacher_")]
            yield short, values[-1], band
