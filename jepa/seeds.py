"""Mean and spread over the seeds of a grid: `-m seed=0,1,2` writes seeds.json and seeds.md.

One run says what happened once. Runs of a sweep directory that differ in `seed` alone belong
together; the spread is the standard deviation of a sample (n - 1).
"""

import json
import statistics
from pathlib import Path
from typing import Any

from jepa.directory import recorded_overrides
from jepa.report import digits, write_text

Summary = dict[str, dict[str, Any]]


def read_runs(sweep_dir: Path) -> dict[tuple[str, ...], dict[str, dict[str, Any]]]:
    """Return the reports of scored runs by what they were started with, then by their seed."""
    groups: dict[tuple[str, ...], dict[str, dict[str, Any]]] = {}
    for path in sorted(sweep_dir.glob("*/report.json")):
        report = json.loads(path.read_text(encoding="utf-8"))
        overrides = recorded_overrides(path.parent) or []
        if not report["metrics"]:
            continue  # it failed, or was interrupted before it was scored
        seeds = [one.removeprefix("seed=") for one in overrides if one.startswith("seed=")]
        if seeds:
            rest = tuple(one for one in overrides if not one.startswith("seed="))
            groups.setdefault(rest, {})[seeds[-1]] = report
    return {rest: runs for rest, runs in groups.items() if len(runs) > 1}


def summarize(reports: list[dict[str, Any]]) -> dict[str, Summary]:
    """Return mean, std and n of each metric of `metrics` and of every control and baseline."""
    parts: dict[str, list[dict[str, Any]]] = {}
    for report in reports:
        parts.setdefault("metrics", []).append(report["metrics"])
        for kind in ("controls", "baselines"):
            for name, metrics in report[kind].items():
                parts.setdefault(name, []).append(metrics)
    return {name: _moments(several) for name, several in parts.items()}


def _moments(several: list[dict[str, Any]]) -> Summary:
    moments: Summary = {}
    for key in several[0]:
        values = [one[key]["value"] for one in several if key in one]
        values = [value for value in values if value is not None]
        if len(values) > 1:
            mean, std = statistics.fmean(values), statistics.stdev(values)
            moments[key] = {"mean": mean, "std": std, "n": len(values)}
    return moments


def write(sweep_dir: Path) -> list[str]:
    """Write seeds.json and seeds.md of a sweep directory; return the lines of the latter.

    Nothing is written where no two runs differ in their seed alone.
    """
    groups = read_runs(sweep_dir)
    if not groups:
        return []
    content, lines = [], []
    for rest, runs in groups.items():
        parts = summarize(list(runs.values()))
        content.append({"overrides": list(rest), "seeds": list(runs)} | parts)
        lines += _table(rest, list(runs), parts)
    write_text(sweep_dir / "seeds.json", json.dumps(content, indent=1, allow_nan=False) + "\n")
    write_text(sweep_dir / "seeds.md", "\n".join(lines) + "\n")
    return lines


def _table(rest: tuple[str, ...], seeds: list[str], parts: dict[str, Summary]) -> list[str]:
    """Return a Markdown table: a row for each metric, a column for each control and baseline."""
    names = list(parts)
    lines = [f"## {' '.join(rest) or 'the defaults'}: seeds {', '.join(seeds)}", ""]
    lines += [f"| {' | '.join(['mean ± std', *names])} |", "|---" * (len(names) + 1) + "|"]
    for key in parts["metrics"]:
        cells = [parts[name].get(key) for name in names]
        shown = [f"{digits(c['mean'])} ± {digits(c['std'])}" if c else "" for c in cells]
        lines.append(f"| {key} | {' | '.join(shown)} |")
    return [*lines, ""]
