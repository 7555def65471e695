"""The course of a run as charts: losses, probes, schedules, health, speed, memory, gradients."""

from collections.abc import Callable

from jepa.analysis import objective_of, running_median
from jepa.charts import Line, line_chart
from jepa.history import Points, names, points
from jepa.recorded import Recorded

STEP = "optimizer step"
FEW = 20  # points that need no running median; it would hide their course
NORMS = {"grad_norm": "gradient", "update_norm": "update", "weight_norm": "weights"}
HEALTH = {
    "knn": "labels of nearest neighbours",
    "rankme": "rank",
    "spread": "spread",
    "std": "standard deviation",
}


def charts_of(run: Recorded) -> list[str]:
    """Return the charts of what was logged."""
    drawn = (losses, levels, probes, health, health_of_teacher, schedules, gradients, speed, memory)
    return [figure for chart in drawn if (figure := chart(run))]


def losses(run: Recorded) -> str:
    """Draw training and validation loss."""
    raw = points(run.rows, "train/loss")
    if len(raw) < FEW:
        lines = [Line(name="training", points=raw)]
    else:
        lines = [Line(name="training, each step", points=raw, faint=True)]
        lines += [Line(name="training, running median", points=running_median(raw))]
    lines += [Line(name="validation", points=points(run.rows, "val/loss"), colour=1)]
    return line_chart("Loss", lines, x=STEP, y="loss", log=True)


def levels(run: Recorded) -> str:
    """Draw the terms of the loss."""
    known = ("train/loss", "train/lr", "train/momentum", "train/weight_decay", "train/grad_norm")
    terms = [n for n in names(run.rows, "train/") if n not in known and "norm" not in n]
    lines = [
        Line(name=said(name), points=smooth(run, name), colour=i) for i, name in enumerate(terms)
    ]
    smoothed = any(len(points(run.rows, name)) >= FEW for name in terms)
    title = "Terms of the loss" + (", running median" if smoothed else "")
    return line_chart(title, lines, x=STEP, y="value of the term")


def said(name: str) -> str:
    """Return a column's name without its group, as words."""
    return name.split("/", 1)[1].replace("_", " ")


def smooth(run: Recorded, name: str) -> Points:
    """Return a column by its running median."""
    raw = points(run.rows, name)
    return raw if len(raw) < FEW else running_median(raw)


def probes(run: Recorded) -> str:
    """Draw the errors of the probes on validation, and of the raw input."""
    found = [n for n in names(run.rows, "probe/") if n.endswith("/error")]
    objective = objective_of(run)
    if not found and objective not in (None, "val/loss"):
        found = [str(objective)]
    lines = []
    for i, name in enumerate(found):
        short = name.removeprefix("probe/").removesuffix("/error")
        lines.append(Line(name=short, points=points(run.rows, name), colour=i))
        raw = points(run.rows, name.replace("probe/", "raw/", 1)) if "probe/" in name else []
        lines.append(Line(name=f"{short}, raw input", points=raw[:1], colour=i, level=True))
    return line_chart("Error on validation", lines, x=STEP, y="error of the probe, lower is better")


def health(run: Recorded) -> str:
    """Draw the watch for collapse of what is trained."""
    return codes(run, "Codes of held-out samples", lambda name: not name.startswith("teacher_"))


def health_of_teacher(run: Recorded) -> str:
    """Draw the watch for collapse of the slow copy, which makes the targets."""
    return codes(run, "The teacher's codes of them", lambda name: name.startswith("teacher_"))


def codes(run: Recorded, title: str, wanted: Callable[[str], bool]) -> str:
    """Draw the vitals of codes that are wanted, each kind in one colour on all charts."""
    lines = []
    for name in names(run.rows, "health/"):
        kind = name.removeprefix("health/").removeprefix("teacher_")
        if wanted(name.removeprefix("health/")):
            colour = [*HEALTH, kind].index(kind)
            label = HEALTH.get(kind, said(name))
            lines.append(Line(name=label, points=points(run.rows, name), colour=colour))
    return line_chart(title, lines, x=STEP, y="times the value at step 0", log=True)


def schedules(run: Recorded) -> str:
    """Draw the learning rate."""
    lines = [Line(name="", points=points(run.rows, "train/lr"))]
    return line_chart("Learning rate", lines, x=STEP, y="rate of the first group")


def gradients(run: Recorded) -> str:
    """Draw the norms of gradient, weights and update."""
    found = [n for n in names(run.rows, "train/") if n.endswith("_norm")]
    lines = [
        Line(
            name=NORMS.get(name.split("/")[-1], said(name)), points=points(run.rows, name), colour=i
        )
        for i, name in enumerate(found)
    ]
    return line_chart(
        "Norms of gradient, update and weights", lines, x=STEP, y="Euclidean norm", log=True
    )


def speed(run: Recorded) -> str:
    """Draw the rate of the epochs."""
    lines = [Line(name="", points=points(run.rows, "time/samples_per_s"))]
    return line_chart("Speed of the epochs", lines, x=STEP, y="samples per second")


def memory(run: Recorded) -> str:
    """Draw memory, the wait for data and the use of the device."""
    parts = {
        "memory in use": "memory/share",
        "wait for data": "time/data_share",
        "use of the device": "time/device_share",
    }
    lines = [
        Line(name=label, points=[(x, 100 * y) for x, y in points(run.rows, name)], colour=i)
        for i, (label, name) in enumerate(parts.items())
    ]
    return line_chart("Memory and data", lines, x=STEP, y="%")
