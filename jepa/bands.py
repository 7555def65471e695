"""The bands of `bands.yaml`: when a measured value is healthy, a warning, or critical."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

STATES = ("healthy", "warn", "critical")


@dataclass(frozen=True)
class Band:
    """Bounds on one value; `side` is the side on which it leaves the healthy range."""

    side: str
    warn: float | int
    critical: float | int

    def state(self, value: float) -> str:
        """Return healthy, warn or critical; what is not a number is critical."""
        sign = 1 if self.side == "high" else -1
        if not sign * value <= sign * self.critical:
            return "critical"
        return "healthy" if sign * value <= sign * self.warn else "warn"


@cache
def bands(group: str) -> dict[str, Band]:
    """Return the bands of a group (`features` or `run`) by name."""
    text = Path(__file__).with_name("bands.yaml").read_text(encoding="utf-8")
    return {name: Band(**one) for name, one in yaml.safe_load(text)[group].items()}
