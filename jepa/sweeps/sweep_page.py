"""The page of a sweep: its best trial and how it came to it, Optuna's plots, what failed."""

import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jepa import glossary, page
from jepa.report import digits, interval
from jepa.sweeps import study as studies
from jepa.sweeps.plots import pictures, short

if TYPE_CHECKING:
    import optuna

MOST_TRIALS = 10  # in the table of the best
ENDINGS = {"complete": "complete", "pruned": "pruned", "fail": "failed"}


def html_page(
    study: "optuna.Study", folder: Path, counts: dict[str, int], command: Callable[[Any], str]
) -> str:
    """Return report.html.

    Args:
        study: what was tried.
        folder: of the sweep.
        counts: how many trials ended how.
        command: returns the line that runs a trial again.
    """
    trials = study.get_trials(deepcopy=False)
    best, name = best_trials(study, trials), objective_name(folder, trials)
    ended = ", ".join(f"{n} {ENDINGS.get(state, state)}" for state, n in counts.items())
    flying = sum(not one.state.is_finished() for one in trials)
    ended += f", {flying} still to end" if flying else ""
    parts = [
        page.heading(f"Sweep {study.study_name}", 1),
        page.paragraph(f"{folder} · trials: {ended}", "pale"),
        page.lead(*verdict(study, trials, best, name)),
    ]
    if best and len(study.directions) == 1:
        (one,) = best
        rows = [["setting", "value"], *([key, short(v)] for key, v in one.params.items())]
        parts += [page.heading(f"The best: trial {one.number}"), page.table(rows, code_first=True)]
        parts += [page.code(command(one)), page.listing(caveats(study, folder, trials, one, name))]
    title = "The best trials" if len(study.directions) == 1 else "The Pareto front"
    if len(listed := trial_rows(study, trials, best, name)) > 2:
        parts += [page.heading(title), page.table(listed)]
    for title, figures in pictures(study, name):
        parts += [page.heading(title), page.charts(figures)]
    parts += failures(trials, folder)
    parts.append(page.terms("What the words mean", glossary.found_in("".join(parts))))
    return page.page(f"Sweep {study.study_name}", parts)


def best_trials(study: "optuna.Study", trials: Sequence[Any]) -> list[Any]:
    """Return the best trial; the Pareto front of several objectives."""
    if len(study.directions) > 1:
        return study.best_trials
    best = studies.best_of(trials)
    return [] if best is None else [best]


def objective_name(folder: Path, trials: Sequence[Any]) -> str:
    """Return the name of the objective as the trials' reports have it."""
    for trial in trials:
        found = read(folder / str(trial.number) / "report.json").get("objective", {}).get("name")
        if found:
            return found
    return "objective"


def read(path: Path) -> dict[str, Any]:
    """Return what a JSON file holds; nothing where it is not there, or damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def verdict(
    study: "optuna.Study", trials: Sequence[Any], best: Sequence[Any], name: str
) -> tuple[str, str, str]:
    """Return the sentence at the top: its name, itself, and its state."""
    if not best:
        return "No result:", "no trial has come to a value yet.", "critical"
    if len(study.directions) > 1:
        said = f"of {len(trials)} trials none is better in every objective than these."
        return f"{len(best)} on the Pareto front:", said, "healthy"
    values = [one.values[0] for one in trials if one.state.name == "COMPLETE"]
    said = f"{name} {digits(best[0].values[0])}, the lowest of {len(values)} complete trials"
    if len(values) > 1:
        middle, most = digits(statistics.median(values)), digits(max(values))
        said += f"; their median is {middle}, the highest {most}"
    return f"Trial {best[0].number}:", said + ".", "healthy" if len(values) > 1 else "warn"


def caveats(
    study: "optuna.Study", folder: Path, trials: Sequence[Any], best: Any, name: str
) -> list[str]:
    """Say what the best value is not, and what is known of it on the test split."""
    evaluation = read(folder / str(best.number) / "evaluation.json")
    scored = evaluation.get("objective", {})
    if study.user_attrs.get("tested") == best.number and scored.get("value") is not None:
        entry = evaluation["metrics"].get(scored["name"], {"low": None, "high": None})
        known = f"On the test split, once: {scored['name']} {digits(scored['value'])} ({interval(entry)})."  # fmt: skip  # noqa: E501
    else:
        known = "It is not scored on the test split yet."
    tried = sum(one.state.name == "COMPLETE" for one in trials)
    chosen = f"It is the least of {tried} values, and was picked for that: on other rows, or with another seed, expect a larger one."  # fmt: skip  # noqa: E501
    return [chosen, known] if tried > 1 else [known]


def trial_rows(
    study: "optuna.Study", trials: Sequence[Any], best: Sequence[Any], name: str
) -> list[list[str | bool | None]]:
    """Return the best trials with their settings; the first row is the head."""
    if len(study.directions) == 1:
        complete = [one for one in trials if one.state.name == "COMPLETE"]
        best = sorted(complete, key=lambda one: one.values[0])[:MOST_TRIALS]
    keys = list(dict.fromkeys(key for one in best for key in one.params))
    n_values = len(study.directions)
    names = [name] if n_values == 1 else [f"objective {i}" for i in range(n_values)]
    rows: list[list[str | bool | None]] = [["trial", *names, "seconds", *keys]]
    for one in best:
        seconds = one.user_attrs.get("seconds")
        took = "-" if seconds is None else f"{seconds:.0f}"
        values = [short(one.params[key]) if key in one.params else "-" for key in keys]
        rows.append([str(one.number), *map(digits, one.values), took, *values])
    return rows


def failures(trials: Sequence[Any], folder: Path) -> list[str]:
    """Return the trials that failed, were lost or pruned, each with its reason."""
    parts = []
    for state, title in (("FAIL", "Failures"), ("PRUNED", "Pruned")):
        rows: list[list[str | bool | None]] = [["trial", "state", "reason"]]
        for one in trials:
            if one.state.name == state:
                lost = one.user_attrs.get(studies.LOST)
                word = "lost, run again" if lost else ENDINGS[state.lower()]
                # files are named from the sweep's directory, which stands at the top
                reason = str(one.user_attrs.get("ended", "")).replace(f"{folder}/", "")
                rows.append([str(one.number), word, reason or "-"])
        if len(rows) > 1:
            parts += [page.heading(title), page.table(rows)]
    return parts
