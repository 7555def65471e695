"""Runs that collapse are stopped within a tenth of their length; runs that learn go undisturbed."""

import json

import pytest
from support import run_training

RUN = (
    *("trainer=cpu", "trainer.max_epochs=-1", "trainer.check_val_every_n_epoch=1000"),
    *("logger=csv", "test=false", "callbacks.early_stopping=null", "report.max_rows=100"),
)
IMAGES = (
    *("data=digits", "model.patch=2", "model.width=32", "model.depth=2"),
    *("model.predictor_width=16", "model.predictor_depth=1"),
)
TABLE = (
    *("data=digits_table", "data.batch_size=32", "model.width=16", "model.depth=1"),
    *("model.n_heads=2", "model.predictor_width=16", "model.predictor_depth=1"),
    "model.predictor_n_heads=2",
)
LIVE = ("model.momentum=0.0", "model.momentum_end=0.0")
PLANTS = {
    "live targets": (*IMAGES, "model=hjepa", "model._target_=planted.LiveTargets", *LIVE),
    "live targets, normalised alone": (
        *(*IMAGES, "model=ijepa", "model._target_=planted.LiveTargets", *LIVE),
    ),
    # targets that are standardised over the batch keep the codes apart without a predictor as well:
    # there RankMe grew sixfold in 400 steps
    "no predictor": (
        *(*IMAGES, "model=ijepa", "model._target_=planted.NoPredictor", "model.momentum=0.99"),
    ),
    "lr x 100": (*IMAGES, "model=hjepa", "model.optimizer.lr=0.15"),
    "table, live targets": (*TABLE, "model._target_=planted.LiveColumns", *LIVE),
    "table, lr x 100": (*TABLE, "model.optimizer.lr=0.1"),
}


def alarms(run_dir):
    path = run_dir / "events.jsonl"
    return [
        one for one in map(json.loads, path.read_text().splitlines()) if "collapse" in one["kind"]
    ]


@pytest.mark.filterwarnings("ignore:step .* representation")
@pytest.mark.parametrize("plant", PLANTS)
def test_a_planted_collapse_is_stopped_within_a_tenth_of_the_run(tmp_path, plant):
    n_steps = 1000 if "table" in plant else 2000
    run_training(tmp_path / "run", *RUN, *PLANTS[plant], f"trainer.max_steps={n_steps}")
    told, acted = alarms(tmp_path / "run")[-2:]
    assert told["state"] == "collapsed" and acted["action"] == "stop"
    assert told["step"] <= n_steps / 10
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["status"] == "stopped" and "collapsed at step" in report["reason"]


@pytest.mark.parametrize("model", ["hjepa", "tjepa"])
def test_a_healthy_run_raises_no_alarm(tmp_path, model):
    data = TABLE if model == "tjepa" else IMAGES
    run_training(tmp_path / "run", *RUN, *data, f"model={model}", "trainer.max_steps=200")
    assert alarms(tmp_path / "run") == []


@pytest.mark.slow
@pytest.mark.parametrize("model", ["hjepa", "ijepa", "tjepa"])
def test_a_healthy_run_as_long_as_the_planted_ones_raises_no_alarm(tmp_path, model):
    data = TABLE if model == "tjepa" else IMAGES
    run_training(tmp_path / "run", *RUN, *data, f"model={model}", "trainer.max_steps=2000")
    assert alarms(tmp_path / "run") == []
