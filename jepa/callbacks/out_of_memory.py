"""What is saved when memory runs out."""

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_warn

from jepa.callbacks.finite import Step
from jepa.callbacks.resume import Resume


def save_intact(trainer: L.Trainer, step: Step | None) -> None:
    """Write the checkpoint of the newest whole step; older ones are all there is where that fails.

    Args:
        trainer: inside an exception.
        step: that failed before the optimizer began; None after that, when weights may be mixed.
    """
    callbacks = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
    resume = next((one for one in callbacks if isinstance(one, Resume)), None)
    if resume is None or step is None or trainer.world_size > 1:
        return
    try:
        for buffer, before in step.norms:
            buffer.copy_(before)
        resume.save_group_start(trainer)
    except (MemoryError, torch.OutOfMemoryError, OSError) as error:
        rank_zero_warn(f"no checkpoint could be written when memory ran out: {error}")
