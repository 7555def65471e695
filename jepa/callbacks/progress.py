"""A progress bar with samples per second and the time left, and one plain line per epoch."""

import logging
import time
from typing import Any, cast

import lightning as L
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console
from rich.progress import (
    BarColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bar
from torch import Tensor

from jepa.callbacks.memory import memory_share

log = logging.getLogger(__name__)


class Progress(L.Callback):
    """Show the run on a terminal; write a line per epoch to train.log, and to a plain output.

    With the other metrics of a step it logs `time/data_share`: of the time of the steps since the
    last record, the part spent on making their batches; at the end of an epoch
    `time/samples_per_s` and `memory/share`, of the device's memory; beside every validation
    `time/samples` and `time/train_s`, the samples and seconds of training so far.

    Reading the loss waits for the device, so the bar is refreshed once a second, not every step.
    """

    def __init__(self, *, refresh_s: float = 1.0):
        self.refresh_s = refresh_s
        self.console = Console()
        self.bar: Bar | None = None
        self.samples, self.training_s = 0, 0.0

    @rank_zero_only
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Open the bar and start counting."""
        self.shown = 0.0
        self.epoch_samples, self.epoch_s = 0, 0.0
        # seconds of making batches; then step, seconds of training and those of the last record
        self.data_s = self.loader_s(trainer)
        self.recorded = (trainer.global_step, self.training_s, self.data_s)
        if self.console.is_terminal:
            columns = [TextColumn("{task.description}"), BarColumn(), TaskProgressColumn()]
            columns += [TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(elapsed_when_finished=False)]  # fmt: skip  # noqa: E501
            self.bar = Bar(*columns, TextColumn("{task.fields[note]}"), console=self.console)
            total = int(trainer.estimated_stepping_batches)
            self.task = self.bar.add_task("training", total=total, note="")
            self.bar.start()

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Start the clock: validation and checkpoints are not part of the rate."""
        self.started = time.perf_counter()

    @rank_zero_only
    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: dict[str, Tensor],
        batch_idx: int,
    ) -> None:
        """Count rows and seconds; refresh now and then."""
        n, seconds = len(batch["x"]) * trainer.world_size, time.perf_counter() - self.started
        seconds += self.loader_s(trainer) - self.data_s
        self.data_s = self.loader_s(trainer)
        self.samples, self.training_s = self.samples + n, self.training_s + seconds
        self.epoch_samples, self.epoch_s = self.epoch_samples + n, self.epoch_s + seconds
        self.record(trainer, pl_module)
        if self.bar is not None and time.perf_counter() - self.shown > self.refresh_s:
            self.show(trainer)

    def record(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the share of data at the steps at which metrics are written."""
        step, training_s, data_s = self.recorded
        every = trainer.log_every_n_steps  # pyright: ignore[reportAttributeAccessIssue]
        if trainer.global_step == step or trainer.global_step % every:
            return  # in the middle of an accumulation, or nobody would read it
        self.recorded = (trainer.global_step, self.training_s, self.data_s)
        share = (self.data_s - data_s) / (self.training_s - training_s)
        pl_module.log("time/data_share", share, rank_zero_only=True)

    @staticmethod
    def loader_s(trainer: L.Trainer) -> float:
        """Return what making training batches has taken so far."""
        return cast(Any, trainer.train_dataloader).seconds

    def show(self, trainer: L.Trainer) -> None:
        """Draw the bar."""
        assert self.bar is not None
        self.shown = time.perf_counter()
        note = f"{self.rate:,.0f} samples/s  " + brief(trainer)
        last = trainer.max_epochs if trainer.max_epochs and trainer.max_epochs > 0 else None
        now = trainer.current_epoch + 1
        epoch = f"epoch {min(now, last)}/{last}" if last else f"epoch {now}"
        self.bar.update(self.task, completed=trainer.global_step, description=epoch, note=note)

    @property
    def rate(self) -> float:
        """Samples per second of training time, over the whole run."""
        return self.samples / max(self.training_s, 1e-9)

    @rank_zero_only
    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the epoch's line."""
        rate = self.epoch_samples / max(self.epoch_s, 1e-9)
        share = memory_share(pl_module.device)
        logged = {"time/samples_per_s": rate, "memory/share": share}
        pl_module.log_dict(logged, rank_zero_only=True)
        self.epoch_samples, self.epoch_s = 0, 0.0
        line = (
            f"epoch {trainer.current_epoch + 1} step {trainer.global_step} "
            f"{rate:,.0f} samples/s {brief(trainer)}"
        )
        log.info(line)
        if self.bar is None and self.says(trainer):
            self.console.print(line, highlight=False, soft_wrap=True)

    @rank_zero_only
    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Put what training has cost so far beside what it has reached."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            cost = {"time/samples": float(self.samples), "time/train_s": self.training_s}
            pl_module.log_dict(cost, rank_zero_only=True)

    def state_dict(self) -> dict[str, Any]:
        """Return what has been counted, for a run that goes on."""
        return {"samples": self.samples, "training_s": self.training_s}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Count on from there."""
        self.samples, self.training_s = state_dict["samples"], state_dict["training_s"]

    @staticmethod
    def says(trainer: L.Trainer) -> bool:
        """Without a terminal, print the epochs that validated, and the last."""
        return (trainer.current_epoch + 1) % (trainer.check_val_every_n_epoch or 1) == 0

    @rank_zero_only
    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Close the bar."""
        if self.bar is not None:
            self.show(trainer)
            self.bar.stop()
            self.bar = None

    @rank_zero_only
    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Give the terminal back."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None


def brief(trainer: L.Trainer) -> str:
    """Return the losses and probe errors logged so far, in a few words."""
    shown = {
        key: value.item()
        for key, value in sorted(trainer.callback_metrics.items(), reverse=True)
        if key in ("train/loss", "val/loss") or key.endswith("/error")
    }
    return "  ".join(f"{key} {value:.4g}" for key, value in shown.items())
