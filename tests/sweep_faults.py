"""Callbacks that fail in the trials of a plan: `+callbacks.fault._target_=sweep_faults.Fault`."""

import os
import signal
import time
from pathlib import Path

import lightning as L
import torch

LIMIT = 12 * 2**30  # bytes of address space that the trials are given (`ulimit -v`)


class Fault(L.Callback):
    """Fail in the second epoch of trials of `plan`, as `2:kill-5:raise`.

    `3:wait` takes its time, until it is gone on with.
    """

    def __init__(self, run_dir, plan):
        self.how = dict(one.split(":") for one in plan.split("-")).get(Path(run_dir).name, "")

    def on_train_epoch_start(self, trainer, pl_module):
        if self.how == "wait" and not trainer.ckpt_path:
            time.sleep(4.0)
        elif trainer.current_epoch == 1 and self.how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif trainer.current_epoch == 1 and self.how == "raise":
            raise RuntimeError("as planned")


class FaultOfRate(L.Callback):
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
