"""The doctor finds what is planted, says what to do, and leaves nothing behind."""

import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf
from support import overrides_for, write_table

from jepa import checks, doctor, examine, trial
from jepa.checks import Result
from jepa.models.tjepa import TJEPA
from jepa.plan import plan_batch

NAMES = [
    "config", "data", "plan", "device", "step", "probe", "memory", "disk", "folders", "signals",
    "faster", "time",
]  # fmt: skip
Disk = namedtuple("Disk", ["total", "used", "free"])


@pytest.fixture
def consult(tmp_path, monkeypatch, capsys):
    """Return what calls the command in this process and gives (exit code, checks by name)."""
    table, every = write_table(tmp_path / "table.csv"), examine.CHECKS
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(examine, "TRIAL_S", 0.0)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")

    def call(*arguments, usual=True, only=NAMES):
        monkeypatch.setattr(examine, "CHECKS", {name: every[name] for name in only})
        usual_ones = [*overrides_for(table), "keep_memory=false"] if usual else []
        line = ["doctor", *usual_ones, "json=true", *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", line)
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            doctor.cli()
        content = json.loads(capsys.readouterr().out)  # nothing else is on stdout
        found = {one["name"]: one for one in content["checks"]}
        failed = any(one["status"] == "fail" for one in found.values())
        assert (left.value.code, content["verdict"] == "fail") == (int(failed), failed)
        return left.value.code, found

    return call


def assert_fails(answer, name, *words):
    code, found = answer
    assert code == 1 and found[name]["status"] == "fail", found
    for word in words:
        assert str(word) in f"{found[name]['detail']} {found[name]['todo']}"
    assert found[name]["todo"]


def test_a_healthy_run_passes_every_check_and_nothing_is_left(consult, tmp_path, monkeypatch):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    before = sorted(tmp_path.rglob("*"))
    code, found = consult("hydra.run.dir=here/run", "callbacks.progress=null")
    assert code == 0 and list(found) == NAMES
    assert {one["status"] for one in found.values()} <= {"pass", "warn"}
    assert sorted(tmp_path.rglob("*")) == before
    assert "here/run" in found["folders"]["detail"]
    assert "train 78, val 18, test 24" in found["data"]["detail"]
    assert found["step"]["values"]["samples_per_s"] > 0
    assert found["memory"]["values"]["predicted_bytes"] > 0
    assert found["time"]["values"]["total_s"] >= 2 * found["step"]["values"]["batch_s"]


def test_the_table_says_the_same_as_the_document(consult, capsys):
    _, found = consult(only=["config", "folders", "signals"])
    doctor.show_results([Result(**one) for one in found.values()], 1.0)
    shown = capsys.readouterr().out
    assert all(name in shown for name in found) and "pass, after 1 s" in shown
    with pytest.raises(SystemExit) as left:
        failing = [Result("disk", "fail", "2 GiB free", "free space")]
        doctor.tell(failing, as_json=False, seconds=1.0)
    assert left.value.code == 1 and "-> free space" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("model.widht=8", "model.width"),
        ("-m", "one run"),
        ("+experiment=nowhere", "no such option"),
    ],
)
def test_a_bad_key_fails(consult, argument, words):
    assert_fails(consult(argument), "config", words)


def test_criteria_nobody_can_grade_fail(consult):
    assert_fails(consult("criteria=[{name: x, metrik: y}]", only=["config"]), "config", "metrik")


def test_absent_data_fails_with_the_folder_looked_in(consult, tmp_path, monkeypatch):
    def never(*_, **__):
        pytest.fail("a check downloads nothing")

    monkeypatch.setattr("jepa.data.files._opener.open", never)
    answer = consult("data=california", f"paths.data_dir={tmp_path}/none", usual=False)
    assert_fails(answer, "data", tmp_path / "none" / "california_housing", "paths.data_dir")
    assert not (tmp_path / "none").exists()
    assert answer[1]["step"]["status"] == answer[1]["plan"]["status"] == "skip"
    assert answer[1]["device"]["status"] == "pass"  # what needs no data is still checked


def test_a_split_that_cannot_be_read_fails():
    class Rows(list):
        device = torch.device("cpu")

        def take(self, index):
            return {"x": torch.full((len(index), 3), torch.nan)}

    with pytest.raises(ValueError, match="sample of val holds no number"):
        trial.first_and_last(SimpleNamespace(splits={"val": Rows([0] * 5)}))


def test_a_setting_that_does_not_fit_the_data_fails(consult):
    assert_fails(consult("probes=[knm]", only=STEP), "plan", "knm")


def test_a_run_directory_that_cannot_be_made_fails(consult, tmp_path):
    (tmp_path / "file").write_text("in the way")
    answer = consult(f"hydra.run.dir={tmp_path}/file/run", only=["folders"])
    assert_fails(answer, "folders", f"{tmp_path}/file", "hydra.run.dir")


def test_a_folder_without_the_right_to_write_fails(consult, tmp_path, monkeypatch):
    def denied(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(checks.tempfile, "TemporaryDirectory", denied)  # root may write anywhere
    result = checks.check_folders(tmp_path / "run")
    assert result.status == "fail" and "Permission denied" in result.detail


def test_a_run_directory_in_use_fails(consult, tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / "last.ckpt").touch()
    answer = consult(f"hydra.run.dir={tmp_path}/run", only=["folders"])
    assert_fails(answer, "folders", "already holds checkpoints", "resume=auto")


STEP = ["data", "plan", "device", "step"]


def test_a_disk_too_small_for_the_checkpoints_to_come_fails(consult, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Disk(0, 0, 10 * 2**20))
    answer = consult(only=[*STEP, "disk"])
    assert_fails(answer, "disk", "10.0 MiB free", "hydra.run.dir")
    values = answer[1]["disk"]["values"]
    kept = 2 + 1 + 1  # callbacks.resume.keep, the best, the one being written
    assert values["need_bytes"] == checks.LOGS + kept * values["checkpoint_bytes"]


@pytest.mark.parametrize(("free_mb", "status"), [(202, "fail"), (250, "warn"), (10_000, "pass")])
def test_little_disk_warns(tmp_path, monkeypatch, free_mb, status):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Disk(0, 0, free_mb * 2**20))
    result = checks.check_disk(tmp_path / "run", checkpoint_bytes=2**20, n_kept=2, n_runs=1)
    assert result.status == status and bool(result.todo) == (status != "pass")


def test_stages_keep_checkpoints_too(tmp_path):
    one, three = (
        checks.check_disk(tmp_path, checkpoint_bytes=2**20, n_kept=2, n_runs=n).values["need_bytes"]
        for n in (1, 3)
    )
    assert three - one == 4 * 2**20


def test_a_loss_that_is_not_finite_fails(consult, monkeypatch):
    step = TJEPA.training_step
    monkeypatch.setattr(TJEPA, "training_step", lambda *inputs: step(*inputs) * torch.nan)
    answer = consult(only=[*STEP, "time"])
    assert_fails(answer, "step", "not finite", "nan", "model.optimizer.lr")
    assert answer[1]["time"]["status"] == "skip"


def test_a_probe_without_a_score_fails(consult, monkeypatch):
    scores = {"ridge/error": float("nan")}
    monkeypatch.setattr(examine, "probe_a_little", lambda *_: (scores, 1.0))
    assert_fails(consult(only=[*STEP, "probe"]), "probe", "probe/ridge/error is nan")


def test_a_batch_too_large_for_the_memory_fails_before_it_is_tried(consult, monkeypatch):
    monkeypatch.setattr(examine, "device_bytes", lambda _: 2**12)
    monkeypatch.setattr(examine, "train_a_little", lambda *_, **__: pytest.fail("tried"))
    answer = consult(only=[*STEP, "memory"])
    assert_fails(answer, "memory", "data.batch_size=16", "0.0 MiB", "accumulate_grad_batches=auto")
    assert answer[1]["step"]["status"] == "skip"


def test_a_planner_that_finds_no_batch_fails(consult, monkeypatch):
    monkeypatch.setattr("jepa.resolve.device_bytes", lambda _: 2**10)
    more = ("data.effective_batch_size=32", "trainer.accumulate_grad_batches=auto")
    assert_fails(consult(*more, only=STEP), "plan", "no batch fits")


def test_the_planned_micro_batch_is_the_one_that_is_tried(consult):
    more = ("data.effective_batch_size=32", "trainer.accumulate_grad_batches=auto")
    _, found = consult(*more, only=STEP)
    assert "16 samples x 2 a step" in found["plan"]["detail"]
    assert "batches of 16" in found["step"]["detail"]


def test_more_held_than_may_be_used_warns():
    device = torch.device("cpu")
    settings = {"predicted": 2**20, "usable": 2**21}
    assert checks.check_memory(device, 8, measured=2**20, **settings).status == "pass"
    assert checks.check_memory(device, 8, measured=None, **settings).status == "pass"
    assert checks.check_memory(device, 8, measured=2**22, **settings).status == "warn"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"accelerator": "gpu"}, ("this machine has none", "trainer=cpu")),
        ({"precision": "8-tiny"}, None),
        ({"compiled": True}, ("no compiler", "model.compile=false")),
    ],
)
def test_a_device_that_cannot_do_it_fails(monkeypatch, settings, words):
    def broken(*_):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", lambda _: broken)
    usual = {"accelerator": "cpu", "precision": "32-true", "n_devices": 1, "compiled": False}
    if words is None:
        with pytest.raises(ValueError, match="8-tiny"):
            checks.check_device(torch.device("cpu"), **usual | settings)
        return
    result = checks.check_device(torch.device("cpu"), **usual | settings)
    assert result.status == "fail" and all(w in f"{result.detail} {result.todo}" for w in words)
    assert checks.check_device(torch.device("cpu"), **usual).status == "pass"


def test_a_precision_slower_than_float32_warns(monkeypatch):
    speeds = {torch.bfloat16: 1.0, torch.float32: 2.0}
    monkeypatch.setattr(checks, "speed", lambda _, dtype: speeds[dtype])
    usual = {"accelerator": "cpu", "n_devices": 1, "compiled": False}
    result = checks.check_device(torch.device("cpu"), precision="bf16-mixed", **usual)
    assert result.status == "warn" and "trainer.precision=32-true" in result.todo
    result = checks.check_device(torch.device("cpu"), precision="32-true", **usual)
    assert result.status == "pass" and result.values["kernel"]


def test_another_file_system_for_temporary_files_is_a_note(tmp_path, monkeypatch):
    assert "two file systems" not in checks.check_folders(tmp_path / "run").detail
    other = Path("/dev/shm")
    if not other.is_dir() or other.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is one file system here")
    monkeypatch.setattr(tempfile, "tempdir", str(other))
    result = checks.check_folders(tmp_path / "run")
    assert result.status == "pass" and "two file systems" in result.detail


def fake_scontrol(folder, monkeypatch, text):
    (folder / "scontrol").write_text(f"#!/bin/sh\necho '{text}'\n")
    (folder / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


@pytest.mark.parametrize(
    ("text", "status", "words"),
    [
        ("JobId=7 Requeue=1 TimeLimit=01:00:00", "pass", "requeue on, time limit 01:00:00"),
        ("JobId=7 Requeue=0 TimeLimit=UNLIMITED", "warn", "requeue off"),
        ("nothing", "warn", "requeue unknown"),
    ],
)
def test_slurm_says_whether_a_job_is_requeued(tmp_path, monkeypatch, text, status, words):
    fake_scontrol(tmp_path, monkeypatch, text)
    result = checks.check_signals({"SLURM_JOB_ID": "7"}, {})
    assert result.status == status and words in result.detail and "--signal=USR1" in result.todo


def test_without_slurm_that_is_said_and_handlers_are_given_back():
    import signal

    before = [signal.getsignal(getattr(signal, name)) for name in checks.SIGNALS]
    result = checks.check_signals({}, {})
    assert result.status == "pass" and "not under SLURM" in result.detail
    assert before == [signal.getsignal(getattr(signal, name)) for name in checks.SIGNALS]


def test_a_launcher_that_never_requeues_warns():
    result = checks.check_signals({}, {"max_num_timeout": 0, "signal_delay_s": 120})
    assert result.status == "warn" and "max_num_timeout" in result.todo
    assert checks.check_signals({}, {"max_num_timeout": 3}).status == "pass"


def test_outside_the_main_thread_signals_fail():
    import threading

    found = []
    thread = threading.Thread(target=lambda: found.append(checks.check_signals({}, {})))
    thread.start()
    thread.join()
    assert found[0].status == "fail" and "main thread" in found[0].todo


def test_a_faster_micro_batch_is_suggested_with_its_head_room(consult, monkeypatch):
    real = trial.train_a_little

    def quick(*args, batch_size, **kwargs):
        done = real(*args, batch_size=batch_size, **kwargs)
        return trial.Trial(0.01, 0.0, done.losses, done.checkpoint_bytes)

    monkeypatch.setattr(examine, "train_a_little", quick)
    _, found = consult("trainer.accumulate_grad_batches=2", only=[*STEP, "faster"])
    assert "data.batch_size=32 trainer.accumulate_grad_batches=1" in found["faster"]["todo"]
    assert "2.00 times as fast" in found["faster"]["todo"] and "to spare" in found["faster"]["todo"]
    assert "64: too few rows" in found["faster"]["detail"]


def test_other_settings_are_tried_only_while_there_is_time(consult, monkeypatch):
    monkeypatch.setattr(examine, "BUDGET_S", 0.0)
    _, found = consult(only=[*STEP, "faster"])
    assert "32: no time left to try" in found["faster"]["detail"]
    assert list(found["faster"]["values"]["samples_per_s"]) == ["16"]


@pytest.mark.parametrize(("wait_s", "hint"), [(0.005, True), (0.0, False)])
def test_a_step_that_waits_for_decoding_is_told_what_to_do(
    consult, tmp_path, monkeypatch, wait_s, hint
):
    from PIL import Image

    for i in range(24):
        path = tmp_path / "images" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9), (9 * i, 0, 0)).save(path)
    done = trial.Trial(0.01, wait_s, [1.0], 0)
    monkeypatch.setattr(examine, "train_a_little", lambda *_, **__: done)
    _, found = consult(
        "data=image_folder", f"data.path={tmp_path / 'images'}", "data.storage=files",
        "data.image_size=8", "data.batch_size=4", "model=hjepa", "model.patch=1", "model.width=8",
        "trainer=cpu", "keep_memory=false", usual=False, only=STEP,
    )  # fmt: skip
    assert ("data.storage=packed" in found["step"]["todo"]) == hint
    assert found["step"]["values"]["step_samples_per_s"] == pytest.approx(4 / (0.01 - wait_s))


def test_decoding_is_tried_with_more_threads(tmp_path):
    from PIL import Image

    for i in range(6):
        (tmp_path / "a").mkdir(exist_ok=True)
        Image.new("RGB", (9, 9), (i, 0, 0)).save(tmp_path / "a" / f"{i}.png")
    rates = trial.decoding_rates(str(tmp_path), 8, (1, 2), 4)
    assert list(rates) == [1, 2] and min(rates.values()) > 0


def test_a_checkpoint_weighs_what_its_file_does():
    content = {"state_dict": {"w": torch.zeros(300, 5)}, "epoch": 3, "config": "a: 1"}
    file, scales = io.BytesIO(), trial.Scales()
    torch.save(content, file)
    scales.save_checkpoint(content, "nowhere")
    assert scales.n_bytes == len(file.getvalue()) and not Path("nowhere").exists()


def test_the_prediction_is_the_planners():
    from support import settings

    from jepa.resolve import build
    from jepa.run import FROM_THE_USER
    from jepa.spec import TabularSpec
    from jepa.step_memory import build_unallocated

    cfg = settings(Path("unused"), "model.width=16", "model.depth=1", "model.n_heads=2")
    spec = TabularSpec(
        columns=("a", "b", "c"), cardinalities=(0, 0, 0), quantiles=((-1.0, 0.0, 1.0),) * 3,
        task="none",
    )  # fmt: skip
    with FROM_THE_USER:
        model = build_unallocated(lambda: build(cfg, spec))
    device = torch.device("cpu")
    predict = trial.predictor(model, precision="32-true", device=device, most=8)
    plan = plan_batch(model, effective_batch=8, device_bytes=2**40)
    assert predict(8) == plan.peak_bytes and predict(2) < predict(8)


def timed(trainer, *, batches=10, batch_s=1.0, stages=None):
    patient = examine.Patient(OmegaConf.create({"run_dir": "x"}), Path("x"))
    usual = {
        "overfit_batches": 0.0, "limit_train_batches": 1.0, "check_val_every_n_epoch": 2,
        "max_epochs": 100, "max_steps": -1, "max_time": None, "accumulate_grad_batches": 2,
    }  # fmt: skip
    patient.parts = {
        "settings": OmegaConf.create({"trainer": usual | trainer, "time_budget": {"hours": None}}),
        "data": SimpleNamespace(train_dataloader=lambda: range(batches)),
        "trial": SimpleNamespace(batch_s=batch_s),
        "stages": stages or {},
        "validation_s": 4.0,
    }
    return examine.check_time(patient)


@pytest.mark.parametrize(
    ("trainer", "seconds"),
    [
        ({}, 100 * (10 + 2)),
        ({"limit_train_batches": 3}, 100 * (3 + 2)),
        ({"limit_train_batches": 0.5}, 100 * (5 + 2)),
        ({"overfit_batches": 1}, 100 * (1 + 2)),
        ({"max_steps": 10}, 2 * 12),
        ({"max_time": {"minutes": 1}}, 60),
        ({"max_time": "00:00:02:03"}, 123),
        ({"max_epochs": -1, "max_time": {"hours": 1}}, 3600),
    ],
)
def test_the_end_is_told_from_the_limits(trainer, seconds):
    result = timed(trainer)
    assert result.status == "pass" and result.values["total_s"] == pytest.approx(seconds)


def test_a_run_without_an_end_warns():
    result = timed({"max_epochs": -1})
    assert result.status == "warn" and "trainer.max_time" in result.todo


def test_an_error_of_our_own_is_a_failure_too():
    def broken():
        raise KeyError("ours")

    result = examine.attempt("step", broken, "do")
    assert (result.status, result.detail, result.todo) == ("fail", "KeyError: 'ours'", "do")


@pytest.mark.slow
@pytest.mark.ci
def test_the_command_of_the_readme(tmp_path):
    line = [sys.executable, "-m", "jepa.doctor", "trainer=cpu", "model.width=8", "model.depth=1"]
    done = subprocess.run(
        [*line, "json=true"], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=True
    )
    assert json.loads(done.stdout)["verdict"] in ("pass", "warn")
    assert list(tmp_path.iterdir()) == []
