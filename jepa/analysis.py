"""The facts of a run: what its metrics, report and events say, as numbers that rules can judge.

Shares are of 1. A fact that was not measured, or of which too little was, is absent. Facts of
`bands.yaml` keep the names and values that `jepa.vitals` gives them.
"""

import bisect
import itertools
import math
import statistics
from collections.abc import Iterator

from jepa import report as reports
from jepa.history import Points, column, n_broken, names, points
from jepa.recorded import Recorded
from jepa.vitals import judge

Fact = float | int | bool | str
PROJECTED = (5, 20, 50, 100, 300)  # epochs
WINDOW_SHARE = 0.05  # of the curve: the window of its running median
FEW = 5  # values below which a trend or a spread says nothing


def facts_of(run: Recorded) -> dict[str, Fact]:
    """Return everything that was measured, by name."""
    facts: dict[str, Fact] = {"status": run.report["status"], "reason": run.report["reason"]}
    facts |= {one["name"]: one["value"] for one in judge(run.rows) if not is_nan(one["value"])}
    for part in (of_loss, of_objective, of_speed, of_memory, of_stability, of_codes, of_scores):
        facts |= {name: value for name, value in part(run) if not is_nan(value)}
    return facts


def is_nan(value: Fact | None) -> bool:
    """Tell whether a value says nothing."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def of_loss(run: Recorded) -> Iterator[tuple[str, Fact]]:
    """Yield how the training loss went, by its running median."""
    name = "train/loss" if points(run.rows, "train/loss") else "val/loss"
    yield "broken_values", n_broken(run.rows, "train/loss") + n_broken(run.rows, "val/loss")
    raw = points(run.rows, name)
    if len(raw) < 2 * FEW:
        return
    yield "loss_name", name
    smooth = running_median(raw)
    values = [y for _, y in smooth]
    first, last, best = values[0], values[-1], min(values)
    yield "loss_first", first
    yield "loss_last", last
    if first > 0 and best > 0:
        yield "loss_drop", 1 - last / first
        yield "loss_over_best", last / best
        yield "loss_over_start", last / first
        early = values[: max(FEW, len(values) // 10)]
        yield "loss_early_peak", max(early) / first
    half = len(raw) // 2
    level = statistics.fmean(abs(y) for y in values[half:])
    if level > 0:
        apart = [abs(y - z) for (_, y), (_, z) in zip(raw[half:], smooth[half:], strict=True)]
        noise = 1.4826 * statistics.median(apart)  # of a normal distribution, its std
        yield "loss_noise", noise / level
        far = [gap > 8 * max(noise, 1e-3 * level) for gap in apart]
        yield "loss_spikes", sum(far)
    slope, certain = trend(raw[2 * len(raw) // 3 :])
    yield "loss_slope", slope  # of its level, over the last third
    yield "loss_flat", not certain


def of_objective(run: Recorded) -> Iterator[tuple[str, Fact]]:
    """Yield how the objective went from validation to validation; lower is better."""
    name = objective_of(run)
    found = points(run.rows, name) if name else []
    if not name or not found:
        return
    values = [y for _, y in found]
    yield "objective", name
    yield "n_validations", len(values)
    yield "objective_first", values[0]
    yield "objective_best", min(values)
    yield "objective_last", values[-1]
    if len(values) < 3 or min(values) <= 0:
        return
    yield "objective_over_best", values[-1] / min(values)
    cut = math.ceil(2 * len(values) / 3)
    yield "late_gain", 1 - min(values) / min(values[:cut])  # what the last third took off
    steps = column(run.rows, "step")
    best = min(found, key=lambda point: point[1])[0]
    yield "since_best", 1 - best / max(max(steps), 1.0)


def objective_of(run: Recorded) -> str | None:
    """Return the column behind the objective, or the validation loss."""
    known = run.report["objective"]["name"] or run.settings.get("objective")
    for name in (known, "val/error", "probe/ridge/error", "probe/forecast/error", "val/loss"):
        if name and points(run.rows, str(name)):
            return str(name)
    return None


def of_speed(run: Recorded) -> Iterator[tuple[str, Fact]]:
    """Yield the rate of epochs, and where the time goes."""
    speeds = column(run.rows, "time/samples_per_s")
    if speeds:
        middle = statistics.median(speeds)
        yield "samples_per_s", middle
        yield "n_epochs", len(speeds)
        yield "slow_epochs", sum(one < 0.8 * middle for one in speeds)
    if len(speeds) >= 4 * FEW:
        quarter = len(speeds) // 4
        early, late = (statistics.median(part) for part in (speeds[:quarter], speeds[-quarter:]))
        yield "speed_trend", late / early - 1
    waits = column(run.rows, "time/data_share")
    if waits:
        yield "data_share", statistics.fmean(waits)
    for part in ("forward", "backward", "optimizer"):
        if found := column(run.rows, f"time/{part}_ms"):
            yield f"{part}_ms", statistics.median(found)
    training = max(column(run.rows, "time/train_s"), default=0.0)
    probes = sum(column(run.rows, "time/probe_s"))
    if training:
        yield "train_hours", training / 3600
        yield "probe_share", probes / (training + probes)
        wait = statistics.fmean(waits) * training if waits else 0.0
        parts = {"data": wait, "probes": probes, "compute": training - wait}
        yield "bottleneck", max(parts, key=lambda name: parts[name])
    if used := column(run.rows, "time/device_share"):
        yield "utilisation", statistics.fmean(used)
    if left := column(run.rows, "memory/disk_left_gib"):
        yield "disk_left_gib", left[-1]
    ended = run.report["reason"] or ""
    late = any(event["kind"] == "over_budget" for event in run.events)
    yield "out_of_time", late or "max_time" in ended


def of_memory(run: Recorded) -> Iterator[tuple[str, Fact]]:
    """Yield the peak of memory, and how much it grew after the start."""
    if run.environment:
        yield "on_gpu", bool(run.environment.get("cuda"))
    found = points(run.rows, "memory/share")
    if not found:
        return
    yield "memory_peak", max(y for _, y in found)
    if sizes := column(run.rows, "memory/mib"):
        yield "memory_mib", max(sizes)
    settled = found[len(found) // 5 :]  # caches fill at the start
    slope, certain = trend(settled)
    steady = len(settled) >= 2 * FEW and share_of_falls(settled) < 0.35
    yield "memory_growth", slope if certain and steady else 0.0


def of_stability(run: Recorded) -> Iterator[tuple[str, Fact]]:
    """Yield what the guard did, and the gradient's norm before clipping."""
    kinds = [event["kind"] for event in run.events]
    for name, kind in (("skips", "skip"), ("restores", "restore"), ("retries", "retry")):
        yield name, kinds.count(kind)
    told = [run.report["reason"], *(event.get("why") for event in run.events)]
    yield "out_of_memory", any("out of memory" in str(one).lower() for one in told)
    norms = column(run.rows, "train/grad_norm")
    if norms:
        yield "grad_norm_peak", max(norms)
    yield "early_stopped", "early stopping" in (run.report["reason"] or "")


def of_codes(run: Recorded) -> Iterator[tuple[str, Fact]]:
    """Yield whether the representation collapsed, and what needs no label to say of it."""
    watched = bool(names(run.rows, "health/"))
    states = [event.get("state") for event in run.events if event["kind"] == "collapse"]
    if watched or states:
        yield "collapsed", bool(states) and states[-1] == "collapsed"
    for key in ("rankme", "mean_cosine", "std_mean"):
        if found := column(run.rows, f"probe/label_free/{key}"):
            yield f"codes_{key}", found[-1]


def of_scores(run: Recorded) -> Iterator[tuple[str, Fact]]:
    """Yield how the scored error stands beside its controls and baselines: as ratios to them."""
    key = scored_key(run)
    if key is None:
        return
    measured = run.report["metrics"][key]
    yield "scored", key
    yield "error", measured["value"]
    yield "on_test", key.startswith("test/")
    for fact, name in (("untrained", "untrained"), ("raw", "raw"), ("closed_form", "closed_form")):
        other = reports.beside(run.report, name, key)
        if other and other["value"]:
            yield f"over_{fact}", measured["value"] / other["value"]
            yield f"{fact}_is_clear", not reports.doubt(measured, other)


def scored_key(run: Recorded) -> str | None:
    """Return the error in the report that belongs to the objective, or its first."""
    errors = [k for k, v in run.report["metrics"].items() if k.endswith("/error") and v["value"]]
    probe = (run.report["objective"]["name"] or "").removeprefix("probe/").removeprefix("val/")
    return next((key for key in errors if key.split("/", 1)[1] == probe), next(iter(errors), None))


def project(facts: dict[str, Fact], run: Recorded) -> dict[int, float]:
    """Return the hours that so many epochs would take, probes at the same rhythm included."""
    epochs, hours = facts.get("n_epochs"), facts.get("train_hours")
    if not isinstance(epochs, int) or not isinstance(hours, float) or not epochs:
        return {}
    each = (hours + sum(column(run.rows, "time/probe_s")) / 3600) / epochs
    return {n: n * each for n in PROJECTED}


def running_median(curve: Points) -> Points:
    """Return the curve by the median of a window around each point; ends take what there is."""
    half = max(2, int(WINDOW_SHARE * len(curve)) // 2)
    values = [y for _, y in curve]
    window, smooth = sorted(values[:half]), []  # kept in order: one in, one out
    for i, (x, _) in enumerate(curve):
        if i + half < len(values):
            bisect.insort(window, values[i + half])
        if i > half:
            del window[bisect.bisect_left(window, values[i - half - 1])]
        n = len(window)
        smooth.append((x, (window[(n - 1) // 2] + window[n // 2]) / 2))
    return smooth


def trend(curve: Points) -> tuple[float, bool]:
    """Fit a line; return its change over the span as a share of the level, and whether it is sure.

    Sure: four standard errors, for neighbours of a smoothed curve err together.
    """
    if len(curve) < FEW:
        return 0.0, False
    x, y = [point[0] for point in curve], [point[1] for point in curve]
    level, middle = statistics.fmean(y), statistics.fmean(x)
    spread = sum((one - middle) ** 2 for one in x)
    if not spread or not level:
        return 0.0, False
    slope = sum((a - middle) * (b - level) for a, b in curve) / spread
    left = sum((b - level - slope * (a - middle)) ** 2 for a, b in curve)
    error = math.sqrt(left / (len(curve) - 2) / spread)
    return slope * (x[-1] - x[0]) / abs(level), abs(slope) > 4 * error


def share_of_falls(curve: Points) -> float:
    """Return the part of neighbours of which the later is lower."""
    falls = [b[1] < a[1] for a, b in itertools.pairwise(curve)]
    return sum(falls) / max(len(falls), 1)
