"""A comparison as Markdown and as one HTML file."""

import bisect
from collections.abc import Sequence
from typing import Any

from jepa import glossary, page, rules
from jepa.analysis import objective_of, running_median
from jepa.charts import Line, line_chart
from jepa.comparison import OF_CODES, Group
from jepa.history import Points, points
from jepa.recorded import Recorded
from jepa.report import digits, interval

MOST_ROWS = 60  # of the settings that differ


def tables(content: dict[str, Any]) -> list[tuple[str, list[list[str | bool | None]]]]:
    """Return each table with its heading; the first row of each is its head."""
    letters = [one["letter"] for one in content["groups"]]
    runs: list[list[str | bool | None]] = [["", "model", "data", "seeds", "status", "runs"]]
    for one in content["groups"]:
        status = ", ".join(dict.fromkeys(one["status"]))
        seeds = ", ".join(str(seed) for seed in one["seeds"])
        where = one["runs"][0] + (f" and {len(one['runs']) - 1} more" if one["runs"][1:] else "")
        runs.append([one["letter"], one["model"], one["data"], seeds, status, where])
    settings: list[list[str | bool | None]] = [["setting", *letters]]
    for one in content["differences"][:MOST_ROWS]:
        values = [one[letter] for letter in letters]
        settings.append([one["setting"], *("-" if v is None else str(v) for v in values)])
    metrics: list[list[str | bool | None]] = [["metric", *letters]]
    keys = dict.fromkeys(key for one in content["groups"] for key in one["metrics"])
    for key in sorted(keys, key=lambda key: (OF_CODES in key, 0)):
        entries = [one["metrics"].get(key) for one in content["groups"]]
        metrics.append([key, *map(measured, entries)])
    tests: list[list[str | bool | None]] = [
        ["metric", "groups", "difference", "95 % interval", "clear", "effect", "how"]
    ]
    tests += [test_row(one) for one in content["tests"]]
    cost: list[list[str | bool | None]] = [["cost of a run", *letters]]
    for name in dict.fromkeys(name for one in content["groups"] for name in one["cost"]):
        values = [one["cost"].get(name) for one in content["groups"]]
        cost.append([rules.label(name), *(rules.show(name, value) for value in values)])
    criteria: list[list[str | bool | None]] = [["name", "asks", "group", "value", "passed", "sure"]]
    criteria += [criterion_row(one) for one in content["criteria"]]
    return [
        ("Runs", runs),
        ("Settings that differ", settings),
        ("Metrics", metrics),
        (f"Differences from {letters[0]}", tests),
        ("Criteria", criteria),
        ("Cost", cost),
    ]


def measured(entry: dict[str, Any] | None) -> str:
    """Return a value and its interval."""
    if entry is None or entry["value"] is None:
        return "-"
    span = interval(entry)
    return digits(entry["value"]) + (f" ({span})" if span != "-" else "")


def test_row(one: dict[str, Any]) -> list[str | bool | None]:
    """Return one difference as a row."""
    bounded = one["low"] is not None
    span = f"{one['low']:+.3g} to {one['high']:+.3g}" if bounded else "-"
    effect = "-" if one["effect"] is None else f"{one['effect']:+.2f} ({one['effect_name']})"
    how = one["how"] + ("" if one["p"] is None else f"; McNemar p = {one['p']:.2g}")
    clear = one["low"] > 0 or one["high"] < 0 if bounded else None
    return [one["metric"], f"{one['b']} - {one['a']}", f"{one['value']:+.3g}", span, clear, effect, how]  # fmt: skip  # noqa: E501


def criterion_row(one: dict[str, Any]) -> list[str | bool | None]:
    """Return one graded criterion as a row."""
    kind = next(k for k in ("improvement", "at_least", "at_most") if k in one)
    words = {"improvement": "better by", "at_least": "ratio at least", "at_most": "ratio at most"}
    share = kind == "improvement"
    bound = f"{100 * one[kind]:.3g} %" if share else f"{one[kind]:.3g}"
    value = one["value"]
    shown = "-" if value is None else f"{100 * value:+.3g} %" if share else f"{value:.4g}"
    asks = f"{one['metric']} {words[kind]} {bound}"
    return [one.get("name", ""), asks, one["group"], shown, one["passed"], one["sure"]]


def markdown(content: dict[str, Any]) -> str:
    """Return compare.md."""
    lines = ["# Comparison", "", f"**{content['verdict']}**", ""]
    lines += [*(f"- {one}" for one in content["caveats"]), ""] if content["caveats"] else []
    for title, rows in tables(content):
        if len(rows) > 1:
            lines += [f"## {title}", "", *page.markdown_table(rows)]
    return "\n".join(lines)


def html_page(groups: Sequence[Group], content: dict[str, Any]) -> str:
    """Return compare.html."""
    kind = "healthy" if content["sure"] else "warn"
    parts = [page.heading("Comparison", 1), page.lead("", content["verdict"], kind)]
    parts += [page.listing(content["caveats"])]
    listed = tables(content)
    for title, rows in listed[:1]:
        parts += [page.heading(title), page.table(rows)]
    figures = [figure for figure in charts_of(groups) if figure]
    parts += [page.heading("How they went"), page.charts(figures)] if figures else []
    for title, rows in listed[1:]:
        if len(rows) > 1:
            parts += [page.heading(title), page.table(rows, code_first=title != "Cost")]
    left = len(content["differences"]) - MOST_ROWS
    if left > 0:
        parts.append(page.paragraph(f"{left} more settings are in compare.json.", "pale"))
    parts.append(page.terms("What the words mean", glossary.found_in("".join(parts))))
    return page.page(f"Comparison: {content['verdict']}", parts)


def charts_of(groups: Sequence[Group]) -> list[str]:
    """Return the curves of all runs over each other: by step and by time."""
    names = {objective_of(run) for one in groups for run in one.runs} - {None}
    objective = str(next(iter(names))) if len(names) == 1 else None
    drawn = []
    for over, label in (("step", "optimizer step"), ("time", "minutes of training")):
        if objective is not None:
            lines = lines_of(groups, objective, over, smooth=False)
            drawn.append(
                line_chart(f"{objective} by {over}", lines, x=label, y="error, lower is better")
            )
        lines = lines_of(groups, "train/loss", over, smooth=True)
        title = f"Training loss by {over}, running median"
        drawn.append(line_chart(title, lines, x=label, y="loss", log=True))
    return drawn


def lines_of(groups: Sequence[Group], name: str, over: str, *, smooth: bool) -> list[Line]:
    """Return the line of each run, in the colour of its group."""
    lines = []
    for colour, one in enumerate(groups):
        for i, run in enumerate(one.runs):
            curve = points(run.rows, name)
            curve = running_median(curve) if smooth and curve else curve
            if over == "time":
                curve = by_time(curve, run)
            label = one.name if not i else ""
            # beyond eight groups colours come again, dashed
            lines.append(Line(name=label, points=curve, colour=colour, dashed=colour // 8 % 2 == 1))
    return lines


def by_time(curve: Points, run: Recorded) -> Points:
    """Return a curve over the minutes of training, which are known at the validations."""
    known = [(0.0, 0.0), *points(run.rows, "time/train_s")]
    if len(known) < 2 or known[-1][0] <= 0:
        return []
    steps = [step for step, _ in known]
    found = []
    for step, value in curve:
        i = min(max(bisect.bisect_left(steps, step), 1), len(known) - 1)
        (a, since), (b, until) = known[i - 1], known[i]
        seconds = until if a == b else since + (until - since) * (step - a) / (b - a)
        found.append((seconds / 60, value))
    return found
