"""Sweeps of real T-JEPA runs in which everything that can end a trial does, and a full disk."""

import csv
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import overrides_for, write_table
from sweep_faults import LIMIT
from test_sweeps import line, rows, told, wait_until

from jepa.sweeps.feasible import Checker, Judge

HERE = Path(__file__).parent
RATES = [round(0.001 * n, 3) for n in range(1, 13)]
FAULTS = {0.002: "kill", 0.004: "memory", 0.006: "nan", 0.008: "raise", 0.010: "hang"}
REASONS = {
    "kill": "killed by SIGKILL",
    "memory": "out of memory",
    "nan": "the objective is nan",
    "raise": "the loss exploded",
    "hang": "timed out",
}


def command(folder, table, *, rates, faults):
    plan = "-".join(f"{lr}:{how}" for lr, how in faults.items())
    return [
        *(sys.executable, "-m", "jepa.train", "-m", "~search", "hydra/sweeper=optuna"),
        *("hydra/sweeper/sampler=grid", f"model.optimizer.lr={','.join(map(str, rates))}"),
        *(f"hydra.sweep.dir={folder}", "hydra.sweeper.n_trials=12", "hydra.sweeper.n_jobs=2"),
        *("hydra/launcher=local", "hydra.launcher.timeout_min=2", "hydra.launcher.grace_s=1"),
        *overrides_for(table),
        *(
            "objective=val/loss",
            "guard=none",
            "callbacks.collapse=null",
            "hydra.sweeper.pruner=none",
        ),
        *("+callbacks.fault._target_=sweep_faults.FaultOfRate", f"+callbacks.fault.plan='{plan}'"),
        "+callbacks.fault.lr=${model.optimizer.lr}",
    ]


def start(arguments, cwd):
    paths = [str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.Popen(
        arguments,
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (LIMIT, LIMIT)),
        stdout=(cwd / "driver.log").open("a"),
        stderr=subprocess.STDOUT,
    )


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS holds on Linux only")
def test_twelve_trials_of_tjepa_with_every_fault_and_a_driver_killed_twice(tmp_path):
    table = write_table(tmp_path / "t.csv")
    plain, faulty = tmp_path / "plain", tmp_path / "faulty"
    unaffected = [lr for lr in RATES if lr not in FAULTS]
    alone = command(plain, table, rates=unaffected, faults={})
    assert start(alone, tmp_path).wait(timeout=600) == 0
    again = command(faulty, table, rates=RATES, faults=FAULTS)
    for n in (2, 5):  # told before the kill
        driver = start(again, tmp_path)
        enough = lambda n=n: (faulty / "trials.csv").exists() and len(told(faulty)) >= n  # noqa: E731
        wait_until(enough, driver, seconds=300)
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    assert start(again, tmp_path).wait(timeout=600) == 0, (tmp_path / "driver.log").read_text()
    found, ended = rows(faulty), told(faulty)
    assert len(ended) == 12 and all(one["state"] in ("COMPLETE", "FAIL") for one in ended)
    assert len({one["directory"] for one in found}) == len(found)
    lost = [one for one in found if one["state"] == "LOST"]
    assert all("driver died" in one["reason"] for one in lost)
    values = {one["model.optimizer.lr"]: one["value"] for one in told(plain)}
    assert len(set(values.values())) == 7
    for one in ended:
        lr = one["model.optimizer.lr"]
        if how := FAULTS.get(float(lr)):
            assert one["state"] == "FAIL" and REASONS[how] in one["reason"], one
        else:
            assert one["value"] == values.pop(lr)
    assert not values


@pytest.mark.slow
@pytest.mark.ci
def test_what_cannot_run_is_never_started(tmp_path):
    """Three heads divide no width of the space; four do."""
    table = write_table(tmp_path / "t.csv")
    folder = tmp_path / "s"
    arguments = command(folder, table, rates=RATES, faults={})
    arguments[arguments.index("hydra/sweeper/sampler=grid") + 1] = "model.n_heads=2,3"
    arguments = [one for one in arguments if one != "model.n_heads=2" and "callbacks.f" not in one]
    assert start(arguments, tmp_path).wait(timeout=300) == 0, (tmp_path / "driver.log").read_text()
    by_heads = {one["model.n_heads"]: one for one in rows(folder)}
    assert by_heads["2"]["state"] == "COMPLETE" and by_heads["3"]["state"] == "PRUNED"
    assert "not started: model.width=8 must be a multiple of" in by_heads["3"]["reason"]
    assert Path(by_heads["2"]["directory"]).exists()
    assert by_heads["3"]["directory"] == "" and not (folder / by_heads["3"]["number"]).exists()


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["model.n_heads=3"], "must be a multiple of model.n_heads=3"),
        (["model.context_share_low=0.0", "model.context_share_width=0.0"], "must lie in (0, 1]"),
        (["data=toy_images", "model=hjepa", "model.patch=5"], "do not cover an image"),
        (["model.width=8192", "model.depth=400"], "no batch fits"),
        (["data=table", "data.path=nowhere.csv", "data.target=y"], ""),  # the trial says so
        ([], ""),
    ],
)
def test_settings_that_cannot_run_are_known(overrides, words):
    refusal = Judge().refusal(overrides, 2)
    assert words in refusal and bool(words) == bool(refusal)


def test_memory_is_not_planned_for_a_trial_that_runs_elsewhere():
    huge = ["model.width=8192", "model.depth=400"]
    judge = Judge()
    assert judge.refusal(huge, 1) and not judge.refusal(huge, None)


def test_a_checker_that_is_gone_refuses_nothing():
    checker = Checker(n_jobs=1)
    assert "must be a multiple" in checker.refuse(["model.n_heads=3"])
    assert checker.process is not None
    checker.process.kill()
    checker.process.wait()
    assert checker.refuse(["model.n_heads=3"]) == ""
    assert "must be a multiple" in checker.refuse(["model.n_heads=3"])  # a new one
    checker.close()


@pytest.mark.slow
@pytest.mark.ci
def test_a_full_disk_ends_a_sweep_in_words_and_loses_nothing(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root mounts a small disk")
    try:
        (disk / "filler").write_bytes(bytes(1_850_000))
        arguments = line(disk / "s", n_trials=12)
        full = subprocess.run(arguments, capture_output=True, text=True, cwd=tmp_path, check=False)
        assert full.returncode == 1 and "the same command goes on" in full.stderr + full.stdout
        (disk / "filler").unlink()
        subprocess.run(arguments, capture_output=True, cwd=tmp_path, check=True)
        states = [one["state"] for one in told(disk / "s")]
        assert states == ["COMPLETE"] * 12
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.slow
@pytest.mark.ci
def test_a_trial_that_ended_while_its_driver_died_is_told_and_not_run_again(tmp_path):
    folder = tmp_path / "s"
    driver = subprocess.Popen(line(folder, "seconds=1.5", n_trials=1), cwd=tmp_path)
    wait_until(lambda: (folder / "0" / "output.log").exists(), driver)
    time.sleep(0.5)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    deadline = time.monotonic() + 30
    while not (folder / "0" / "result.json").exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    subprocess.run(line(folder, "seconds=1.5", n_trials=1), cwd=tmp_path, check=True)
    with (folder / "trials.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert row["state"] == "COMPLETE" and 1.5 < float(row["seconds"]) < 20
    assert not (folder / "1").exists()
