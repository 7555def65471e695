"""A callback that fails in the trials of a plan: `+callbacks.fault._target_=sweep_faults.Fault`."""

import os
import signal
import time
from pathlib import Path

import lightning as L


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
