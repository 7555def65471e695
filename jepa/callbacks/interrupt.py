"""Leave in good order: a signal, the file `STOP` or the key `q` ends a run between two steps.

A handler only notes its signal. The checkpoint is written between optimizer steps, by the training
loop; a signal then leaves at once with its exit code, `STOP` and `q` let the run end as others do:
validated, with a report, exit code 0. Both go on with `resume=auto`.
"""

import os
import signal
import threading
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch.callbacks import Checkpoint

from jepa.callbacks import requeue
from jepa.callbacks.events import record_event
from jepa.callbacks.places import at_boundary
from jepa.callbacks.resume import Resume
from jepa.callbacks.terminal import Terminal

SIGNALS = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2")
ASKED = {-1: "the key q", -2: "the file STOP"}


class Leave(SystemExit):
    """A signal ends the process, with its exit code; other ranks leave the code to the first."""

    def __init__(self, name: str, *, rank: int):
        number = getattr(signal, name)
        super().__init__(128 + number if rank == 0 else 0)
        self.reason = f"{name}: go on with resume=auto"


class Interrupt(Checkpoint):
    """Watch for what asks the run to leave.

    Args:
        run_dir: `STOP` is looked for here, and removed when it is heeded.
        requeue: under SLURM, SIGUSR1 and SIGUSR2 put the job back into the queue.
    """

    def __init__(self, *, run_dir: str, requeue: bool):
        self.run_dir, self.requeue = Path(run_dir), requeue
        self.terminal = Terminal()
        self.handlers: dict[int, Any] = {}
        self.heard = 0  # a signal's number, or a key of ASKED; 0 for nothing
        self.agreed = 0  # the same, on every rank
        self.reason = ""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Turn Lightning's own requeue off: it saves inside the handler.

        Raises:
            ValueError: without the callback that writes the checkpoint.
        """
        environment = trainer._accelerator_connector.cluster_environment
        if isinstance(environment, SLURMEnvironment):
            environment.auto_requeue = False
        resumes(trainer)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start to listen."""
        if threading.current_thread() is threading.main_thread():
            for name in SIGNALS:
                number = getattr(signal, name)
                self.handlers[number] = signal.signal(number, self.note)
        if trainer.is_global_zero:
            self.terminal.open()

    def note(self, number: int, _frame: Any) -> None:
        """Note a signal, and do nothing else; a second Ctrl-C leaves at once."""
        if number == signal.SIGINT and self.heard == number:
            self.close()
            raise KeyboardInterrupt
        self.heard = number

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Between two steps, see on every rank alike whether any was asked to leave."""
        if self.agreed or not at_boundary(trainer):
            return
        if not self.heard and trainer.is_global_zero:
            self.heard = self.look()
        self.agreed = largest(trainer, self.heard)
        if self.agreed < 0:
            self.reason = f"stopped by {ASKED[self.agreed]}"
            (self.run_dir / "STOP").unlink(missing_ok=True)
            record_event(self.run_dir, "stop", step=trainer.global_step, by=ASKED[self.agreed])
            trainer.fit_loop.min_epochs, trainer.fit_loop.epoch_loop.min_steps = 0, None
            trainer.should_stop = True

    def look(self) -> int:
        """Return what asks for an end here and now, apart from signals."""
        if self.terminal.key() == "q":
            return -1
        return -2 if (self.run_dir / "STOP").exists() else 0

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Leave before the next step."""
        self.leave(trainer)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leave before a validation on schedule: the resumed run begins with it."""
        if trainer.fit_loop.epoch_loop.batch_progress.is_last_batch and not ends(trainer):
            self.leave(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leave between epochs; the last one is seen to its end."""
        if not ends(trainer):
            self.leave(trainer)

    def leave(self, trainer: L.Trainer) -> None:
        """Write the checkpoint and leave the process, if a signal asks for it."""
        if self.agreed <= 0:
            return
        name = signal.Signals(self.agreed).name
        resume = resumes(trainer)
        if resume.saved_step != trainer.global_step:
            resume.save(trainer)
        record_event(self.run_dir, "stop", step=trainer.global_step, by=name)
        if trainer.is_global_zero and self.requeue and name in requeue.SIGNALS:
            self.back_into_queue(trainer.global_step)
        raise Leave(name, rank=trainer.global_rank)

    def back_into_queue(self, step: int) -> None:
        """Ask SLURM for another start of this job, if it is one."""
        job = requeue.job_of(os.environ)
        if job is None:
            return
        limit = requeue.is_limit(job, os.environ)
        problem = self.too_often() if limit else ""
        problem = problem or requeue.requeue(job)
        record_event(self.run_dir, "requeue", step=step, job=job, limit=limit, problem=problem)
        said = f"could not be requeued: {problem}" if problem else "goes back into the queue"
        print(f"SLURM job {job} {said}", flush=True)

    def too_often(self) -> str:
        """Return why a job at its time limit does not go on; nothing where it does."""
        allowed = os.environ.get(requeue.TIMEOUTS)
        events = self.run_dir / "events.jsonl"
        n = events.read_text(encoding="utf-8").count('"limit": true') if events.exists() else 0
        return f"it timed out {n + 1} times" if allowed and n >= int(allowed) else ""

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop listening; leave now if a signal came during the last validation."""
        self.close()
        self.agreed = largest(trainer, max(self.heard, 0))
        self.leave(trainer)

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Give signals and terminal back, whatever happened."""
        self.close()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Give signals and terminal back."""
        self.close()

    def close(self) -> None:
        """Put back what handled the signals before, and the terminal."""
        self.terminal.close()
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        self.handlers = {}


def largest(trainer: L.Trainer, code: int) -> int:
    """Return what any rank heard; signals before keys and files."""
    if trainer.world_size == 1:
        return code
    heard = torch.tensor([max(code, 0), -min(code, 0)], device=trainer.strategy.root_device)
    number, asked = trainer.strategy.reduce(heard, reduce_op="max").tolist()
    return number or -asked


def ends(trainer: L.Trainer) -> bool:
    """Tell whether this epoch is the run's last, so that what is left is its end."""
    steps = 0 <= trainer.max_steps <= trainer.global_step
    last = trainer.max_epochs is not None and 0 <= trainer.max_epochs <= trainer.current_epoch + 1
    return steps or last or trainer.should_stop


def resumes(trainer: L.Trainer) -> Resume:
    """Return the callback that writes the newest checkpoint.

    Raises:
        ValueError: if it was taken out.
    """
    for callback in trainer.callbacks:  # pyright: ignore[reportAttributeAccessIssue]
        if isinstance(callback, Resume):
            return callback
    raise ValueError(
        "callbacks.interrupt writes its checkpoint through callbacks.resume, which is off: turn "
        "callbacks.interrupt=null off as well"
    )
