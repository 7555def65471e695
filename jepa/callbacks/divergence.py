"""Whether a loss that is a number still leads anywhere."""

from typing import Any


class Divergence:
    """Watch the training loss, smoothed, and the objective for what does not come back.

    Below where it began no loss is divergence: while a teacher is young it is easy to predict, and
    the loss of a sound T-JEPA rises to 24 times its best as the codes grow apart (California).

    Args:
        loss_ratio: how many times its best the smoothed loss may be, if that is above where it
            began; None does not ask.
        smoothing: steps that the loss is averaged over; nothing is judged before so many.
        rising: validations in a row with a higher objective than the one before; None does not ask.

    Raises:
        ValueError: for a setting out of its range.
    """

    def __init__(self, *, loss_ratio: float | int | None, smoothing: int, rising: int | None):
        if loss_ratio is not None and loss_ratio <= 1:
            raise ValueError(f"guard.loss_ratio must be above 1, or null, got {loss_ratio}")
        if smoothing < 1:
            raise ValueError(f"guard.smoothing must be at least 1, got {smoothing}")
        if rising is not None and rising < 2:
            raise ValueError(f"guard.rising must be at least 2, or null, got {rising}")
        self.loss_ratio, self.smoothing, self.rising = loss_ratio, smoothing, rising
        self.first: float | None = None  # the smoothed loss in the beginning
        self.reset()

    def reset(self) -> None:
        """Forget everything: after going back, loss and objective start anew."""
        self.mean, self.best, self.n = 0.0, float("inf"), 0
        self.objective, self.n_rising = float("inf"), 0

    def note_loss(self, loss: float) -> None:
        """Take in the loss of a step."""
        self.n += 1
        self.mean += (loss - self.mean) / min(self.n, self.smoothing)
        if self.n >= self.smoothing:
            self.first = self.mean if self.first is None else self.first
            self.best = min(self.best, self.mean)

    def note_objective(self, value: float) -> None:
        """Take in the objective of a validation."""
        self.n_rising = self.n_rising + 1 if value > self.objective else 0
        self.objective = value

    def is_suspect(self) -> bool:
        """Tell whether something rises, so that these weights may not be healthy."""
        return self.is_above(0.5) or (self.rising is not None and self.n_rising > 0)

    def is_above(self, power: float | int) -> bool:
        """Tell whether the loss is above where it began, and far above its best."""
        if self.loss_ratio is None or self.first is None:
            return False
        return self.mean > max(self.first, self.loss_ratio**power * self.best)

    def verdict(self) -> str:
        """Return what shows that the run diverges; nothing where it does not."""
        if self.is_above(1):
            return (
                f"the training loss is {self.mean / self.best:.3g} times its best {self.best:.4g}"
            )
        if self.rising is not None and self.n_rising >= self.rising:
            return (
                f"the objective rose {self.n_rising} validations in a row, to {self.objective:.4g}"
            )
        return ""

    def state_dict(self) -> dict[str, Any]:
        """Return what it has seen."""
        return {
            "loss": [self.mean, self.best, self.n, self.first],
            "objective": [self.objective, self.n_rising],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with it."""
        self.mean, self.best, self.n, self.first = state["loss"]
        self.objective, self.n_rising = state["objective"]
