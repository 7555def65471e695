"""Two gloo processes: one model, each row once, masks of their own, the same numbers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import write_table

pytestmark = [pytest.mark.slow, pytest.mark.ci]


def test_ranks_agree_on_weights_teacher_probes_and_metrics_and_share_the_rows(tmp_path):
    write_table(tmp_path / "t.csv")
    here = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, str(here / "ddp_check.py"), str(tmp_path), "2"],
        env=os.environ | {"PYTHONPATH": f"{here.parent}:{here}"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    a, b = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1))
    assert a["weights"] == b["weights"]  # the teacher's among them
    assert a["metrics"] == b["metrics"]
    assert {"val/loss", "probe/ridge/error"} <= set(a["metrics"])
    assert a["steps"] == b["steps"] > 0
    for ours, theirs in zip(a["rows"], b["rows"], strict=True):
        assert not set(ours) & set(theirs)
    for ours, theirs in zip(a["masks"], b["masks"], strict=True):
        assert len(ours[0]) == len(theirs[0]) and ours != theirs
