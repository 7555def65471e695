"""What a sweep tries: its search space, read from `conf/search/` and the command line."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.utils import instantiate
from omegaconf import DictConfig

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution


@dataclass(frozen=True)
class Space:
    """What is searched, and what every trial is given.

    Args:
        distributions: by key.
        points: keys whose values are several overrides each, joined by spaces.
        fixed: overrides of every trial.
    """

    distributions: "dict[str, BaseDistribution]"
    points: frozenset[str]
    fixed: tuple[str, ...]

    def overrides(self, values: Mapping[str, Any]) -> tuple[str, ...]:
        """Return the overrides of a trial; those of a point come last, and win."""
        single = [f"{k}={write(v)}" for k, v in values.items() if k not in self.points]
        several = [one for key in values if key in self.points for one in values[key].split(" ")]
        return (*self.fixed, *single, *several)

    def record(self) -> dict[str, Any]:
        """Return the space as plain values, to compare with that of an earlier command."""
        from optuna.distributions import distribution_to_json

        found = {key: distribution_to_json(one) for key, one in self.distributions.items()}
        return {key: json.loads(text) for key, text in sorted(found.items())}


def read_space(search: Mapping[str, Any], arguments: Sequence[str]) -> Space:
    """Read a search space and the arguments of the command, which win.

    A value of the space is a sweep as on the command line (`choice(1, 2)`), a plain value, or a
    constructor call that returns a list of values or of points (mappings from key to value).

    Raises:
        ValueError: for a value that cannot be parsed, naming its key.
    """
    from hydra_plugins.hydra_optuna_sweeper._impl import create_optuna_distribution_from_override
    from optuna.distributions import CategoricalDistribution

    parser = OverridesParser.create()
    given = [parser.parse_override(argument) for argument in arguments]
    taken = {override.key_or_group for override in given}
    distributions: dict[str, BaseDistribution] = {}
    points, fixed = set(), []
    for key, value in search.items():
        if key in taken:
            continue
        if isinstance(value, DictConfig):
            values = instantiate(value, _execution_whitelist_=("jepa.budget.*",))
            if isinstance(values[0], Mapping):
                points.add(key)
                values = [" ".join(f"{k}={write(v)}" for k, v in one.items()) for one in values]
            distributions[key] = CategoricalDistribution(values)
        else:
            given.append(parser.parse_override(f"{key}={write(value)}"))
    for override in given:
        if override.is_sweep_override():
            key = override.get_key_element()
            try:
                distributions[key] = create_optuna_distribution_from_override(override)
            except (ValueError, AssertionError, NotImplementedError) as error:
                raise ValueError(f"{override.input_line} is no search space: {error}") from error
        else:
            fixed.append(override.input_line)
    return Space(distributions, frozenset(points), tuple(fixed))


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return a line for each key in which two recorded spaces differ."""
    lines = []
    for key in sorted({*old, *new}):
        if old.get(key) != new.get(key):
            before, now = (brief(one[key]) if key in one else "absent" for one in (old, new))
            lines.append(f"{key}: {before} before, {now} now")
    return lines


def brief(distribution: Mapping[str, Any]) -> str:
    """Return a recorded distribution in a few words."""
    found = dict(distribution["attributes"])
    if "choices" in found:
        return f"one of {', '.join(map(str, found['choices']))}"
    log = ", log" if found.get("log") else ""
    return f"{found['low']} to {found['high']}{log}"


def write(value: object) -> str:
    """Write a value as an override has it."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)
