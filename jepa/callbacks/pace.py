"""Whether a run with a time limit will come to its end in time, and what it saves where not."""

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Timer

from jepa.callbacks.schedule import Schedules

CHECK_SHARE = 0.05  # of the time limit, from one look to the next
LATE = 1.02  # times what is left: from here on it is worth a change
EARLY = 0.9  # likewise, below here, where the end was moved: it comes too soon
RARER_VALIDATION, RARER_LOGS = 2, 10


class Pace:
    """Project the end of a run from the time its steps have taken so far, validations included.

    Where that is over `trainer.max_time`, validations, and with them probes and pictures, and logs
    become rarer; where it still is at a later look, the schedules end at the step that can be
    reached, and move with it as that gets clearer. All of it goes on in a resumed run.
    """

    def __init__(self) -> None:
        self.rarer = False
        self.seen = 0.0  # seconds at the last look
        self.mark: tuple[int, float] | None = None  # step and seconds from which it is averaged

    def begin(self, trainer: L.Trainer) -> None:
        """Start to count; make a resumed run as sparing as it was."""
        self.mark = None
        if self.rarer:
            thin_out(trainer)

    def look(self, trainer: Any, pl_module: Any, schedules: Schedules) -> dict[str, Any] | None:
        """Return what was changed, None where it is not time to look or the run is not late."""
        timer = timer_of(trainer)
        if timer is None or not timer._duration:
            return None
        step, elapsed = trainer.global_step, agreed(trainer, timer.time_elapsed())
        if self.mark is None:
            self.mark, self.seen = (step, elapsed), elapsed
        if elapsed - self.seen < CHECK_SHARE * timer._duration or step == self.mark[0]:
            return None
        self.seen = elapsed
        seconds = (elapsed - self.mark[1]) / (step - self.mark[0])
        done = self.judge(trainer, pl_module, schedules, seconds, timer._duration - elapsed)
        if done is not None and done["action"] == "rarer":
            self.mark = (step, elapsed)
        return done

    def judge(
        self, trainer: Any, pl_module: Any, schedules: Schedules, seconds: float, left: float
    ) -> dict[str, Any] | None:
        """Act where so many seconds a step need more than are left, or leave much of it over."""
        step, total = trainer.global_step, int(trainer.estimated_stepping_batches)
        end = schedules.total or total
        needed, reached = (end - step) * seconds, step + max(1, int(left / seconds))
        early = end < total and needed < EARLY * left
        if end <= step or not (early or needed > LATE * left):
            return None
        projected = {"seconds_per_step": seconds, "seconds_left": left, "steps_left": end - step}
        if not early and not self.rarer:
            self.rarer = True
            return {"action": "rarer", **thin_out(trainer), **projected}
        reached = min(reached, total)
        schedules.end_at(trainer, pl_module, reached)
        return {"action": "replan", "total": reached, "total_before": end, **projected}


def thin_out(trainer: Any) -> dict[str, Any]:
    """Make validations and logs rarer; return how rare they are now."""
    if trainer.check_val_every_n_epoch is not None:
        trainer.check_val_every_n_epoch *= RARER_VALIDATION
    trainer.log_every_n_steps *= RARER_LOGS
    return {
        "check_val_every_n_epoch": trainer.check_val_every_n_epoch,
        "log_every_n_steps": trainer.log_every_n_steps,
    }


def timer_of(trainer: L.Trainer) -> Timer | None:
    """Return Lightning's timer, which `trainer.max_time` brings along."""
    callbacks = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
    return next((one for one in callbacks if isinstance(one, Timer)), None)


def agreed(trainer: Any, seconds: float) -> float:
    """Return the first rank's clock."""
    return seconds if trainer.world_size == 1 else trainer.strategy.broadcast(seconds)
