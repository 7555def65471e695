"""Pictures of a run: what its probes reached, against samples seen and against time."""

import csv
from pathlib import Path

COST = {"time/samples": "training samples seen", "time/train_s": "seconds of training"}
SUFFIX = "/error"


def read_curves(path: Path) -> dict[str, list[tuple[float, ...]]]:
    """Return `(samples, seconds, value)` of each validation by `probe/<name>/error`, in order.

    With `callbacks.probe.at_start=true` the first one is of the untrained encoder, and
    `raw/<name>/error` holds the one value of the raw input.
    """
    curves: dict[str, list[tuple[float, ...]]] = {}
    if not path.exists():
        return curves
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            cost = [row.get(key) for key in COST]
            if not all(cost):
                continue
            for key, value in row.items():
                if key.startswith(("probe/", "raw/")) and key.endswith(SUFFIX) and value:
                    point = tuple(float(number) for number in (*cost, value) if number)
                    curves.setdefault(key, []).append(point)
    return curves


def draw_curves(picture: Path, metrics: Path) -> bool:
    """Draw the errors of a metrics.csv; return whether there was a curve to draw."""
    curves = read_curves(metrics)
    lines = {key: points for key, points in curves.items() if len(points) > 1}
    if not lines:
        return False
    from matplotlib.figure import Figure  # takes a second; no window and no global state

    figure = Figure(figsize=(10.0, 4.0), layout="constrained")
    panels = figure.subplots(1, len(COST), sharey=True)
    for i, (axes, label) in enumerate(zip(panels, COST.values(), strict=True)):
        for number, (key, points) in enumerate(lines.items()):
            name, colour = key.removeprefix("probe/").removesuffix(SUFFIX), f"C{number}"
            costs, values = [point[i] for point in points], [point[-1] for point in points]
            axes.plot(costs, values, color=colour, marker="o", markersize=3.0, label=name)
            for *_, raw in curves.get(f"raw/{name}{SUFFIX}", []):
                axes.axhline(raw, color=colour, linestyle=":", label=f"{name}, raw input")
        axes.set_xlabel(label)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("error on validation")
    panels[0].legend(frameon=False, fontsize="small")
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, format="png", dpi=120)
    return True
