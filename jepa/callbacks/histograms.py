"""Histograms of the weights, for TensorBoard."""

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only


class Histograms(L.Callback):
    """Write every trained parameter where TensorBoard is among the loggers; nothing elsewhere.

    Args:
        every: validations from one writing to the next; 0 for never.

    Raises:
        ValueError: for a negative number.
    """

    def __init__(self, *, every: int):
        if every < 0:
            raise ValueError(f"callbacks.histograms.every must be at least 0, got {every}")
        self.every, self.n_validations = every, 0

    @rank_zero_only
    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write what is due."""
        if not self.every or trainer.sanity_checking:
            return
        self.n_validations += 1
        if self.n_validations % self.every:
            return
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                for name, one in pl_module.named_parameters():
                    if one.requires_grad:
                        values = one.detach().float().cpu()
                        logger.experiment.add_histogram(name, values, trainer.global_step)

    def state_dict(self) -> dict[str, int]:
        """Return what a resumed run goes on with."""
        return {"n_validations": self.n_validations}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Go on with it."""
        self.n_validations = state_dict["n_validations"]
