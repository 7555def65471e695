"""What SLURM says: submit a script, and look at many jobs with one question in a while.

`squeue` knows who is alive, `sacct` how the others ended; without accounting `scontrol` does, for
as long as slurmctld remembers (MinJobAge, five minutes). A daemon that does not answer says nothing
about a job.
"""

import os
import re
import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

PATIENCE_S = 60.0  # for the answer of a command
LOOK_S = 5.0  # between two questions
LOST_S = 60.0  # after which a job that nobody knows is lost
# What sbatch says where fewer jobs, or the same ones later, may be accepted.
FULL = re.compile(r"submit ?job|maximum number of jobs|maxjobcount", re.IGNORECASE)
LATER = re.compile(
    r"unable to contact|timed out|temporar|connect|communication|zero bytes|try again|transport"
    r"|no space|slurmdbd",
    re.IGNORECASE,
)
ENDED = {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY"}
ENDED |= {"PREEMPTED", "REVOKED", "TIMEOUT"}


class Away(Exception):
    """SLURM cannot do now what it may do later; the text is its own."""


class Full(Away):
    """There are as many jobs in the queue as the user may have."""


class Refused(Exception):
    """SLURM will not do what it is asked for; the text is its own."""


@dataclass(frozen=True)
class Status:
    """How a job ended.

    Args:
        state: SLURM's word, or `LOST` where nobody knows the job any more.
        code: `<exit code>:<signal>`.
        node: where it ran.
    """

    state: str
    code: str = ""
    node: str = ""

    def __str__(self):
        code, _, number = self.code.partition(":")
        words = [self.state]
        if code:
            words.append(f"exit code {code}")
        if number not in ("", "0"):
            words.append(f"signal {number}")
        return ", ".join([*words, f"on {self.node}"] if self.node else words)


def ask(*line: str) -> str:
    """Run a command of SLURM's; return what it prints.

    Raises:
        Away: if it fails, is not there, or does not answer.
    """
    try:
        done = subprocess.run(
            line,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
            env=clean_environment(),
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Away(f"{line[0]}: {error}") from error
    if done.returncode:
        raise Away(done.stderr.strip() or f"{line[0]} ended with exit code {done.returncode}")
    return done.stdout


def clean_environment() -> dict[str, str]:
    """Return the environment without what SLURM has put into that of a job: jobs inherit it."""
    foreign = ("SLURM_", "SLURMD_", "SRUN_", "SBATCH_")
    kept = ("SLURM_CONF", "SLURM_TIME_FORMAT")
    return {k: v for k, v in os.environ.items() if k in kept or not k.startswith(foreign)}


def submit(script: Path, *options: str) -> str:
    """Submit a script with further options of sbatch; return the id of its job.

    Raises:
        Away: where the same submission may be accepted later, `Full` where fewer jobs may be now.
        Refused: where it will not.
    """
    try:
        return ask("sbatch", "--parsable", *options, str(script)).strip().split(";")[0]
    except Away as error:
        if FULL.search(str(error)):
            raise Full(str(error)) from error
        if LATER.search(str(error)):
            raise
        raise Refused(str(error)) from error


def cancel(job: str) -> None:
    """End a job at once."""
    tell("scancel", job)


def terminate(job: str) -> None:
    """Send SIGTERM to a job that runs; one that waits is taken out of the queue."""
    tell("scancel", "--state=PENDING", job)
    tell("scancel", "--signal=TERM", job)


def tell(*line: str) -> None:
    """Run a command that may find nothing left to do."""
    try:
        ask(*line)
    except Away:
        return


def alive(script: Path | None = None) -> dict[str, str]:
    """Return the state of the user's jobs in the queue, or of those of one script, by id.

    Raises:
        Away: if slurmctld does not answer.
    """
    own = ("squeue", "--noheader", "--array", f"--user={os.getuid()}", "--format=%i|%T|%o")
    rows = [line.strip().split("|", 2) for line in ask(*own).splitlines() if "|" in line]
    return {job: state for job, state, path in rows if script is None or path == str(script)}


def accounted(jobs: Iterable[str]) -> dict[str, Status]:
    """Return how those jobs ended that the accounting has seen end; nothing without accounting."""
    from submitit.slurm.slurm import SlurmInfoWatcher

    ids = ",".join(sorted({job.split("_")[0] for job in jobs}))
    line = ("sacct", "--parsable2", "--allocations", f"--jobs={ids}")
    try:
        text = ask(*line, "--format=JobID,State,ExitCode,NodeList")
    except Away:
        return {}
    found = {}
    for job, row in SlurmInfoWatcher().read_info(text).items():
        state = (row["State"].split() or ["UNKNOWN"])[0]  # of `CANCELLED by 0`
        if state in ENDED:
            found[job] = Status(state, row["ExitCode"], node(row["NodeList"]))
    return found


def remembered(job: str) -> Status | None:
    """Return how slurmctld remembers the end of a job, None where it does not."""
    try:
        text = ask("scontrol", "--oneliner", "show", "job", job)
    except Away:
        return None
    values = dict(word.split("=", 1) for word in text.split() if "=" in word)
    if values.get("JobState") not in ENDED:
        return None
    return Status(values["JobState"], values.get("ExitCode", ""), node(values.get("NodeList", "")))


def node(text: str) -> str:
    """Return the nodes of a job, nothing for one that never got any."""
    return "" if text in ("None assigned", "(null)") else text


class Watch:
    """Looks at all jobs of a driver together."""

    def __init__(self):
        self.seen: dict[str, float] = {}  # when a job was last known to be alive
        self.ended: dict[str, Status] = {}
        self.next = 0.0

    def status(self, job: str) -> Status | None:
        """Return how a job ended, None while it may be alive."""
        if job not in self.ended:
            self.seen.setdefault(job, time.monotonic())
            if time.monotonic() >= self.next:
                self.look()
                self.next = time.monotonic() + LOOK_S
        return self.ended.get(job)

    def forget(self, job: str) -> None:
        """Look no more after a job whose end is known otherwise."""
        self.seen.pop(job, None)

    def look(self) -> None:
        """Ask once for all of them."""
        try:
            queue = alive()
        except Away:
            return
        now = time.monotonic()
        self.seen.update({job: now for job in self.seen if job in queue})
        gone = [job for job in self.seen if job not in queue]
        known = accounted(gone) if gone else {}
        for job in gone:
            status = known.get(job) or remembered(job)
            if status is None and now - self.seen[job] > LOST_S:
                status = Status("LOST")
            if status is not None:
                self.ended[job] = status
                del self.seen[job]
