"""What a run asks of its machine: parts of a step, memory, use of the device, disk, time left."""

import math
import shutil
import time
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor
from torch.optim import Optimizer

from jepa.callbacks.memory import memory_bytes

MIB, GIB = 2.0**20, 2.0**30


class Machine(L.Callback):
    """Log `time/forward_ms`, `backward_ms`, `optimizer_ms` with the other metrics of a step.

    They are of its last micro-batch; the optimizer's part holds clipping and the teacher's step. To
    time a GPU one has to wait for it, so only the steps that are logged are timed. At the end of an
    epoch: `memory/mib`, `memory/disk_left_gib`, `time/device_share` (on a CPU the processor time of
    this process over its threads; absent where the system does not say) and `time/left_s`.

    Args:
        run_dir: on the disk that is watched.
    """

    def __init__(self, *, run_dir: str):
        self.run_dir = run_dir
        self.marks: list[float] = []  # start, loss, gradient

    @rank_zero_only
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clocks of this session."""
        self.started, self.first_step = time.perf_counter(), trainer.global_step
        self.epoch = (self.started, time.process_time())

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Start timing, if this may be the last micro-batch of a step that is logged."""
        every = trainer.log_every_n_steps  # pyright: ignore[reportAttributeAccessIssue]
        due = (trainer.global_step + 1) % every == 0
        self.marks = [now(pl_module.device)] if due else []

    def on_before_backward(
        self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor
    ) -> None:
        """The loss is there."""
        self.mark(pl_module)

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer
    ) -> None:
        """The gradient is there."""
        self.mark(pl_module)

    def mark(self, pl_module: L.LightningModule) -> None:
        """Note the time, where a step is being timed."""
        if self.marks:
            self.marks.append(now(pl_module.device))

    @rank_zero_only
    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Log the parts of a step that was made."""
        self.mark(pl_module)
        if len(self.marks) == 4:
            start, loss, gradient, end = (1000 * mark for mark in self.marks)
            parts = {"forward": loss - start, "backward": gradient - loss, "optimizer": end - gradient}  # fmt: skip  # noqa: E501
            logged = {f"time/{name}_ms": value for name, value in parts.items()}
            pl_module.log_dict(logged, rank_zero_only=True)
        self.marks = []

    @rank_zero_only
    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the state of the machine."""
        clock, processor = time.perf_counter(), time.process_time()
        used, _ = memory_bytes(pl_module.device)
        share = device_share(pl_module.device, clock - self.epoch[0], processor - self.epoch[1])
        self.epoch = (clock, processor)
        steps = trainer.global_step - self.first_step
        left = int(trainer.estimated_stepping_batches) - trainer.global_step
        logged = {
            "memory/mib": used / MIB,
            "memory/disk_left_gib": shutil.disk_usage(self.run_dir).free / GIB,
            "time/device_share": share,
            "time/left_s": left * (clock - self.started) / max(steps, 1),
        }
        known = {name: value for name, value in logged.items() if not math.isnan(value)}
        pl_module.log_dict(known, rank_zero_only=True)


def now(device: torch.device) -> float:
    """Return the time in seconds, when all that was asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter()


def device_share(device: torch.device, seconds: float, processor_s: float) -> float:
    """Return the part of the time in which the device was busy; nan where it is not known.

    Args:
        device: of the run.
        seconds: that have passed.
        processor_s: seconds of processor time of this process in them.
    """
    if device.type == "cpu":
        return processor_s / seconds / torch.get_num_threads()
    if device.type == "cuda":
        try:
            return torch.cuda.utilization(device) / 100
        except (ModuleNotFoundError, RuntimeError):  # needs pynvml, and a driver that says
            return math.nan
    return math.nan
