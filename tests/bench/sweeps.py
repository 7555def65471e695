"""Sweeps: what the driver costs a trial, how busy it keeps its places, how well it searches.

The trials of the first two are shell scripts that import nothing; those of the last are looked up
in a table of real T-JEPA runs (tests/bench/tabulate.py), on a clock that only counts.
"""

import csv
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import optuna
from optuna.distributions import CategoricalDistribution
from rich.console import Console
from rich.table import Table

from jepa.sweeps import driver
from jepa.sweeps.outcome import RESULT, Outcome, failed
from jepa.sweeps.space import Space
from jepa.sweeps.study import build_pruner
from tests.bench.tabulate import GRID, N_EPOCHS, TABLE

TASK = Path(__file__).parents[1] / "sweep_task.py"
SCRIPT = """
for one in "$@"; do case $one in
  hydra.run.dir=*) where=${one#hydra.run.dir=};; seconds=*) seconds=${one#seconds=};;
esac; done
mkdir -p $where
began=$(date +%s.%N); sleep ${seconds:-0}; echo $began $(date +%s.%N) > $where/times
echo '{"value": 0.5, "kind": null, "error": null}' > $where/result.json
"""
STOCK = "import sweep_task; from jepa.sweeps import local; local.register(); sweep_task.main()"


def run(console: Console, *, quick: bool, compiled: bool) -> dict[str, Any]:
    """Measure all three; return the figures."""
    figures: dict[str, Any] = {}
    figures["overhead"] = overhead(console, n_trials=50 if quick else 500)
    figures["utilisation"] = utilisation(console, n_trials=24 if quick else 160)
    figures["quality"] = quality(console, n_seeds=2 if quick else 10)
    return figures


def start(folder: Path, *arguments: str, ours: bool = True) -> subprocess.Popen:
    """Start a sweep of scripts, by our sweeper or by the plugin's own."""
    script = folder.parent / "task.sh"
    script.write_text(SCRIPT)
    entry = [str(TASK)] if ours else ["-c", STOCK]
    return subprocess.Popen(
        [sys.executable, *entry, "-m", "hydra/sweeper=optuna", "hydra/launcher=local",
         "hydra/sweeper/sampler=random", "hydra.sweeper.sampler.seed=0",
         f"+hydra.launcher.command=[sh,{script}]", f"hydra.sweep.dir={folder}", *arguments],
        cwd=folder.parent, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(TASK.parent), str(Path.cwd())])},
    )  # fmt: skip


def overhead(console: Console, *, n_trials: int) -> dict[str, Any]:
    """Time from trial to trial, one after another, less what the script itself takes."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "s"
        sweep = start(folder, "x=interval(0,1)", f"hydra.sweeper.n_trials={n_trials}")
        memory = []
        while sweep.poll() is None:
            n_told = len(list(folder.glob(f"*/{RESULT}")))
            memory.append((n_told, resident(sweep.pid)))
            time.sleep(0.2)
        study = optuna.load_study(study_name="study", storage=f"sqlite:///{folder}/optuna.db")
        trials = study.trials
        script = [
            time_of(["sh", f"{name}/task.sh", f"hydra.run.dir={name}/{n}"]) for n in range(30)
        ]
    starts = [one.datetime_start.timestamp() for one in trials if one.datetime_start]
    gaps = [b - a for a, b in itertools.pairwise(starts)]
    ms = 1000 * (statistics.median(gaps) - statistics.median(script))
    early = statistics.median(m for n, m in memory if n_trials / 10 < n < n_trials / 3)
    late = statistics.median(m for n, m in memory if 0.8 * n_trials < n < n_trials)
    lost = n_trials - sum(one.state.name == "COMPLETE" for one in trials)
    console.print(
        f"driver: {ms:.0f} ms a trial (median of {n_trials}), {lost} lost, "
        f"{early:.0f} MiB in its first third, {late:.0f} in its last fifth"
    )
    return {"ms": ms, "lost": lost, "mib_early": early, "mib_late": late}


def resident(pid: int) -> float:
    """Return what a process holds, in MiB; 0 once it is gone."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def time_of(command: list[str]) -> float:
    """Time one process."""
    began = time.perf_counter()
    subprocess.run(command, check=True)
    return time.perf_counter() - began


def utilisation(console: Console, *, n_trials: int) -> dict[str, float]:
    """Share of 8 places that is busy, by each sweeper on the same trials; lengths spread 1:10."""
    shares = {}
    for who in ("ours", "stock"):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name) / "s"
            sweep = start(
                folder, "seconds=tag(log,interval(1.0,10.0))", "hydra.sweeper.n_jobs=8",
                "hydra.launcher.n_jobs=8", f"hydra.sweeper.n_trials={n_trials}", ours=who == "ours",
            )  # fmt: skip
            assert sweep.wait() == 0
            times = [tuple(map(float, p.read_text().split())) for p in folder.glob("*/times")]
        assert len(times) == n_trials
        whole = busy_share(times, until=max(end for _, end in times))
        steady = busy_share(times, until=max(start for start, _ in times))
        wall = max(end for _, end in times) - min(start for start, _ in times)
        shares |= {who: whole, f"{who} while trials wait": steady}
        console.print(
            f"utilisation of 8 places, {who}: {whole:.1%} over {wall:.0f} s, "
            f"{steady:.1%} until the last trial starts"
        )
    return shares


def busy_share(times: list[tuple[float, ...]], *, until: float) -> float:
    """Return the share of 8 places that is busy from the first start on."""
    first = min(start for start, _ in times)
    busy = sum(max(0.0, min(end, until) - start) for start, end in times)
    return busy / (8 * (until - first))


@dataclass
class Clock:
    """Stands in for `time` and for the alarm in the driver."""

    now: float = 0.0

    def monotonic(self) -> float:
        """Return the seconds counted so far."""
        return self.now

    def wait(self, seconds: float) -> None:
        """Count them."""
        self.now += seconds

    sleep = wait

    def open(self) -> None:
        """Nothing to listen to."""

    close = open


@dataclass
class Known:
    """A trial whose course is known."""

    directory: Path
    clock: Clock
    errors: list[float]
    seconds: float
    started: float = field(init=False)
    stopped: bool = False

    def __post_init__(self) -> None:
        self.started = self.clock.now

    def reached(self) -> list[tuple[int, float]]:
        """Return the validations so far."""
        n = int((self.clock.now - self.started) / self.seconds * N_EPOCHS)
        return list(enumerate(self.errors[:n], 1))

    def poll(self) -> Outcome | None:
        """Return how it ended: with its best validation."""
        if self.stopped:
            return failed(self.directory, "stopped")
        if self.clock.now - self.started < self.seconds:
            return None
        return Outcome("complete", "", (min(self.errors),))

    def stop(self) -> None:
        """End it."""
        self.stopped = True

    kill = stop


def search(
    table: dict[tuple[str, ...], Known], *, liar: bool, pruner: str, seed: int
) -> tuple[float, float]:
    """Return (best error, seconds) of 36 trials, 6 at a time."""
    clock, jobs = Clock(), {}
    space = Space({k: CategoricalDistribution(v) for k, v in GRID.items()}, frozenset(), ())

    def begin(overrides: list[str], directory: Path) -> Known:
        one = table[tuple(dict(o.split("=") for o in overrides)[k] for k in GRID)]
        jobs[directory] = Known(directory, clock, one.errors, one.seconds)
        return jobs[directory]

    study = optuna.create_study(
        sampler=optuna.samplers.TPESampler(seed=seed, constant_liar=liar),
        pruner=build_pruner(pruner),
    )
    settings = driver.Settings(n_trials=36, n_jobs=6, max_failure_rate=0.5, max_retries=0)
    beats = lambda directory: {"values": jobs[directory].reached()}  # noqa: E731
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.object(driver, "time", clock),
        mock.patch.object(driver, "Alarm", lambda: clock),
        mock.patch.object(driver, "heartbeat", beats),
    ):
        nothing = lambda *_: None  # noqa: E731
        sweep = driver.Sweep(
            study, space, begin, lambda: True, Path(folder), settings, nothing, nothing
        )
        sweep.run()
    return study.best_value, clock.now


def quality(console: Console, *, n_seeds: int) -> dict[str, Any]:
    """Best error and seconds at equal budget: constant liar and pruning, on and off."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with TABLE.open() as file:
        rows = list(csv.DictReader(file))
    table = {
        tuple(row[key] for key in GRID): Known(
            Path(), Clock(), [float(row[f"error_{n}"]) for n in range(1, N_EPOCHS + 1)],
            float(row["seconds"]),
        )
        for row in rows
    }  # fmt: skip
    least = min(min(one.errors) for one in table.values())
    title = (
        f"36 of {len(table)} points, 6 at a time, {n_seeds} seeds; the least error is {least:.4f}"
    )
    shown = Table(title=title)
    for column in ("constant liar", "pruner", "best error", "standard error", "seconds"):
        shown.add_column(column)
    figures: dict[str, Any] = {"least": least}
    for liar in (True, False):
        for pruner in ("median", "hyperband", "none"):
            ended = [search(table, liar=liar, pruner=pruner, seed=s) for s in range(n_seeds)]
            best, took = zip(*ended, strict=True)
            spread = statistics.stdev(best) / n_seeds**0.5
            figures[f"liar={liar} pruner={pruner}"] = {"best": best, "seconds": took}
            shown.add_row(
                "on" if liar else "off", pruner, f"{statistics.mean(best):.4f}", f"{spread:.4f}",
                f"{statistics.mean(took):.0f}",
            )  # fmt: skip
    console.print(shown)
    return figures
