"""What Lightning leaves out of an exact resume, and the newest checkpoint of a run.

Checkpoints are written between optimizer steps only, when everything of the step before is logged:
at the start of the next batch, before a validation, or at the end of an epoch.
"""

import time
from pathlib import Path
from typing import Any, cast

import lightning as L
from lightning.pytorch.callbacks import Checkpoint

from jepa.callbacks.metrics_csv import MetricsCSV
from jepa.callbacks.places import (
    Place,
    at_boundary,
    enter,
    place_of,
    recount,
    validation_due,
    write_group,
    write_place,
)
from jepa.callbacks.random_state import State, gathered, random_state, set_random_state
from jepa.checkpoint import CheckpointFiles


class Resume(Checkpoint):
    """Write `last.ckpt` so that a run which goes on from it is the run that was never stopped.

    Args:
        run_dir: its `checkpoints/` gets `step_<n>.ckpt` and, a second name of the newest of them,
            `last.ckpt`.
        keep: how many `step_<n>.ckpt` stay; the second newest is what a damaged one falls back to.
        every_n_steps: optimizer steps from one checkpoint to the next; None: those below alone.
        every_minutes: minutes between them at most; None: after validations and at the end alone.

    Raises:
        ValueError: for a setting out of its range.
    """

    def __init__(
        self,
        *,
        run_dir: str,
        keep: int,
        every_n_steps: int | None,
        every_minutes: float | int | None,
    ):
        for name, value in (("keep", keep), ("every_n_steps", every_n_steps)):
            if value is not None and value < 1:
                raise ValueError(f"callbacks.resume.{name} must be at least 1, got {value}")
        if every_minutes is not None and every_minutes < 0:
            raise ValueError(
                f"callbacks.resume.every_minutes must be at least 0, or null, got {every_minutes}"
            )
        self.folder = Path(run_dir) / "checkpoints"
        self.keep, self.every_n_steps, self.every_minutes = keep, every_n_steps, every_minutes
        self.place: Place | None = None  # where a restored run goes on
        self.states: list[State] = []  # and with which random numbers, by rank
        self.held: Place | None = None  # where a run that stops early is to go on later
        self.end: Place | None = None  # known once the last epoch is over
        self.before_validation: State | None = None
        self.validated, self.postponed = False, False
        self.saved_step, self.saved_at = -1, time.monotonic()

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the place, the random states of all ranks, and how far metrics.csv had come."""
        place = self.held or self.end or place_of(trainer, validated=self.validated)
        write_place(checkpoint, place)
        write_group(checkpoint, trainer)
        own = self.before_validation or random_state(trainer.strategy.root_device)
        checkpoint["random"] = self.states or gathered(trainer, own)
        checkpoint["metrics_rows"] = sum(one.n_rows() for one in tables(trainer))

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Remember them until training starts; cut off what a killed run logged after them.

        Raises:
            ValueError: if the checkpoint was written without this callback.
        """
        if "place" not in checkpoint:
            raise ValueError(
                "this checkpoint was written without callbacks.resume and cannot be gone on from "
                "exactly: give init_from= to start from its encoder, or callbacks.resume=null"
            )
        recount(checkpoint, trainer)
        self.place = Place(**checkpoint["place"])
        self.states = checkpoint["random"]
        for table in tables(trainer):
            table.keep(checkpoint["metrics_rows"])

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Go on from the place."""
        self.saved_step, self.saved_at = trainer.global_step, time.monotonic()
        if self.place is not None:
            enter(trainer, self.place)
            self.end = self.place
            if self.place.validate:
                self.end = Place(self.place.epoch + 1, 0)
            if stops(trainer):
                self.held = self.end  # nothing is left to do: the file it came from stays

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forget where the epoch before ended."""
        self.end, self.validated = None, False

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Put the random state back, once; write a checkpoint where one is due."""
        self.end = None
        if self.states:
            state = self.states[trainer.global_rank % len(self.states)]
            set_random_state(state, trainer.strategy.root_device)
            self.states = []
        if batch_idx and at_boundary(trainer) and self.is_due(trainer):
            self.save(trainer)

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Let a stop wait for the end of its accumulation group: gradients are not stored."""
        self.validated = False
        if at_boundary(trainer):
            trainer.should_stop |= self.postponed
        elif trainer.should_stop:
            trainer.should_stop, self.postponed = False, True

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note the random state; write the checkpoint of a run that stops within an epoch."""
        if trainer.sanity_checking:
            return
        if self.end is None and stops(trainer) and not validation_due(trainer):
            self.hold(trainer)
        self.before_validation = random_state(trainer.strategy.root_device)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Put the random state back: training must not notice."""
        if self.before_validation is not None:
            set_random_state(self.before_validation, trainer.strategy.root_device)
            self.before_validation = None
            self.validated = True

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write a checkpoint after a validation, where one is due, and where the run stops."""
        self.end = place_of(trainer, validated=True)
        if stops(trainer) and not self.validated:
            self.hold(trainer)
        elif self.validated or self.is_due(trainer):
            self.save(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the last checkpoint of a run that has come to its end.

        Raises:
            OSError: if the disk is full: the run would end with nothing to show.
        """
        self.save(trainer)
        files = cast(CheckpointFiles, trainer.strategy.checkpoint_io)
        if files.failed is not None:
            raise files.failed

    def is_due(self, trainer: L.Trainer) -> bool:
        """Tell whether so many steps or minutes have passed; the same on every rank."""
        step = trainer.global_step
        if step == self.saved_step:
            return False
        if self.every_n_steps is not None and step % self.every_n_steps == 0:
            return True
        if self.every_minutes is None:
            return False
        late = time.monotonic() - self.saved_at >= 60 * self.every_minutes
        return trainer.strategy.reduce_boolean_decision(late, all=False)

    def hold(self, trainer: L.Trainer) -> None:
        """Write where the run stops; nothing that follows, as a last validation, is part of it."""
        if self.held is None:
            self.held = self.end or place_of(trainer, validated=False)
            self.write(trainer)

    def save(self, trainer: L.Trainer) -> None:
        """Write the newest checkpoint, unless the run is held where it stopped."""
        if self.held is None:
            self.write(trainer)

    def save_group_start(self, trainer: L.Trainer) -> None:
        """Write the end of the newest whole step from within the next; the weights must be its."""
        if self.held is None and self.saved_step != trainer.global_step:
            place = self.end or place_of(trainer, validated=self.validated)
            begun = place.batch % trainer.accumulate_grad_batches
            self.held = Place(place.epoch, place.batch - begun, place.validate)
            self.write(trainer)
            self.held = None

    def write(self, trainer: L.Trainer) -> None:
        """Write `step_<n>.ckpt`, and give it the name `last.ckpt`."""
        path = self.folder / f"step_{trainer.global_step}.ckpt"
        trainer.save_checkpoint(path)
        files = cast(CheckpointFiles, trainer.strategy.checkpoint_io)
        if trainer.is_global_zero and files.failed is None:
            files.publish(path, keep=self.keep)
        self.saved_step, self.saved_at = trainer.global_step, time.monotonic()


def stops(trainer: L.Trainer) -> bool:
    """Tell whether the trainer was told to stop, and may."""
    return trainer.should_stop and trainer.fit_loop._can_stop_early


def tables(trainer: L.Trainer) -> list[MetricsCSV]:
    """Return the loggers that write metrics.csv, on the rank that writes."""
    loggers = trainer.loggers if trainer.is_global_zero else []
    return [one for one in loggers if isinstance(one, MetricsCSV)]
