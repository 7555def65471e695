"""Runs on a real SLURM: `make slurm-up test-slurm slurm-down`."""

import os
import subprocess
import sys

import pytest
from resume_cases import assert_same_run, last, settings_of
from slurm_support import ask, end_soon, limit, needs_slurm, starts, until, wake
from test_interrupt import events

from jepa.directory import how_it_ended

pytestmark = [pytest.mark.slow, needs_slurm]  # seven minutes; test_slurm_sweeps has a requeue in CI


@pytest.fixture
def submit(tmp_path):
    """Submit training as a user would; cancel what is left of it."""
    jobs = []

    def send(arguments, *options):
        words = " ".join(f"'{one}'" for one in arguments)
        script = tmp_path / "job.sh"
        script.write_text(
            "#!/bin/bash\n#SBATCH --requeue --open-mode=append --signal=USR1@60\n"
            f"srun {sys.executable} -m jepa.train {words} hydra.run.dir={tmp_path / 'run'} "
            "resume=auto\n"
        )
        log = tmp_path / "job.log"
        line = ["sbatch", "--parsable", f"--output={log}", *options, str(script)]
        jobs.append(ask(*line))
        return jobs[-1], log

    yield send
    for job in jobs:
        subprocess.run(["scancel", job], check=False)


def step(run_dir):
    return last(run_dir)["global_step"] if (run_dir / "checkpoints" / "last.ckpt").exists() else 0


HOW = {
    "signal": lambda job: ask("scancel", "--signal=USR1", job),
    "scontrol": lambda job: ask("scontrol", "requeue", job),
    "limit": end_soon,
}


def requeued(job, how, n, run_dir, log):
    """Let the job take a step, have it requeued, and see it start again."""
    before = step(run_dir)
    until(lambda: starts(job)[1] == "RUNNING" and step(run_dir) > before, "no step", log)
    HOW[how](job)
    until(lambda: starts(job)[0] == n, f"not requeued by {how}", log)
    limit(job, 30)
    until(lambda: starts(job)[1] == "RUNNING" or wake(job), "not started again", log)


def test_three_requeues_by_signal_by_scontrol_and_at_the_time_limit(tmp_path, submit):
    whole = tmp_path / "whole"
    run_dir = tmp_path / "run"
    arguments = settings_of("tjepa", tmp_path, "callbacks.early_stopping.patience=null")
    arguments += ["trainer.max_epochs=300"]
    job, log = submit(arguments, "--time=30")
    for n, how in enumerate(HOW, start=1):
        requeued(job, how, n, run_dir, log)
    until(lambda: how_it_ended(run_dir) is not None, "no end", log)
    assert len(events(run_dir, "requeue")) == 2  # the third was SLURM's own
    assert [one["problem"] for one in events(run_dir, "requeue")] == ["", ""]
    assert len(events(run_dir, "resume")) == 3
    subprocess.run(
        [sys.executable, "-m", "jepa.train", *arguments, f"hydra.run.dir={whole}"],
        check=True,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
    )
    assert_same_run(whole, run_dir)
