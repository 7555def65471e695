"""The analysis of a run as Markdown and as one HTML file."""

from typing import Any

from jepa import glossary, page, report, rules
from jepa.recorded import Recorded
from jepa.run_charts import charts_of

# said elsewhere on the page, the share of the memory among the facts themselves
HIDDEN = ("status", "reason", "objective", "scored", "loss_name", "memory_share")


def markdown(content: dict[str, Any]) -> str:
    """Return the analysis as a part of report.md."""
    decision = content["decision"]
    lines = ["## Analysis", "", f"**{decision['name']}**: {decision['says']}", ""]
    if decision["do"]:
        lines += [sentence(decision["do"]), ""]
    if content["next"]:
        lines += ["```", content["next"], "```", ""]
    lines += ["### Can it be trusted?", "", *page.markdown_table(check_rows(content))]
    if content["findings"]:
        lines += ["### What was noticed", ""]
    for one in content["findings"]:
        lines += [f"**{one['name']}** ({one['state']}): {one['says']}", ""]
        lines += [f"- {text}" for text in one["evidence"]] + [""]
        lines += page.markdown_table(change_rows(one["changes"]))
        lines += [sentence(one["do"]), ""] if one["do"] else []
    if content["projected_hours"]:
        lines += ["### Projected time", "", *page.markdown_table(time_rows(content))]
    lines += ["### Facts", "", *page.markdown_table(fact_rows(content))]
    return "\n".join(lines)


def html_page(run: Recorded, content: dict[str, Any], notes: str) -> str:
    """Return report.html.

    Args:
        run: what is recorded.
        content: its analysis.
        notes: the owner's, as Markdown text.
    """
    decision = content["decision"]
    stamp = report.stamp_of(run.report)
    parts = [
        page.heading(f"{content['model']} on {content['data']}{stamp}", 1),
        page.paragraph(f"{run.folder} · {content['status']}: {content['reason']}", "pale"),
        page.lead(f"{decision['name']}:", decision["says"], decision["state"]),
        page.paragraph(sentence(decision["do"])) if decision["do"] else "",
        page.table(change_rows(decision["changes"]), code_first=True),
        page.code(content["next"]) if content["next"] else "",
        page.heading("Can it be trusted?"),
        page.table(check_rows(content)),
    ]
    if content["findings"]:
        parts.append(page.heading("What was noticed"))
    for one in content["findings"]:
        parts += [
            page.heading(f"{one['name']} ({one['state']})", 3),
            page.paragraph(one["says"], one["state"]),
            page.listing(one["evidence"]),
            page.table(change_rows(one["changes"]), code_first=True),
            page.paragraph(sentence(one["do"])) if one["do"] else "",
        ]
    parts += scores(run)
    figures = charts_of(run)
    parts += [page.heading("How it went"), page.charts(figures)] if figures else []
    if content["projected_hours"]:
        parts += [page.heading("Projected time"), page.table(time_rows(content))]
        parts += [page.paragraph("At the measured rate of this run on its machine, probes at the same rhythm.", "pale")]  # fmt: skip  # noqa: E501
    parts += [page.heading("Facts"), page.table(fact_rows(content), columns=True)]
    parts += [page.terms("What the words mean", glossary.found_in("".join(parts)))]
    parts += [page.heading("Notes"), page.code(notes.strip())] if notes.strip() else []
    parts += [page.heading("Machine"), page.table(machine_rows(run))]
    return page.page(f"{content['model']} on {content['data']}: {decision['name']}", parts)


def scores(run: Recorded) -> list[str]:
    """Return what was scored beside its controls, the verdict in words and the criteria."""
    head, *body = report.rows(run.report)
    if not body:
        return []
    parts = [page.heading("Scores"), page.table([head, *body], code_first=True)]
    parts += [page.table(report.baseline_rows(run.report), code_first=True)]
    parts += [page.listing(report.verdict(run.report))]
    asked = [
        [c.get("name", ""), report.asks(c), report.show(c), c["passed"]]
        for c in run.report["criteria"]
    ]
    if asked:
        head = ["name", "asks", "value", "passed"]
        parts += [page.heading("Criteria", 3), page.table([head, *asked])]
    return parts


def check_rows(content: dict[str, Any]) -> list[list[str | bool | None]]:
    """Return the checks of trust as a table."""
    rows = [[one["name"], one["value"], one["asks"], one["passed"]] for one in content["checks"]]
    return [["check", "measured", "asks", "passed"], *rows]


def change_rows(changes: list[dict[str, Any]]) -> list[list[str]]:
    """Return settings to change as a table."""
    rows = [[c["setting"], str(c["from"]), str(c["to"]), c["why"]] for c in changes]
    return [["setting", "from", "to", "why"], *rows]


def time_rows(content: dict[str, Any]) -> list[list[str]]:
    """Return projected times as a table."""
    rows = [[n, duration(hours)] for n, hours in content["projected_hours"].items()]
    return [["epochs", "time"], *rows]


def fact_rows(content: dict[str, Any]) -> list[list[str]]:
    """Return what was measured as a table."""
    facts = {name: value for name, value in content["facts"].items() if name not in HIDDEN}
    rows = [[rules.label(name), rules.show(name, value)] for name, value in facts.items()]
    return [["fact", "measured"], *rows]


def machine_rows(run: Recorded) -> list[list[str]]:
    """Return what the run was done with as a table."""
    known, versions = run.environment, run.environment.get("versions", {})
    rows = [["command", " ".join(map(str, known.get("command", [])))]]
    rows += [["commit", str(known.get("commit"))], ["platform", str(known.get("platform"))]]
    rows += [["GPU", ", ".join(map(str, known["cuda"]))]] if known.get("cuda") else []
    rows += [["versions", ", ".join(f"{name} {version}" for name, version in versions.items())]]
    return [["what", "recorded"], *(row for row in rows if row[1] not in ("", "None"))]


def duration(hours: float) -> str:
    """Return a time in the unit that fits."""
    if hours * 3600 < 100:
        return f"{hours * 3600:.0f} s"
    return f"{hours * 60:.0f} min" if hours * 60 < 100 else f"{hours:.1f} h"


def sentence(text: str) -> str:
    """Return an advice as a sentence."""
    return text[:1].upper() + text[1:] + "."
