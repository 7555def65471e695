"""What tests on a real SLURM share: `make slurm-up test-slurm slurm-down`."""

import subprocess
import time

import pytest

needs_slurm = pytest.mark.usefixtures("slurm")


def ask(*line):
    done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=120)
    assert not done.returncode, (line, done.stderr)
    return done.stdout.strip()


def until(condition, what, log, seconds=900):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}\n{log.read_text() if log.exists() else ''}"
        time.sleep(0.1)


def starts(job):
    """Return how often SLURM has put a job back into its queue, and its state."""
    found = ask("scontrol", "show", "job", job)
    return int(found.split("Restarts=")[1].split()[0]), found.split("JobState=")[1].split()[0]


def wake(job):
    """A requeued job waits for two minutes; this one need not."""
    line = ["scontrol", "update", f"jobid={job}", "starttime=now"]
    subprocess.run(line, capture_output=True, check=False)


def limit(job, minutes):
    ask("scontrol", "update", f"jobid={job}", f"timelimit={minutes}")


def end_soon(job):
    """Bring the time limit so near that SLURM warns of it, a minute before, and ends nothing."""
    used = ask("squeue", "--noheader", f"--jobs={job}", "--format=%M")  # minutes:seconds
    limit(job, int(used.split(":")[-2]) + 2)
