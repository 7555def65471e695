"""However a run ends: validated once, its newest weights written, the reason known."""

from pathlib import Path

import lightning as L
from lightning.pytorch.callbacks import Timer

from jepa.callbacks.collapse import Collapse
from jepa.callbacks.early_stopping import EarlyStopping
from jepa.callbacks.events import record_event


class Finish(L.Callback):
    """Validate at the end if the last step has not been, and note why the run ended.

    The validation runs inside the fit, so probes are logged at the last step and the checkpoint
    callbacks write `last.ckpt` as after any other validation.
    """

    def __init__(self, *, run_dir: str):
        self.run_dir = run_dir
        self.validated_step = -1
        self.status, self.reason = "failed", "training did not end"

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Refuse limits that cut an accumulation group: Lightning would scale it wrongly.

        Raises:
            ValueError: naming both keys.
        """
        n_batches, group = trainer.num_training_batches, trainer.accumulate_grad_batches
        if n_batches != float("inf") and n_batches % group:
            raise ValueError(
                f"{n_batches} batches an epoch are no whole groups of "
                f"trainer.accumulate_grad_batches={group}: change trainer.limit_train_batches or "
                "trainer.overfit_batches"
            )

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Remember the step."""
        self.validated_step = trainer.global_step

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Validate, then say why."""
        has_validation = "val" in trainer.datamodule.splits  # pyright: ignore
        if has_validation and self.validated_step != trainer.global_step:
            trainer.validating = True
            trainer.fit_loop.epoch_loop.val_loop.run()
            trainer.training = True
        if not has_validation:  # the checkpoint callbacks follow validations
            trainer.save_checkpoint(Path(self.run_dir) / "checkpoints" / "last.ckpt")
        self.status, self.reason = why(trainer)
        record_event(
            self.run_dir, "end", step=trainer.global_step, status=self.status, reason=self.reason
        )


def why(trainer: L.Trainer) -> tuple[str, str]:
    """Return (status, reason) of a training that has ended."""
    if 0 <= trainer.max_steps <= trainer.global_step:
        return "finished", f"trainer.max_steps={trainer.max_steps} reached"
    if trainer.max_epochs is not None and trainer.current_epoch >= trainer.max_epochs > -1:
        return "finished", f"trainer.max_epochs={trainer.max_epochs} reached"
    for callback in trainer.callbacks:  # pyright: ignore[reportAttributeAccessIssue]
        if isinstance(callback, Collapse) and callback.reason:
            return "stopped", callback.reason
        if isinstance(callback, EarlyStopping) and callback.stopping_reason_message:
            return "stopped", f"early stopping: {callback.stopping_reason_message}"
        if isinstance(callback, Timer) and (callback.time_remaining() or 1.0) <= 0:
            return "stopped", "trainer.max_time is used up"
    return "stopped", "the trainer was told to stop"
