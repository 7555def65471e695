"""`hydra/launcher=local` and `mps`: a process for each trial, so many at a time, on this machine.

A trial is the user's own command in a directory of its own: memory is the system's again when it
ends, and whatever kills it costs that trial alone.
"""

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig

from jepa.config import UserError
from jepa.directory import died_of_memory
from jepa.sweeps.outcome import LOG, Outcome, failed, how_it_left, read_outcome, starved
from jepa.sweeps.trial_files import last_sign

ALIVE = "alive.lock"  # held by the process of a trial as long as it lives
OUTCOME = "+hydra.callbacks.outcome._target_=jepa.sweeps.outcome.RecordOutcome"
POLL_S = 0.05


@runtime_checkable
class Job(Protocol):
    """A trial in flight, wherever it runs."""

    directory: Path

    def poll(self) -> Outcome | None:
        """Return how it ended, None while it runs."""
        ...

    def stop(self) -> None:
        """Ask it to write a checkpoint and leave."""
        ...

    def kill(self) -> None:
        """End it at once."""
        ...


class LocalJob:
    """A trial in a process of its own, in a session of its own: Ctrl-C reaches the driver alone.

    Args:
        command: what to run.
        directory: of the trial; gets the log, and the lock that is held while the process lives.
        variables: of its environment.
        timeout_s, stall_s: it is ended after so long, or so long after its last sign of life.
        grace_s: it has so long to write a checkpoint and leave, then it is killed.
        n_objectives: how many values it is to return.
    """

    def __init__(
        self,
        command: Sequence[str],
        directory: Path,
        *,
        variables: Mapping[str, str],
        timeout_s: float,
        stall_s: float,
        grace_s: float,
        n_objectives: int,
    ):
        directory.mkdir(parents=True)  # never used before, or it raises
        self.directory, self.n_objectives = directory, n_objectives
        self.timeout_s, self.stall_s, self.grace_s = timeout_s, stall_s, grace_s
        self.started, self.told, self.reason = time.time(), float("inf"), ""
        with (directory / ALIVE).open("w") as lock, (directory / LOG).open("w") as log:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **variables},
                start_new_session=True,
                pass_fds=[lock.fileno()],
            )
            lock.write(str(self.process.pid))

    def poll(self) -> Outcome | None:
        """Return how it ended; end it where it takes too long or hangs."""
        code = self.process.poll()
        if code is not None:
            reap(self.process.pid)  # what it started itself
            if self.reason:
                return failed(self.directory, self.reason)
            if code == -signal.SIGKILL and died_of_memory(self.directory):
                return starved(self.directory, how_it_left(code))
            return read_outcome(self.directory, code, n_objectives=self.n_objectives)
        now = time.time()
        quiet = now - max(self.started, last_sign(self.directory))
        if now - self.told > self.grace_s:
            self.kill()
        elif now - self.started > self.timeout_s and not self.reason:
            self.end(f"timed out after {self.timeout_s / 60:g} min")
        elif quiet > self.stall_s and not self.reason:
            self.end(f"no sign of life for {self.stall_s / 60:g} min")
        return None

    def end(self, reason: str) -> None:
        """Stop it for a reason that is its own fault."""
        self.reason = reason
        self.stop()

    def stop(self) -> None:
        """Ask it to leave; after a while it is killed."""
        self.told = min(self.told, time.time())
        send(self.process.pid, signal.SIGTERM)

    def kill(self) -> None:
        """End it at once, with all it has started."""
        send(self.process.pid, signal.SIGKILL)


class LocalLauncher(Launcher):
    """A process for each job.

    Args:
        n_jobs: at a time, of a grid; None: one. A sweep by Optuna has `hydra.sweeper.n_jobs`.
        timeout_min: after so many minutes a job is ended.
        stall_min: so many minutes after its last step, or line of output, likewise.
        grace_s: seconds that it then has to write a checkpoint and leave, before it is killed.
        pause_s: seconds between the end of a job and the start of the next.
        min_free_gb: a job waits until so much memory is free.
        variables: of the jobs' environment.
        overrides: of every job.
        command: what is run, with the overrides after it; None: what is running now.

    Raises:
        ValueError: for a setting out of its range.
    """

    def __init__(
        self,
        *,
        n_jobs: int | None = None,
        timeout_min: float | int = 360,
        stall_min: float | int = 30,
        grace_s: float | int = 120,
        pause_s: float | int = 0,
        min_free_gb: float | int = 0,
        variables: Mapping[str, str] | None = None,
        overrides: Sequence[str] = (),
        command: Sequence[str] | None = None,
    ):
        for name, value in (("timeout_min", timeout_min), ("stall_min", stall_min)):
            if value <= 0:
                raise ValueError(f"hydra.launcher.{name} must be positive, got {value}")
        if n_jobs is not None and n_jobs < 1:
            raise ValueError(f"hydra.launcher.n_jobs must be at least 1, or null, got {n_jobs}")
        if min(pause_s, min_free_gb, grace_s) < 0:
            raise ValueError(
                "hydra.launcher.pause_s, min_free_gb and grace_s must be at least 0, "
                f"got {pause_s=}, {min_free_gb=}, {grace_s=}"
            )
        self.n_jobs = n_jobs or 1
        self.timeout_s, self.stall_s = 60.0 * timeout_min, 60.0 * stall_min
        self.grace_s, self.pause_s, self.min_free = grace_s, pause_s, min_free_gb * 2**30
        self.variables, self.overrides = dict(variables or {}), list(overrides)
        self.command = list(command) if command else None
        self.n_objectives, self.shown = 1, False
        self.ended = -float("inf")
        self.config: DictConfig | None = None

    def setup(self, *, hydra_context: Any, task_function: Any, config: DictConfig) -> None:
        """Keep the config; the task is run by its own command."""
        self.config = config

    def ready(self) -> bool:
        """Tell whether another job may start now."""
        if time.monotonic() - self.ended < self.pause_s:
            return False
        return not self.min_free or free_memory() >= self.min_free

    def start(self, overrides: Sequence[str], directory: Path) -> LocalJob:
        """Start a job.

        Raises:
            FileExistsError: if the directory was used before.
        """
        threads = str(max(1, (os.cpu_count() or 1) // self.n_jobs))
        shared = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", threads)}
        variables = shared | self.variables
        if not self.shown:
            self.shown = True
            words = [f"{name}={value}" for name, value in variables.items()]
            print("jobs run with", *words, *self.overrides, flush=True)
        where = f"hydra.run.dir={quoted(str(directory))}"
        return LocalJob(
            [*(self.command or own_command()), *overrides, *self.overrides, where, OUTCOME],
            directory,
            variables=variables,
            timeout_s=self.timeout_s,
            stall_s=self.stall_s,
            grace_s=self.grace_s,
            n_objectives=self.n_objectives,
        )

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> list[JobReturn]:
        """Run all jobs of a grid; one that fails does not keep the others from running."""
        assert self.config is not None  # set up before anything is launched
        folder = Path(self.config.hydra.sweep.dir)
        waiting = list(enumerate(job_overrides, start=initial_job_idx))
        running: dict[int, tuple[LocalJob, Sequence[str]]] = {}
        returns: dict[int, JobReturn] = {}
        try:
            while waiting or running:
                while waiting and len(running) < self.n_jobs and self.ready():
                    number, overrides = waiting.pop(0)
                    directory = folder / str(number)
                    print(f"job {number}: {' '.join(overrides)}", flush=True)
                    running[number] = (self.start(overrides, directory), overrides)
                for number, (job, overrides) in list(running.items()):
                    if (outcome := job.poll()) is not None:
                        del running[number]
                        self.ended = time.monotonic()
                        print(f"job {number}: {outcome.state}: {outcome.reason}", flush=True)
                        returns[number] = returned(outcome, overrides, job.directory)
                time.sleep(POLL_S)
        finally:
            leave(job for job, _ in running.values())
        return [returns[number] for number in sorted(returns)]


def returned(outcome: Outcome, overrides: Sequence[str], directory: Path) -> JobReturn:
    """Return a job's outcome as Hydra has it: reading the value of a failed one raises."""
    complete = outcome.state == "complete"
    value = outcome.values if len(outcome.values) > 1 else (*outcome.values, None)[0]
    return JobReturn(
        overrides=list(overrides),
        working_dir=str(directory),
        status=JobStatus.COMPLETED if complete else JobStatus.FAILED,
        _return_value=value if complete else UserError(f"{directory.name}: {outcome.reason}"),
    )


def leave(jobs: Any) -> None:
    """Ask the jobs that still run to leave, and wait for them."""
    left = list(jobs)
    for job in left:
        job.stop()
    while any(job.poll() is None for job in left):
        time.sleep(POLL_S)


def own_command() -> list[str]:
    """Return the command that is running, without its overrides."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    entry = ["-m", spec.name.removesuffix(".__main__")] if spec else [sys.argv[0]]
    flags = [one for one in sys.argv[1:] if one.startswith("--config")]
    return [sys.executable, *entry, *flags]


def quoted(text: str) -> str:
    """Quote for Hydra what is not a plain path."""
    if all(one.isalnum() or one in "/._-" for one in text):
        return text
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def send(pid: int, number: int) -> None:
    """Signal a session that may be over."""
    try:
        os.killpg(pid, number)
    except (ProcessLookupError, PermissionError):
        return


def reap(pid: int) -> None:
    """Kill what is left of a job's session, as the workers of one that was killed."""
    send(pid, signal.SIGKILL)


def kill_orphan(directory: Path) -> bool:
    """Kill the process of a trial whose driver has died; tell whether there was one."""
    path = directory / ALIVE
    if not path.exists():
        return False
    with path.open("r+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            text = lock.read().strip()
            if not text:
                return False  # its driver died in the moment between; it ends on its own
            send(int(text), signal.SIGKILL)
            fcntl.flock(lock, fcntl.LOCK_EX)  # free once the process is gone
            return True
    return False


def free_memory() -> float:
    """Return the bytes of memory that are free, infinity where the system does not say."""
    path = Path("/proc/meminfo")
    if path.exists():
        text = path.read_text()
        return 1024.0 * int(text.split("MemAvailable:")[1].split()[0])
    if shutil.which("vm_stat"):  # macOS
        lines = subprocess.run(["vm_stat"], capture_output=True, text=True, check=False).stdout
        pages = {one.split(":")[0]: one.split(":")[1] for one in lines.splitlines()[1:]}
        size = int(lines.split("page size of ")[1].split()[0])
        kinds = ("Pages free", "Pages inactive", "Pages speculative")
        return float(size * sum(int(pages[kind].strip(" .")) for kind in kinds if kind in pages))
    return float("inf")


def register() -> None:
    """Make the launcher known to Hydra."""
    Plugins.instance().register(LocalLauncher)
