"""`heartbeat.json`: that the run is alive, how far it is, and what it has reached.

A sweep reads it to prune a trial and to end one that hangs. Where it stays, the run was killed.
"""

import json
import os
import time
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_only

from jepa.callbacks.places import off_schedule


class Heartbeat(L.Callback):
    """Write the step at most every so many seconds, and the objective after validations.

    Args:
        run_dir: gets the file.
        monitor: the objective.
        every_s: seconds between two writes at least; validations are always written.

    Raises:
        ValueError: for a negative `every_s`.
    """

    def __init__(self, *, run_dir: str, monitor: str, every_s: float | int):
        if every_s < 0:
            raise ValueError(f"callbacks.heartbeat.every_s must be at least 0, got {every_s}")
        self.path, self.monitor, self.every_s = Path(run_dir) / "heartbeat.json", monitor, every_s
        self.values: list[list[float]] = []
        self.written = -float("inf")

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Write, now and then."""
        if time.monotonic() - self.written >= self.every_s:
            self.write(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write what this validation found."""
        if trainer.sanity_checking or off_schedule(trainer):
            return
        if self.monitor in trainer.callback_metrics:
            value = trainer.callback_metrics[self.monitor].item()
            self.values.append([float(trainer.global_step), value])
        self.write(trainer)

    @rank_zero_only
    def write(self, trainer: L.Trainer) -> None:
        """Write the file, whole or not at all; a full disk does not end a run here."""
        self.written = time.monotonic()
        total = trainer.estimated_stepping_batches
        content = {"step": trainer.global_step, "total": total, "values": self.values}
        temporary = self.path.with_name(".heartbeat.json.tmp")
        try:
            temporary.write_text(json.dumps(content) + "\n", encoding="utf-8")
            os.replace(temporary, self.path)
        except OSError:
            return

    @rank_zero_only
    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Take the file away from a run that has ended: the report says the rest."""
        self.path.unlink(missing_ok=True)

    def state_dict(self) -> dict[str, Any]:
        """Return what was reached, for a run that goes on."""
        return {"values": [list(one) for one in self.values]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with it."""
        self.values = [list(one) for one in state_dict["values"]]
