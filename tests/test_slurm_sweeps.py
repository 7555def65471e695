"""Sweeps on a real SLURM: `make slurm-up test-slurm slurm-down`."""

import csv
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from resume_cases import settings_of
from slurm_support import ask, end_soon, limit, needs_slurm, starts, until, wake
from test_interrupt import events

pytestmark = [pytest.mark.slow, needs_slurm]

TESTS = Path(__file__).parent
TASK = str(TESTS / "sweep_task.py")
LAUNCHER = [
    "hydra/launcher=slurm", "hydra.launcher.gpus_per_node=null", "hydra.launcher.mem_gb=null",
    "hydra.launcher.cpus_per_task=1", "hydra.launcher.signal_delay_s=60",
    "hydra.launcher.timeout_min=30",
]  # fmt: skip
ENVIRONMENT = os.environ | {
    "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)]), "CUDA_VISIBLE_DEVICES": "",
    "OMP_NUM_THREADS": "1",
}  # fmt: skip


DRIVERS = []


@pytest.fixture(autouse=True)
def nothing_left(tmp_path, slurm):
    yield
    while DRIVERS:
        DRIVERS.pop().kill()
    for line in ask("squeue", "--noheader", "--format=%A %o").splitlines():
        job, script = line.split(" ", 1)
        if script.startswith(str(tmp_path)):
            subprocess.run(["scancel", job], check=False)


def rows(folder):
    path = folder / "trials.csv"
    if not path.exists():
        return []
    with path.open() as file:
        return list(csv.DictReader(file))


def told(folder):
    return [row for row in rows(folder) if row["state"] in ("COMPLETE", "FAIL", "PRUNED")]


def job_of(folder, number):
    path = folder / str(number) / "job.json"
    return json.loads(path.read_text())["job"] if path.exists() else None


def has_checkpoint(folder, number):
    return (folder / str(number) / "checkpoints" / "last.ckpt").exists()


def real_trials(folder, *more, n_trials, plan="0:none"):
    """Return the arguments of a sweep over tiny T-JEPA runs."""
    own = settings_of("tjepa", folder.parent, "callbacks.early_stopping.patience=null")
    return [
        "-m", "hydra/sweeper=optuna", *LAUNCHER, *own, "trainer.max_epochs=40", "test=false",
        "search={}", "model.optimizer.lr=tag(log,interval(1e-4,1e-2))", "hydra.sweeper.n_jobs=2",
        "hydra.sweeper.pruner=none", f"hydra.sweeper.n_trials={n_trials}",
        f"hydra.sweep.dir={folder}", "+callbacks.fault._target_=sweep_faults.Fault",
        "+callbacks.fault.run_dir=${run_dir}", f"+callbacks.fault.plan='{plan}'", *more,
    ]  # fmt: skip


def driver(arguments, log, **environment):
    """Start the driver of a sweep; a later one appends to the same log."""
    line = [sys.executable, "-u", "-m", "jepa.train", *arguments]
    file, variables = log.open("a"), ENVIRONMENT | environment
    DRIVERS.append(subprocess.Popen(line, stdout=file, stderr=file, cwd=log.parent, env=variables))
    return DRIVERS[-1]


def path_without_sacct(folder):
    """Return a PATH with every command of this machine but sacct."""
    folder.mkdir()
    for place in reversed(os.environ["PATH"].split(os.pathsep)):
        for one in Path(place).glob("*"):
            (folder / one.name).unlink(missing_ok=True)
            (folder / one.name).symlink_to(one)
    (folder / "sacct").unlink()
    assert shutil.which("squeue", path=folder) and not shutil.which("sacct", path=folder)
    return str(folder)


@pytest.mark.parametrize("accounting", [True, False], ids=["sacct", "without_sacct"])
def test_twelve_trials_survive_all_that_a_cluster_does(tmp_path, accounting):
    folder, log = tmp_path / "sweep", tmp_path / "driver.log"
    environment = {} if accounting else {"PATH": path_without_sacct(tmp_path / "bin")}
    plan = "1:kill-2:wait-4:raise-6:wait"
    arguments = real_trials(folder, n_trials=12, plan=plan)
    first = driver(arguments, log, **environment)
    until(lambda: has_checkpoint(folder, 2), "trial 2 does not start", log)
    ask("scancel", job_of(folder, 2))
    until(lambda: len(told(folder)) >= 4 and has_checkpoint(folder, 6), "no trial 6", log)
    first.send_signal(signal.SIGKILL)
    first.wait()
    before = told(folder)
    end_soon(job_of(folder, 6))
    time.sleep(3)  # without a driver
    second = driver(arguments, log, **environment)
    until(
        lambda: "its driver died, its job goes on" in log.read_text(), "no trial found again", log
    )
    ask("bash", str(TESTS / "local_slurm.sh"), "restart")
    until(lambda: starts(job_of(folder, 6))[0] == 1, "not requeued", log)
    limit(job_of(folder, 6), 30)
    until(lambda: starts(job_of(folder, 6))[1] == "RUNNING" or wake(job_of(folder, 6)), "-", log)
    assert second.wait(timeout=900) == 0, log.read_text()
    found = rows(folder)
    assert len(found) == len(told(folder)) == 12  # none lost, none run twice
    assert [row for row in found if row["number"] in {one["number"] for one in before}] == before
    states = [row["state"] for row in found]
    assert [n for n in range(12) if states[n] != "COMPLETE"] == [1, 2, 4]
    reasons = [row["reason"] for row in found]
    assert re.search(r"job \d+: FAILED, exit code (9|137), on \w+; .*Killed", reasons[1])
    assert re.search(r"job \d+: CANCELLED, exit code 0.*, on \w+; .*CANCELLED AT", reasons[2])
    assert "RuntimeError: as planned" in reasons[4]
    assert [one["limit"] for one in events(folder / "6", "requeue")] == [True]
    assert len(events(folder / "6", "resume")) == 1
    print(log.read_text())


def test_a_controller_is_killed_and_ends_the_sweep_all_the_same(tmp_path):
    folder, log = tmp_path / "sweep", tmp_path / "sweep" / "controller.log"
    arguments = real_trials(folder, n_trials=4)
    line = [sys.executable, "-m", "jepa.sweeps.controller", *arguments]
    shown = subprocess.run(
        line, capture_output=True, text=True, env=ENVIRONMENT, cwd=tmp_path, check=True
    ).stdout
    job = re.search(r"controller: job (\d+)", shown)[1]
    assert all(word in shown for word in ("watch:", "stop:", "resume:", str(log), "STOP"))
    again = subprocess.run(
        line, capture_output=True, text=True, env=ENVIRONMENT, cwd=tmp_path, check=True
    ).stdout
    assert f"job {job} runs already" in again
    until(lambda: len(told(folder)) >= 1, "no trial ends", log)
    (mark,) = (folder / ".drivers").iterdir()
    os.kill(int(mark.name.rsplit("_", 1)[1]), signal.SIGKILL)
    until(lambda: "the driver was killed, and starts again" in log.read_text(), "no start", log)
    until(lambda: len(told(folder)) >= 2, "no second trial ends", log)
    ask("scontrol", "requeue", job)  # as after a failure of its node
    until(lambda: starts(job)[1] == "RUNNING" or wake(job), "not started again", log)
    until(lambda: starts(job)[1] == "COMPLETED", "no end", log)
    assert [row["state"] for row in rows(folder)] == ["COMPLETE"] * 4
    assert "exit code 0" in log.read_text() and (folder / "best.yaml").exists()


@pytest.mark.ci
def test_a_preempted_trial_goes_on_in_its_directory_and_in_the_same_logger_run(tmp_path):
    folder, log = tmp_path / "sweep", tmp_path / "driver.log"
    arguments = real_trials(folder, "logger=[csv,mlflow,tensorboard]", n_trials=1, plan="0:wait")
    one = driver(arguments, log)
    until(lambda: has_checkpoint(folder, 0), "no checkpoint", log)
    job, identity = job_of(folder, 0), (folder / "0" / "loggers.json").read_text()
    ask("scancel", "--signal=USR2", "--batch", job)
    until(lambda: starts(job)[0] == 1, "not requeued", log)
    until(lambda: starts(job)[1] == "RUNNING" or wake(job), "not started again", log)
    assert one.wait(timeout=600) == 0, log.read_text()
    assert [row["state"] for row in rows(folder)] == ["COMPLETE"]
    assert [(e["limit"], e["problem"]) for e in events(folder / "0", "requeue")] == [(False, "")]
    assert len(events(folder / "0", "resume")) == 1
    assert (folder / "0" / "loggers.json").read_text() == identity
    with sqlite3.connect(tmp_path / "runs" / "mlflow.db") as database:
        n_runs = database.execute("select count(*) from runs").fetchone()
    assert n_runs == (2,)  # that of the sweep, and the trial's
    epochs = [row["epoch"] for row in csv.DictReader((folder / "0" / "metrics.csv").open())]
    assert {int(epoch) for epoch in epochs if epoch} == set(range(40))


def grid(folder, *arguments):
    line = [sys.executable, TASK, "-m", *LAUNCHER, f"hydra.sweep.dir={folder}", *arguments]
    return subprocess.run(
        line, capture_output=True, text=True, cwd=folder.parent, env=ENVIRONMENT, check=False
    )


@pytest.mark.ci
def test_a_plain_grid_is_an_array_and_the_same_command_repeats_what_failed(tmp_path):
    folder = tmp_path / "g"
    done = grid(folder, "x=1.0,2.0,3.0", "wrong='1:kill'")
    assert done.returncode and re.search(r"job 1: failed: .*FAILED, exit code", done.stdout)
    array = {job_of(folder, n).split("_")[0] for n in range(3)}
    assert len(array) == 1  # one array
    ended = {p.parent.name: p.stat().st_mtime for p in folder.glob("*/result.json")}
    assert set(ended) == {"0", "2"}  # the others ran
    assert grid(folder, "x=1.0,2.0,3.0").returncode == 0
    after = {p.parent.name: p.stat().st_mtime for p in folder.glob("*/result.json")}
    assert after | ended == after and set(after) == {"0", "1", "2"}


@pytest.mark.ci
def test_an_invalid_partition_and_qos_are_refused_once_in_the_words_of_sbatch(tmp_path):
    for setting, words in (("partition", "Invalid partition name"), ("qos", "Invalid qos")):
        more = (f"hydra.launcher.{setting}=nope", "hydra.sweeper.n_jobs=5")
        one = driver(real_trials(tmp_path / "s", *more, n_trials=10), tmp_path / setting)
        assert one.wait(timeout=120) == 1
        said = (tmp_path / setting).read_text()
        assert said.count(words) == 1 and "Traceback" not in said and "error: SLURM refuses" in said


@pytest.mark.ci
def test_a_directory_that_no_node_sees_is_named_by_the_first_job(tmp_path):
    """The driver alone sees a file system of its own there."""
    (tmp_path / "hidden").mkdir()
    folder = tmp_path / "hidden" / "sweep"
    line = [sys.executable, TASK, "-m", "hydra/sweeper=optuna", *LAUNCHER, "x=interval(0.0,1.0)"]
    line += [f"hydra.sweep.dir={folder}", "hydra.sweeper.n_trials=10"]
    script = f"mount -t tmpfs none {folder.parent} && exec " + " ".join(f"'{one}'" for one in line)
    done = subprocess.run(
        ["unshare", "--mount", "bash", "-c", script],
        capture_output=True, text=True, cwd=tmp_path, env=ENVIRONMENT, check=False,
    )  # fmt: skip
    said = done.stdout + done.stderr
    assert done.returncode and f"hydra.sweep.dir={folder}: the node" in said
    assert "does not see it" in said
