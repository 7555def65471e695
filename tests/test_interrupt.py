"""Signals, STOP and q: the run leaves between two steps, and goes on as if it had not."""

import json
import os
import pty
import signal
import sys
from types import SimpleNamespace

import lightning as L
import pytest
import support
from resume_cases import assert_same_run, last, run_until, settings_of
from support import run_training

from jepa.callbacks import requeue
from jepa.callbacks.interrupt import Interrupt, Leave
from jepa.callbacks.terminal import Terminal


class At(L.Callback):
    """Do something in an epoch at a batch, or in the validation after it."""

    def __init__(self, epoch, batch, action, *, hook="batch"):
        self.when, self.action, self.hook, self.n_steps = (epoch, batch), action, hook, 0

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if self.hook == "batch" and (trainer.current_epoch, batch_idx) == self.when:
            self.action()
            self.n_steps = trainer.global_step

    def on_validation_start(self, trainer, pl_module):
        if self.hook == "validation" and trainer.current_epoch == self.when[0]:
            self.action()


def send(name):
    return lambda: os.kill(os.getpid(), getattr(signal, name))


def interrupted(callback, run_dir, arguments):
    """Run until it leaves; return its exit code, None where it came to a usual end."""
    support.EXTRA[:] = [callback]
    try:
        run_training(run_dir, *arguments, "+callbacks.at._target_=support.extra")
    except Leave as error:
        return error.code
    finally:
        support.EXTRA.clear()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    run_until(None, folder / "run", settings_of("tjepa", folder))
    return folder


def events(run_dir, kind):
    lines = (run_dir / "events.jsonl").read_text().splitlines()
    return [one for one in map(json.loads, lines) if one["kind"] == kind]


@pytest.mark.parametrize(
    ("name", "code", "when", "place"),
    [
        ("SIGTERM", 143, (1, 3), {"epoch": 1, "batch": 4, "validate": False}),
        ("SIGINT", 130, (1, 7), {"epoch": 1, "batch": 8, "validate": True}),
        ("SIGUSR1", 128 + signal.SIGUSR1, (0, 7), {"epoch": 1, "batch": 0, "validate": False}),
    ],
)
def test_a_signal_leaves_after_its_step_and_the_run_goes_on_exactly(
    whole, tmp_path, name, code, when, place
):
    arguments = [*settings_of("tjepa", whole), "callbacks.resume.every_n_steps=null"]
    before = signal.getsignal(getattr(signal, name))
    callback = At(*when, send(name))
    assert interrupted(callback, tmp_path / "run", arguments) == code
    assert signal.getsignal(getattr(signal, name)) == before
    content = last(tmp_path / "run")
    assert content["place"] == place
    assert content["global_step"] == callback.n_steps + 1  # the step it came in, and no other
    assert [one["by"] for one in events(tmp_path / "run", "stop")] == [name]
    run_until(None, tmp_path / "run", [*arguments, "resume=auto"])
    assert_same_run(whole / "run", tmp_path / "run")


@pytest.mark.parametrize("accumulate", [1, 4])
def test_the_file_stop_ends_the_run_reported_and_it_goes_on_exactly(tmp_path, accumulate):
    arguments = [
        *settings_of("tjepa", tmp_path), f"trainer.accumulate_grad_batches={accumulate}",
    ]  # fmt: skip
    run_until(None, tmp_path / "whole", arguments)
    run_dir = tmp_path / "run"
    callback = At(1, 2, lambda: (run_dir / "STOP").touch())
    assert interrupted(callback, run_dir, arguments) is None
    assert not (run_dir / "STOP").exists()
    report = json.loads((run_dir / "report.json").read_text())
    assert report["status"] == "stopped" and report["reason"] == "stopped by the file STOP"
    assert report["objective"]["value"] is not None and report["metrics"]
    assert last(run_dir)["place"] == {"epoch": 1, "batch": 3 if accumulate == 1 else 4, "validate": False}  # fmt: skip  # noqa: E501
    run_until(None, run_dir, [*arguments, "resume=auto"])
    assert_same_run(tmp_path / "whole", run_dir)


def test_max_time_inside_a_group_can_be_gone_on_from(tmp_path):
    arguments = [*settings_of("tjepa", tmp_path), "trainer.accumulate_grad_batches=4"]
    run_until(None, tmp_path / "whole", arguments)

    class Stop(L.Callback):  # what Lightning's timer does
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if (trainer.current_epoch, batch_idx) == (0, 1):
                trainer.should_stop = True

    assert interrupted(Stop(), tmp_path / "run", arguments) is None
    assert last(tmp_path / "run")["place"] == {"epoch": 0, "batch": 4, "validate": False}
    run_until(None, tmp_path / "run", [*arguments, "resume=auto"])
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_max_steps_in_the_first_epoch_leaves_a_best_and_the_rest_of_the_epoch(tmp_path):
    arguments = [*settings_of("tjepa", tmp_path), "trainer.check_val_every_n_epoch=1"]
    run_training(tmp_path / "run", *arguments, "trainer.max_steps=3")
    assert (tmp_path / "run" / "checkpoints" / "best.ckpt").exists()
    assert last(tmp_path / "run")["place"] == {"epoch": 0, "batch": 3, "validate": False}
    run_training(tmp_path / "run", *arguments, "resume=auto")
    assert last(tmp_path / "run")["global_step"] == 24


def test_a_second_ctrl_c_leaves_at_once(tmp_path):
    one = Interrupt(run_dir=str(tmp_path), requeue=True)
    one.note(signal.SIGINT, None)
    with pytest.raises(KeyboardInterrupt):
        one.note(signal.SIGINT, None)


def test_other_signals_are_only_noted(tmp_path):
    one = Interrupt(run_dir=str(tmp_path), requeue=True)
    for name in ("SIGTERM", "SIGTERM", "SIGUSR1"):
        one.note(getattr(signal, name), None)
    assert one.heard == signal.SIGUSR1 and not list(tmp_path.iterdir())


def test_q_is_heard_and_the_terminal_given_back(monkeypatch):
    import termios

    keyboard, side = pty.openpty()
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(fileno=lambda: side))
    monkeypatch.setattr(Terminal, "in_front", lambda self: True)
    before, terminal = termios.tcgetattr(side), Terminal()
    terminal.open()
    assert termios.tcgetattr(side) != before and terminal.key() == ""
    os.write(keyboard, b"q")
    assert terminal.key() == "q"
    terminal.close()
    assert termios.tcgetattr(side) == before and terminal.key() == ""


def test_without_a_terminal_nothing_happens(monkeypatch, tmp_path):
    for stdin in (None, (tmp_path / "file").open("w")):
        monkeypatch.setattr(sys, "stdin", stdin)
        terminal = Terminal()
        terminal.open()
        assert terminal.key() == ""
        terminal.close()


@pytest.mark.parametrize(
    ("name", "on", "code", "expected"),
    [
        ("SIGUSR1", "true", 0, ["requeue 12_3"]),
        ("SIGUSR2", "true", 1, ["requeue 12_3"]),
        ("SIGTERM", "true", 0, []),  # SLURM has decided already
        ("SIGUSR1", "false", 0, []),
    ],
)
def test_a_warned_slurm_job_goes_back_into_the_queue(
    whole, tmp_path, monkeypatch, name, on, code, expected
):
    asked = tmp_path / "asked"
    fake = tmp_path / "scontrol"
    fake.write_text(f"#!/bin/sh\necho $@ >> {asked}\necho no such job >&2\nexit {code}\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "12")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    arguments = settings_of("tjepa", whole, f"callbacks.interrupt.requeue={on}")
    left = interrupted(At(0, 3, send(name)), tmp_path / "run", arguments)
    assert left == 128 + getattr(signal, name)
    assert (asked.read_text().splitlines() if asked.exists() else []) == expected
    problems = [one["problem"] for one in events(tmp_path / "run", "requeue")]
    assert problems == (["no such job"] if code else [""])[: len(expected)]


def test_scontrol_ended_with_the_job_it_put_back_is_no_problem(monkeypatch, tmp_path):
    fake = tmp_path / "scontrol"
    fake.write_text("#!/bin/sh\nkill -TERM $$\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert requeue.requeue("12") == ""


def test_without_scontrol_the_reason_is_told(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "scontrol" in requeue.requeue("12")
    assert requeue.job_of({"SLURM_JOB_ID": "12"}) == "12" and requeue.job_of({}) is None
