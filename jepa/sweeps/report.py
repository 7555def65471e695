"""What a sweep leaves to read: trials.csv, best.yaml and report.html in its directory.

`python -m jepa.sweeps.report run=<sweep directory>` writes them again from the study alone; of a
grid of `jepa.evaluate -m` it writes what `grid.py` says.
"""

import csv
import io
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from jepa.config import UserError, fail
from jepa.report import write_text
from jepa.sweeps import grid, sweep_page
from jepa.sweeps import study as studies

if TYPE_CHECKING:
    import optuna

RECORD = "sweep.yaml"  # how the sweep was started: what a report needs beside the study
FIRST = ["number", "state", "value", "reason", "seconds", "directory"]


def record(folder: Path, *, storage: str | None, name: str, command: Sequence[str]) -> None:
    """Note where the study lies and what each trial runs."""
    content = {"storage": storage, "study": name, "command": list(command)}
    write_text(folder / RECORD, OmegaConf.to_yaml(OmegaConf.create(content)))


def write_tables(
    study: "optuna.Study", folder: Path, known: dict[int, list[Any]] | None = None
) -> None:
    """Write trials.csv and best.yaml.

    Args:
        study: whose trials.
        folder: of the sweep.
        known: the rows of trials that had ended at an earlier call; filled here.
    """
    trials = study.get_trials(deepcopy=False)
    known = {} if known is None else known
    for trial in trials:
        if trial.number not in known and trial.state.is_finished():
            known[trial.number] = row(trial, folder)
    keys = sorted({key for trial in trials for key in trial.params})
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow([*FIRST, *keys])
    for trial in trials:
        first = known.get(trial.number) or row(trial, folder)
        rows.writerow([*first, *(trial.params.get(key, "") for key in keys)])
    write_text(folder / "trials.csv", text.getvalue())
    best = [studies.best_of(trials)] if len(study.directions) == 1 else study.best_trials
    if best := [one for one in best if one is not None]:
        found = [describe(one, folder) for one in best]
        content = found[0] if len(study.directions) == 1 else {"pareto": found}
        write_text(folder / "best.yaml", OmegaConf.to_yaml(OmegaConf.create(content)))


def row(trial: Any, folder: Path) -> list[Any]:
    """Return what trials.csv says of a trial of any state, without its parameters."""
    value = " ".join(map(repr, trial.values)) if trial.values else ""
    directory = folder / str(trial.number)
    return [
        trial.number,
        "LOST" if trial.user_attrs.get(studies.LOST) else trial.state.name,
        value,
        trial.user_attrs.get("ended", ""),
        trial.user_attrs.get("seconds", ""),
        directory if directory.exists() else "",
    ]


def describe(trial: Any, folder: Path) -> dict[str, Any]:
    """Return a trial's values and parameters, and the command that runs it again."""
    values = [float(one) for one in trial.values]
    return {
        "trial": trial.number,
        "value": values[0] if len(values) == 1 else values,
        "params": dict(trial.params),
        "directory": str(folder / str(trial.number)),
        "command": reproduce(trial, folder),
    }


def reproduce(trial: Any, folder: Path) -> str:
    """Return the command of a trial, as one types it."""
    path = folder / RECORD
    base = [str(one) for one in OmegaConf.load(path).command] if path.exists() else []
    return shlex.join([*base, *trial.user_attrs.get("overrides", [])])


def summarize(study: "optuna.Study") -> dict[str, int]:
    """Return how many trials ended how; the lost ones apart."""
    trials = studies.counted(study)
    ended = [one.state.name.lower() for one in trials]
    return {state: ended.count(state) for state in ("complete", "pruned", "fail")}


def write_page(study: "optuna.Study", folder: Path) -> None:
    """Write report.html: one file, whose plots take seconds."""
    counts = summarize(study)
    text = sweep_page.html_page(study, folder, counts, lambda trial: reproduce(trial, folder))
    write_text(folder / "report.html", text)


def write_all(study: "optuna.Study", folder: Path) -> None:
    """Write everything there is to read."""
    write_tables(study, folder)
    write_page(study, folder)


def main(*arguments: str) -> None:
    """Write the reports of a sweep directory again.

    Raises:
        UserError: if it is none.
    """
    import optuna

    settings = dict(one.split("=", 1) for one in arguments if "=" in one)
    if settings.keys() != {"run"} or len(arguments) != 1:
        raise UserError("use: python -m jepa.sweeps.report run=<sweep directory>")
    folder = Path(settings["run"])
    if (folder / grid.GRID).exists():
        print(grid.write(folder))
        return
    if not (folder / RECORD).exists():
        raise UserError(f"run={folder} is no directory of a sweep: it has no {RECORD}")
    known = OmegaConf.load(folder / RECORD)
    storage = studies.open_storage(known.storage, folder)
    study = optuna.load_study(study_name=known.study, storage=storage)
    write_all(study, folder)
    print(f"{json.dumps(summarize(study))}\nwritten: {folder / 'report.html'}")


def cli() -> None:
    """Run the command."""
    try:
        main(*sys.argv[1:])
    except UserError as error:
        fail(str(error), code=2)


if __name__ == "__main__":
    cli()
