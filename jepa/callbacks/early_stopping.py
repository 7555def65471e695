"""Stop when the objective has stopped improving."""

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import EarlyStopping as LightningEarlyStopping
from lightning.pytorch.utilities import rank_zero_warn

from jepa.callbacks.places import off_schedule


class EarlyStopping(LightningEarlyStopping):
    """Lightning's early stopping that can be off.

    Args:
        monitor: the objective; lower is better.
        patience: validations without a gain of more than `min_delta`; None never stops.
        min_delta: the least gain that counts, in the units of the objective.

    Off as well where the data has no validation split: training loss is no reason to stop.
    """

    def __init__(self, *, monitor: str, patience: int | None, min_delta: float):
        if patience is not None and patience < 1:
            raise ValueError(
                "callbacks.early_stopping.patience must be at least 1, or null to turn early "
                f"stopping off, got {patience=}"
            )
        super().__init__(
            monitor,
            min_delta=min_delta,
            patience=patience or 0,
            mode="min",
            check_on_train_epoch_end=False,  # the objective is known after validations only
        )
        self.on = patience is not None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Turn off without a validation split, and say so."""
        super().setup(trainer, pl_module, stage)
        if self.on and "val" not in trainer.datamodule.splits:  # pyright: ignore
            self.on = False
            rank_zero_warn(
                "early stopping is off: this data has no validation split (data.val_share)"
            )

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop a resumed run that had stopped; a larger patience lets it go on."""
        if self.on and self.wait_count >= self.patience:
            trainer.should_stop = True

    def state_dict(self) -> dict[str, Any]:
        """Add why it stopped."""
        return super().state_dict() | {"why": self.stopping_reason_message}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting; the patience is the one of this command, not of the checkpoint."""
        patience = self.patience
        super().load_state_dict(state_dict)
        self.patience, self.stopping_reason_message = patience, state_dict.get("why")

    def _run_early_stopping_check(self, trainer: L.Trainer) -> None:
        if self.on and not off_schedule(trainer):
            super()._run_early_stopping_check(trainer)
