"""A callback that fails in the trials of a plan: `+callbacks.fault._target_=sweep_faults.Fault`."""

import os
import signal
import time
from pathlib import Path

import lightning as L


class Fault(L.Callback):
    """Fail in the second epoch of the trials of `plan`, as `2:kill-5:raise`; `3:wait` takes time."""

    def __init__(self, run_dir, plan):
        self.how = dict(one.split(":") for one in plan.split("-")).get(Path(run_dir).name, "")

    def on_train_epoch_start(self, trainer, pl_module):
        if self.how == "wait":
            time.sleep(1.0)
        elif trainer.current_epoch == 1 and self.how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif trainer.current_epoch == 1 and self.how == "raise":
            raise RuntimeError("as planned")
