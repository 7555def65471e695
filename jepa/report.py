"""A run's outcome: report.json and report.md, and the verdict in words.

Reads and writes plain dictionaries in the form of record, `schema` 1.
"""

import contextlib
import json
import math
import os
from pathlib import Path
from typing import Any

from jepa import criteria
from jepa.criteria import asks

CONTROLS = ("untrained", "raw", "chance")
# What stands below this line of report.md is the owner's.
NOTES = "<!-- Notes: all below this line is yours; jepa never changes it. -->"
TEMPLATE = """
## Lessons learned

### What worked

### What did not

### What was not expected

### What to do next
"""
BASELINES = {
    "closed_form": "the closed-form linear forecast",
    "seasonal_naive": "the last season repeated",
    "repeat_last": "the last value repeated",
}


def new(*, status: str, reason: str, **parts: Any) -> dict[str, Any]:
    """Return a report with every key of record."""
    empty: dict[str, Any] = {
        "schema": 1,
        "status": status,
        "reason": reason,
        "objective": {"name": None, "value": None},
        "metrics": {},
        "controls": {},
        "baselines": {},
        "criteria": [],
        "vitals": [],
        "events": [],
    }
    return empty | parts


def entry(value: float) -> dict[str, Any]:
    """Return a metric as value, 95 % interval and n; None where unknown or not a number."""

    def plain(x: Any) -> Any:
        return None if x is None or not math.isfinite(x) else x

    low, high = getattr(value, "low", None), getattr(value, "high", None)
    n = getattr(value, "n", None)
    return {"value": plain(float(value)), "low": plain(low), "high": plain(high), "n": n}


def write(run_dir: Path, report: dict[str, Any], page: str | None = None) -> None:
    """Write report.json and report.md (`page`, or `markdown`), each whole or not at all."""
    write_text(
        run_dir / "report.json", json.dumps(without_nan(report), indent=1, allow_nan=False) + "\n"
    )
    page, path = page or markdown(report), run_dir / "report.md"
    write_text(path, with_notes(page, notes_in(path, markdown(report))))


def notes_in(page: Path, generated: str) -> str:
    """Return the owner's notes in a report.md, a template where there are none.

    A page without the line is of an earlier version: what follows `generated` in it is kept.
    """
    old = page.read_text(encoding="utf-8") if page.exists() else ""
    if NOTES in old:
        return old.split(NOTES, 1)[1]
    added = old.removeprefix(generated) if old.startswith(generated) else ""
    return f"\n{added}" if added.strip() else TEMPLATE


def with_notes(generated: str, notes: str) -> str:
    """Return a page with the owner's notes at its end."""
    return f"{generated}\n{NOTES}\n{notes.removeprefix(chr(10))}"


def without_nan(value: Any) -> Any:
    """Return it with null in place of numbers that are not finite, for which JSON has no word."""
    if isinstance(value, dict):
        return {key: without_nan(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_text(path: Path, content: str) -> None:
    """Write a file that is whole or not there."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_text(content, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_events(run_dir: Path) -> list[dict[str, Any]]:
    """Return the decisions recorded in events.jsonl."""
    path = run_dir / "events.jsonl"
    if not path.exists():
        return []
    events = []
    for line in path.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(ValueError):  # cut off where a run was killed
            event = json.loads(line)
            if isinstance(event, dict) and "kind" in event:
                events.append(event)
    return events


def grade(asked: list[dict[str, Any]], report: dict[str, Any]) -> list[dict[str, Any]]:
    """Grade each criterion: `metric` against `at_most` or `at_least`.

    With `against: <a control or a baseline>` the bound applies to metric / control. What the run
    graded while it trained, as with `epoch`, is taken from the report's events.
    A criterion whose metric was not measured gets `passed: null`.
    """
    return [grade_one(dict(one), report) for one in asked]


def grade_one(one: dict[str, Any], report: dict[str, Any]) -> dict[str, Any]:
    """Grade one criterion.

    Raises:
        ValueError: if it does not say what it asks for.
    """
    criteria.check(one, (*CONTROLS, *BASELINES))
    against = one.get("against")
    value = report["metrics"].get(one["metric"], {}).get("value")
    if value is None or "epoch" in one or against == criteria.START:
        value = criteria.while_training(one, report["events"])
    elif against:
        control = (beside(report, against, one["metric"]) or {}).get("value")
        value = None if not control else value / control
    return {**one, "value": value, "passed": criteria.passes(one, value)}


def beside(report: dict[str, Any], name: str, key: str) -> dict[str, Any] | None:
    """Return what a control or a baseline has for a metric.

    Baselines have no codes to probe: beside `test/forecast/mse` stands their `test/mse`.
    """
    if name in report["controls"]:
        return report["controls"][name].get(key)
    own = report["baselines"].get(name, {})
    split, *rest = key.split("/")
    found = own.get(key) or own.get("/".join((split, *rest[1:])))
    if found is None or key in own:
        return found
    return {k: v for k, v in found.items() if k != "difference"}  # that of other forecasts


def add_stages(report: dict[str, Any], stages: dict[str, dict[str, Any]]) -> None:
    """Put what later stages of a run measured beside its own numbers, under their names."""
    for name, content in stages.items():
        for key, one in content["metrics"].items():
            split, _, rest = key.partition("/")
            report["metrics"][f"{split}/{name}/{rest}"] = one
        if "model" in content.get("breakdown", {}):
            report.setdefault("breakdown", {})[name] = content["breakdown"]["model"]


def verdict(report: dict[str, Any]) -> list[str]:
    """Say in words how each error stands beside its controls and baselines."""
    names = {"untrained": "its untrained self", "raw": "the raw input"}
    names |= {"chance": "a guess that sees no input", **BASELINES}
    lines = []
    for key, measured in report["metrics"].items():
        if not key.endswith("/error") or measured["value"] is None:
            continue
        for name, what in names.items():
            other = beside(report, name, key)
            if other and other["value"] is not None:
                lines.append(f"{key}: {compare(measured, other, what)}")
    return lines


def compare(ours: dict[str, Any], other: dict[str, Any], what: str) -> str:
    """Word the comparison of two errors; claim no more than the intervals allow."""
    a, b = ours["value"], other["value"]
    if a == b:
        return f"{a:.4g} equals {what}"
    word = "beats" if a < b else "DOES NOT BEAT"
    change = f", {(a - b) / b:+.1%}" if b else ""
    return f"{a:.4g} {word} {what} ({b:.4g}{change}){doubt(ours, other)}"


def doubt(ours: dict[str, Any], other: dict[str, Any]) -> str:
    """Say why a difference may be chance; nothing where it is clear, or not known.

    A difference measured in pairs decides by its own interval, which is narrower.
    """
    if paired := other.get("difference"):
        bounds = (paired["low"], 0.0, 0.0, paired["high"])
        text = "the 95 % interval of the difference holds 0"
    else:
        bounds = (ours["low"], other["high"], other["low"], ours["high"])
        text = "the 95 % intervals overlap"
    if None in bounds or bounds[0] > bounds[1] or bounds[2] > bounds[3]:
        return ""
    return f"; {text}, so it may be chance"


def rows(report: dict[str, Any]) -> list[list[str]]:
    """Return the table of metrics beside their controls as text; the first row is the head."""
    controls = list(report["controls"])
    table = [["metric", "value", "95 % interval", *controls, "n"]]
    for key, one in report["metrics"].items():
        beside = [show(report["controls"][c].get(key)) for c in controls]
        table.append([key, show(one), interval(one), *beside, str(one["n"] or "")])
    return table


def baseline_rows(report: dict[str, Any]) -> list[list[str]]:
    """Return the table of baselines as text, their scaled errors; the first row is the head."""
    table = [["baseline", "mse", "95 % interval", "mae", "95 % interval"]]
    for name, metrics in report["baselines"].items():
        both = [one for key, one in metrics.items() if key.count("/") == 1 and "error" not in key]
        table.append([name, *(text for one in both for text in (show(one), interval(one)))])
    return table


def stamp_of(report: dict[str, Any]) -> str:
    """Return the note that every number of this report needs; mostly none."""
    stamp = report.get("stamp")
    return f" ({stamp})" if stamp else ""


def show(one: dict[str, Any] | None) -> str:
    """Return a value in four digits."""
    return "-" if not one or one["value"] is None else digits(one["value"])


def digits(value: float) -> str:
    """Return four digits; two where the value is next to nothing."""
    return f"{value:.4g}" if value == 0 or abs(value) >= 1e-3 else f"{value:.1e}"


def interval(one: dict[str, Any]) -> str:
    """Return `low..high`."""
    low, high = one["low"], one["high"]
    return "-" if low is None or high is None else f"{low:.3g}..{high:.3g}"


def markdown(report: dict[str, Any]) -> str:
    """Return the report as a page."""
    objective = report["objective"]
    lines = [
        f"# Report{stamp_of(report)}",
        "",
        f"Status: **{report['status']}** ({report['reason']})",
        "",
        f"Objective `{objective['name']}`: {show(objective)}",
        "",
        *tables(report),
    ]
    if report["criteria"]:
        lines += ["## Criteria", "", "| name | asks | value | passed |", "|---|---|---|---|"]
        lines += [
            f"| {c.get('name', '')} | {asks(c)} | {show(c)} | {grade_word(c)} |"
            for c in report["criteria"]
        ]
        lines += [""]
    if report["vitals"]:
        lines += ["## Health of the run", *vitals_table(report), ""]
    if report.get("pictures"):
        lines += ["## Pictures", "", *(f"![{path}]({path})\n" for path in report["pictures"])]
    return "\n".join(lines).rstrip() + "\n"


def tables(report: dict[str, Any]) -> list[str]:
    """Return metrics beside their controls, the baselines, and what they say in words."""
    lines = []
    for head, *body in (rows(report), baseline_rows(report)):
        if body:
            lines += ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
            lines += ["| " + " | ".join(row) + " |" for row in body]
            lines += [""]
    if said := verdict(report):
        lines += [*(f"- {line}" for line in said), ""]
    return lines


def vitals_table(report: dict[str, Any]) -> list[str]:
    """Return how the vitals of a run stand; nothing where none were logged."""
    if not report["vitals"]:
        return []
    lines = ["", "Features are relative to step 0.", ""]
    lines += ["| name | value | state | warn | critical |", "|---|---|---|---|---|"]
    return lines + [
        f"| {v['name']} | {digits(v['value'])} | {v['state']} | {v['warn']} | {v['critical']} |"
        for v in report["vitals"]
    ]


def grade_word(criterion: dict[str, Any]) -> str:
    """Return the grade as a word."""
    return criteria.word(criterion["passed"])
