"""Grade a run's criteria while it trains: those of an epoch when it ends, the others at the end."""

import logging
import math
from collections.abc import Sequence
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from jepa.callbacks.collapse import Collapse
from jepa.callbacks.events import record_event
from jepa.callbacks.places import n_done
from jepa.criteria import asks, passes, word

log = logging.getLogger(__name__)


class Criteria(L.Callback):
    """Say and record whether what was asked for holds, where the trainer has logged the metric.

    The report takes the values from these events. What is scored after training, as `test/...`, is
    graded there alone.

    Args:
        run_dir: its events.jsonl gets the values.
        criteria: see `jepa.criteria`.
    """

    def __init__(self, *, run_dir: str, criteria: Sequence[dict[str, Any]]):
        self.run_dir = run_dir
        self.criteria = [dict(one) for one in criteria]
        self.first: dict[str, float] = {}

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Remember where metrics start that are set against their start."""
        if not self.criteria:
            return
        self.note_start(trainer.callback_metrics)

    def note_start(self, metrics: dict[str, Tensor]) -> None:
        """Keep the first value of each metric that a criterion compares with it."""
        for one in self.criteria:
            name = one["metric"]
            if one.get("against") == "start" and name in metrics and name not in self.first:
                self.first[name] = metrics[name].item()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Grade what is asked for after this epoch, if it is a whole one."""
        if n_done(trainer) == trainer.num_training_batches:
            self.grade(trainer, epoch=trainer.current_epoch + 1)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Grade what is asked for at the end."""
        self.grade(trainer, epoch=None)

    @rank_zero_only
    def grade(self, trainer: L.Trainer, *, epoch: int | None) -> None:
        """Grade the criteria of an epoch."""
        self.note_start(trainer.callback_metrics)
        metrics = {name: value.item() for name, value in trainer.callback_metrics.items()}
        for callback in trainer.callbacks:  # pyright: ignore[reportAttributeAccessIssue]
            if isinstance(callback, Collapse):
                metrics |= callback.latest
        for one in self.criteria:
            if one.get("epoch") != epoch or one["metric"] not in metrics:
                continue
            value = metrics[one["metric"]]
            if one.get("against") == "start":
                value /= self.first[one["metric"]]
            elif "against" in one:
                continue  # controls are known to the report
            value = value if math.isfinite(value) else None
            passed = passes(one, value)
            record_event(
                self.run_dir,
                "criterion",
                step=trainer.global_step,
                name=one.get("name", ""),
                asks=asks(one),
                value=value,
                passed=passed,
            )
            text = f"criterion {one.get('name', '')}: {asks(one)}: {word(passed)} ({value})"
            log.info(text)
            print(text)

    def state_dict(self) -> dict[str, Any]:
        """Return where metrics started."""
        return {"first": dict(self.first)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with it."""
        self.first = dict(state_dict["first"])
