"""A control group whose processes the kernel ends when they take more than so much memory."""

import os
from pathlib import Path

import lightning as L
import torch

V1, V2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
MB_PER_ROW = 400


class Hog(L.Callback):
    """Take 400 MB of memory for every row of a micro-batch, in the third step."""

    def on_before_backward(self, trainer, pl_module, loss):
        if trainer.global_step == 2:
            rows = trainer.datamodule.batch_size
            assert torch.ones(rows * MB_PER_ROW * 2**20, dtype=torch.uint8).any()


class MemoryGroup:
    """Made on entering, gone on leaving; `enter` moves the process that calls it into it."""

    def __init__(self, n_bytes):
        v1 = (V1 / "memory.limit_in_bytes").exists()
        self.path = (V1 if v1 else V2) / f"jepa-test-{os.getpid()}"
        self.limit = "memory.limit_in_bytes" if v1 else "memory.max"
        self.n_bytes = n_bytes

    def __enter__(self):
        self.path.mkdir()
        try:
            (self.path / self.limit).write_text(str(self.n_bytes))
        except OSError:
            self.path.rmdir()
            raise
        return self

    def __exit__(self, *_):
        self.path.rmdir()

    def enter(self):
        (self.path / "cgroup.procs").write_text(str(os.getpid()))


def why_not():
    """Return why no group can be made here; nothing where one can."""
    try:
        with MemoryGroup(2**30):
            return ""
    except OSError as error:
        return f"no memory group can be made: {error}"
