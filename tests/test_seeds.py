"""Mean and spread over the runs of a grid that differ in their seed alone."""

import json
import statistics

import pytest
import yaml

from jepa import report, seeds


def finished(sweep_dir, number, *overrides, value):
    entry = {"value": value, "low": None, "high": None, "n": 10}
    content = report.new(
        status="finished", reason="", metrics={} if value is None else {"test/mse": entry},
        baselines={"closed_form": {"test/mse": entry | {"value": 0.5}}},
        controls={"untrained": {"test/mse": entry | {"value": None}}},
    )  # fmt: skip
    run_dir = sweep_dir / str(number)
    run_dir.mkdir()
    report.write(run_dir, content)
    (run_dir / "overrides.yaml").write_text(yaml.safe_dump(list(overrides)))


def test_runs_that_differ_in_the_seed_alone_belong_together(tmp_path):
    values = [0.3, 0.4, 0.6]
    finished(tmp_path, -1, "model=patchtst", "seed=9", value=None)  # interrupted
    for seed, value in enumerate(values):
        finished(tmp_path, seed, "model=patchtst", f"seed={seed}", value=value)
    finished(tmp_path, 3, "model=tjepa", "seed=0", value=9.0)
    finished(tmp_path, 5, "model=patchtst", value=9.0)
    lines = seeds.write(tmp_path)
    (group,) = json.loads((tmp_path / "seeds.json").read_text())
    assert (group["overrides"], group["seeds"]) == (["model=patchtst"], ["0", "1", "2"])
    expected = {"mean": statistics.fmean(values), "std": statistics.stdev(values), "n": 3}
    assert group["metrics"]["test/mse"] == pytest.approx(expected)
    assert group["closed_form"]["test/mse"]["std"] == 0
    assert group["untrained"] == {}
    assert "| test/mse | 0.4333 ± 0.1528 |" in "\n".join(lines)
    assert (tmp_path / "seeds.md").read_text() == "\n".join(lines) + "\n"


def test_one_run_has_no_spread(tmp_path):
    finished(tmp_path, 0, "seed=0", value=0.3)
    assert seeds.write(tmp_path) == []
    assert not (tmp_path / "seeds.json").exists()
