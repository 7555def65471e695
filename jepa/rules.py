"""The rules of `rules.yaml`, applied to the facts of a run.

A rule fires if all its conditions hold; one whose facts were not measured is silent. What it says
to change is worded from the value that the run had: a setting that the run does not have, or that
is there already, is left out.
"""

import math
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from jepa.bands import STATES, bands

Facts = dict[str, Any]
WORDS = {"above": "above", "below": "below", "is": "is", "state": "in the band"}


@dataclass(frozen=True)
class Change:
    """One setting: from what to what, and why."""

    setting: str
    before: Any
    after: Any
    why: str


@dataclass(frozen=True)
class Finding:
    """A rule that fired.

    Args:
        name, state, says: of the rule; the state is `healthy`, `warn` or `critical`.
        evidence: each condition with the value that met it.
        changes: the settings to try.
        do: what to do that is no setting.
        command: to type next, with `{overrides}`, `{changes}` and `{run}` to be filled in.
    """

    name: str
    state: str
    says: str
    evidence: list[str]
    changes: list[Change] = field(default_factory=list)
    do: str = ""
    command: str = ""

    def plain(self) -> dict[str, Any]:
        """Return plain values, with the names of the record: from and to."""
        content = asdict(self)
        content["changes"] = [
            {"setting": c.setting, "from": c.before, "to": c.after, "why": c.why}
            for c in self.changes
        ]
        return content


@cache
def rules() -> dict[str, Any]:
    """Return the content of `rules.yaml`."""
    text = Path(__file__).with_name("rules.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(text)


def findings(facts: Facts, settings: dict[str, Any]) -> list[Finding]:
    """Return every finding that holds, the most serious first."""
    found = [apply(rule, facts, settings) for rule in rules()["findings"] if holds(rule, facts)]
    return sorted(found, key=lambda one: -STATES.index(one.state))


def decide(facts: Facts, settings: dict[str, Any]) -> Finding:
    """Return the first decision whose conditions hold; the last of the file asks for nothing."""
    rule = next(rule for rule in rules()["decisions"] if holds(rule, facts))
    return apply(rule, facts, settings)


def checks(facts: Facts) -> list[dict[str, Any]]:
    """Return whether the run can be trusted: name, value, what is asked, passed (None: unknown)."""
    listed = []
    for one in rules()["checks"]:
        ((name, bound),) = one["holds"].items()
        passed = meets(facts[name], bound, name) if name in facts else None
        value = show(name, facts.get(name))
        asks = " or ".join(ask(kind, limit, name) for kind, limit in bound.items())
        listed.append({"name": one["name"], "value": value, "asks": asks, "passed": passed})
    return listed


def holds(rule: dict[str, Any], facts: Facts) -> bool:
    """Tell whether all conditions of a rule hold."""
    conditions = rule.get("when", {}).items()
    return all(name in facts and meets(facts[name], bound, name) for name, bound in conditions)


def meets(value: Any, bound: dict[str, Any], name: str) -> bool:
    """Tell whether a value is within every part of a bound."""
    for kind, limit in bound.items():
        if kind == "state":
            met = STATES.index(band(name).state(value)) >= STATES.index(limit)
        elif kind == "is":
            met = value in limit if isinstance(limit, list) else value == limit
        else:
            met = value > limit if kind == "above" else value < limit
        if not met:
            return False
    return True


def band(name: str) -> Any:
    """Return the band of a fact."""
    known = bands("run") | bands("features")
    return known.get(name) or known[name.removeprefix("teacher_")]


def apply(rule: dict[str, Any], facts: Facts, settings: dict[str, Any]) -> Finding:
    """Word a rule that holds."""
    shown = {name: show(name, value) for name, value in facts.items()}
    evidence = [
        f"{label(name)}: {shown[name]} ({', '.join(ask(k, v, name) for k, v in bound.items())})"
        for name, bound in rule.get("when", {}).items()
    ]
    wanted = [change(one, settings) for one in rule.get("change", ())]
    return Finding(
        name=rule["name"],
        state=rule.get("state", "healthy"),
        says=rule["says"].format_map(shown),
        evidence=evidence,
        changes=[one for one in wanted if one is not None],
        do=rule.get("do", ""),
        command=rule.get("command", ""),
    )


def change(one: dict[str, Any], settings: dict[str, Any]) -> Change | None:
    """Return what a rule makes of a setting; None where the run has none, or has it so already."""
    name = one["set"]
    if name not in settings or not fits(one.get("where", {}), settings):
        return None
    before = settings[name]
    after = one["to"] if "to" in one else scaled(before, one)
    return None if after is None or after == before else Change(name, before, after, one["why"])


def fits(where: dict[str, Any], settings: dict[str, Any]) -> bool:
    """Tell whether other settings are as a change asks for."""
    return all(name in settings and settings[name] in values for name, values in where.items())


def scaled(before: Any, one: dict[str, Any]) -> Any:
    """Return a number times or at least or at most another; None for what is no number."""
    if isinstance(before, bool) or not isinstance(before, int | float):
        return None
    after = before * one.get("times", 1)
    after = min(max(after, one.get("least", -math.inf)), one.get("most", math.inf))
    moved = (after - before) * (one.get("times", 1) - 1)
    if moved < 0:
        return None  # a limit on the other side of what the run had: it is beyond it already
    return max(1, round(after)) if isinstance(before, int) else float(f"{after:.3g}")


def label(name: str) -> str:
    """Return what a fact is, in words."""
    return rules()["facts"].get(name, {}).get("says", name)


def ask(kind: str, limit: Any, name: str) -> str:
    """Word one part of a bound."""
    if kind == "state":
        one = band(name)
        sign = "above" if one.side == "high" else "below"
        return f"{sign} {show(name, one.warn if limit == 'warn' else one.critical)}"
    if kind == "is":
        listed = limit if isinstance(limit, list) else [limit]
        return " or ".join(show(name, one) for one in listed)
    return f"{WORDS[kind]} {show(name, limit)}"


def show(name: str, value: Any) -> str:
    """Return a value of a fact as text, with its unit."""
    if value is None:
        return "not measured"
    if isinstance(value, bool):
        return "yes" if value else "no"
    unit = rules()["facts"].get(name, {}).get("unit", "")
    if not isinstance(value, int | float):
        return str(value)
    if unit == "share":
        return f"{100 * value:.3g} %"
    if unit == "x":
        return f"{value:.2f}x"
    if unit == "h" and value < 1:
        value, unit = (60 * value, "min") if value >= 1 / 30 else (3600 * value, "s")
    number = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{number} {unit}".rstrip()
