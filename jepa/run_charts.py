"""The course of a run as charts: losses, probes, schedules, health, speed, memory, gradients."""

from jepa.analysis import objective_of, running_median
from jepa.charts import Line, line_chart
from jepa.history import Points, names, points
from jepa.recorded import Recorded

STEP = "optimizer step"


def charts_of(run: Recorded) -> list[str]:
    """Return the charts of what was logged."""
    drawn = (losses, levels, probes, health, schedules, gradients, speed, memory)
    return [figure for chart in drawn if (figure := chart(run))]


def losses(run: Recorded) -> str:
    """Draw training and validation loss."""
    raw = points(run.rows, "train/loss")
    lines = [Line(name="", points=raw, faint=True)]
    lines += [Line(name="training, running median", points=running_median(raw))] if raw else []
    lines += [Line(name="validation", points=points(run.rows, "val/loss"), colour=1)]
    return line_chart("Loss", lines, x=STEP, y="loss", log=True)


def levels(run: Recorded) -> str:
    """Draw the terms of the loss."""
    known = ("train/loss", "train/lr", "train/momentum", "train/weight_decay", "train/grad_norm")
    terms = [n for n in names(run.rows, "train/") if n not in known and "norm" not in n]
    lines = [
        Line(name=said(name), points=smooth(run, name), colour=i) for i, name in enumerate(terms)
    ]
    return line_chart("Terms of the loss, running median", lines, x=STEP, y="value")


def said(name: str) -> str:
    """Return a column's name without its group, as words."""
    return name.split("/", 1)[1].replace("_", " ")


def smooth(run: Recorded, name: str) -> Points:
    """Return a column by its running median."""
    raw = points(run.rows, name)
    return running_median(raw) if raw else raw


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
        lines.append(Line(name=f"{short}, raw input", points=raw[:1], colour=i))
    return line_chart("Error on validation", lines, x=STEP, y="error")


def health(run: Recorded) -> str:
    """Draw the watch for collapse; the teacher's values dashed."""
    found = names(run.rows, "health/")
    kinds = list(dict.fromkeys(name.replace("teacher_", "") for name in found))
    lines = [
        Line(
            name=said(name),
            points=points(run.rows, name),
            colour=kinds.index(name.replace("teacher_", "")),
            dashed="teacher_" in name,
        )
        for name in found
    ]
    return line_chart("Codes of held-out samples", lines, x=STEP, y="relative to step 0", log=True)


def schedules(run: Recorded) -> str:
    """Draw the learning rate."""
    lines = [Line(name="", points=points(run.rows, "train/lr"))]
    return line_chart("Learning rate", lines, x=STEP, y="rate of the first group")


def gradients(run: Recorded) -> str:
    """Draw the norms of gradient, weights and update."""
    found = [n for n in names(run.rows, "train/") if n.endswith("_norm")]
    lines = [
        Line(name=said(name), points=points(run.rows, name), colour=i)
        for i, name in enumerate(found)
    ]
    return line_chart("Norms", lines, x=STEP, y="Euclidean norm", log=True)


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
    return line_chart("Memory and data", lines, x=STEP, y="per cent")
