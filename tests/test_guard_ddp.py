"""Two processes leave the same steps out, and go back together."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.ci]


def test_what_one_process_reads_is_left_out_on_both(tmp_path):
    here = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, str(here / "guard_ddp_check.py"), str(tmp_path)],
        env=os.environ | {"PYTHONPATH": f"{here.parent}:{here}"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    a, b = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1))
    assert a == b
    assert a["skipped"] == 3 and a["restores"] == 1 and a["still"][0] == 3
    folders = sorted(path.name for path in (tmp_path / "dumps").iterdir())
    assert folders == ["step_3", "step_3_rank_1"]
