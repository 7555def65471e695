"""A grid of probes: what its cells share, what its report says, and that its axes matter."""

import csv
import itertools
import json
import subprocess
import sys

import pytest
import torch
from support import SMALL, write_table

from jepa.config import UserError
from jepa.probes.sgd import sgd_linear
from jepa.sweeps import grid

LR, DECAY = ("0.001", "0.01", "0.1"), ("0.001", "0.01")
NAME = "val/sgd_linear/error"
AXES = [f"probe.lr={','.join(LR)}", f"probe.weight_decay={','.join(DECAY)}"]


def test_learning_rate_and_weight_decay_change_the_probe():
    """In the source of the design neither did: its optimizer never saw them."""
    draws = torch.Generator().manual_seed(0)
    x = torch.randn(60, 4, generator=draws)
    y = x @ torch.tensor([1.0, -2.0, 0.5, 0.0]) + torch.randn(60, generator=draws)
    errors = {
        sgd_linear(
            x[:40], y[:40], x[40:], y[40:],
            lr=float(lr), weight_decay=float(decay), n_epochs=5, batch_size=16, seed=0,
        )["error"]
        for lr, decay in itertools.product(LR, DECAY)
    }  # fmt: skip
    assert len(errors) == 6


def report_of(error, raw=0.3, **metrics):
    own = {NAME: {"value": error, "low": error - 0.05, "high": error + 0.05, "n": 9}}
    return {
        "objective": {"name": NAME, "value": error},
        "metrics": own | {key: {"value": one} for key, one in metrics.items()},
        "controls": {"raw": {NAME: {"value": raw}}},
    }


def made_up(folder, errors, *, success=None):
    """A grid of 3 x 2 cells, None for one without a result."""
    grid.record(folder, ["-m", "run=x", *AXES, "hydra/launcher=local"], success)
    for number, error in enumerate(errors):
        (folder / str(number)).mkdir()
        if error is not None:
            text = json.dumps(error if isinstance(error, dict) else report_of(error))
            (folder / str(number) / "evaluation.json").write_text(text)
    return grid.write(folder)


def test_a_report_names_best_spread_success_and_trends(tmp_path):
    text = made_up(tmp_path, [0.5, 0.5, 0.4, 0.3, 0.2, None])
    assert "5 of 6 cells" in text
    assert "Best: probe.lr=0.1 probe.weight_decay=0.001 with 0.2 (0.15..0.25)" in text
    assert "Spread: 0.2 to 0.5, median 0.4, standard deviation 0.1304" in text
    assert "Success (at most 0.3): 2 of 6" in text  # the raw input's error
    assert "| probe.lr | 0.1 | 2 | 50% | 0.2 |" in text
    assert "| probe.weight_decay | 0.001 | 3 | 33% | 0.3667 |" in text
    assert "- probe.lr: the more, the better (0.5 at 0.001, 0.35 at 0.01, 0.2 at 0.1)" in text
    assert "- cell 5 (probe.lr=0.1 probe.weight_decay=0.01) has no result" in text
    assert (tmp_path / "grid.png").stat().st_size > 1000
    with (tmp_path / "grid.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["error"] for row in rows] == ["0.5", "0.5", "0.4", "0.3", "0.2", ""]
    assert rows[3]["probe.lr"] == "0.01" and rows[3]["probe.weight_decay"] == "0.01"
    assert [row["success"] for row in rows] == ["false"] * 3 + ["true"] * 2 + [""]


def test_the_threshold_of_success_is_a_setting(tmp_path):
    text = made_up(tmp_path, [0.5, 0.5, 0.4, 0.3, 0.2, 0.1], success=0.45)
    assert "Success (at most 0.45): 4 of 6" in text


def test_a_parameter_that_changes_nothing_is_called_out(tmp_path):
    text = made_up(tmp_path, [0.5, 0.5, 0.2, 0.2, 0.3, 0.3])
    assert "- probe.weight_decay: CHANGES NOTHING" in text
    assert "- probe.lr: best at 0.01" in text
    other = [report_of(0.5, loss=n) for n in range(6)]
    said = made_up(tmp_path / "other", other)
    assert "- probe.lr: the error stays, other metrics change" in said


def test_a_grid_without_any_number_is_refused(tmp_path):
    with pytest.raises(UserError, match="none of its 6 jobs"):
        made_up(tmp_path, [None] * 6)


def command(module, *arguments, cwd):
    line = [sys.executable, "-m", f"jepa.{module}", *arguments]
    done = subprocess.run(line, capture_output=True, text=True, cwd=cwd, check=False, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.ci
def test_a_grid_over_a_checkpoint_shares_its_codes_and_every_cell_differs(tmp_path):
    write_table(tmp_path / "table.csv")
    data = ["data=table", "data.path=table.csv", "data.target=n4"]
    command("train", *data, *SMALL, "hydra.run.dir=out", cwd=tmp_path)
    probe = ["run=out", "split=val", "probe=sgd_linear", "probe.n_epochs=20"]
    line = ["-m", "hydra/launcher=local", "hydra.launcher.n_jobs=2", "hydra.sweep.dir=g"]
    said = command("evaluate", *line, *probe, *AXES, cwd=tmp_path)
    assert "python -m jepa.sweeps.report run=g" in said
    assert not (tmp_path / "out" / "evaluation.json").exists()
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "out/features").glob("*.codes")}
    assert len(kept) == 4  # of the trained and the untrained encoder, on train and val
    shown = command("sweeps.report", "run=g", cwd=tmp_path)
    assert "6 of 6 cells" in shown and "CHANGES NOTHING" not in shown
    with (tmp_path / "g" / "grid.csv").open() as file:
        rows = list(csv.DictReader(file))
    errors = {(row["probe.lr"], row["probe.weight_decay"]): row["error"] for row in rows}
    for decay in DECAY:
        assert len({errors[lr, decay] for lr in LR}) == 3
    for lr in LR:
        assert len({errors[lr, decay] for decay in DECAY}) == 2
    command("evaluate", *probe, "probe.lr=0.01", "probe.weight_decay=0.01", cwd=tmp_path)
    assert kept == {path: path.stat().st_mtime_ns for path in kept}
    alone = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert repr(alone["metrics"][NAME]["value"]) == errors["0.01", "0.01"]
