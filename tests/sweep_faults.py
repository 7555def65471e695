"""A callback for the trials of a real sweep: some learning rates go wrong, each its own way."""

import os
import signal
import time

import torch
from lightning import Callback

LIMIT = 12 * 2**30  # bytes of address space that the trials are given (`ulimit -v`)


class Fault(Callback):
    """Go wrong in the trial whose learning rate `plan` names.

    Args:
        lr: of this trial.
        plan: `<learning rate>:<how>-...`
    """

    def __init__(self, *, lr: float, plan: str):
        self.how = dict(one.split(":") for one in plan.split("-") if one).get(str(lr), "")

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step != 2:
            return
        if self.how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.how == "memory":
            torch.empty(LIMIT + 2**30, dtype=torch.uint8)
        elif self.how == "raise":
            raise RuntimeError("the loss exploded")
        elif self.how == "hang":
            time.sleep(3600)

    def on_fit_end(self, trainer, pl_module):
        if self.how == "nan":  # the objective; what diverges is refused by the probe
            for callback in trainer.checkpoint_callbacks:
                callback.best_model_score = torch.tensor(float("nan"))
