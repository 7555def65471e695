"""The loop of a sweep: a finished trial is told and replaced at once; none can end the rest."""

import errno
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jepa.callbacks.terminal import Terminal
from jepa.sweeps import study as studies
from jepa.sweeps.alarm import Alarm
from jepa.sweeps.local import POLL_S, Job
from jepa.sweeps.outcome import Outcome
from jepa.sweeps.space import Space
from jepa.sweeps.trial_files import heartbeat

if TYPE_CHECKING:
    import optuna

MIN_TOLD = 10  # trials before their share of failures says something
LOOK_S = 2.0
ASKED = {-1: "the key q", -2: "the file STOP"}


class TooManyFailures(RuntimeError):
    """The sweep ends: what it tries fails more often than not."""


@dataclass
class Flight:
    """A trial in flight."""

    trial: "optuna.Trial"
    job: Job
    started: float
    n_reported: int = 0
    pruned: str = ""


@dataclass
class Settings:
    """What the command asks for.

    Args:
        n_trials: of the study, those of earlier commands included.
        n_jobs: in flight at a time.
        max_failure_rate: of the trials told, once there are ten.
        max_retries: of a trial that the machine failed, not the trial itself.
        extender: adds to a trial's values, or changes them (`custom_search_space`).
        config: of the sweep, for the extender.
        refuse: tells from a trial's overrides why it cannot run; nothing where it can.
    """

    n_trials: int
    n_jobs: int
    max_failure_rate: float
    max_retries: int
    extender: Any = None
    config: Any = None
    refuse: Callable[[list[str]], str] | None = None


@dataclass
class Sweep:
    """One driver at work on a study.

    Args:
        study: shared with other drivers, if there are any.
        space: what is searched.
        start: starts a trial from its overrides in a directory.
        ready: tells whether another may start now.
        folder: of the sweep; a trial's directory is its number.
        settings: of the command.
        told: called after every trial that was told.
        shown: called at every turn of the loop, with what is in flight.
        adopt: returns the job of a directory, if it outlives its driver; None: no job does.
    """

    study: "optuna.Study"
    space: Space
    start: Callable[[list[str], Path], Job]
    ready: Callable[[], bool]
    folder: Path
    settings: Settings
    told: Callable[["optuna.Trial", Outcome], None]
    shown: Callable[[list[Flight]], None]
    adopt: Callable[[Path], Job | None] | None = None
    flights: list[Flight] = field(default_factory=list)
    look_again: float = 0.0  # for trials that another driver lost
    heard: int = 0  # a signal's number, or a key of ASKED; 0 for nothing

    def run(self) -> None:
        """Run until the study has its trials, or the sweep is asked to stop.

        Raises:
            TooManyFailures: if too large a part of the trials failed.
        """
        self.driver = studies.Driver(self.folder)
        terminal, alarm, before = Terminal(), Alarm(), self.listen()
        terminal.open()
        alarm.open()
        try:
            with studies.alone(self.folder):
                self.take_over()
                for number in studies.repair(self.study, self.folder, self.driver):
                    print(f"trial {number}: its driver died; it is run again", flush=True)
            while (self.fill() or self.flights) and not self.heard:
                self.shown(self.flights)
                alarm.wait(POLL_S)
                self.look(terminal)
                if any([self.check(flight) for flight in list(self.flights)]):
                    self.refuse_to_fail()
        finally:
            terminal.close()
            alarm.close()
            self.leave()
            for number, handler in before.items():
                signal.signal(number, handler)
            self.driver.close()

    def take_over(self) -> None:
        """Look after the jobs that outlived their driver."""
        import optuna

        for old in studies.orphans(self.study, self.driver) if self.adopt else ():
            assert self.adopt is not None
            job = self.adopt(self.folder / str(old.number))
            if job is None:
                continue
            trial = optuna.trial.Trial(self.study, old._trial_id)
            trial.set_user_attr("driver", self.driver.name)
            started = time.monotonic() - (datetime.now() - old.datetime_start).total_seconds()
            self.flights.append(Flight(trial, job, started, len(old.intermediate_values)))
            print(f"trial {old.number}: its driver died, its job goes on", flush=True)

    def listen(self) -> dict[int, Any]:
        """Note signals from now on; a second Ctrl-C ends everything at once."""
        if threading.current_thread() is not threading.main_thread():
            return {}

        def note(number: int, _frame: Any) -> None:
            if self.heard == number == signal.SIGINT:
                for flight in self.flights:
                    flight.job.kill()
            self.heard = number

        return {n: signal.signal(n, note) for n in (signal.SIGINT, signal.SIGTERM)}

    def look(self, terminal: Terminal) -> None:
        """See whether a key or the file STOP asks for an end."""
        if self.heard:
            return
        if terminal.key() == "q":
            self.heard = -1
        elif (self.folder / "STOP").exists():
            (self.folder / "STOP").unlink(missing_ok=True)
            self.heard = -2

    def fill(self) -> bool:
        """Start trials while there is room; tell whether any is in flight or could be."""
        while not self.heard and len(self.flights) < self.settings.n_jobs:
            if not self.ready() or time.monotonic() < self.look_again:
                return True
            with studies.alone(self.folder):
                if studies.n_left(self.study, self.settings.n_trials) <= 0:
                    self.look_again = time.monotonic() + LOOK_S
                    return bool(self.flights)
                trial = studies.ask(
                    self.study, self.space, self.settings.extender, self.settings.config
                )
                trial.set_user_attr("driver", self.driver.name)
            self.launch(trial)
        return bool(self.flights)

    def launch(self, trial: "optuna.Trial") -> None:
        """Start one trial, if it can run; what the machine cannot start is tried again later."""
        overrides = [*self.space.overrides(trial.params), *trial.user_attrs.get("changes", ())]
        trial.set_user_attr("overrides", overrides)
        if self.settings.refuse and (reason := self.settings.refuse(overrides)):
            self.tell(trial, Outcome("pruned", f"not started: {reason}"), 0.0)
            return
        if (checkpoint := trial.user_attrs.get("resume")) and Path(checkpoint).exists():
            overrides.append(f"resume={checkpoint}")
        started = time.monotonic()  # before the start: a launcher that waits runs the trial in it
        try:
            job = self.start(overrides, self.folder / str(trial.number))
        except OSError as error:  # no process to be had: not the trial's doing
            if error.errno == errno.ENOSPC:
                raise  # nor would the next trial start; this one goes on with the next command
            self.tell(trial, Outcome("failed", f"could not be started: {error}", lost=True), 0.0)
            return
        self.flights.append(Flight(trial, job, started))

    def check(self, flight: Flight) -> bool:
        """Hand on what the trial has reached; tell how it ended, if it has. True if it has."""
        outcome = flight.job.poll()
        if not flight.pruned and outcome is None:
            self.report(flight)
        if outcome is None:
            return False
        self.flights.remove(flight)
        if flight.pruned and outcome.state != "complete":
            outcome = Outcome("pruned", flight.pruned)
        self.tell(flight.trial, outcome, time.monotonic() - flight.started)
        return True

    def report(self, flight: Flight) -> None:
        """Report validations since the last look; stop a trial that the pruner gives up on."""
        if len(self.study.directions) > 1:
            return  # Optuna prunes by one objective only
        values = heartbeat(flight.job.directory).get("values", [])
        for index in range(flight.n_reported, len(values)):
            step, value = values[index]
            flight.trial.report(value, index)
            flight.n_reported = index + 1
            if flight.trial.should_prune():
                flight.pruned = f"at step {step:.0f}, with {value:.6g}"
                flight.job.stop()
                return

    def tell(self, trial: "optuna.Trial", outcome: Outcome, seconds: float) -> None:
        """Tell the study how a trial ended; enqueue again what is not to blame."""
        if outcome.lost and trial.user_attrs.get("retries", 0) < self.settings.max_retries:
            trial.set_user_attr("seconds", round(seconds, 3))
            trial.set_user_attr("retries", trial.user_attrs.get("retries", 0) + 1)
            studies.give_up(
                self.study, frozen(trial), outcome.reason, self.folder, changes=outcome.changes
            )
        else:
            studies.tell(self.study, frozen(trial), outcome, seconds)
        self.told(trial, outcome)

    def refuse_to_fail(self) -> None:
        """End the sweep where too large a part of its trials fail.

        Raises:
            TooManyFailures: then.
        """
        told = studies.counted(self.study)
        failed = sum(one.state.name == "FAIL" for one in told)
        if len(told) >= MIN_TOLD and failed > self.settings.max_failure_rate * len(told):
            raise TooManyFailures(
                f"{failed} of {len(told)} trials failed, more than hydra.sweeper.max_failure_rate="
                f"{self.settings.max_failure_rate} allows: see trials.csv for why"
            )

    def leave(self) -> None:
        """Let what is still in flight write its checkpoint; it goes on with the next command.

        After SIGTERM, jobs that outlive their driver do, and the next one looks after them.
        """
        from optuna.exceptions import StorageInternalError

        if self.adopt and self.heard == signal.SIGTERM:
            return
        for flight in self.flights:
            flight.job.stop()
        while self.flights:
            for flight in list(self.flights):
                outcome = flight.job.poll()
                if outcome is None:
                    continue
                self.flights.remove(flight)
                with suppress(OSError, StorageInternalError):  # the next command repairs it
                    self.part(flight, outcome)
            time.sleep(POLL_S)

    def part(self, flight: Flight, outcome: Outcome) -> None:
        """Tell what came to its end all the same; enqueue again what was stopped on its way."""
        seconds = time.monotonic() - flight.started
        if outcome.state == "complete" or flight.pruned:
            ended = Outcome("pruned", flight.pruned) if flight.pruned else outcome
            self.tell(flight.trial, ended, seconds)
        else:
            flight.trial.set_user_attr("seconds", round(seconds, 3))
            why = "the sweep was stopped"
            studies.give_up(self.study, frozen(flight.trial), why, self.folder)


def frozen(trial: "optuna.Trial") -> Any:
    """Return the trial as the storage has it now."""
    return trial.storage.get_trial(trial._trial_id)
