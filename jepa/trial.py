"""A few real training steps, a validation and a probe: how long they take, what they hold."""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.plugins.io import CheckpointIO
from torch import Tensor

from jepa.callbacks.places import at_boundary
from jepa.checks import synchronize
from jepa.data.archives import read_files
from jepa.data.decode import decode_files
from jepa.plan import resident, static_bytes, types_of
from jepa.step_memory import trace_step

# The trial stands alone: one process, nothing written, nothing stopped by a limit of the run.
ALONE = {
    "devices": 1, "num_nodes": 1, "strategy": "auto", "max_time": None, "min_epochs": None,
    "min_steps": None, "limit_val_batches": 0, "num_sanity_val_steps": 0, "fast_dev_run": False,
    "profiler": None, "enable_checkpointing": False, "logger": False,
}  # fmt: skip
MOST_ROWS = {"train": 1000, "val": 500}  # of a probe that is tried
VAL_BATCHES = 3
WARM_UP = 2  # steps that are not timed


class Stopwatch(L.Callback):
    """Time training batches, note their losses, and end the trial.

    Args:
        seconds: after so many, or after `most` batches, the trial ends with an optimizer step.
        least: so many batches are taken in any case.
    """

    def __init__(self, *, seconds: float, least: int = WARM_UP + 1, most: int = 50):
        self.seconds, self.least, self.most = seconds, least, most
        self.times: list[float] = []
        self.waits: list[float] = []
        self.losses: list[float] = []
        self.started = self.last = 0.0
        self.val_s = 0.0
        self.n_val = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the watch."""
        self.started = self.last = time.perf_counter()
        self.waited = 0.0

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Note time and loss; making the batch is part of its time."""
        self.losses.append(float(outputs["loss"]))  # waits for the device
        synchronize(pl_module.device)
        now = time.perf_counter()
        self.times.append(now - self.last)
        self.last = now
        waited = cast(Any, trainer.train_dataloader).seconds
        self.waits.append(waited - self.waited)
        self.waited = waited
        n = len(self.times)
        over = n >= self.most or now - self.started >= self.seconds
        if n >= self.least and over and at_boundary(trainer):
            trainer.should_stop = True

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Let the trainer write a checkpoint, which is only counted."""
        if isinstance(trainer.strategy.checkpoint_io, Scales):
            trainer.save_checkpoint("never-written")

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the watch."""
        self.val_s = time.perf_counter()

    def on_validation_batch_end(self, *_: Any, **__: Any) -> None:
        """Count."""
        self.n_val += 1

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop the watch."""
        synchronize(pl_module.device)
        self.val_s = time.perf_counter() - self.val_s

    @property
    def batch_s(self) -> float:
        """Seconds of a batch, the first ones left out where there are others."""
        return median(self.times[WARM_UP:] or self.times)

    @property
    def wait_s(self) -> float:
        """Seconds of them for which the step waits until its batch is made."""
        return median(self.waits[WARM_UP:] or self.waits)


class Scales(CheckpointIO):
    """Weigh checkpoints instead of writing them."""

    def __init__(self) -> None:
        self.n_bytes = 0

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike, storage_options: Any = None
    ) -> None:
        """Count the bytes of the file."""
        self.n_bytes = 0
        torch.save(checkpoint, self)  # pyright: ignore[reportArgumentType]

    def write(self, data: Any) -> int:
        """Count."""
        n = memoryview(data).nbytes
        self.n_bytes += n
        return n

    def flush(self) -> None:
        """Nothing is held back."""

    def load_checkpoint(self, path: str | os.PathLike, map_location: Any = None, **_: Any) -> Any:
        """Nothing was written.

        Raises:
            FileNotFoundError: always.
        """
        raise FileNotFoundError(path)

    def remove_checkpoint(self, path: str | os.PathLike) -> None:
        """Nothing was written."""


@dataclass(frozen=True)
class Trial:
    """What a trial has shown.

    Args:
        batch_s: seconds of a batch.
        wait_s: of these, until it is made.
        losses: of all batches.
        checkpoint_bytes: of a checkpoint.
    """

    batch_s: float
    wait_s: float
    losses: list[float]
    checkpoint_bytes: int


def train_a_little(
    trainer: Callable[..., L.Trainer],
    model: L.LightningModule,
    data: Any,
    *,
    batch_size: int,
    accumulate: int,
    seconds: float,
    folder: Path,
    record: L.Callback | None = None,
) -> Trial:
    """Take training steps on real batches for some seconds.

    Args:
        trainer: builds it.
        model: changes.
        data: prepared.
        batch_size: of one forward pass.
        accumulate: batches of a step; of more than two, two are tried.
        seconds: see `Stopwatch`.
        folder: a temporary one, for whatever Lightning wants to put somewhere.
        record: adds to a checkpoint what a run's has.
    """
    watch, scales, before = Stopwatch(seconds=seconds), Scales(), data.batch_size
    group = min(accumulate, 2)
    watch.least = WARM_UP + group
    callbacks = [watch] if record is None else [watch, record]
    data.batch_size = batch_size
    try:
        settings = ALONE | {"accumulate_grad_batches": group, "default_root_dir": str(folder)}
        trainer(callbacks=callbacks, plugins=[scales], **settings).fit(model, datamodule=data)
    finally:
        data.batch_size = before
    return Trial(watch.batch_s, watch.wait_s, watch.losses, scales.n_bytes)


def validate_a_little(
    trainer: Callable[..., L.Trainer], model: L.LightningModule, data: Any, folder: Path
) -> float:
    """Return the seconds of a whole validation, told by its first batches; 0 without one."""
    n = len(data.val_dataloader())
    if not n:
        return 0.0
    watch = Stopwatch(seconds=0.0)
    settings = ALONE | {"limit_val_batches": min(VAL_BATCHES, n), "default_root_dir": str(folder)}
    settings["accumulate_grad_batches"] = 1
    built = trainer(callbacks=[watch], **settings)
    built.validate(model, datamodule=data, verbose=False)
    return watch.val_s * n / max(watch.n_val, 1)


def probe_a_little(probe: Any, model: Any, data: Any) -> tuple[dict[str, float], float]:
    """Score the codes of some rows; return the scores and the seconds of all rows it would take.

    `probe` is a callback of ours; its numbers of rows are lowered.
    """
    asked = {"train": probe.max_rows, "val": probe.max_val_rows}
    there = {name: min(n, len(data.splits[name])) for name, n in asked.items()}
    probe.max_rows = min(probe.max_rows, MOST_ROWS["train"])
    probe.max_val_rows = min(probe.max_val_rows, MOST_ROWS["val"])
    tried = sum(min(there[name], MOST_ROWS[name]) for name in there)
    started = time.perf_counter()
    with torch.no_grad():
        scores = probe.scores(*probe.codes(data, model))
    seconds = time.perf_counter() - started
    return scores, seconds * sum(there.values()) / tried


def predictor(
    model: Any, *, precision: str, device: torch.device, most: int
) -> Callable[[int], int]:
    """Return what tells the most bytes of a step on so many samples.

    Args:
        model: may be without memory.
        precision: as Lightning's.
        device: where training will run.
        most: samples of the largest step that is asked about.
    """
    weights, operations = types_of(precision)
    static, stepping = static_bytes(
        model,
        model.optimizer,
        dtype=weights,
        device=device,
    )
    memory = trace_step(
        model, device=device, dtype=weights, autocast=operations, checkpointing=False, most=most
    )
    return lambda n: static + max(stepping, memory.peak(n))


class PeakMemory:
    """The most memory held since it was made, beyond what was held then; None if nobody knows."""

    def __init__(self, device: torch.device):
        self.device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        else:
            try:
                Path("/proc/self/clear_refs").write_text("5")
            except OSError:  # not Linux, or not allowed
                self.device = torch.device("meta")
        self.before = resident()

    def read(self) -> int | None:
        """Return the bytes."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        if self.device.type != "cpu":
            return None
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024 - self.before


def first_and_last(data: Any) -> dict[str, dict[str, Tensor]]:
    """Return the first and the last sample of each split, decoded.

    Raises:
        ValueError: for one in which nothing is a number.
    """
    found = {}
    for name, rows in data.splits.items():
        index = torch.tensor([0, len(rows) - 1], device=rows.device)
        found[name] = rows.take(index)
        if not torch.isfinite(found[name]["x"].float()).flatten(1).any(1).all():
            raise ValueError(f"the first or last sample of {name} holds no number")
    return found


def decoding_rates(
    path: str, side: int, n_threads: Sequence[int], n_files: int
) -> dict[int, float]:
    """Return images a second that so many threads decode, on the first files of a place."""
    found = ((name, content) for name, content in read_files(path) if content is not None)
    files = list(islice(found, n_files))
    rates = {}
    for n in n_threads:
        started = time.perf_counter()
        decode_files(files, side=side, n_workers=n)
        rates[n] = len(files) / (time.perf_counter() - started)
    return rates


def n_train_batches(trainer: Any, n: int) -> int:
    """Return how many of n batches of an epoch the settings of a trainer let it train on."""
    limit = trainer.overfit_batches or trainer.limit_train_batches
    return max(1, int(n * limit) if isinstance(limit, float) else min(n, limit))
