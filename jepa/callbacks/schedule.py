"""Change the schedules of a run that is under way: another warm-up, another end."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

Factor = Callable[[int], float]


def warmup_of(factor: Factor) -> int:
    """Return the steps that a learning-rate factor warms up for; 0 where it does not say."""
    return getattr(factor, "keywords", {}).get("warmup", 0)


def replanned(factor: Factor, *, total: int | None, warmups: Sequence[Sequence[int]]) -> Factor:
    """Return a factor that ends after `total` steps and warms up again.

    A plain function: the schedule then has nothing to put into a checkpoint.

    Args:
        factor: as the model built it.
        total: None leaves it; so does a factor that has no such end.
        warmups: of each, the step where it starts and its length.
    """
    if total is not None and isinstance(factor, partial) and "total" in factor.keywords:
        factor = partial(factor.func, *factor.args, **factor.keywords | {"total": total})

    def share(step: int) -> float:
        value = factor(step)
        for start, length in warmups:
            if start <= step < start + length:
                value *= (step - start + 1) / (length + 1)
        return value

    return share


class Schedules:
    """The schedules of a run as its model built them, and what has been changed.

    `total` is None, or where they end now; `warmups` are the further ones.
    """

    def __init__(self) -> None:
        self.total: int | None = None
        self.warmups: list[list[int]] = []
        self.factors: list[list[Factor]] = []

    def begin(self, trainer: Any, pl_module: Any) -> None:
        """Take what the model has built; put a resumed run's changes in again."""
        self.factors = [list(one.scheduler.lr_lambdas) for one in trainer.lr_scheduler_configs]
        if self.total is not None or self.warmups:
            self.apply(trainer, pl_module)

    def warm_up(self, trainer: Any, pl_module: Any) -> int:
        """Warm up once more from here, for twice as many steps as the last time."""
        first = max((warmup_of(one) for group in self.factors for one in group), default=0)
        length = 2 * (self.warmups[-1][1] if self.warmups else first)
        self.warmups.append([trainer.global_step, length])
        self.apply(trainer, pl_module)
        return length

    def end_at(self, trainer: Any, pl_module: Any, total: int) -> None:
        """End every schedule at a step."""
        self.total = total
        self.apply(trainer, pl_module)

    def apply(self, trainer: Any, pl_module: Any) -> None:
        """Put the changes in."""
        for config, factors in zip(trainer.lr_scheduler_configs, self.factors, strict=True):
            config.scheduler.lr_lambdas = [
                replanned(one, total=self.total, warmups=self.warmups) for one in factors
            ]
        if self.total is not None:
            pl_module.total_steps = self.total  # of momentum and weight decay
