"""Sweeps with real processes: what ends a trial ends that trial; the same command goes on."""

import csv
import itertools
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest
from omegaconf import OmegaConf

from jepa.config import CONF
from jepa.sweeps.driver import Settings, Sweep
from jepa.sweeps.in_process import Done
from jepa.sweeps.naming import with_study
from jepa.sweeps.outcome import Outcome
from jepa.sweeps.plots import unshortened
from jepa.sweeps.space import Space, read_space


def long(test):
    return pytest.mark.slow(pytest.mark.ci(test))


TASK = str(Path(__file__).with_name("sweep_task.py"))


def line(folder, *arguments, n_trials=4, n_jobs=2, space="x=interval(-1.0,1.0)"):
    return [
        *(sys.executable, TASK, "-m", "hydra/sweeper=optuna", *([space] if space else [])),
        *(f"hydra.sweep.dir={folder}", f"hydra.sweeper.n_trials={n_trials}"),
        *(f"hydra.sweeper.n_jobs={n_jobs}", *arguments),
    ]


def sweep(folder, *arguments, check=True, **settings):
    done = subprocess.run(
        line(folder, *arguments, **settings),
        capture_output=True, text=True, timeout=300, cwd=folder.parent, check=False,
    )  # fmt: skip
    if check:
        assert done.returncode == 0, done.stdout + done.stderr
    return done


def rows(folder):
    with (folder / "trials.csv").open() as file:
        return list(csv.DictReader(file))


def told(folder):
    """The rows that count towards n_trials."""
    return [row for row in rows(folder) if row["state"] not in ("LOST", "RUNNING", "WAITING")]


def wait_until(condition, process, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)


@long
def test_every_kind_of_bad_trial_costs_itself_alone(tmp_path):
    wrong = "wrong='0:kill-1:nan-2:raise-3:memory-4:hang'"
    folder = tmp_path / "s"
    sweep(folder, wrong, "hydra/launcher=local", "hydra.launcher.timeout_min=0.1", n_trials=8)
    reasons = [row["reason"] for row in rows(folder)]
    asked = ["SIGKILL", "objective is nan", "loss exploded", "out of memory", "timed out after 0.1"]
    for reason, expected in zip(reasons, asked, strict=False):
        assert expected in reason and "output.log" in reason
    assert [row["state"] for row in rows(folder)] == ["FAIL"] * 5 + ["COMPLETE"] * 3
    best = OmegaConf.load(folder / "best.yaml")
    assert best.value == min(float(row["value"]) for row in rows(folder) if row["value"])
    assert f"x={best.params.x}" in best.command and (folder / "report.html").exists()
    assert "loss exploded" in (folder / "report.html").read_text()


def test_names_that_begin_alike_and_were_cut_off_are_told_apart():
    keys = ["probe/ridge/error", "model.context_share_low", "model.context_share_width"]
    names = ["probe/ridge/error", "model.context_sha...", "model.context_sha..."]
    assert unshortened(names, keys) == keys
    assert unshortened(["other..."], keys) == ["other..."]


@long
def test_a_job_without_a_sign_of_life_is_ended(tmp_path):
    folder = tmp_path / "s"
    stall = ("hydra/launcher=local", "hydra.launcher.stall_min=0.05")
    sweep(folder, "wrong='0:hang'", *stall, n_trials=2)
    assert "no sign of life for 0.05 min" in rows(folder)[0]["reason"]
    assert rows(folder)[1]["state"] == "COMPLETE"


def test_the_same_command_goes_on_to_the_total_and_repeats_nothing(tmp_path):
    folder = tmp_path / "s"
    sweep(folder, n_trials=3)
    before = rows(folder)
    sweep(folder, n_trials=5)
    assert rows(folder)[:3] == before and len(told(folder)) == 5
    assert len({row["x"] for row in rows(folder)}) == 5
    sweep(folder, n_trials=5)
    assert len(rows(folder)) == 5


@long
def test_seeds_decide_the_draws(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        sweep(tmp_path / name, f"seed={seed}", n_trials=2, n_jobs=1)
    a, b, c = ([row["x"] for row in rows(tmp_path / name)] for name in "abc")
    assert a == b != c


@long
def test_a_driver_killed_twice_loses_no_trial(tmp_path):
    folder = tmp_path / "s"
    # longer than the next driver takes to start: else they end meanwhile, and are told
    arguments = ("seconds=2.0", "n_steps=4", "hydra.sweeper.pruner=none")
    for n in (1, 3):  # told before the kill
        driver = subprocess.Popen(line(folder, *arguments, n_trials=8), cwd=tmp_path)
        enough = lambda n=n: (folder / "trials.csv").exists() and len(told(folder)) >= n  # noqa: E731
        wait_until(enough, driver)
        time.sleep(1.0)  # those that replace them are in flight
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    sweep(folder, *arguments, n_trials=8)
    found = rows(folder)
    assert len(told(folder)) == 8 and {row["state"] for row in told(folder)} == {"COMPLETE"}
    lost = [row for row in found if row["state"] == "LOST"]
    assert 1 <= len(lost) <= 4 and all("driver died" in row["reason"] for row in lost)
    again = [row["x"] for row in found if row["state"] == "COMPLETE"]
    assert all(row["x"] in again for row in lost) and len(set(again)) == 8
    assert len({row["directory"] for row in found}) == len(found)
    for row in lost:  # their processes are gone
        log = Path(row["directory"], "heartbeat.json")
        assert not log.exists() or time.time() - log.stat().st_mtime > 0.5


@long
def test_values_do_not_depend_on_faults(tmp_path):
    """The draws of a random sampler, with and without failures in between."""
    plain, faulty = tmp_path / "plain", tmp_path / "faulty"
    chosen = ("hydra/sweeper/sampler=random", "hydra.sweeper.sampler.seed=3")
    sweep(plain, *chosen, n_trials=4, n_jobs=1)
    sweep(faulty, *chosen, "wrong='1:kill-2:nan'", n_trials=4, n_jobs=1)
    a, b = rows(plain), rows(faulty)
    assert [row["x"] for row in a] == [row["x"] for row in b]
    assert [a[i]["value"] == b[i]["value"] for i in range(4)] == [True, False, False, True]


@long
@pytest.mark.parametrize(("how", "code"), [("STOP", 0), ("SIGTERM", 143), ("SIGINT", 130)])
def test_a_sweep_that_is_asked_to_stop_goes_on_later(tmp_path, how, code):
    folder = tmp_path / "s"
    arguments = ("seconds=0.3", "n_steps=5")
    driver = subprocess.Popen(line(folder, *arguments), cwd=tmp_path)
    wait_until(lambda: (folder / "1" / "heartbeat.json").exists(), driver)
    if how == "STOP":
        (folder / "STOP").touch()
    else:
        driver.send_signal(getattr(signal, how))
    assert driver.wait(timeout=60) == code
    assert {row["state"] for row in rows(folder)} <= {"LOST", "WAITING", "COMPLETE"}
    assert "LOST" in {row["state"] for row in rows(folder)}
    sweep(folder, *arguments)
    assert [row["state"] for row in told(folder)] == ["COMPLETE"] * 4
    lost = [row["x"] for row in rows(folder) if row["state"] == "LOST"]
    assert set(lost) <= {row["x"] for row in told(folder)}


@long
def test_two_drivers_share_one_study(tmp_path):
    folder = tmp_path / "s"
    arguments = line(folder, "seconds=0.2", n_trials=8)
    drivers = [subprocess.Popen(arguments, cwd=tmp_path) for _ in range(2)]
    assert [one.wait(timeout=120) for one in drivers] == [0, 0]
    storage = f"sqlite:///{folder}/optuna.db"
    trials = optuna.load_study(study_name="study", storage=storage).trials
    assert [one.state.name for one in trials] == ["COMPLETE"] * 8
    assert len({one.user_attrs["driver"] for one in trials}) == 2


@long
def test_trials_run_side_by_side_without_waiting_for_the_slowest(tmp_path):
    folder = tmp_path / "s"
    sweep(
        folder, "hydra/sweeper/sampler=grid", "n_steps=1,2,3", space="seconds=0.2,2.0", n_trials=6
    )
    storage = f"sqlite:///{folder}/optuna.db"
    trials = optuna.load_study(study_name="study", storage=storage).trials
    slow = next(one for one in trials if one.params["seconds"] == 2.0)
    inside = [
        one
        for one in trials
        if one.datetime_start > slow.datetime_start
        and one.datetime_complete < slow.datetime_complete
    ]
    assert len(trials) == 6 and inside


@long
def test_a_hopeless_trial_is_pruned(tmp_path):
    folder = tmp_path / "s"
    arguments = ("hydra/sweeper/sampler=random", "hydra.sweeper.sampler.seed=0")
    arguments += ("seconds=0.15", "n_steps=6")
    space = "x=choice(0.1,5.0)"
    sweep(folder, *arguments, space=space, n_trials=14, n_jobs=1)
    pruned = [row for row in rows(folder) if row["state"] == "PRUNED"]
    assert pruned and {row["x"] for row in pruned} == {"5.0"}
    assert all(re.match(r"at step \d+, with", row["reason"]) for row in pruned)
    sweep(
        tmp_path / "t", *arguments, "hydra.sweeper.pruner=none", space=space, n_trials=14, n_jobs=1
    )
    assert {row["state"] for row in rows(tmp_path / "t")} == {"COMPLETE"}


@long
def test_failures_end_a_sweep_once_ten_are_told(tmp_path):
    folder = tmp_path / "s"
    wrong = "wrong='" + "-".join(f"{n}:raise" for n in range(20)) + "'"
    done = sweep(folder, wrong, n_trials=20, n_jobs=4, check=False)
    assert done.returncode == 1 and "max_failure_rate=0.5" in done.stdout + done.stderr
    assert 10 <= len(told(folder)) <= 14 and (folder / "report.html").exists()


def test_all_failed_is_reported_and_no_success(tmp_path):
    folder = tmp_path / "s"
    done = sweep(folder, "wrong='0:raise-1:nan'", n_trials=2, check=False)
    assert done.returncode == 1 and "no trial was completed" in done.stdout + done.stderr
    assert [row["state"] for row in rows(folder)] == ["FAIL", "FAIL"]
    assert (folder / "report.html").exists()


@pytest.mark.parametrize(
    ("arguments", "space", "expected"),
    [
        (("hydra.sweeper.n_trials=0",), "x=1.0,2.0", "n_trials=0"),
        ((), "", "no search space"),
        (("hydra.sweeper.storage=nonsense",), "x=1.0,2.0", "nonsense"),
        (("hydra.sweeper.storage=mysql://nowhere/x",), "x=1.0,2.0", "cannot be opened"),
        (("hydra.sweeper.pruner=best",), "x=1.0,2.0", "must be one of"),
    ],
)
def test_what_cannot_be_searched_is_refused_in_words(tmp_path, arguments, space, expected):
    done = sweep(tmp_path / "s", *arguments, space=space, check=False)
    assert done.returncode and expected in done.stdout + done.stderr


def test_another_search_space_is_refused_with_the_difference(tmp_path):
    folder = tmp_path / "s"
    sweep(folder, n_trials=1)
    done = sweep(folder, "y=interval(0.0,1.0)", space="x=interval(-2.0,1.0)", check=False)
    said = done.stdout + done.stderr
    assert done.returncode and "x: -1.0 to 1.0 before, -2.0 to 1.0 now" in said
    assert "y: absent before, 0.0 to 1.0 now" in said and "study=<new>" in said
    assert len(rows(folder)) == 1


def test_a_journal_file_serves_as_well(tmp_path):
    folder = tmp_path / "s"
    sweep(folder, f"hydra.sweeper.storage={folder}/study.log", n_trials=2)
    assert (folder / "study.log").exists() and not (folder / "optuna.db").exists()
    os.remove(folder / "trials.csv")
    report = [sys.executable, "-m", "jepa.sweeps.report", f"run={folder}"]
    done = subprocess.run(report, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(rows(folder)) == 2
    other = subprocess.run([*report[:-1], f"run={tmp_path}"], capture_output=True, text=True)
    assert other.returncode == 2 and "no directory of a sweep" in other.stderr


def test_a_plain_grid_runs_in_processes_of_its_own(tmp_path):
    arguments = [sys.executable, TASK, "-m", "hydra/launcher=local", "hydra.launcher.n_jobs=2"]
    arguments += ["x=1.0,2.0,3.0", f"hydra.sweep.dir={tmp_path}/g", "wrong='1:kill'"]
    done = subprocess.run(arguments, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 1 and "killed by SIGKILL" in done.stdout + done.stderr
    ended = {p.parent.name for p in (tmp_path / "g").glob("*/result.json")}
    assert ended == {"0", "2"}  # the others ran


def test_the_name_of_a_study_follows_the_settings_and_not_their_order():
    def name(*arguments):
        found = [one for one in with_study([*arguments]) if one.startswith("study=")]
        return found[0].removeprefix("study=") if found else None

    plain = name("-m", "seed=0,1", "data=california")
    assert re.fullmatch("tjepa_california_[0-9a-f]{8}", plain)
    assert name("data=california", "seed=0,1", "-m") == plain
    assert name("-m", "seed=0,1", "data=california", "hydra.sweeper.n_trials=3") == plain
    assert name("-m", "seed=0,2", "data=california") != plain
    assert name("-m", "+experiment=hjepa_sweep").startswith("hjepa_fashion_mnist_hjepa_sweep_")
    assert name("seed=0") is None and name("-m", "study=mine") == "mine"
    assert name("-m", "modle=x") is None  # refused where arguments are checked


def test_the_grid_of_the_design_documents_has_its_size_and_no_invalid_point():
    cfg = OmegaConf.load(CONF / "search" / "tjepa_higgs_grid.yaml")
    space = read_space(dict(cfg), [])
    grid = {k: d.choices for k, d in space.distributions.items() if hasattr(d, "choices")}
    points = [dict(zip(grid, one, strict=True)) for one in itertools.product(*grid.values())]
    assert len(points) == 2304
    for one in points:
        assert one["model.width"] % one["model.n_heads"] == 0
        assert one["model.predictor_width"] % one["model.predictor_n_heads"] == 0
        assert (one["model.mlp_ratio"] * one["model.width"]).is_integer()


def test_a_trial_without_a_driver_is_run_again(tmp_path):
    """The driver was killed between asking for the trial and signing it."""
    folder = tmp_path / "s"
    sweep(folder, n_trials=1)
    storage = f"sqlite:///{folder}/optuna.db"
    optuna.load_study(study_name="study", storage=storage).ask()
    sweep(folder, n_trials=2)
    assert [row["state"] for row in rows(folder)] == ["COMPLETE", "LOST", "COMPLETE"]


def test_a_trial_that_runs_while_it_is_started_has_its_time(tmp_path):
    """A launcher that waits, as `basic`, has run the trial when it comes back."""

    def start(overrides, directory):
        time.sleep(0.05)
        return Done(directory, Outcome("complete", "", (0.5,)))

    study = optuna.create_study()
    sweep = Sweep(
        study=study,
        space=Space({}, frozenset(), ()),
        start=start,
        ready=lambda: True,
        folder=tmp_path,
        settings=Settings(n_trials=1, n_jobs=1, max_failure_rate=1.0, max_retries=0),
        told=lambda trial, outcome: None,
        shown=lambda flights: None,
    )
    sweep.launch(study.ask())
    assert sweep.check(sweep.flights[0])
    assert study.trials[0].user_attrs["seconds"] >= 0.05
