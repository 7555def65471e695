"""`hydra/launcher=slurm`: a SLURM job for each trial, an array for a plain grid.

A job runs the user's own command in a directory of its own, on a file system that all nodes share:
it needs nothing of its driver, and outlives it. The script's head is submitit's, with its settings.
"""

import json
import os
import shlex
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra_plugins.hydra_submitit_launcher import submitit_launcher
from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf
from omegaconf import DictConfig, OmegaConf

from jepa.callbacks.requeue import TIMEOUTS, WARNING
from jepa.config import UserError
from jepa.report import write_text
from jepa.sweeps import local, slurm_queue
from jepa.sweeps.local import OUTCOME, POLL_S, quoted, returned
from jepa.sweeps.outcome import LOG, RESULT, Outcome, failed, read_outcome, starved
from jepa.sweeps.slurm_queue import Away, Full, Refused, Status, Watch

JOB, COMMAND = "job.json", "command.sh"
GRACE_S = 120.0  # to write a checkpoint after SIGTERM
FILE_S = 0.25  # between two looks for a result
SETTLE_S = 15.0  # for the file of a job that ended well, on a slow file system
BACK_OFF_S = (2.0, 300.0)  # between two tries to submit: at first, and at most
N_LINES = 6  # of the log, in the reason of a failure
NOT_ITS_FAULT = ("BOOT_FAIL", "LOST", "NODE_FAIL", "PREEMPTED", "REVOKED")


class SlurmJob:
    """A job of SLURM's, or one that is still to be submitted.

    Args:
        launcher: submits it, and looks after it.
        directory: of the trial.
        overrides: of the trial.
        job: its id; None for one that is not submitted yet.
    """

    def __init__(
        self,
        launcher: "SlurmLauncher",
        directory: Path,
        overrides: Sequence[str],
        job: str | None = None,
    ):
        self.launcher, self.directory = launcher, directory
        self.overrides, self.job = overrides, job
        self.next, self.told, self.ended = 0.0, float("inf"), float("inf")

    def poll(self) -> Outcome | None:
        """Return how it ended; submit it, where that is still to be done."""
        now = time.monotonic()
        if now < self.next:
            return None
        self.next = now + FILE_S
        if self.job is None:
            if self.told < now:
                return Outcome("failed", "it was never submitted", lost=True)
            self.launcher.submit([self])
        elif (self.directory / RESULT).exists():
            self.launcher.watch.forget(self.job)
            return read_outcome(self.directory, 0, n_objectives=self.launcher.n_objectives)
        elif (status := self.launcher.watch.status(self.job)) is not None:
            return self.judge(status, now)
        elif now - self.told > GRACE_S:
            self.kill()
        return None

    def judge(self, status: Status, now: float) -> Outcome | None:
        """Judge a job that left no result; one that ended well is given time to show it."""
        self.ended = min(self.ended, now)
        os.utime(self.directory)  # NFS looks again
        if status.state == "COMPLETED" and now - self.ended < SETTLE_S:
            return None
        if status.node and not (self.directory / LOG).exists():
            self.launcher.unseen(self.directory, status)
            return Outcome("failed", f"{status}: the node does not see {self.directory}", lost=True)
        reason = f"job {self.job}: {status}{last_lines(self.directory / LOG)}"
        if status.state in NOT_ITS_FAULT:
            return Outcome("failed", reason, lost=True)
        if status.state == "OUT_OF_MEMORY":
            return starved(self.directory, reason)
        return failed(self.directory, reason)

    def stop(self) -> None:
        """Ask it to write a checkpoint and leave; after a while it is killed."""
        self.told = min(self.told, time.monotonic())
        if self.job is not None:
            slurm_queue.terminate(self.job)

    def kill(self) -> None:
        """End it at once."""
        self.told = min(self.told, time.monotonic())
        if self.job is not None:
            slurm_queue.cancel(self.job)


class SlurmLauncher(submitit_launcher.SlurmLauncher):
    """Jobs of SLURM's that no driver waits for.

    Args:
        params: the settings of Hydra's submitit launcher. `name` begins the names of the jobs;
            `max_num_timeout` is how often a job goes on after its time limit.
    """

    def __init__(self, **params: Any):
        super().__init__(**params)
        self.watch = Watch()
        self.n_objectives = 1
        self.accepted = False  # whether SLURM ever took a job of this driver
        self.visible = False  # whether a node ever wrote into a directory of a job
        self.unsent: SlurmJob | None = None
        self.wait, self.again, self.said = BACK_OFF_S[0], 0.0, ""

    def setup(self, *, hydra_context: Any, task_function: Any, config: DictConfig) -> None:
        """Keep the config.

        Raises:
            UserError: where there is no SLURM, or the directory of the sweep cannot be written.
        """
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)
        if shutil.which("sbatch") is None:
            raise UserError(
                "hydra/launcher=slurm: sbatch is not found on this machine: start the sweep where "
                "jobs are submitted, or run it here with hydra/launcher=local"
            )
        folder = Path(config.hydra.sweep.dir)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise UserError(
                f"hydra.sweep.dir={folder} cannot be written: {error}: give another directory, on "
                "a file system that all nodes share"
            ) from error

    @property
    def command(self) -> list[str]:
        """The command of a job, without its overrides."""
        first, *rest = local.own_command()
        return [*shlex.split(self.params["python"] or shlex.quote(first)), *rest]

    def ready(self) -> bool:
        """Tell whether another job may start now: not while one waits to be submitted."""
        return self.unsent is None or self.unsent.job is not None

    def start(self, overrides: Sequence[str], directory: Path) -> SlurmJob:
        """Submit a job, or have it submitted when SLURM takes jobs again.

        Raises:
            FileExistsError: if the directory was used before.
            UserError: if SLURM refuses the first job.
        """
        if directory.exists():
            raise FileExistsError(f"{directory} was used before")
        self.unsent = SlurmJob(self, directory, overrides)
        self.submit([self.unsent])
        return self.unsent

    def adopt(self, directory: Path) -> SlurmJob | None:
        """Return the job of a trial whose driver has died, None where none was submitted."""
        path = directory / JOB
        if path.exists():
            job = json.loads(path.read_text(encoding="utf-8"))["job"]
            return SlurmJob(self, directory, (), job)
        try:  # it may have died before it wrote that down
            found = slurm_queue.alive(self.script_of([directory])[1])
        except Away:
            return None
        return SlurmJob(self, directory, (), next(iter(found))) if found else None

    def prepare(self, job: SlurmJob) -> None:
        """Write what the node runs, and runs again after a requeue."""
        place = job.directory.absolute()
        place.mkdir(parents=True, exist_ok=True)
        where = f"hydra.run.dir={quoted(str(place))}"
        line = shlex.join([*self.command, *job.overrides, where, OUTCOME])
        checkpoint = shlex.quote(str(place / "checkpoints" / "last.ckpt"))
        threads = "${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}"
        lines = [
            "#!/bin/bash",
            f"[ -e {shlex.quote(str(place / RESULT))} ] && exit 0",
            f"again=(); [ -e {checkpoint} ] && again=(resume=auto)",
            f"export OMP_NUM_THREADS={threads} {TIMEOUTS}={self.params['max_num_timeout']} "
            f"{WARNING}={self.params['signal_delay_s']} PYTHONUNBUFFERED=1",
            f'exec {line} "${{again[@]}}"',
        ]
        write_text(place / COMMAND, "\n".join(lines) + "\n")

    def submit(self, jobs: Sequence[SlurmJob]) -> None:
        """Submit jobs, several as an array; what SLURM does not take now waits, longer every time.

        Raises:
            UserError: if it refuses the first ones, in the words of sbatch.
        """
        if time.monotonic() < self.again:
            return
        try:
            for one in jobs:
                self.prepare(one)
            script = self.write_script(jobs)
            earlier = slurm_queue.alive(script) if self.said else {}  # it may have come through
            number = next(iter(earlier), "").split("_")[0] or slurm_queue.submit(script)
            for one in jobs:
                one.job = number if len(jobs) == 1 else f"{number}_{one.directory.name}"
            for one in jobs:
                write_text(one.directory / JOB, json.dumps({"job": one.job}) + "\n")
        except Refused as error:
            if not self.accepted:
                raise UserError(f"SLURM refuses the job of hydra.launcher: {error}") from error
            self.put_off(str(error))
        except Full as error:
            half = len(jobs) // 2
            if not half:
                self.put_off(str(error))
            for part in (jobs[:half], jobs[half:]) if half else ():
                self.submit(part)
        except Away as error:
            self.put_off(str(error))
        except OSError as error:  # a full disk, or one that is away
            self.put_off(f"{jobs[0].directory.parent} cannot be written: {error}")
        else:
            self.accepted, self.wait, self.said = True, BACK_OFF_S[0], ""

    def put_off(self, why: str) -> None:
        """Wait, longer every time; say why once."""
        if why != self.said:
            print(f"not submitted, tried again: {why}", flush=True)
        self.said = why
        self.again = time.monotonic() + self.wait
        self.wait = min(2 * self.wait, BACK_OFF_S[1])

    def script_of(self, directories: Sequence[Path]) -> tuple[str, Path]:
        """Return the name of a job, or of an array, and its script."""
        first, last = directories[0].absolute(), directories[-1]
        name = f"{self.params['name']}-{first.name}"
        name += f"to{last.name}" if len(directories) > 1 else ""
        return name, first.parent / ".slurm" / f"{first.name}to{last.name}.sh"

    def write_script(self, jobs: Sequence[SlurmJob]) -> Path:
        """Write the script of a job, or of an array whose indices are the names of directories."""
        name, path = self.script_of([one.directory for one in jobs])
        folder, place, more = path.parent.parent, jobs[0].directory.name, {}
        if len(jobs) > 1:
            place = "%a"
            numbers = ",".join(one.directory.name for one in jobs)
            more["array"] = f"{numbers}%{self.params['array_parallelism']}"
        task = place.replace("%a", "$SLURM_ARRAY_TASK_ID")
        line = f"bash {shlex.quote(str(folder))}/{task}/{COMMAND}"
        path.parent.mkdir(exist_ok=True)
        write_text(path, self.script(name, line, output=str(folder / place / LOG), **more))
        return path

    def script(self, name: str, command: str, **more: Any) -> str:
        """Return a script with the head that submitit makes of the settings.

        The command takes the place of the shell, so that signals for the batch step reach it.
        """
        from submitit import AutoExecutor  # late, as in the plugin: discovery stays fast

        shared = set(OmegaConf.structured(BaseQueueConf)) - {"submitit_folder"}
        own = {"submitit_folder", "max_num_timeout", "python", "array_parallelism"}
        settings = {
            key: value for key, value in self.params.items() if key not in own | {"_target_"}
        }
        srun, srun_args = settings.pop("use_srun"), settings.pop("srun_args") or []
        if srun:
            cpus = settings["cpus_per_task"]
            srun_args = [f"--cpus-per-task={cpus}", *srun_args] if cpus else srun_args
            command = f"{shlex.join(['srun', *srun_args])} {command}"
        else:
            more["signal"] = f"B:USR2@{settings['signal_delay_s']}"
        further = {"requeue": True, **more, **(settings["additional_parameters"] or {})}
        settings |= {"name": name, "stderr_to_stdout": True, "additional_parameters": further}
        executor: Any = AutoExecutor(cluster="slurm", folder=self.params["submitit_folder"])
        executor.update_parameters(
            **{k if k in shared else f"slurm_{k}": v for k, v in settings.items()},
            slurm_use_srun=False,
        )
        # The one line that makes the head; submitit's own jobs are pickles that it must wait for.
        return executor._executor._make_submission_file_text(f"exec {command}", "")

    def unseen(self, directory: Path, status: Status) -> None:
        """Refuse a sweep directory that not even the first job could write into.

        Raises:
            UserError: then.
        """
        self.visible = self.visible or any(directory.parent.glob(f"*/{LOG}"))
        if not self.visible:
            raise UserError(
                f"hydra.sweep.dir={directory.parent}: the node {status.node} does not see it "
                f"({status}): give a directory on a file system that all nodes share"
            )

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> list[JobReturn]:
        """Run all jobs of a grid; the same command goes on, and repeats what failed.

        Raises:
            UserError: if SLURM refuses the first jobs.
        """
        assert self.config is not None  # set up before anything is launched
        folder = Path(self.config.hydra.sweep.dir)
        jobs = [
            SlurmJob(self, folder / str(number), overrides)
            for number, overrides in enumerate(job_overrides, start=initial_job_idx)
        ]
        self.find_again(jobs)
        ended: dict[str, Outcome] = {}
        try:
            while len(ended) < len(jobs):
                if unsent := [one for one in jobs if one.job is None]:
                    self.submit(unsent)
                for one in jobs:
                    name = one.directory.name
                    if name in ended or one.job is None or (outcome := one.poll()) is None:
                        continue
                    print(f"job {name}: {outcome.state}: {outcome.reason}", flush=True)
                    ended[name] = outcome
                time.sleep(POLL_S)
        except KeyboardInterrupt:
            local.leave(one for one in jobs if one.directory.name not in ended)
            raise
        return [returned(ended[one.directory.name], one.overrides, one.directory) for one in jobs]

    def find_again(self, jobs: Sequence[SlurmJob]) -> None:
        """Give those their ids that an earlier command of the same grid has run or left running.

        Raises:
            UserError: if SLURM does not say what runs.
        """
        used = [one for one in jobs if (one.directory / JOB).exists()]
        try:
            queue = slurm_queue.alive() if used else {}
        except Away as error:
            raise UserError(f"SLURM does not say what is left of this grid: {error}") from error
        for one in used:
            job = json.loads((one.directory / JOB).read_text(encoding="utf-8"))["job"]
            result = one.directory / RESULT
            outcome = read_outcome(one.directory, 0, n_objectives=self.n_objectives)
            if job in queue or outcome.state == "complete":
                one.job = job
            else:
                result.unlink(missing_ok=True)


def last_lines(log: Path) -> str:
    """Return the end of a log, in one line."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 4096))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return "".join(f"; {line}" for line in lines[-N_LINES:])


def register() -> None:
    """Make the launcher known to Hydra."""
    Plugins.instance().register(SlurmLauncher)
