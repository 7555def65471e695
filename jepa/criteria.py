"""What a run is asked for, as its `criteria` say it.

A criterion is a dictionary: `name`, `metric`, and `at_most` or `at_least`. With `against`, the
bound is for the metric divided by that of a control or baseline, or by its own first value
(`start`). With `epoch`, counted from 1, it is for the newest value at the end of that epoch.
"""

from collections.abc import Collection
from typing import Any

KEYS = {"name", "metric", "at_most", "at_least", "against", "epoch"}
START = "start"


def check(one: dict[str, Any], others: Collection[str]) -> None:
    """Refuse a criterion that does not say what it asks for.

    Args:
        one: the criterion.
        others: names of controls and baselines.

    Raises:
        ValueError: then.
    """
    epoch, against = one.get("epoch"), one.get("against")
    timed = "epoch" not in one or (isinstance(epoch, int) and epoch >= 1)
    sound = "metric" in one and ("at_most" in one) != ("at_least" in one) and timed
    if set(one) - KEYS or not sound or against not in (None, START, *others):
        raise ValueError(
            "criteria: each needs name, metric, and at_most or at_least (optionally epoch: a whole "
            f"number from 1 on; against: {', '.join((START, *others))}), got {one}"
        )


def passes(one: dict[str, Any], value: float | None) -> bool | None:
    """Compare a value with the bound; None where it was not measured."""
    if value is None:
        return None
    return value <= one["at_most"] if "at_most" in one else value >= one["at_least"]


def while_training(one: dict[str, Any], events: list[dict[str, Any]]) -> float | None:
    """Return the value that the run recorded for a criterion, the newest; None without one."""
    found = [e["value"] for e in events if e["kind"] == "criterion" and e["asks"] == asks(one)]
    return found[-1] if found else None


def asks(one: dict[str, Any]) -> str:
    """Return what a criterion asks for."""
    sign = "<=" if "at_most" in one else ">="
    bound = one.get("at_most", one.get("at_least"))
    over = f" / {one['against']}" if one.get("against") else ""
    at = f" after epoch {one['epoch']}" if one.get("epoch") else ""
    return f"{one['metric']}{over}{at} {sign} {bound}"


def word(passed: bool | None) -> str:
    """Return the grade as a word."""
    return {True: "yes", False: "no", None: "not measured"}[passed]
