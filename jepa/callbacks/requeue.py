"""Put a SLURM job back into its queue, so that the run goes on in the same directory.

A job hears of its end in time with `#SBATCH --signal=USR1@120` and training started through
`srun`; its command needs a fixed `hydra.run.dir=` and `resume=auto`. SLURM itself requeues what
it preempts or what `scontrol requeue` asks for.
"""

import re
import subprocess
from collections.abc import Mapping

SIGNALS = ("SIGUSR1", "SIGUSR2")  # a warning; SIGTERM means that SLURM has decided already
TIMEOUTS = "JEPA_MAX_TIMEOUTS"  # how often a job may go on after its time limit; unset: always
WARNING = "JEPA_WARNING_S"  # seconds before the limit at which SLURM was told to warn
EARLY_S = 75  # it may warn a minute earlier
PATIENCE_S = 60


def job_of(variables: Mapping[str, str]) -> str | None:
    """Return the id of the SLURM job, `<array>_<task>` for one of an array; None outside of one."""
    if "SLURM_ARRAY_JOB_ID" in variables:
        return f"{variables['SLURM_ARRAY_JOB_ID']}_{variables['SLURM_ARRAY_TASK_ID']}"
    return variables.get("SLURM_JOB_ID")


def is_limit(job: str, variables: Mapping[str, str]) -> bool:
    """Tell whether a warning is that of the time limit; where SLURM does not say, it is."""
    line = ["squeue", "--noheader", f"--jobs={job}", "--format=%L"]
    try:
        done = subprocess.run(line, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return True
    return read_time(done.stdout.strip()) <= float(variables.get(WARNING, 120)) + EARLY_S


def read_time(text: str) -> float:
    """Read SLURM's `[days-][hours:]minutes:seconds`; what is no time is 0, no limit infinite."""
    if text == "UNLIMITED":
        return float("inf")
    found = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", text)
    if found is None:
        return 0.0
    days, hours, minutes, seconds = (int(one or 0) for one in found.groups())
    return 60.0 * (60 * (24 * days + hours) + minutes) + seconds


def requeue(job: str) -> str:
    """Ask SLURM; return what went wrong, nothing if it agreed."""
    try:
        done = subprocess.run(
            ["scontrol", "requeue", job],
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if done.returncode <= 0:  # SLURM agreed; a signal is its own, which ends all of the job at once
        return ""
    return done.stderr.strip() or f"exit code {done.returncode}"
