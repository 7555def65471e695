"""Any other launcher of Hydra's behind a sweep: each trial runs to its end before the next."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jepa.allocator import free_memory
from jepa.sweeps.outcome import Outcome, failed, judge


class Done:
    """A trial that is over."""

    def __init__(self, directory: Path, outcome: Outcome):
        self.directory, self.outcome = directory, outcome

    def poll(self) -> Outcome:
        """Return how it ended."""
        return self.outcome

    def stop(self) -> None:
        """There is nothing to stop."""

    def kill(self) -> None:
        """There is nothing to kill."""


class InProcess:
    """Starts trials through a launcher that waits for them, as `basic` or `submitit_slurm`."""

    def __init__(self, launcher: Any, *, n_objectives: int):
        self.launcher, self.n_objectives = launcher, n_objectives

    def ready(self) -> bool:
        """Tell whether another trial may start: always, for the last one is over."""
        return True

    def start(self, overrides: Sequence[str], directory: Path) -> Done:
        """Run a trial; whatever it raises is its own failure."""
        try:
            (result,) = self.launcher.launch([overrides], initial_job_idx=int(directory.name))
            outcome = judge(directory, result.return_value, self.n_objectives)
        except Exception as error:  # whatever a run, or the launcher, can raise
            kind = type(error).__name__
            text = f"{kind}: {error}"
            outcome = Outcome("pruned", text) if kind == "PlanError" else failed(directory, text)
        free_memory()
        return Done(directory, outcome)
