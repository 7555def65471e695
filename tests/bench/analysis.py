"""Seconds from recorded runs to a page: analyse one, compare twenty, each in a process of its own.

The goals are 3 and 10 s on the clock, imports included; a machine that does other work takes
longer, so the processor's time stands beside.
"""

import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from jepa.samples import Samples, write_samples

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "tests"))  # as pytest does

from recorded_runs import write_run  # noqa: E402

GOALS = {"analyse 1 run": 3.0, "compare 20 runs": 10.0}
N_RUNS, N_SAMPLES = 20, 10_000


def measure(*arguments: str) -> tuple[float, float]:
    """Return the seconds of a command, on the clock and of the processor."""
    used, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    line = [sys.executable, "-m", *arguments]
    subprocess.run(line, cwd=ROOT, capture_output=True, check=True)
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime


def write_runs(folder: Path) -> None:
    """Write runs of twenty settings with the losses of their test samples."""
    rng = np.random.default_rng(0)
    for i in range(N_RUNS):
        error = 0.15 + 0.001 * i
        run = write_run(folder / str(i), seed=i, error=error)
        config = run / "config.yaml"
        config.write_text(config.read_text().replace("width: 128", f"width: {64 + i}"))
        rows = (rng.random(N_SAMPLES) < error).astype(float)
        write_samples(run, {"test/ridge/error": Samples(rows, 1, False, "same")})


def run(console: Console, *, quick: bool, compiled: bool) -> dict[str, Any]:
    """Measure and print; return the figures."""
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_runs(folder / "runs")
        commands = {
            "analyse 1 run": ("jepa.analyze", f"run={folder / 'runs' / '0'}"),
            "compare 20 runs": ("jepa.compare", f"runs=[{folder / 'runs'}]", f"out={folder}"),
        }
        for what, line in commands.items():
            taken = [measure(*line) for _ in range(1 if quick else 5)]
            seconds, processor = (statistics.median(one) for one in zip(*taken, strict=True))
            figures[what] = {"seconds": seconds, "processor": processor, "goal": GOALS[what]}
    table = Table(title="recorded runs of 451 rows, median of five" if not quick else "one each")
    for column in ("what", "s", "goal", "s of the processor"):
        table.add_column(column)
    for what, one in figures.items():
        table.add_row(
            what, f"{one['seconds']:.2f}", f"{one['goal']:.0f}", f"{one['processor']:.2f}"
        )
    console.print(table)
    return figures
