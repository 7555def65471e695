"""`best.ckpt`: the checkpoint of the validation with the lowest objective."""

from pathlib import Path
from typing import Any, cast

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from jepa.callbacks.places import off_schedule
from jepa.checkpoint import CheckpointFiles

STATE = ("best_model_path", "best_model_score", "best_k_models", "kth_best_model_path", "kth_value")


class Best(ModelCheckpoint):
    """Lightning's checkpoint of the best, after validations that are on schedule.

    Args:
        run_dir: its `checkpoints/` gets the file.
        monitor: the objective; lower is better.
    """

    def __init__(self, *, run_dir: str, monitor: str):
        super().__init__(
            dirpath=Path(run_dir) / "checkpoints",
            filename="best",
            monitor=monitor,
            mode="min",
            save_on_train_epoch_end=False,  # the objective is known after validations only
            enable_version_counter=False,
        )

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Compare, unless the run stops here to go on later."""
        if not off_schedule(trainer):
            super().on_validation_end(trainer, pl_module)

    def _update_best_and_save(
        self, current: Tensor, trainer: L.Trainer, monitor_candidates: dict[str, Tensor]
    ) -> None:
        """Remember the new best only if its file could be written."""
        before = {name: getattr(self, name) for name in STATE}
        before["best_k_models"] = dict(self.best_k_models)
        super()._update_best_and_save(current, trainer, monitor_candidates)
        if cast(CheckpointFiles, trainer.strategy.checkpoint_io).failed is not None:
            for name, value in before.items():
                setattr(self, name, value)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the best so far, also where the run directory has moved."""
        own = str(Path(cast(str, self.dirpath)) / "best.ckpt")
        moved = dict(state_dict) | {"dirpath": self.dirpath}
        if state_dict["best_model_path"]:
            moved |= {"best_model_path": own, "kth_best_model_path": own}
            moved["best_k_models"] = dict.fromkeys([own], state_dict["best_model_score"])
        super().load_state_dict(moved)
        self.current_score = state_dict["current_score"]
