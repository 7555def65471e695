"""Line charts as SVG text: no library, no network, colours of the page they stand in.

A chart has a title, axes with units, a legend, and a text for those who cannot see it.
"""

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

from jepa.history import Points

WIDTH, HEIGHT = 400, 270  # of the viewBox, about what a column of a page has: text keeps its size
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 32, 44
MOST_POINTS = 300  # of one line; of more, the extremes of each part are drawn
MOST_DOTS = 12  # of one line; more of them hide it
N_COLOURS = 8  # in the style of the page


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of a chart.

    Args:
        name: in the legend; empty for a line without an entry.
        points: (x, y) in rising x.
        colour: number of its colour.
        faint: thin and pale, as the raw values behind a smoothed line.
        dashed: as a level is.
        level: the first value, across the whole chart.
    """

    name: str
    points: Points
    colour: int = 0
    faint: bool = False
    dashed: bool = False
    level: bool = False

    @property
    def style(self) -> str:
        """Classes of the page's style."""
        dashed = " level" if self.dashed or self.level else ""
        return f"c{self.colour % N_COLOURS}{dashed}{' faint' if self.faint else ''}"


def line_chart(title: str, lines: Sequence[Line], *, x: str, y: str, log: bool = False) -> str:
    """Return a chart as a figure; an empty string where there is nothing to draw.

    Args:
        title: what it shows.
        lines: drawn in order.
        x: name of the axis, with its unit.
        y: likewise.
        log: a logarithmic y axis, where all values allow one.
    """
    lines = [line for line in lines if line.points]
    if not any(len(line.points) > 1 for line in lines if not line.level):
        return ""
    every = [point for line in lines for point in line.points]
    log = log and min(value for _, value in every) > 0
    across = Scale.of([a for line in lines if not line.level for a, _ in line.points], log=False)
    up = Scale.of([value for _, value in every], log=log)
    parts = [*grid(across, up, x=x, y=y)]
    parts += [draw(line, across, up) for line in lines]
    said = html.escape(describe(title, lines, x=x, y=y))
    return (
        f"<figure><figcaption>{html.escape(title)}</figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{said}">'
        f"<title>{said}</title>{''.join(parts)}</svg>{legend(lines)}</figure>"
    )


@dataclass(frozen=True)
class Scale:
    """Values to places between 0 and 1, and the ticks to show."""

    low: float
    high: float
    log: bool
    ticks: tuple[float, ...]

    @classmethod
    def of(cls, values: Sequence[float], *, log: bool) -> "Scale":
        """Return a scale that holds all values."""
        low, high = min(values), max(values)
        if low == high:  # one level, in the middle
            room = 2.0 if log else abs(low) / 2 or 0.5
        else:
            room = (high / low) ** 0.04 if log else 0.04 * (high - low)
        low, high = (low / room, high * room) if log else (low - room, high + room)
        ticks = decades(low, high) if log else ()
        return cls(low, high, log, ticks if len(ticks) > 2 else even(low, high))

    def place(self, value: float) -> float:
        """Return where a value lies, 0 at the low end."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


def decades(low: float, high: float) -> tuple[float, ...]:
    """Return the powers of ten between two numbers; over few of them also 2 and 5 of each."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1,) if len(powers) > 4 else (1, 2, 5)
    return tuple(tick for e in powers for m in steps if low <= (tick := m * 10.0**e) <= high)


def even(low: float, high: float) -> tuple[float, ...]:
    """Return three to six round numbers between two, at even steps."""
    step = nice((high - low) / 6)
    return tuple(i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1))


def nice(step: float) -> float:
    """Return the next larger of 1, 2, 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= step * (1 - 1e-9))


def at(across: Scale, up: Scale, point: tuple[float, float]) -> tuple[float, float]:
    """Return the place of a point in the viewBox."""
    a, b = across.place(point[0]), up.place(point[1])
    return LEFT + a * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - b * (HEIGHT - TOP - BOTTOM)


def grid(across: Scale, up: Scale, *, x: str, y: str) -> list[str]:
    """Return the lines of the ticks, their numbers, and the names of the axes."""
    parts = []
    right, floor = WIDTH - RIGHT, HEIGHT - BOTTOM
    for tick in up.ticks:
        _, place = at(across, up, (across.low, tick))
        parts.append(f'<path class="grid" d="M{LEFT} {place:.1f}H{right}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{place + 4:.1f}" text-anchor="end">{brief(tick)}</text>')  # fmt: skip  # noqa: E501
    for tick in across.ticks:
        place, _ = at(across, up, (tick, up.low))
        parts.append(f'<text x="{place:.1f}" y="{floor + 17}" text-anchor="middle">{brief(tick)}</text>')  # fmt: skip  # noqa: E501
    parts.append(f'<path class="axis" d="M{LEFT} {floor}H{right}"/>')
    middle = (LEFT + right) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">{html.escape(x)}</text>')  # fmt: skip  # noqa: E501
    parts.append(f'<text x="0" y="14">{html.escape(y)}</text>')  # above: numbers never meet it
    return parts


def draw(line: Line, across: Scale, up: Scale) -> str:
    """Return one line, with dots where they are few; a level as a dashed one."""
    if line.level:
        _, place = at(across, up, (across.low, line.points[0][1]))
        return f'<path class="{line.style}" d="M{LEFT} {place:.1f}H{WIDTH - RIGHT}"/>'
    places = [at(across, up, point) for point in thinned(line.points)]
    path = "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in places)
    dots = ""
    if len(places) <= MOST_DOTS and not line.faint:
        dots = "".join(f'<circle class="c{line.colour % N_COLOURS}" cx="{a:.1f}" cy="{b:.1f}" r="2.5"/>' for a, b in places)  # fmt: skip  # noqa: E501
    return f'<path class="{line.style}" d="{path}"/>{dots}'


def thinned(points: Points) -> Points:
    """Return few enough points that show every extreme."""
    if len(points) <= MOST_POINTS:
        return points
    size = math.ceil(2 * len(points) / MOST_POINTS)
    kept: Points = []
    for start in range(0, len(points), size):
        part = points[start : start + size]
        kept += sorted({min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1])})
    return kept


def legend(lines: Sequence[Line]) -> str:
    """Return the names of the lines in their colours; nothing where a single one says it all."""
    named = [line for line in lines if line.name]
    items = "".join(
        f'<li><i class="{line.style}"></i>{html.escape(line.name)}</li>' for line in named
    )
    return f'<ul class="legend">{items}</ul>' if named else ""


def describe(title: str, lines: Sequence[Line], *, x: str, y: str) -> str:
    """Say in words what a chart shows."""
    parts = []
    for line in lines:
        if line.faint or not line.name:
            continue
        values = [value for _, value in line.points]
        if len(values) == 1:
            parts.append(f"{line.name} is {brief(values[0])}")
        else:
            parts.append(
                f"{line.name} goes from {brief(values[0])} to {brief(values[-1])}, between "
                f"{brief(min(values))} and {brief(max(values))}"
            )
    return f"{title}: {y} over {x}. {'; '.join(parts)}."


def brief(value: float) -> str:
    """Return a number for a tick."""
    if value == 0:
        return "0"
    if abs(value) >= 1e6:
        return f"{value / 1e6:.3g}M"
    if abs(value) >= 1e4:
        return f"{value / 1e3:.3g}k"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    if abs(value) >= 1e-2:
        return f"{value:.3g}"
    digits, power = f"{value:.2e}".split("e")
    return f"{float(digits):g}e{int(power)}"
