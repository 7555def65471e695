"""Checkpoint files survive kills, full disks, cuts and flipped bits; they never run code."""

import errno
import io
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from jepa import checkpoint
from jepa.checkpoint import CheckpointFiles, judge, newest_good, write_file

N_KILLS = int(os.environ.get("JEPA_KILLS", "8"))  # make test-resume: 200
N_FLIPS = int(os.environ.get("JEPA_FLIPS", "60"))  # 500


def content(step, n=2000):
    return {"state_dict": {"w": torch.full((n,), float(step))}, "global_step": step, "epoch": 0}


def write_two(folder, n=2000):
    files = CheckpointFiles()
    for step in (1, 2):
        files.save_checkpoint(content(step, n), folder / f"step_{step}.ckpt")
        files.publish(folder / f"step_{step}.ckpt", keep=2)
    return folder / "last.ckpt"


def step_of(path):
    return CheckpointFiles().load_checkpoint(path)["global_step"]


def damage(path, data):
    """Put other bytes into the newest file, which has two names."""
    path.write_bytes(data)


def test_the_newest_has_two_names_and_the_one_before_it_stays(tmp_path):
    last = write_two(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {
        "last.ckpt", "step_1.ckpt", "step_2.ckpt", "manifest.json",
    }  # fmt: skip
    assert step_of(last) == 2 and not last.is_symlink()
    CheckpointFiles().save_checkpoint(content(3), tmp_path / "step_3.ckpt")
    CheckpointFiles().publish(tmp_path / "step_3.ckpt", keep=1)
    assert step_of(last) == 3 and not list(tmp_path.glob("step_[12].ckpt"))
    assert all(judge(path)[0] == "good" for path in tmp_path.glob("*.ckpt"))


def test_every_cut_is_seen_and_recovered_from(tmp_path):
    last = write_two(tmp_path)
    whole = last.read_bytes()
    for percent in range(100):
        damage(last, whole[: len(whole) * percent // 100])
        assert newest_good(tmp_path) == (tmp_path / "step_1.ckpt", ["last.ckpt", "step_2.ckpt"])
    damage(last, whole)
    assert newest_good(tmp_path) == (last, [])


def test_every_flipped_bit_is_seen_and_recovered_from(tmp_path):
    last = write_two(tmp_path)
    whole, draw = last.read_bytes(), random.Random(0)
    for _ in range(N_FLIPS):
        flipped = bytearray(whole)
        flipped[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        damage(last, flipped)
        found, damaged = newest_good(tmp_path)
        assert found is not None and step_of(found) == 1 and "last.ckpt" in damaged


def test_a_flipped_bit_of_a_weight_is_seen_without_the_manifest(tmp_path):
    last = write_two(tmp_path)
    (tmp_path / "manifest.json").unlink()
    assert newest_good(tmp_path)[0] == last and judge(last)[0] == "unlisted"
    whole = bytearray(last.read_bytes())
    whole[len(whole) // 2] ^= 16  # far inside the tensor
    damage(last, whole)
    assert newest_good(tmp_path) == (tmp_path / "step_1.ckpt", ["last.ckpt", "step_2.ckpt"])


def test_a_damaged_manifest_costs_no_checkpoint(tmp_path):
    last = write_two(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    assert newest_good(tmp_path) == (last, [])


def write_until_killed(folder, step, pipe):
    """Save one checkpoint after another, in a process of its own; tell each step."""
    files = CheckpointFiles()
    while True:
        step += 1
        files.save_checkpoint(content(step, n=1_000_000), folder / f"step_{step}.ckpt")
        files.publish(folder / f"step_{step}.ckpt", keep=2)
        os.write(pipe, f"{step}\n".encode())


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.resume
def test_no_kill_during_a_save_leaves_the_newest_checkpoint_unreadable(tmp_path, monkeypatch):
    if Path("/dev/shm").is_dir():
        monkeypatch.setenv("TMPDIR", "/dev/shm")  # another file system than the checkpoints'
    draw, step, unfinished = random.Random(0), 0, 0
    for _ in range(N_KILLS):
        reads, writes = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                write_until_killed(tmp_path, step, writes)
            finally:
                os._exit(1)  # never back into pytest
        os.close(writes)
        told = os.read(reads, 100)  # the first save is done
        time.sleep(draw.random() * 0.1)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        while more := os.read(reads, 1000):
            told += more
        os.close(reads)
        found = step_of(tmp_path / "last.ckpt")
        assert newest_good(tmp_path) == (tmp_path / "last.ckpt", [])
        assert found >= int(told.split()[-1]) > step
        unfinished += bool(list(tmp_path.glob(".*.tmp")))
        checkpoint.clean(tmp_path)
        assert not list(tmp_path.glob(".*.tmp"))
        step = found
    assert unfinished, "no kill hit a save"


def test_a_full_disk_keeps_the_checkpoint_before_and_warns(tmp_path, monkeypatch):
    last = write_two(tmp_path)

    class Full(io.BytesIO):
        def __init__(self, file):
            super().__init__()
            self.file, self.left = file, 3000

        def write(self, data):
            self.left -= memoryview(data).nbytes
            if self.left < 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            return self.file.write(data)

    hashed = checkpoint._Hashed
    monkeypatch.setattr(checkpoint, "_Hashed", lambda file: hashed(Full(file)))
    files = CheckpointFiles()
    with pytest.warns(UserWarning, match="No space left"):
        files.save_checkpoint(content(3), tmp_path / "step_3.ckpt")
    assert files.failed is not None and files.failed.errno == errno.ENOSPC
    assert newest_good(tmp_path) == (last, []) and step_of(last) == 2
    assert not list(tmp_path.glob(".*.tmp")) and not (tmp_path / "step_3.ckpt").exists()
    monkeypatch.undo()
    files.save_checkpoint(content(3), tmp_path / "step_3.ckpt")
    assert files.failed is None


def test_another_error_is_not_hidden(tmp_path):
    (tmp_path / "checkpoints").write_text("a file where the folder should be")
    with pytest.raises(OSError):
        CheckpointFiles().save_checkpoint(content(1), tmp_path / "checkpoints" / "last.ckpt")


def test_without_links_the_second_name_is_a_copy(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    last = write_two(tmp_path)
    assert step_of(last) == 2 and judge(last)[0] == "good"
    assert not last.samefile(tmp_path / "step_2.ckpt")


def test_a_malicious_pickle_runs_nothing(tmp_path):
    class Evil:
        def __reduce__(self):
            return (os.system, (f"touch {tmp_path}/ran",))

    torch.save({"global_step": 1, "x": Evil()}, tmp_path / "last.ckpt")
    with pytest.raises(pickle.UnpicklingError):
        CheckpointFiles().load_checkpoint(tmp_path / "last.ckpt", weights_only=False)
    assert newest_good(tmp_path) == (None, ["last.ckpt"])
    assert not (tmp_path / "ran").exists()


MEMORY = """
import resource, sys
from pathlib import Path
import torch
from jepa.checkpoint import write_file
state = {str(i): torch.ones(12_500_000) for i in range(4)}  # 200 MB
write_file({"state_dict": {"w": torch.ones(10)}, "global_step": 0}, Path(sys.argv[1]))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
write_file({"state_dict": state, "global_step": 1}, Path(sys.argv[1]))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
@pytest.mark.ci
def test_saving_holds_no_second_copy_in_memory(tmp_path):
    path = tmp_path / "big.ckpt"
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(path)], capture_output=True, text=True, check=True
    )
    kilo = 1 if sys.platform == "darwin" else 1024
    assert int(done.stdout) * kilo <= 0.05 * path.stat().st_size


def test_writing_into_a_folder_that_is_not_there_makes_it(tmp_path):
    write_file(content(1), tmp_path / "a" / "b.ckpt")
    assert step_of(tmp_path / "a" / "b.ckpt") == 1
