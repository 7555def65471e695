"""One Optuna study over several commands and several drivers: what counts, what is run again."""

import fcntl
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from jepa.config import UserError
from jepa.sweeps.local import kill_orphan
from jepa.sweeps.outcome import RESULT, Outcome, read_outcome
from jepa.sweeps.space import Space, difference
from jepa.sweeps.trial_files import newest_checkpoint

if TYPE_CHECKING:
    import optuna

LOST = "lost"  # an attribute of trials that ended through no fault of their own: they do not count
PRUNERS = ("median", "hyperband", "none")


def open_storage(storage: str | None, folder: Path) -> Any:
    """Return the storage: a database URL, a journal file (`*.log`), or sqlite in the folder.

    Raises:
        UserError: if it cannot be reached.
    """
    import optuna
    from optuna.storages.journal import JournalFileBackend

    where = storage or f"sqlite:///{folder / 'optuna.db'}"
    try:
        if "://" not in where:
            if not where.endswith(".log"):
                raise UserError(
                    f"hydra.sweeper.storage={where} is neither a database URL, as "
                    "sqlite:///study.db, nor a journal file, as study.log"
                )
            return optuna.storages.JournalStorage(JournalFileBackend(where))
        if where.startswith("sqlite:"):
            settings = {"connect_args": {"timeout": 60}}  # another driver may be writing
            return optuna.storages.RDBStorage(where, engine_kwargs=settings)
        return optuna.storages.RDBStorage(where)
    except UserError:
        raise
    except Exception as error:  # each database has errors of its own
        first = str(error).splitlines()[0]
        raise UserError(
            f"hydra.sweeper.storage={where} cannot be opened: {type(error).__name__}: {first}"
        ) from error


def build_pruner(name: str) -> "optuna.pruners.BasePruner":
    """Return the pruner: `median`, `hyperband` or `none`.

    Raises:
        ValueError: for another name.
    """
    import optuna

    if name not in PRUNERS:
        raise ValueError(f"hydra.sweeper.pruner must be one of {PRUNERS}, got {name!r}")
    if name == "none":
        return optuna.pruners.NopPruner()
    if name == "hyperband":
        return optuna.pruners.HyperbandPruner()
    return optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=1)


def check_space(study: "optuna.Study", space: Space) -> None:
    """Refuse to go on with a study of another search space; note the space of a new one.

    Raises:
        UserError: showing the difference.
    """
    now = space.record()
    before = study.user_attrs.get("space")
    if before is None:
        study.set_user_attr("space", now)
    elif before != now:
        lines = "\n  ".join(difference(before, now))
        raise UserError(
            f"the study {study.study_name} searches another space:\n  {lines}\n"
            "give study=<new> to start afresh, or the space it began with"
        )


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keep other drivers of the same folder out while one counts and asks."""
    with (folder / ".study.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


class Driver:
    """The mark of this process in a study: others see by a held lock whether it lives."""

    def __init__(self, folder: Path):
        self.name = f"{socket.gethostname()}_{os.getpid()}"
        self.folder = folder / ".drivers"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.file: IO[str] = (self.folder / self.name).open("w")
        fcntl.flock(self.file, fcntl.LOCK_EX)

    def lives(self, name: str) -> bool:
        """Tell whether another driver is still at work; one that left no name is not."""
        path = self.folder / name
        if name == self.name:
            return True
        if not path.is_file():
            return False
        with path.open("r+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    def close(self) -> None:
        """Take the mark away."""
        (self.folder / self.name).unlink(missing_ok=True)
        self.file.close()


def orphans(study: "optuna.Study", driver: Driver) -> list[Any]:
    """Return the running trials whose drivers are dead."""
    from optuna.trial import TrialState

    running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    return [one for one in running if not driver.lives(one.user_attrs.get("driver", ""))]


def repair(study: "optuna.Study", folder: Path, driver: Driver) -> list[int]:
    """Fail what dead drivers left running and enqueue it again; return the trials' numbers.

    A trial that had come to its end before is told now, and not run again.
    """
    lost = []
    for trial in orphans(study, driver):
        directory = folder / str(trial.number)
        kill_orphan(directory)
        if (result := directory / RESULT).exists():
            outcome = read_outcome(directory, 0, n_objectives=len(study.directions))
            assert trial.datetime_start is not None  # it is running
            seconds = result.stat().st_mtime - trial.datetime_start.timestamp()
            tell(study, trial, outcome, seconds)
        else:
            give_up(study, trial, "its driver died", folder)
            lost.append(trial.number)
    return lost


def tell(study: "optuna.Study", trial: Any, outcome: Outcome, seconds: float) -> None:
    """Tell how a trial ended, for good."""
    from optuna.samplers import GridSampler
    from optuna.trial import TrialState

    set_attributes(study, trial, {"seconds": round(seconds, 3), "ended": outcome.reason})
    states = {
        "complete": TrialState.COMPLETE,
        "pruned": TrialState.PRUNED,
        "failed": TrialState.FAIL,
    }
    values = list(outcome.values) if outcome.state == "complete" else None
    try:
        study.tell(trial.number, values, state=states[outcome.state])
    except RuntimeError:  # a grid stops a loop of Optuna's at its end; this one is ours
        if not isinstance(study.sampler, GridSampler):
            raise


def give_up(
    study: "optuna.Study",
    trial: Any,
    reason: str,
    folder: Path,
    *,
    changes: Sequence[str] = (),
) -> None:
    """Fail a trial that is not to blame, and enqueue a copy that goes on where it was.

    The copy runs with the changes, or with those that this one ran with.
    """
    from optuna.trial import TrialState

    attributes = dict(trial.user_attrs)
    copy: dict[str, Any] = {"copy_of": trial.number, "retries": attributes.get("retries", 0)}
    if checkpoint := newest_checkpoint(folder / str(trial.number)):
        copy["resume"] = str(checkpoint)
    elif "resume" in attributes:
        copy["resume"] = attributes["resume"]
    if changes or "changes" in attributes:
        copy["changes"] = list(changes) or attributes["changes"]
    set_attributes(study, trial, {LOST: True, "ended": reason})
    study.tell(trial.number, state=TrialState.FAIL)
    study.enqueue_trial(trial.params, user_attrs=copy)


def set_attributes(study: "optuna.Study", trial: Any, values: Mapping[str, Any]) -> None:
    """Note values with a trial, of this driver or another."""
    for key, value in values.items():
        study._storage.set_trial_user_attr(trial._trial_id, key, value)


def counted(study: "optuna.Study") -> list[Any]:
    """Return the trials that count towards `n_trials`, without those in flight."""
    trials = study.get_trials(deepcopy=False)
    return [one for one in trials if one.state.is_finished() and not one.user_attrs.get(LOST)]


def n_left(study: "optuna.Study", n_trials: int) -> int:
    """Return how many trials are still to be started, by whatever driver."""
    from optuna.samplers import GridSampler
    from optuna.trial import TrialState

    if isinstance(study.sampler, GridSampler):
        n_trials = min(n_trials, len(study.sampler._all_grids))
    running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    return n_trials - len(counted(study)) - len(running)


def ask(study: "optuna.Study", space: Space, extender: Any, config: Any) -> "optuna.Trial":
    """Return the next trial, its values drawn."""
    trial = study.ask()
    for key, distribution in space.distributions.items():
        trial._suggest(key, distribution)
    if extender:
        extender(config, trial)
    return trial


def best_of(trials: Sequence[Any]) -> Any | None:
    """Return the complete trial with the lowest value, None where there is none."""
    complete = [one for one in trials if one.state.name == "COMPLETE"]
    return min(complete, key=lambda one: one.values[0], default=None)
