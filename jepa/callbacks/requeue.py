"""Put a SLURM job back into its queue, so that the run goes on in the same directory.

A job hears of its end in time with `#SBATCH --signal=USR1@120` and training started through
`srun`; its command needs a fixed `hydra.run.dir=` and `resume=auto`. SLURM itself requeues what
it preempts or what `scontrol requeue` asks for.
"""

import subprocess
from collections.abc import Mapping

SIGNALS = ("SIGUSR1", "SIGUSR2")  # a warning; SIGTERM means that SLURM has decided already
PATIENCE_S = 60


def job_of(variables: Mapping[str, str]) -> str | None:
    """Return the id of the SLURM job, `<array>_<task>` for one of an array; None outside of one."""
    if "SLURM_ARRAY_JOB_ID" in variables:
        return f"{variables['SLURM_ARRAY_JOB_ID']}_{variables['SLURM_ARRAY_TASK_ID']}"
    return variables.get("SLURM_JOB_ID")


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
    return (done.stderr.strip() or f"exit code {done.returncode}") if done.returncode else ""
