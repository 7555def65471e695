"""report.md: what a night of training has come to, as a page.

Reads a finished run directory and its report, and nothing else.
"""

import json
import statistics
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from jepa import history, report
from jepa.report import asks, digits, grade_word, show

LEVELS = ("minimum", "target", "stretch")
PICTURES = {
    "probes": "errors of the probes, against samples and against time",
    "losses": "training loss of each level",
    "masks": "what is seen, and what is predicted from it",
    "pyramid": "features of hidden rectangles, and their prediction",
    "features": "features of each level as colours",
    "attention": "attention rollout",
    "neighbours": "nearest training images",
    "spectrum": "spectrum of the codes",
}


def write(run_dir: Path, content: dict[str, Any]) -> None:
    """Write report.json, and report.md around the notes that it holds by now."""
    report.write(run_dir, content, page(run_dir, content))


def page(run_dir: Path, content: dict[str, Any]) -> str:
    """Return the page of a run."""
    facts = Facts(run_dir)
    parts = [
        [f"# Report{report.stamp_of(content)}", "", facts.heading(ended(content))],
        section("Summary", summary(content, facts)),
        section("Training details", details(content, facts)),
        section("Optimisation results", optimisation(content, facts)),
        section("Performance against target", against_target(content)),
        section("Metrics", report.tables(content)),
        section("Stability", stability(content, facts)),
        section("Pictures", pictures(run_dir)),
        section("Next steps", next_steps(content, facts)),
        section("Appendix", appendix(run_dir)),
    ]
    return "\n".join(line for part in parts for line in part).rstrip() + "\n"


def ended(content: dict[str, Any]) -> datetime:
    """Return when the run took its last decision, or now."""
    times = [event["time"] for event in content["events"] if "time" in event]
    return (datetime.fromtimestamp(max(times)) if times else datetime.now()).astimezone()


def section(title: str, lines: list[str]) -> list[str]:
    """Return a section with its heading; nothing where there is nothing to say."""
    return ["", f"## {title}", "", *lines] if lines else []


class Facts:
    """What a run directory says of its run."""

    def __init__(self, run_dir: Path):
        self.rows = rows_of(run_dir / "metrics.csv")
        self.config: dict[str, Any] = read(run_dir / "config.yaml", yaml.safe_load) or {}
        self.environment: dict[str, Any] = read(run_dir / "environment.json", json.loads) or {}
        self.overrides: list[str] = read(run_dir / "overrides.yaml", yaml.safe_load) or []

    def column(self, name: str) -> list[float]:
        """Return the values of a metric, in order."""
        return history.column(self.rows, name)

    def last(self, name: str) -> float | None:
        """Return the newest value of a metric."""
        return next(iter(self.column(name)[-1:]), None)

    def setting(self, key: str) -> Any:
        """Return a setting by its dotted name; None where there is none."""
        node: Any = self.config
        for part in key.split("."):
            node = node.get(part) if isinstance(node, dict) else None
        return node

    def tail(self, name: str) -> float | None:
        """Return the mean of the last twentieth of a metric: one batch says little."""
        values = self.column(name)
        return statistics.mean(values[-max(1, len(values) // 20) :]) if values else None

    def heading(self, ended: datetime) -> str:
        """Return date, configuration and machine."""
        model = str(self.setting("model._target_") or "?").rpartition(".")[2]
        data = str(self.setting("data._target_") or "?").rpartition(".")[2]
        given = " ".join(str(one) for one in self.overrides)
        cpu = self.environment.get("cpu", {})
        machine = ", ".join(
            [*self.environment.get("cuda", []), f"{cpu.get('count', '?')} CPUs",
             str(self.environment.get("platform", "?"))]
        )  # fmt: skip
        return "\n".join(
            [
                f"**Date:** {ended:%Y-%m-%d %H:%M %Z}  ",
                f"**Configuration:** {model} on {data}{f' (`{given}`)' if given else ''}  ",
                f"**Machine:** {machine}",
            ]
        )


def read(path: Path, parse: Callable[[str], Any]) -> Any:
    """Return what a file of the run holds; None where it is absent or cut."""
    try:
        return parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return None


def rows_of(path: Path) -> history.Rows:
    """Return the rows of a metrics.csv; none where there is none, or it is damaged."""
    with suppress(FileNotFoundError, ValueError):
        return history.read_rows(path)
    return []


def summary(content: dict[str, Any], facts: Facts) -> list[str]:
    """Say how it ended, what it reached, how long it took, and whether that is what was asked."""
    objective = content["objective"]
    lines = [f"- Status: **{content['status']}** ({content['reason']})"]
    for key, one in content["metrics"].items():
        head = key.rpartition("/")
        if head[2] in ("accuracy", "rmse", "mse") and head[0].count("/") == 1:
            low_high = report.interval(one)
            lines.append(f"- Final performance: `{key}` {show(one)} (95 %: {low_high})")
    lines.append(f"- Objective `{objective['name']}`: {show(objective)}")
    if (seconds := facts.last("time/train_s")) is not None:
        lines.append(f"- Training time: {seconds / 3600:.2f} hours")
    if content["criteria"]:
        lines.append(f"- Success: {reached(content['criteria'])}")
    return lines


def reached(criteria: list[dict[str, Any]]) -> str:
    """Say which of minimum, target and stretch are met in full."""
    grades = {
        level: [c["passed"] for c in criteria if str(c.get("name", "")).startswith(level)]
        for level in LEVELS
    }
    words = {True: "met", False: "not met", None: "not measured"}
    found = [
        f"{level} {words[False if False in g else None if None in g else True]}"
        for level, g in grades.items()
        if g
    ]
    n_passed = sum(c["passed"] is True for c in criteria)
    return "; ".join([*found, f"{n_passed} of {len(criteria)} criteria passed"])


def details(content: dict[str, Any], facts: Facts) -> list[str]:
    """Return epochs, steps, losses, times and memory."""
    lines, speeds = [], facts.column("time/samples_per_s")  # one for each epoch
    if speeds:
        of = facts.setting("trainer.max_epochs")
        lines.append(f"- Epochs: {len(speeds)}{f' of {of}' if of and of > 0 else ''}")
    if steps := [e["step"] for e in content["events"] if e.get("kind") == "end" and "step" in e]:
        lines.append(f"- Optimizer steps: {steps[-1]:,}")
    for name, text in (("train/loss", "Training loss"), ("val/loss", "Validation loss")):
        if (tail := facts.tail(name)) is not None:
            values = facts.column(name)
            change = f", {(tail - values[0]) / values[0]:+.0%} since the first" if values[0] else ""
            lines.append(f"- {text}, mean of its last twentieth: {digits(tail)}{change}")
    if facts.rows:
        for name in sorted(n for n in facts.rows[-1] if n and n.startswith("train/loss_level_")):
            if (tail := facts.tail(name)) is not None:
                lines.append(f"- Loss of level {name.rpartition('_')[2]}: {digits(tail)}")
    samples, seconds = facts.last("time/samples"), facts.last("time/train_s")
    if samples and seconds:
        lines.append(f"- Samples: {samples:,.0f}, {samples / seconds:,.0f} a second")
    if speeds and samples and seconds:
        lines.append(f"- Time per epoch: {digits(seconds / 60 / len(speeds))} minutes")
    if shares := facts.column("time/data_share"):
        lines.append(f"- Share of the steps that waited for data: {statistics.mean(shares):.1%}")
    if memory := facts.column("memory/share"):
        lines.append(f"- Peak memory: {max(memory):.0%} of the device's")
    return lines


def optimisation(content: dict[str, Any], facts: Facts) -> list[str]:
    """Return, for each feature that can be on, its setting and what was measured of it."""
    if facts.setting("model.attention") is None:
        return []
    table = [["feature", "setting", "measured in this run"], *features(content, facts)]
    return as_table(table)


def features(content: dict[str, Any], facts: Facts) -> Iterable[list[str]]:
    """Yield name, setting and measurement of the features of a model of images."""
    model = facts.config["model"]
    speed = content.get("attention_speed")
    told = "not timed"
    if speed:
        told = (
            f"the fused kernel is {speed['ratio']:.2f} x as fast as the plain one: "
            f"{1000 * speed['sdpa']:.1f} and {1000 * speed['plain']:.1f} ms a step of "
            f"{speed['n']} images, without the optimizer"
        )
    yield ["fused attention", f"`model.attention={model['attention']}`", told]
    once = "not known from one run: compare with a run of "
    scale, norms = model.get("layer_scale"), facts.column("train/grad_norm")
    spread = f"gradient norm {digits(statistics.median(norms))} (median); " if norms else ""
    yield [
        "LayerScale", f"`model.layer_scale={null(scale)}`",
        "off" if scale is None else f"{spread}its share is {once}`model.layer_scale=null`",
    ]  # fmt: skip
    recomputed = bool(model.get("gradient_checkpointing"))
    memory = facts.column("memory/share")
    yield [
        "gradient checkpointing", f"`model.gradient_checkpointing={null(recomputed)}`",
        f"peak memory {max(memory):.0%} of the device's" if recomputed and memory else
        "off" if not recomputed else "not measured",
    ]  # fmt: skip
    n_levels = model.get("levels", 1)
    losses = [facts.tail(f"train/loss_level_{level}") for level in range(n_levels)]
    by_level = ", ".join(digits(value) for value in losses if value is not None)
    yield [
        "pyramid", f"`model.pyramid={model.get('pyramid')}`, {n_levels} levels",
        f"loss of each level at the end: {by_level}" if by_level else "not measured",
    ]  # fmt: skip
    accuracy = facts.tail("train/nt_xent_accuracy")
    yield [
        "contrastive term", f"`model.nt_xent={model.get('nt_xent')}`",
        "off" if accuracy is None else f"pairs told apart at the end: {accuracy:.3f}",
    ]  # fmt: skip


def null(value: Any) -> str:
    """Return a setting as it is written on a command line."""
    return {None: "null", True: "true", False: "false"}.get(value, str(value))


def against_target(content: dict[str, Any]) -> list[str]:
    """Return the table of criteria."""
    body = [
        [c.get("name", ""), f"`{asks(c)}`", show(c), grade_word(c)] for c in content["criteria"]
    ]
    return as_table([["name", "asks", "result", "passed"], *body]) if body else []


def stability(content: dict[str, Any], facts: Facts) -> list[str]:
    """Return what went wrong and how the run's vitals stand."""
    quiet = ("end", "resume", "criterion")
    told = [e for e in content["events"] if e.get("kind") not in quiet]
    losses = facts.column("train/loss")
    lines = []
    if losses:
        bad = sum(value != value or abs(value) == float("inf") for value in losses)
        lines.append(f"- Losses that are no number: {bad} of {len(losses):,} on record")
    lines.append(f"- Decisions of the watch and the guard: {len(told) or 'none'}")
    for event in told[-20:]:
        rest = {k: v for k, v in event.items() if k not in ("time", "kind", "step")}
        shown = ", ".join(f"{k} {v}" for k, v in list(rest.items())[:4])
        lines.append(f"  - step {event.get('step', '?')}: {event.get('kind')}: {shown}")
    return [*lines, *report.vitals_table(content)]


def pictures(run_dir: Path) -> list[str]:
    """Return links to the pictures that were drawn."""
    there = [name for name in PICTURES if (run_dir / "plots" / f"{name}.png").exists()]
    return [f"![{PICTURES[name]}](plots/{name}.png)\n" for name in there]


def next_steps(content: dict[str, Any], facts: Facts) -> list[str]:
    """Return what to do next: by what failed, else by the best level of the criteria that is met.

    The decision matrix of the overnight guide, with the criteria of the experiment as its levels.
    """
    given = " ".join(str(one).lstrip("- ") for one in facts.overrides)
    again = f"python -m jepa.train {given}".strip()
    where = facts.setting("run_dir") or "<run>"
    if content["status"] == "failed":
        return [
            f"- [ ] Read `{where}/train.log`; check the machine: "
            f"`{again.replace('jepa.train', 'jepa.doctor')}`"
        ]
    steps = []
    if any(vital["state"] == "critical" for vital in content["vitals"]):
        steps.append("- [ ] Look into what is critical under Stability before anything else")
    if "DOES NOT BEAT its untrained self" in " ".join(report.verdict(content)):
        steps.append(
            "- [ ] A probe does not beat the untrained encoder: train longer, or try another "
            f"`model.optimizer.lr`, before scaling up: `{again} -m model.optimizer.lr=3e-4,1e-3`"
        )
    met = {level: level_met(content["criteria"], level) for level in LEVELS}
    epochs = facts.setting("trainer.max_epochs") or 0
    if met["stretch"]:
        steps.append("- [ ] Every criterion is met: the same settings on more data, or longer")
    elif met["target"]:
        more = max(1, round(1.5 * epochs))
        steps.append(f"- [ ] The target is met: train longer: `{again} trainer.max_epochs={more}`")
    elif met["minimum"]:
        steps.append(
            "- [ ] The minimum is met, the target is not: search the settings before scaling up: "
            f"`{again.replace('jepa.train', 'jepa.train -m hydra/sweeper=optuna')}`"
        )
    elif met["minimum"] is False:
        steps.append(
            "- [ ] The minimum is not met: find out why before the next run; see Stability"
        )
    return [*steps, f"- [ ] All protocols: `python -m jepa.evaluate run={where} protocol=all`"]


def level_met(criteria: list[dict[str, Any]], level: str) -> bool | None:
    """Tell whether all criteria of a level passed; None where there are none, or one is open."""
    grades = [c["passed"] for c in criteria if str(c.get("name", "")).startswith(level)]
    if not grades or None in grades:
        return None if False not in grades else False
    return all(grades)


def appendix(run_dir: Path) -> list[str]:
    """Return where things lie."""
    places = {
        "Checkpoint": ("checkpoints/best.ckpt", "checkpoints/last.ckpt"),
        "Log": ("train.log",),
        "Metrics": ("metrics.csv", "report.json"),
        "Settings": ("config.yaml", "environment.json"),
        "TensorBoard": ("tensorboard",),
    }
    found = {
        name: [f"`{path}`" for path in paths if (run_dir / path).exists()]
        for name, paths in places.items()
    }
    return [f"- {name}: {', '.join(paths)}" for name, paths in found.items() if paths]


def as_table(rows: list[list[str]]) -> list[str]:
    """Return rows as a Markdown table, the first of them the head."""
    head, *body = rows
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return lines + ["| " + " | ".join(row) + " |" for row in body]
