"""Keep a run alive: no broken step reaches the weights, and a run that diverges goes back.

The ladder of a step whose loss or gradient is infinite or no number: it is left out; after too many
of them, the last healthy weights come back with half the learning rate; after too many of those,
the run stops and says why. A loss that is a number but does not come back down goes back as well,
and warms up again.
"""

from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer

from jepa.callbacks.divergence import Divergence
from jepa.callbacks.dump import write_dump
from jepa.callbacks.events import record_event
from jepa.callbacks.finite import Step, drop, generators, look, running_statistics, verdict
from jepa.callbacks.out_of_memory import save_intact
from jepa.callbacks.pace import Pace
from jepa.callbacks.places import at_boundary, off_schedule
from jepa.callbacks.rollback import put_back, refresh_rates, scale_rates, snapshot
from jepa.callbacks.schedule import Schedules
from jepa.failures import is_out_of_memory


class Guard(L.Callback):
    """Watch every step, every validation and the clock.

    A broken step still counts in schedules and in the order of the data. Under accumulation the
    whole group is left out, under several processes on all of them.

    Args:
        run_dir: its events.jsonl gets what was done, its dumps/ the broken steps.
        monitor: the objective; lower is better.
        max_skips: broken steps that are left out before the run goes back; every good step takes
            one off the count, so that rare ones never add up.
        max_restores: how often a run may go back before it stops.
        dumps: how many broken steps of a run are written down for `python -m jepa.replay`.
        every_share: part of all steps from one copy of the healthy weights to the next, which is
            `smoothing` steps at least; one is taken after every checkpoint as well.
        loss_ratio, smoothing, rising: what is divergence, see `Divergence`.
        over_budget: with `trainer.max_time`, whether a late run is made to end in time.
        out_of_memory: whether to go on with smaller micro-batches, see `jepa.retry`.
        parts: whether to go on without an optional part that fails, see `jepa.retry`.

    Raises:
        ValueError: for a setting out of its range.
    """

    def __init__(
        self,
        *,
        run_dir: str,
        monitor: str,
        max_skips: int,
        max_restores: int,
        dumps: int,
        every_share: float,
        loss_ratio: float | int | None,
        smoothing: int,
        rising: int | None,
        over_budget: bool,
        out_of_memory: bool,
        parts: bool,
    ):
        counts = {"max_skips": max_skips, "max_restores": max_restores, "dumps": dumps}
        for name, value in counts.items():
            if value < 0:
                raise ValueError(f"guard.{name} must be at least 0, got {value}")
        if not 0 < every_share <= 1:
            raise ValueError(f"guard.every_share must be in (0, 1], got {every_share}")
        self.run_dir, self.monitor = Path(run_dir), monitor
        self.max_skips, self.max_restores, self.dumps = max_skips, max_restores, dumps
        self.every_share, self.over_budget = every_share, over_budget
        self.out_of_memory, self.parts = out_of_memory, parts
        self.divergence = Divergence(loss_ratio=loss_ratio, smoothing=smoothing, rising=rising)
        self.schedules, self.pace = Schedules(), Pace()
        self.n_skips, self.n_skipped, self.n_restores = 0, 0, 0
        self.reason = ""  # why it stopped
        self.wanted = ""  # why it is to go back at the next place where it can
        self.saved: dict[str, Any] | None = None
        self.copy_due = False  # a checkpoint was written: a run that goes on from it copies it too
        self.step, self.buffers = Step(), list[Tensor]()
        self.every, self.seen_step = 1, -1
        self.stepping = False  # the optimizer is at work: weights may be of two steps

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Copy what training starts from, unless a resumed run brought better weights."""
        n_steps = int(trainer.estimated_stepping_batches)
        self.every = max(self.divergence.smoothing, round(self.every_share * n_steps))
        self.buffers = running_statistics(pl_module)
        self.seen_step = trainer.global_step
        self.schedules.begin(trainer, pl_module)
        self.pace.begin(trainer)
        if self.saved is None:
            self.saved, self.copy_due = snapshot(trainer, pl_module), True
        if self.reason and self.n_restores >= self.max_restores:
            trainer.should_stop = True  # a resumed run that had stopped
        else:
            self.reason = ""  # it may go back more often now

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Note what the step reads."""
        self.act(trainer, pl_module)
        if at_boundary(trainer):
            self.step = Step(norms=[(one, one.clone()) for one in self.buffers])
        self.step.batches.append((batch_idx, batch))
        self.step.random.append(generators(pl_module.device))

    def on_before_backward(
        self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor
    ) -> None:
        """Note the loss."""
        self.step.losses.append(loss.detach())

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer
    ) -> None:
        """Let a good step through, and none that is broken."""
        self.stepping = True
        loss, finite = look(trainer, self.step, optimizer)
        found = verdict(trainer, loss, finite)
        if found == "good":
            self.pass_on(trainer, pl_module, loss)
            return
        drop(self.step, optimizer)
        self.stepping = False
        if found == "broken":
            self.skip(trainer, pl_module, loss)

    def pass_on(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: float) -> None:
        """Count a good step; its loss shows that the weights before it are healthy: copy those."""
        self.n_skips = max(0, self.n_skips - 1)
        self.divergence.note_loss(loss)
        self.wanted = self.wanted or self.divergence.verdict()
        due = self.copy_due or trainer.global_step % self.every == 0
        if due and self.is_healthy():
            self.saved, self.copy_due = snapshot(trainer, pl_module), False

    def skip(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: float) -> None:
        """Count a step that was left out and write it down; want to go back after too many."""
        self.n_skips, self.n_skipped = self.n_skips + 1, self.n_skipped + 1
        folder = None
        if self.n_skipped <= self.dumps:
            folder = write_dump(self.run_dir, trainer, pl_module, self.step)
        number, dump = trainer.global_step, None if folder is None else str(folder)
        record_event(self.run_dir, "skip", step=number, loss=str(loss), dump=dump)
        hint = f": python -m jepa.replay dump={dump}" if dump else ""
        rank_zero_warn(f"step {number} is left out: its loss is {loss}, or its gradient no number{hint}")  # fmt: skip  # noqa: E501
        if self.n_skips > self.max_skips:
            self.wanted = f"{self.n_skips} broken steps (loss or gradient not finite)"

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """After a step, go back if that is wanted, and look at the clock."""
        if trainer.global_step == self.seen_step:
            return
        self.seen_step, self.stepping = trainer.global_step, False
        self.step = Step()
        self.act(trainer, pl_module)
        if self.over_budget:
            done = self.pace.look(trainer, pl_module, self.schedules)
            if done is not None:
                refresh_rates(trainer)
                record_event(self.run_dir, "over_budget", step=self.seen_step, **done)
                rank_zero_warn(f"step {self.seen_step}: trainer.max_time will not do: {done}")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note the objective. Nothing goes back in here: what is made in here cannot be trained."""
        value = trainer.callback_metrics.get(self.monitor)
        if value is None or trainer.sanity_checking or off_schedule(trainer):
            return
        self.divergence.note_objective(value.item())
        self.wanted = self.wanted or self.divergence.verdict()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Go back if the validation asks for it, before the checkpoint after it."""
        self.act(trainer, pl_module)

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Write a checkpoint where memory ran out within a step: the next attempt starts there."""
        if self.out_of_memory and trainer.global_step and is_out_of_memory(exception):
            save_intact(trainer, None if self.stepping else self.step)

    def is_healthy(self) -> bool:
        """Tell whether the present weights are worth going back to."""
        return not self.n_skips and not self.wanted and not self.divergence.is_suspect()

    def act(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Go back, or stop after too many times, if that is wanted."""
        if not self.wanted or self.reason:
            return
        why, step, self.wanted = self.wanted, trainer.global_step, ""
        diverged = self.n_skips <= self.max_skips
        self.n_skips = 0
        self.divergence.reset()
        assert self.saved is not None
        put_back(trainer, pl_module, self.saved)  # also for the report of a run that stops
        if self.n_restores >= self.max_restores:
            self.reason = (
                f"{why} at step {step}, after going back {self.n_restores} times with half the "
                "learning rate each: lower model.optimizer.lr, or look at the data (dumps/)"
            )
            record_event(self.run_dir, "guard_stop", step=step, reason=self.reason)
            rank_zero_warn(self.reason)
            trainer.should_stop = True
            return
        self.n_restores += 1
        length = self.schedules.warm_up(trainer, pl_module) if diverged else 0
        scale_rates(trainer, 0.5)
        rates = [group["lr"] for one in trainer.optimizers for group in one.param_groups]
        record_event(
            self.run_dir, "restore", step=step, why=why, n=self.n_restores, lr=rates, warmup=length
        )
        rank_zero_warn(
            f"step {step}: {why}: back to the last healthy weights with half the learning rate "
            f"({self.n_restores} of at most {self.max_restores} times)"
        )

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Copy these weights at the next good step, as the run that goes on from them will."""
        self.copy_due = True

    def state_dict(self) -> dict[str, Any]:
        """Return what has fired; the healthy weights only where those of the checkpoint are not."""
        return {
            "counts": [self.n_skips, self.n_skipped, self.n_restores],
            "reason": self.reason,
            "wanted": self.wanted,
            "divergence": self.divergence.state_dict(),
            "schedules": [self.schedules.total, self.schedules.warmups],
            "rarer": self.pace.rarer,
            "saved": None if self.is_healthy() else self.saved,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with it."""
        self.n_skips, self.n_skipped, self.n_restores = state_dict["counts"]
        self.reason, self.wanted = state_dict["reason"], state_dict["wanted"]
        self.divergence.load_state_dict(state_dict["divergence"])
        self.schedules.total, self.schedules.warmups = state_dict["schedules"]
        self.pace.rarer, self.saved = state_dict["rarer"], state_dict["saved"]
