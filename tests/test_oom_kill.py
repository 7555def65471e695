"""Runs that the kernel ends for their memory: seen by its counts, gone on with by less."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from memory_group import MemoryGroup, why_not
from resume_cases import last, settings_of
from test_sweeps import rows

from jepa import directory, oom_kill
from jepa.config import UserError
from jepa.retry import after_kill
from jepa.sweeps import slurm_queue
from jepa.sweeps.outcome import starved

HERE = Path(__file__).parent
REASON = why_not()
REAL = pytest.mark.skipif(bool(REASON), reason=REASON)


def system(root, *, v1=False, kills=0, path="/run", total=0, boot="a"):
    """Write what a kernel shows of a process in a memory group."""
    kinds = "4:cpu,memory:" if v1 else "0::"
    place = root / "sys/fs/cgroup" / ("memory" if v1 else "") / path.lstrip("/")
    files = {
        root / "proc/self/cgroup": f"9:name=systemd:/\n{kinds}{path}\n",
        root / "proc/vmstat": f"nr_free_pages 12\noom_kill {total}\n",
        root / "proc/sys/kernel/random/boot_id": f"{boot}\n",
        place / ("memory.oom_control" if v1 else "memory.events"): (
            f"oom_kill_disable 0\nunder_oom 0\noom_kill {kills}\n"
        ),
    }
    for file, text in files.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return root


@pytest.mark.parametrize("v1", [True, False])
@pytest.mark.parametrize(
    ("now", "expected"),
    [
        ({"kills": 4, "total": 9}, True),
        ({"kills": 3, "total": 9}, False),  # the victim was in another group
        ({"path": "/other", "kills": 9, "total": 8}, True),  # the group is gone
        ({"path": "/other", "kills": 9, "total": 7}, False),
        ({"path": "/other", "kills": 9, "total": 8, "boot": "b"}, False),  # started again since
    ],
)
def test_the_group_decides_and_the_machine_where_it_is_gone(tmp_path, v1, now, expected):
    before = oom_kill.note(system(tmp_path, v1=v1, kills=3, total=7), {})
    assert oom_kill.killed(before, system(tmp_path, v1=v1, **now), {}) is expected


def test_a_group_made_again_is_another_one(tmp_path):
    before = json.loads(oom_kill.note(system(tmp_path, kills=3, total=7), {}))
    before["group"][1] += 1  # its inode
    system(tmp_path, kills=4, total=7)
    assert not oom_kill.killed(json.dumps(before), tmp_path, {})
    system(tmp_path, kills=0, total=8)
    assert oom_kill.killed(json.dumps(before), tmp_path, {})


@pytest.mark.parametrize(("state", "expected"), [("OUT_OF_MEMORY", True), ("NODE_FAIL", False)])
def test_slurm_says_what_became_of_a_job_on_another_node(tmp_path, monkeypatch, state, expected):
    answer = f"JobID|State|ExitCode|NodeList\n17|{state}|0:125|n3\n"
    monkeypatch.setattr(slurm_queue, "ask", lambda *line: answer)
    before = oom_kill.note(system(tmp_path, total=7), {"SLURM_JOB_ID": "17"})
    system(tmp_path, path="/job_18", total=7 if expected else 8)
    assert oom_kill.killed(before, tmp_path, {"SLURM_JOB_ID": "18"}) is expected


def test_where_the_system_does_not_count_nothing_is_noted(tmp_path):
    assert oom_kill.note(tmp_path, {}) == "" and not oom_kill.killed("", tmp_path, {})


WORDS = st.sampled_from(["group", "machine", "slurm_job"])
VALUES = st.recursive(st.none() | st.integers() | st.text(max_size=5), st.lists, max_leaves=5)


@given(text=st.text() | st.dictionaries(WORDS, VALUES).map(json.dumps))
def test_a_damaged_note_says_nothing(text):
    with mock.patch.object(slurm_queue, "ask", side_effect=slurm_queue.Away("not here")):
        assert oom_kill.killed(text, variables={}) is False


def test_only_a_process_that_did_not_leave_is_looked_into(tmp_path, monkeypatch):
    monkeypatch.setattr(oom_kill, "killed", lambda text: bool(text))
    directory.hold(tmp_path)
    assert not directory.lacked_memory(tmp_path)  # nobody was here before
    directory.release(tmp_path)
    (tmp_path / directory.LOCK).write_text("process 7 on here\n{}")
    directory.hold(tmp_path)
    assert directory.lacked_memory(tmp_path) and not directory.lacked_memory(tmp_path)  # once
    directory.release(tmp_path)


@pytest.mark.parametrize(
    ("guard", "batch_size", "resume", "expected"),
    [
        ({"out_of_memory": True}, 8, "auto", [8, 4]),
        ({"out_of_memory": False}, 8, "auto", None),
        ({}, 8, "auto", None),
        ({"out_of_memory": True}, 1, "auto", None),
        ({"out_of_memory": True}, 8, "never", None),
    ],
)
def test_the_next_attempt_takes_less_only_where_it_may(
    tmp_path, monkeypatch, guard, batch_size, resume, expected
):
    from omegaconf import OmegaConf

    monkeypatch.setattr(directory, "lacked_memory", lambda run_dir: True)
    trainer = {"devices": 1, "num_nodes": 1, "accumulate_grad_batches": 2}
    data = {"batch_size": batch_size}
    content = {"guard": guard, "data": data, "trainer": trainer, "resume": resume}
    found = after_kill(OmegaConf.create(content), tmp_path)
    assert (found and found.changes["data.batch_size"]) == expected
    if found:
        assert found.changes["trainer.accumulate_grad_batches"] == [2, 4]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
    again = starved(tmp_path, "killed by SIGKILL")
    assert again.lost == (batch_size == 8 and bool(guard.get("out_of_memory")))
    assert again.changes[:1] == (("data.batch_size=4",) if again.lost else ())


def run(arguments, cwd, group=None):
    """Run a command in a memory group; return (exit code, what it printed)."""
    done = subprocess.run(
        arguments,
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(HERE), "OMP_NUM_THREADS": "1"},
        preexec_fn=group and group.enter,
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout + done.stderr


@REAL
@pytest.mark.slow
@pytest.mark.ci
def test_a_run_that_the_kernel_killed_goes_on_with_less_memory(tmp_path):
    arguments = [sys.executable, "-m", "jepa.train", *settings_of("tjepa", tmp_path)]
    arguments += ["+callbacks.hog._target_=memory_group.Hog", "hydra.run.dir=run", "resume=auto"]
    with MemoryGroup(3 * 2**30) as group:
        code, said = run(arguments, tmp_path, group)
        assert code == -signal.SIGKILL, said
        assert last(tmp_path / "run")["global_step"] == 2
        code, said = run(arguments, tmp_path, group)
        assert code == 0 and "data.batch_size=4 (was 8)" in said, said
    found = [json.loads(one) for one in (tmp_path / "run" / "events.jsonl").open()]
    retry = next(one for one in found if one["kind"] == "retry")
    assert retry["changes"]["trainer.accumulate_grad_batches"] == [1, 2]
    assert last(tmp_path / "run")["global_step"] == 24  # of batches of 8, as before
    assert json.loads((tmp_path / "run" / "report.json").read_text())["status"] == "finished"


@REAL
@pytest.mark.slow
@pytest.mark.ci
def test_a_run_killed_otherwise_goes_on_as_it_was(tmp_path):
    arguments = [sys.executable, "-m", "jepa.train", *settings_of("tjepa", tmp_path)]
    arguments += ["hydra.run.dir=run", "resume=auto"]
    fault = ["+callbacks.fault._target_=sweep_faults.FaultOfRate", "+callbacks.fault.lr=1"]
    with MemoryGroup(3 * 2**30) as group:
        code, said = run([*arguments, *fault, "+callbacks.fault.plan=1:kill"], tmp_path, group)
        assert code == -signal.SIGKILL, said
        code, said = run([*arguments, *fault, "+callbacks.fault.plan=''"], tmp_path, group)
    assert code == 0 and "was 8" not in said, said


@REAL
@pytest.mark.slow
@pytest.mark.ci
def test_a_trial_that_the_kernel_killed_is_run_again_with_less_memory(tmp_path):
    folder = tmp_path / "s"
    arguments = [
        *(sys.executable, "-m", "jepa.train", "-m", "~search", "hydra/sweeper=optuna"),
        *(f"hydra.sweep.dir={folder}", "hydra.sweeper.n_trials=1", "hydra.sweeper.n_jobs=1"),
        *("hydra/launcher=local", "model.optimizer.lr=choice(0.001,0.002)"),
        *settings_of("tjepa", tmp_path),
        "+callbacks.hog._target_=memory_group.Hog",
    ]
    with MemoryGroup(3 * 2**30) as group:
        code, said = run(arguments, tmp_path, group)
    assert code == 0, said
    first, second = rows(folder)
    assert first["state"] == "LOST" and "out of memory: killed by SIGKILL" in first["reason"]
    assert second["state"] == "COMPLETE" and float(second["value"])
    settings = yaml.safe_load((Path(second["directory"]) / "config.yaml").read_text())
    assert settings["data"]["batch_size"] == 4
    assert settings["trainer"]["accumulate_grad_batches"] == 2


def test_a_held_directory_names_its_process_alone(tmp_path):
    (tmp_path / directory.LOCK).touch()
    code = f"""
from pathlib import Path
from jepa.directory import hold
hold(Path({str(tmp_path)!r}))
input()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        try:
            while not (tmp_path / directory.LOCK).read_text():
                assert other.poll() is None
            with pytest.raises(UserError, match=rf"in use by process {other.pid} on \S+: wait"):
                directory.hold(tmp_path)
        finally:
            other.kill()
