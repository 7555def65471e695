"""What keeping a run safe costs a step: the same run, with its callbacks in and out by turns.

Resume, best, interrupt, guard and heartbeat take part in every other block of steps; both kinds of
blocks stand side by side in one run, so that a busy machine slows both. As that scatters by more
than it is to show, the time inside their hooks is summed as well. Checkpoints are written after
validations and every quarter of an hour, so what one takes is told apart.
"""

import io
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import lightning as L
import torch
from rich.console import Console
from rich.table import Table

from jepa.callbacks.best import Best
from jepa.callbacks.guard import Guard
from jepa.callbacks.heartbeat import Heartbeat
from jepa.callbacks.interrupt import Interrupt
from jepa.callbacks.resume import Resume
from tests.support import run_training

HOOKS = [name for name in vars(L.Callback) if "train_batch" in name or name.startswith("on_before")]
HOOKS += ["on_after_backward"]
SAFETY = (Best, Guard, Heartbeat, Interrupt, Resume)
BLOCK, N_PAIRS = 10, 30
RUNS = {
    "T-JEPA": ("data=digits_table", "model=tjepa"),
    "H-JEPA": ("data=digits", "model=hjepa", "model.patch=2", "data.batch_size=64"),
    "PatchTST": ("data=toy_series", "model=patchtst", "data.n_steps=6000"),
}
PLAN = (
    "trainer=cpu", "trainer.max_epochs=1000", f"trainer.max_steps={2 * BLOCK * (N_PAIRS + 1)}",
    "trainer.check_val_every_n_epoch=1000", "logger=csv", "test=false", "report.max_rows=200",
    "report.max_split_rows=200", "callbacks.probe.max_rows=200", "callbacks.collapse=null",
    "guard.every_share=1.0",
)  # fmt: skip


class Turns(L.Callback):
    """Take the callbacks of safety out of every other block of steps, and time the blocks."""

    def __init__(self) -> None:
        self.all: list[Any] = []
        self.times: dict[bool, list[float]] = {True: [], False: []}
        self.safe, self.began, self.save_s = True, 0.0, 0.0
        self.inside, self.shares = 0.0, []

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note who takes part."""
        self.all = list(trainer.callbacks)  # pyright: ignore[reportAttributeAccessIssue]
        for one in self.all:
            for name in HOOKS if isinstance(one, SAFETY) else ():
                setattr(one, name, self.timed(getattr(one, name)))

    def timed(self, hook: Callable[..., Any]) -> Callable[..., Any]:
        """Return a hook that adds its time to those of its block."""

        def call(*args: Any, **kwargs: Any) -> Any:
            began = time.process_time()
            try:
                return hook(*args, **kwargs)
            finally:
                self.inside += time.process_time() - began

        return call

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Change sides after every block."""
        if trainer.global_step % BLOCK:
            return
        now = time.process_time()
        if trainer.global_step >= 2 * BLOCK:  # after the warm-up
            self.times[self.safe].append((now - self.began) / BLOCK)
            if self.safe:
                self.shares.append(self.inside / (now - self.began))
        self.safe = (trainer.global_step // BLOCK) % 2 == 0
        kept = [one for one in self.all if self.safe or not isinstance(one, SAFETY)]
        trainer.callbacks = kept  # pyright: ignore[reportAttributeAccessIssue]
        self.began, self.inside = time.process_time(), 0.0

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Put all of them back where an epoch ends: they write checkpoints there."""
        trainer.callbacks = self.all  # pyright: ignore[reportAttributeAccessIssue]

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Time a checkpoint."""
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            trainer.save_checkpoint(Path(folder) / "one.ckpt")
        self.save_s = time.perf_counter() - began


TURNS: list[Turns] = []


def turns() -> Turns:
    """Hand the callback to a run."""
    return TURNS[-1]


def run(console: Console, *, quick: bool = False, compiled: bool = False) -> dict:
    """Measure every family on one thread; return the figures."""
    n_threads, figures = torch.get_num_threads(), {}
    torch.set_num_threads(1)
    heads = ("without", "with", "difference", "quartiles", "inside their hooks", "checkpoint ms")
    table = Table("family", f"ms/step {heads[0]}", *heads[1:])
    for name, settings in list(RUNS.items())[: 1 if quick else None]:
        TURNS.append(Turns())
        with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
            target = "+callbacks.turns._target_=tests.bench.reliability.turns"
            run_training(Path(folder), *settings, *PLAN, target)
        figures[name] = judge(TURNS[-1])
        f = figures[name]
        table.add_row(
            name,
            f"{f['ms_off']:.2f}",
            f"{f['ms_on']:.2f}",
            f"{f['overhead']:+.2%}",
            f"{f['low']:+.2%} to {f['high']:+.2%}",
            f"{f['inside']:.2%}",
            f"{f['checkpoint_ms']:.0f}",
        )
    torch.set_num_threads(n_threads)
    console.print(table)
    return figures


def judge(one: Turns) -> dict[str, float]:
    """Compare neighbouring blocks."""
    pairs = list(zip(one.times[True], one.times[False], strict=False))
    shares = sorted(on / off - 1 for on, off in pairs)
    low, middle, high = statistics.quantiles(shares, n=4)
    return {
        "ms_on": 1e3 * statistics.median(on for on, _ in pairs),
        "ms_off": 1e3 * statistics.median(off for _, off in pairs),
        "overhead": middle,
        "inside": statistics.median(one.shares),
        "low": low,
        "high": high,
        "checkpoint_ms": 1e3 * one.save_s,
    }
