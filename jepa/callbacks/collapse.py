"""Watch the representation for collapse while it trains; warn, stop, or go back.

Everything is relative to step 0, on the same held-out rows; the bounds are in `jepa/bands.yaml`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_warn

from jepa.bands import STATES, bands
from jepa.callbacks.events import record_event
from jepa.callbacks.probe import embed_all, unnoticed
from jepa.callbacks.rollback import put_back, scale_rates, snapshot
from jepa.probes.health import health

ACTIONS = ("warn", "stop", "restore")
MAX_RESTORES = 3


@contextmanager
def student_as_teacher(model: Any) -> Iterator[None]:
    """Let `embed` code with the student, which collapses first: the teacher follows it slowly."""
    teacher, training = model.teacher.net, model.encoder.training
    model.teacher.net = model.encoder.eval()
    try:
        yield
    finally:
        model.teacher.net = teacher
        model.encoder.train(training)


class Collapse(L.Callback):
    """Compare the codes of a fixed held-out batch with those of step 0.

    One check takes the student's and the teacher's codes. A state changes after `patience` checks
    in a row that say so, up and down alike, so that one odd check changes nothing.

    Args:
        run_dir: its events.jsonl gets the changes of state and what was done.
        every_share: part of all steps from one check to the next.
        n_rows: of the held-out batch; of the training rows where there is no validation split.
        patience: checks in a row that change the state.
        action: on a collapse, `warn`, `stop`, or `restore` the last healthy weights and optimizer
            state with half the learning rate (three times at most, then stop).
        seed: of the choice of the rows.

    Raises:
        ValueError: for a setting out of its range.
    """

    def __init__(
        self,
        *,
        run_dir: str,
        every_share: float,
        n_rows: int,
        patience: int,
        action: str,
        seed: int,
    ):
        if action not in ACTIONS:
            raise ValueError(f"callbacks.collapse.action must be one of {ACTIONS}, got {action!r}")
        if not 0 < every_share <= 1 or n_rows < 16 or patience < 1:
            raise ValueError(
                "callbacks.collapse takes every_share in (0, 1], n_rows of at least 16 and "
                f"patience of at least 1, got {every_share=}, {n_rows=}, {patience=}"
            )
        self.run_dir, self.every_share, self.n_rows = run_dir, every_share, n_rows
        self.patience, self.action, self.seed = patience, action, seed
        self.reference: dict[str, float] = {}
        self.latest: dict[str, float] = {}  # as logged, of the newest check
        self.state, self.pending, self.n_pending = "healthy", "healthy", 0
        self.n_restores, self.reason = 0, ""
        self.every, self.checked_step = 0, -1
        self.saved: dict[str, Any] | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take the reference; after a resume it comes from the checkpoint."""
        if not hasattr(pl_module, "teacher"):
            return  # a model that predicts the target itself has no codes to collapse
        self.every = max(1, round(self.every_share * int(trainer.estimated_stepping_batches)))
        if not self.reference:
            self.reference = self.measure(trainer, pl_module)
        self.checked_step = trainer.global_step
        if self.saved is None:
            self._keep(trainer, pl_module)
        if self.reason and self.action == "stop":
            trainer.should_stop = True  # a resumed run that had stopped

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Check at every so many steps."""
        step = trainer.global_step
        if not self.every or step == self.checked_step or step % self.every:
            return
        self.checked_step = step
        relative = self.relative(self.measure(trainer, pl_module))
        shown = {f"health/{name}": value for name, value in relative.items()}
        self.latest = shown
        for logger in trainer.loggers:  # not pl_module.log: it would wait for the logging interval
            logger.log_metrics(shown, step=step - 1)  # as Lightning counts
        self.judge(trainer, pl_module, relative)

    def measure(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, float]:
        """Return the health of student and teacher, `<name>` and `teacher_<name>`."""
        data, model = cast(Any, trainer).datamodule, cast(Any, pl_module)
        split = "val" if "val" in data.splits else "train"
        values = {}
        with unnoticed():
            for prefix in ("teacher_", ""):
                batches = data.probe_batches(split, max_rows=self.n_rows, seed=self.seed)
                if prefix:
                    codes, y = embed_all(model, batches)
                else:
                    with student_as_teacher(model):
                        codes, y = embed_all(model, batches)
                if not torch.isfinite(codes).all():
                    codes = torch.zeros_like(codes)  # codes that are no numbers say nothing
                classes = y if data.spec.n_classes else None
                values |= {prefix + name: value for name, value in health(codes, classes).items()}
        return values

    def relative(self, values: dict[str, float]) -> dict[str, float]:
        """Divide by step 0; a value that was next to nothing there is left out."""
        return {
            name: value / self.reference[name]
            for name, value in values.items()
            if self.reference.get(name, 0.0) > 1e-6
        }

    def verdict(self, relative: dict[str, float]) -> tuple[str, str]:
        """Return the worst state of all values, and the value that gave it."""
        worst, culprit, known = "healthy", "", bands("features")
        for name, value in relative.items():
            band = known.get(name) or known[name.removeprefix("teacher_")]
            state = band.state(value)
            if STATES.index(state) > STATES.index(worst):
                worst, culprit = state, f"{name} is {value:.3g} of its value at step 0"
        return worst, culprit

    def judge(self, trainer: Any, pl_module: Any, relative: dict[str, float]) -> None:
        """Change the state after `patience` checks in a row, and act on a collapse."""
        seen, culprit = self.verdict(relative)
        self.n_pending = self.n_pending + 1 if seen == self.pending else 1
        self.pending = seen
        if seen == "healthy" and self.state == "healthy":
            self._keep(trainer, pl_module)
        if seen == self.state or self.n_pending < self.patience:
            return
        self.state = seen
        name = "collapsed" if seen == "critical" else seen
        values = {key: round(value, 4) for key, value in relative.items()}
        record_event(
            self.run_dir, "collapse", step=trainer.global_step, state=name, why=culprit, **values
        )
        if seen != "healthy":
            rank_zero_warn(f"step {trainer.global_step}: representation {name}: {culprit}")
        if seen == "critical":
            self._act(trainer, pl_module, culprit)

    def _act(self, trainer: Any, pl_module: Any, culprit: str) -> None:
        action = self.action
        if action == "restore" and (self.saved is None or self.n_restores >= MAX_RESTORES):
            action = "stop"
        record_event(self.run_dir, "collapse_action", step=trainer.global_step, action=action)
        if action == "stop":
            self.reason = f"the representation collapsed at step {trainer.global_step}: {culprit}"
            trainer.should_stop = True
        elif action == "restore":
            self._restore(trainer, pl_module)

    def _keep(self, trainer: Any, pl_module: Any) -> None:
        if self.action != "restore":
            return
        self.saved = snapshot(trainer, pl_module)

    def _restore(self, trainer: Any, pl_module: Any) -> None:
        """Put the last healthy weights and optimizer state back, with half the learning rate."""
        assert self.saved is not None
        self.n_restores += 1
        put_back(trainer, pl_module, self.saved)
        scale_rates(trainer, 0.5)
        self.state, self.pending, self.n_pending = "healthy", "healthy", 0

    def state_dict(self) -> dict[str, Any]:
        """Return all that a resumed run needs to judge, and to act, as this one would."""
        return {
            "reference": self.reference,
            "state": [self.state, self.pending, self.n_pending, self.n_restores],
            "reason": self.reason,
            "saved": self.saved,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with it."""
        self.reference = state_dict["reference"]
        self.state, self.pending, self.n_pending, self.n_restores = state_dict["state"]
        self.reason, self.saved = state_dict["reason"], state_dict["saved"]
