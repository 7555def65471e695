"""The commands of a run that is stopped, gone on with, looked at and finished."""

import os
import signal
import subprocess
import sys
import time

import pytest
from resume_cases import assert_same_run, last, settings_of
from test_train import command

from jepa.directory import go_on, hold, release

pytestmark = [pytest.mark.slow, pytest.mark.ci]


def files_of(run_dir):
    return {p: p.read_bytes() for p in run_dir.rglob("*") if p.is_file()}


def start(arguments, cwd):
    line = [sys.executable, "-m", "jepa.train", *arguments]
    return subprocess.Popen(line, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def wait_for(path, process):
    deadline = time.monotonic() + 300
    while not path.exists():
        assert process.poll() is None and time.monotonic() < deadline, process.stdout.read()
        time.sleep(0.02)


def test_a_run_through_kill_sigterm_lock_and_end(tmp_path):
    arguments = [*settings_of("tjepa", tmp_path), "trainer.max_epochs=40"]
    whole = start([*arguments, "hydra.run.dir=whole"], tmp_path)
    assert whole.wait(timeout=600) == 0, whole.stdout.read()
    checkpoint = tmp_path / "run" / "checkpoints" / "last.ckpt"
    first = start([*arguments, "hydra.run.dir=run"], tmp_path)
    wait_for(checkpoint, first)
    first.send_signal(signal.SIGSTOP)  # in use, and not over before the next command looks
    refused = command(*arguments, "hydra.run.dir=run", "resume=auto", cwd=tmp_path, check=False)
    assert refused.returncode == 1 and "in use by process" in refused.stderr
    first.send_signal(signal.SIGKILL)
    first.wait()
    second = start(["hydra.run.dir=run", "resume=auto"], tmp_path)  # it knows its own settings
    wait_for(tmp_path / "run" / "run.lock", second)
    step = last(tmp_path / "run")["global_step"]
    while last(tmp_path / "run")["global_step"] == step and second.poll() is None:
        time.sleep(0.05)
    second.send_signal(signal.SIGTERM)
    assert second.wait(timeout=300) == 143, second.stdout.read()
    third = start(["hydra.run.dir=run", "resume=auto"], tmp_path)
    assert third.wait(timeout=600) == 0, third.stdout.read()
    assert_same_run(tmp_path / "whole", tmp_path / "run")
    before = files_of(tmp_path / "run")
    again = command("hydra.run.dir=run", "resume=auto", cwd=tmp_path)
    assert "nothing to do" in again.stdout and files_of(tmp_path / "run") == before
    shown = command("run=run", cwd=tmp_path, module="jepa.checkpoint").stdout
    step = last(tmp_path / "run")["global_step"]
    assert "good, sha256" in shown and f"step {step}\n" in shown and "probe/ridge/error" in shown
    data = bytearray(checkpoint.read_bytes())
    data[len(data) // 2] ^= 1
    checkpoint.write_bytes(data)
    broken = command("run=run", cwd=tmp_path, module="jepa.checkpoint", check=False)
    assert broken.returncode == 1 and "damaged" in broken.stderr and "step_" in broken.stderr


def test_two_processes_leave_together_and_go_on_exactly(tmp_path):
    arguments = [one for one in settings_of("tjepa", tmp_path) if one != "trainer=cpu"]
    arguments += ["trainer=ddp_cpu", "data.batch_size=4", "trainer.max_epochs=20"]
    arguments += ["callbacks.early_stopping.patience=null"]
    whole = start([*arguments, "hydra.run.dir=whole"], tmp_path)
    assert whole.wait(timeout=600) == 0, whole.stdout.read()
    first = start([*arguments, "hydra.run.dir=run"], tmp_path)
    wait_for(tmp_path / "run" / "checkpoints" / "last.ckpt", first)
    first.send_signal(signal.SIGTERM)  # the first process alone is told
    assert first.wait(timeout=300) == 143, first.stdout.read()
    assert len(last(tmp_path / "run")["random"]) == 2
    assert last(tmp_path / "run")["global_step"] < last(tmp_path / "whole")["global_step"]
    second = start([*arguments, "hydra.run.dir=run", "resume=auto"], tmp_path)
    assert second.wait(timeout=600) == 0, second.stdout.read()
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_one_directory_has_one_process(tmp_path):
    hold(tmp_path)
    code = f"from pathlib import Path; from jepa.directory import hold; hold(Path({str(tmp_path)!r}))"  # fmt: skip  # noqa: E501
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert other.returncode and f"in use by process {os.getpid()}" in other.stderr
    hold(tmp_path)  # the same process may
    release(tmp_path)
    assert not list(tmp_path.iterdir())
    assert not subprocess.run([sys.executable, "-c", code]).returncode


def test_settings_are_taken_from_the_directory_only_where_none_are_given(tmp_path):
    where = f"hydra.run.dir={tmp_path}"
    assert go_on([where, "resume=auto"]) == [where, "resume=auto"]
    (tmp_path / "overrides.yaml").write_text("- data=digits\n- resume=auto\n- seed=3\n")
    assert go_on([where, "resume=auto"]) == [where, "resume=auto", "data=digits", "seed=3"]
    assert go_on([where, "resume=auto", "seed=4"]) == [where, "resume=auto", "seed=4"]
    assert go_on([where]) == [where]
