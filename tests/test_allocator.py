"""The allocator: a large block that was freed is taken again without fresh pages."""

import subprocess
import sys

import pytest
from omegaconf import OmegaConf

from jepa import train

FAULTS = """
import resource, sys
import torch
from jepa.allocator import keep_memory
torch.set_num_threads(1)
if sys.argv[1] == "keep" and not keep_memory():
    print("absent")
    raise SystemExit
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        torch.ones(1 << 24)  # 64 MiB: above 32 MiB glibc never learns
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
for _ in range(3):
    last = faults()
print(last)
"""


def count(mode):
    done = subprocess.run(
        [sys.executable, "-c", FAULTS, mode], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.mark.ci
def test_kept_memory_needs_no_fresh_pages():
    kept = count("keep")
    if kept == "absent":
        pytest.skip("only glibc has mallopt")
    assert int(kept) < int(count("return")) / 2


@pytest.mark.parametrize("keep", [True, False])
def test_the_setting_decides(keep, monkeypatch):
    calls = []
    monkeypatch.setattr(train, "keep_memory", lambda: calls.append(1))
    train.set_variables(OmegaConf.create({"keep_memory": keep, "trainer": {"accelerator": "cpu"}}))
    assert len(calls) == keep
