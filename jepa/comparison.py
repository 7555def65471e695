"""Runs side by side: what differs, how sure the differences of their scores are, what they cost.

Runs that differ in their seeds alone are one group. The first group is the reference.
"""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from jepa import pairs
from jepa.analysis import facts_of
from jepa.config import UserError
from jepa.recorded import Recorded, open_run
from jepa.samples import Samples, read_samples

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
# Settings that say where things lie, and no part of what a run is.
PLACES = ("run_dir", "save_dir", "default_root_dir", "data_dir", "runs_dir")
ELSEWHERE = ("paths.", "logger.", "study", "resume", "trust", "search.", "criteria", "report.")
COST = ("n_epochs", "train_hours", "samples_per_s", "memory_peak", "bottleneck")
HIGHER = ("accuracy", "roc_auc", "macro_f1", "r2")  # metrics of which more is better
OF_CODES = "/label_free/"


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seeds alone.

    Args:
        letter: its short name.
        runs: one for each seed.
    """

    letter: str
    runs: Sequence[Recorded]

    @property
    def name(self) -> str:
        """The letter and the first run."""
        more = f" ({len(self.runs)} seeds)" if len(self.runs) > 1 else ""
        return f"{self.letter} {self.runs[0].name}{more}"

    @property
    def settings(self) -> dict[str, Any]:
        """Those of the first run."""
        return self.runs[0].settings

    def values(self, metric: str) -> dict[str, float]:
        """Return the metric by seed, of the runs that have it."""
        found = {}
        for i, run in enumerate(self.runs):
            value = run.report["metrics"].get(metric, {}).get("value")
            if value is not None:
                found[str(run.settings.get("seed", f"run {i}"))] = value
        return found

    def entry(self, metric: str) -> dict[str, Any] | None:
        """Return value, low, high and n of the one run, or the mean over seeds and its interval."""
        values = list(self.values(metric).values())
        if not values:
            return None
        if len(values) == 1:
            return next(one for run in self.runs if (one := run.report["metrics"].get(metric)))
        low, high = pairs.interval_of_seeds(values)
        return {"value": statistics.fmean(values), "low": low, "high": high, "n": len(values)}

    @cached_property
    def samples(self) -> dict[str, Samples]:
        """The losses of each sample; of a single run only, for seeds say more."""
        return read_samples(self.runs[0].folder) if len(self.runs) == 1 else {}

    @cached_property
    def cost(self) -> dict[str, Any]:
        """What a run took: medians over its seeds."""
        facts = [facts_of(run) for run in self.runs]
        found = {}
        for name in COST:
            values: list[Any] = [one[name] for one in facts if name in one]
            if values:
                number = not isinstance(values[0], str)
                found[name] = statistics.median(values) if number else values[0]
        return found


def find_runs(given: Sequence[str]) -> list[Recorded]:
    """Open the runs that were named, and those of sweep directories.

    Raises:
        UserError: for fewer than two, and for one that is named twice.
        FileNotFoundError, ValueError: for what is no run.
    """
    runs, seen = [], set()
    for one in given:
        folder = Path(one).expanduser()
        has_own = any((folder / name).exists() for name in ("metrics.csv", "report.json"))
        inner = sorted({path.parent for path in folder.glob("*/report.json")}, key=by_number)
        for path in [folder] if has_own or not inner else inner:
            run = open_run(path, key="runs")
            if run.folder.resolve() in seen:
                raise UserError(f"runs={one} is named twice: leave it out once")
            seen.add(run.folder.resolve())
            runs.append(run)
    if len(runs) < 2:
        what = f"{runs[0].folder} alone" if runs else "no run"
        raise UserError(
            f"runs= names {what}, and a comparison needs two: give runs=[<dir>,<dir>], or look at "
            "one with python -m jepa.analyze run=<dir>"
        )
    if len(runs) > 200:
        raise UserError(f"runs= names {len(runs)} runs, 200 at most can be compared at once")
    return runs


def by_number(path: Path) -> tuple[int, str]:
    """Order the directories of trials by their numbers."""
    return (int(path.name) if path.name.isdigit() else -1, path.name)


def group(runs: Sequence[Recorded]) -> list[Group]:
    """Put runs that differ in their seeds alone together, in the order of their first."""
    seeds = seed_settings(runs)
    groups: dict[Any, list[Recorded]] = {}
    for run in runs:
        kept = frozenset(
            (key, str(value)) for key, value in run.settings.items() if is_setting(key, seeds)
        )
        # a seed that is there already is another attempt, not another sample of the same
        known = [one.settings.get("seed") for one in groups.get(kept, ())]
        alone = not run.settings or run.settings.get("seed") in known
        groups.setdefault((kept, run.folder) if alone else kept, []).append(run)
    return [Group(name_of(i), found) for i, found in enumerate(groups.values())]


def seed_settings(runs: Sequence[Recorded]) -> set[str]:
    """Return the settings that are the seed in every run that has them; others are fixed."""
    settings = [run.settings for run in runs]
    keys = {key for one in settings for key in one if key.split(".")[-1] == "seed"}

    def follows(key: str) -> bool:
        return all(one.get(key, one.get("seed")) == one.get("seed") for one in settings)

    return {key for key in keys if follows(key)}


def name_of(i: int) -> str:
    """Return A, B, ..., Z, A1, B1, ..."""
    return LETTERS[i % 26] + (str(i // 26) if i >= 26 else "")


def is_setting(key: str, seeds: set[str]) -> bool:
    """Tell whether a setting is part of what a run is: no seed, and no place where things lie."""
    return key not in seeds and key.split(".")[-1] not in PLACES and not key.startswith(ELSEWHERE)


def differences(groups: Sequence[Group]) -> list[tuple[str, list[Any]]]:
    """Return the settings that differ, with the value of each group; None where it has none."""
    seeds = seed_settings([run for one in groups for run in one.runs])
    found = []
    for key in dict.fromkeys(key for one in groups for key in one.settings):
        values = [one.settings.get(key) for one in groups]
        if is_setting(key, seeds) and any(str(value) != str(values[0]) for value in values):
            found.append((key, values))
    return found


def shared_metrics(groups: Sequence[Group]) -> list[str]:
    """Return the metrics that every group has, in the order of the first."""
    first = groups[0].runs[0].report["metrics"]
    return [key for key in first if all(one.values(key) for one in groups)]


def pick_metric(groups: Sequence[Group], asked: str | None) -> str | None:
    """Return the metric of the verdict: what was asked for, or the error behind the objective.

    Raises:
        UserError: if a run does not have what was asked for.
    """
    shared = shared_metrics(groups)
    if asked is not None:
        if asked not in shared:
            raise UserError(f"metric={asked}: not all runs have it; all have {', '.join(shared)}")
        return asked
    errors = [key for key in shared if key.endswith("/error")]
    objective = str(groups[0].runs[0].report["objective"]["name"]).removeprefix("probe/")
    return next((key for key in errors if key.endswith(objective)), next(iter(errors), None))


def difference(a: Group, b: Group, metric: str, *, level: float = 0.95) -> pairs.Difference:
    """Return b - a with the narrowest interval that what is recorded allows."""
    ours, theirs = a.samples.get(metric), b.samples.get(metric)
    if ours and theirs and ours.identity == theirs.identity and len(ours.rows) == len(theirs.rows):
        block = max(ours.block, theirs.block)
        return pairs.over_samples(ours.rows, theirs.rows, root=ours.root, block=block, level=level)
    values = a.values(metric), b.values(metric)
    if all(len(one) > 1 for one in values):
        return pairs.over_seeds(*values, level=level)
    one, other = a.entry(metric), b.entry(metric)
    assert one and other, "shared metrics only"
    return pairs.from_intervals(one, other, level=level)


def verdict(groups: Sequence[Group], metric: str | None) -> tuple[str, bool]:
    """Say in one sentence which group is better, and whether that is sure.

    Of more than two groups the best is set against the next, at a level that makes up for having
    looked at all of them (Bonferroni).
    """
    data = list(dict.fromkeys(one.runs[0].data for one in groups))
    if len(data) > 1:
        return f"Not comparable: the runs are of different data ({', '.join(data)}).", False
    if metric is None:
        return "Not comparable: the runs have no scored error in common.", False
    sign = -1 if metric.split("/")[-1].startswith(HIGHER) else 1
    ranked = sorted(groups, key=lambda one: sign * value_of(one, metric))
    best, other = ranked[0], ranked[1]
    level = 1 - 0.05 / (len(groups) - 1)
    found = difference(other, best, metric, level=level)
    a, b = value_of(best, metric), value_of(other, metric)
    if not found.sure or a == b:
        span = ""
        if found.low is not None and found.high is not None:
            span = f": {100 * level:.3g} % interval of the difference {found.low:+.3g} to {found.high:+.3g}"  # fmt: skip  # noqa: E501
        among = "" if len(groups) == 2 else " (the best of all and the next)"
        return f"No difference is shown in {metric} between {best.letter} ({a:.4g}) and {other.letter} ({b:.4g}){among}{span}; {found.how}.", False  # fmt: skip  # noqa: E501
    change = f", {a / b - 1:+.1%}" if b else ""
    among = "" if len(groups) == 2 else ", the next best"
    return (
        f"{best.letter} is better than {other.letter}{among} in {metric}: {a:.4g} against {b:.4g}"
        f"{change} ({100 * level:.3g} % interval of the difference {found.low:+.3g} to "
        f"{found.high:+.3g}; {found.how}).",
        True,
    )


def value_of(one: Group, metric: str) -> float:
    """Return the metric of a group."""
    entry = one.entry(metric)
    assert entry, "shared metrics only"
    return entry["value"]


def caveats(groups: Sequence[Group], metric: str | None) -> list[str]:
    """Return what a reader must know before believing the verdict."""
    found = []
    for one in groups:
        for run in one.runs:
            if run.report["status"] != "finished":
                found.append(f"{one.letter}: {run.name} is {run.report['status']}: {run.report['reason']}")  # fmt: skip  # noqa: E501
    stamps = {str(one.runs[0].report.get("stamp", "")) for one in groups}
    if len(stamps) > 1:
        found.append(f"the protocols differ: {', '.join(sorted(s or 'none' for s in stamps))}")
    if metric and metric.startswith("val/"):
        found.append("scored on validation, on which checkpoints were chosen: test would be lower")
    if any(len(one.runs) > 1 for one in groups):
        found.append(
            "the intervals over seeds are of training again, on the same test samples: others "
            "would add their own scatter"
        )
    singles = [one.letter for one in groups if len(one.runs) == 1]
    if singles:
        found.append(
            f"one seed ({', '.join(singles)}): the interval is of the samples, not of training "
            "again; -m seed=0,1,2 shows that"
        )
    ns = {entry["n"] for one in groups if metric and (entry := one.entry(metric))}
    if len(ns) > 1 and len(singles) == len(groups):
        found.append(f"scored on different numbers of samples: {sorted(map(str, ns))}")
    return found


def grade(criteria: Sequence[dict[str, Any]], groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Grade each criterion for each group against the reference.

    `improvement: 0.05` asks for 5 % less of an error (or more of an accuracy); `at_least` and
    `at_most` bound the ratio to the reference. `sure` says whether the whole interval passes.

    Raises:
        UserError: if one does not say what it asks for.
    """
    graded = []
    for one in criteria:
        bounds = {"improvement", "at_least", "at_most"} & set(one)
        if set(one) - {"name", "metric"} - bounds or "metric" not in one or len(bounds) != 1:
            raise UserError(
                "criteria: each needs metric and one of improvement, at_least, at_most (and a "
                f"name), got {one}"
            )
        for other in groups[1:]:
            graded.append(grade_one(one, groups[0], other, next(iter(bounds))))
    return graded


def grade_one(one: dict[str, Any], a: Group, b: Group, kind: str) -> dict[str, Any]:
    """Grade one criterion for one group."""
    result = {**one, "group": b.letter, "value": None, "passed": None, "sure": None}
    metric, bound = one["metric"], float(one[kind])
    if not a.values(metric) or not b.values(metric) or not value_of(a, metric):
        return result
    sign = 1 if metric.split("/")[-1].startswith(HIGHER) else -1
    found, base = difference(a, b, metric), value_of(a, metric)

    def passes(gap: float) -> bool:
        if kind == "improvement":
            return sign * gap / base >= bound
        ratio = 1 + gap / base
        return ratio >= bound if kind == "at_least" else ratio <= bound

    value = found.value / base
    result["value"] = sign * value if kind == "improvement" else 1 + value
    result["passed"] = passes(found.value)
    if found.low is not None and found.high is not None:
        result["sure"] = passes(found.low) == passes(found.high)
    return result


def compare(
    groups: Sequence[Group], *, metric: str | None = None, criteria: Sequence[dict] = ()
) -> dict[str, Any]:
    """Return the whole comparison as plain values."""
    metric = pick_metric(groups, metric)
    said, sure = verdict(groups, metric)
    errors = [key for key in shared_metrics(groups) if key.endswith("/error") or key == metric]
    if len({one.runs[0].data for one in groups}) > 1:
        errors, criteria = [], []  # errors on other data say nothing of one another
    return {
        "schema": 1,
        "verdict": said,
        "sure": sure,
        "metric": metric,
        "caveats": caveats(groups, metric),
        "groups": [
            {
                "letter": one.letter,
                "runs": [str(run.folder) for run in one.runs],
                "model": one.runs[0].family,
                "data": one.runs[0].data,
                "seeds": [run.settings.get("seed") for run in one.runs],
                "status": [run.report["status"] for run in one.runs],
                "metrics": {k: one.entry(k) for k in one.runs[0].report["metrics"] if one.entry(k)},
                "cost": one.cost,
            }
            for one in groups
        ],
        "differences": [
            {"setting": key, **{g.letter: v for g, v in zip(groups, values, strict=True)}}
            for key, values in differences(groups)
        ],
        "tests": [
            {"metric": key, "a": groups[0].letter, "b": other.letter}
            | asdict(difference(groups[0], other, key))
            for key in errors
            for other in groups[1:]
        ],
        "criteria": grade(criteria, groups),
    }
