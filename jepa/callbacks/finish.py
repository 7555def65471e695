"""However a run ends: validated once, its newest weights written, the reason known."""

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Timer

from jepa.callbacks.collapse import Collapse
from jepa.callbacks.early_stopping import EarlyStopping
from jepa.callbacks.events import record_event
from jepa.callbacks.guard import Guard
from jepa.callbacks.interrupt import Interrupt
from jepa.callbacks.places import validate


class Finish(L.Callback):
    """Validate at the end if the last step has not been, and note why the run ended.

    The validation runs inside the fit, so probes are logged at the last step, and the best
    checkpoint may be that of the end.
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
            validate(trainer)
        self.note(trainer)

    def note(self, trainer: L.Trainer) -> None:
        """Note why the run ended; `asked`: it was told to stop here, and has more to do."""
        self.status, self.reason = why(trainer)
        record_event(
            self.run_dir,
            "end",
            step=trainer.global_step,
            status=self.status,
            reason=self.reason,
            asked=bool(request(trainer)),
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the validated step: a resumed run does not validate it again."""
        return {"validated_step": self.validated_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with it."""
        self.validated_step = state_dict["validated_step"]


def request(trainer: L.Trainer) -> str:
    """Return who asked for the stop, an empty string where nobody did."""
    callbacks = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
    return next((one.reason for one in callbacks if isinstance(one, Interrupt)), "")


def why(trainer: L.Trainer) -> tuple[str, str]:
    """Return (status, reason) of a training that has ended."""
    for callback in trainer.callbacks:  # pyright: ignore[reportAttributeAccessIssue]
        if isinstance(callback, Collapse | Guard) and callback.reason:
            return "stopped", callback.reason  # also in the last epoch, which counts as whole
    if 0 <= trainer.max_steps <= trainer.global_step:
        return "finished", f"trainer.max_steps={trainer.max_steps} reached"
    if trainer.max_epochs is not None and trainer.current_epoch >= trainer.max_epochs > -1:
        return "finished", f"trainer.max_epochs={trainer.max_epochs} reached"
    if asked := request(trainer):
        return "stopped", asked
    for callback in trainer.callbacks:  # pyright: ignore[reportAttributeAccessIssue]
        if isinstance(callback, EarlyStopping) and callback.stopping_reason_message:
            return "stopped", f"early stopping: {callback.stopping_reason_message}"
        if isinstance(callback, Timer) and (callback.time_remaining() or 1.0) <= 0:
            return "stopped", "trainer.max_time is used up"
    return "stopped", "the trainer was told to stop"
