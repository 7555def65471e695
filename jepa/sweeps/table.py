"""What a sweep shows while it runs: a live table on a terminal, else a line for each trial."""

import time
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from jepa.sweeps import study as studies
from jepa.sweeps.outcome import Outcome
from jepa.sweeps.trial_files import heartbeat

if TYPE_CHECKING:
    import optuna

REFRESH_S = 1.0


class Screen:
    """Shows the trials in flight, the best so far, and when the sweep will be over."""

    def __init__(self, study: "optuna.Study", *, n_trials: int, n_jobs: int):
        self.study, self.n_trials, self.n_jobs = study, n_trials, n_jobs
        self.console = Console()
        self.live: Live | None = None
        self.shown = 0.0

    def __enter__(self) -> "Screen":
        """Open the table, on a terminal only."""
        if self.console.is_terminal:
            self.live = Live(console=self.console, auto_refresh=False)
            self.live.start()
        return self

    def __exit__(self, *_: Any) -> None:
        """Close it."""
        if self.live is not None:
            self.live.stop()

    def tell(self, trial: Any, outcome: Outcome) -> None:
        """Say how a trial ended."""
        self.console.print(
            f"trial {trial.number}: {outcome.state}: {outcome.reason}",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )

    def show(self, flights: list[Any]) -> None:
        """Draw the table, at most once a second."""
        if self.live is None or time.monotonic() - self.shown < REFRESH_S:
            return
        self.shown = time.monotonic()
        table = Table("trial", "minutes", "step", "objective", "parameters", title="running")
        for flight in flights:
            signs = heartbeat(flight.job.directory)
            values = signs.get("values") or [[0, float("nan")]]
            table.add_row(
                str(flight.trial.number),
                f"{(time.monotonic() - flight.started) / 60:.1f}",
                f"{signs.get('step', 0)}/{signs.get('total', '?')}",
                f"{values[-1][1]:.5g}",
                " ".join(f"{k}={v}" for k, v in flight.trial.params.items()),
            )
        self.live.update(Group(table, Text(self.summary(len(flights)))), refresh=True)

    def summary(self, n_running: int) -> str:
        """Return how far the sweep is, in one line."""
        told = studies.counted(self.study)
        seconds = [one.user_attrs["seconds"] for one in told if "seconds" in one.user_attrs]
        left = self.n_trials - len(told)
        text = f"{len(told)} of {self.n_trials} trials, {n_running} running"
        if seconds:
            minutes = left * sum(seconds) / len(seconds) / max(1, self.n_jobs) / 60
            text += f", {minutes:.0f} min left"
        best = studies.best_of(told) if len(self.study.directions) == 1 else None
        return text + (f"; best: trial {best.number}, {best.values[0]:.6g}" if best else "")
