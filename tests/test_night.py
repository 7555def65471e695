"""The page of a run is filled from its directory, and keeps what its owner wrote."""

import json

import pytest
import torch
from omegaconf import OmegaConf
from small_hjepa import build, images
from test_pictures import Data

from jepa import night, report
from jepa.attention_speed import compare_attention
from jepa.train import attention_speed

METRICS = """epoch,step,train/loss,train/loss_level_0,time/samples,time/train_s,time/samples_per_s,memory/share,train/nt_xent_accuracy
0,0,4.0,3.0,,,,,
0,9,1.0,0.5,,,,,0.75
0,9,,,640.0,36.0,,,
0,9,,,,,17.7,0.25,
"""  # noqa: E501
CONFIG = """model: {_target_: jepa.models.hjepa.HJEPA, attention: auto, layer_scale: null,
  levels: 1, pyramid: none, nt_xent: 0.5, gradient_checkpointing: false}
data: {_target_: jepa.data.digits.Digits}
trainer: {max_epochs: 4}
run_dir: here
"""


def entry(value):
    return {"value": value, "low": value - 0.1, "high": value + 0.1, "n": 10}


def content(**parts):
    metrics = {"test/ridge/accuracy": entry(0.8), "test/ridge/error": entry(0.2)}
    return report.new(
        status="finished", reason="trainer.max_epochs=4 reached", metrics=metrics,
        controls={"untrained": {"test/ridge/error": entry(0.5)}},
        events=[
            {"time": 0.0, "kind": "skip", "step": 3, "why": "loss is nan"},
            {"time": 9.0, "kind": "end", "step": 10},
        ],
    ) | parts  # fmt: skip


@pytest.fixture
def run_dir(tmp_path):
    (tmp_path / "metrics.csv").write_text(METRICS)
    (tmp_path / "config.yaml").write_text(CONFIG)
    (tmp_path / "overrides.yaml").write_text("- +experiment=hjepa_digits\n")
    (tmp_path / "environment.json").write_text(json.dumps({"cpu": {"count": 2}, "platform": "x"}))
    (tmp_path / "plots").mkdir()
    (tmp_path / "plots" / "masks.png").write_bytes(b"")
    return tmp_path


def criterion(name, passed):
    return {"name": name, "metric": "m", "at_most": 1.0, "value": 1.0, "passed": passed}


def test_the_page_has_the_sections_of_the_template(run_dir):
    night.write(run_dir, content(criteria=[criterion("minimum", True)]))
    text = (run_dir / "report.md").read_text()
    headings = [line[3:] for line in text.splitlines() if line.startswith("## ")]
    assert headings == [
        "Summary", "Training details", "Optimisation results", "Performance against target",
        "Metrics", "Stability", "Pictures", "Next steps", "Appendix", "Lessons learned",
    ]  # fmt: skip
    for told in (
        "HJEPA on Digits", "2 CPUs", "`test/ridge/accuracy` 0.8", "0.01 hours", "Epochs: 1 of 4",
        "Optimizer steps: 10", "640, 18 a second", "-75%", "25% of the device's", "minimum met",
        "0.750", "skip", "plots/masks.png", "metrics.csv", "beats its untrained self",
    ):  # fmt: skip
        assert told in text, told
    assert json.loads((run_dir / "report.json").read_text())["status"] == "finished"


def test_what_the_owner_wrote_is_kept_and_blank_before(run_dir):
    night.write(run_dir, content())
    path = run_dir / "report.md"
    text = path.read_text()
    assert text.endswith(report.TEMPLATE.removeprefix("\n"))
    path.write_text(text + "1. Ran hot.\n\n## My own heading\n- a list")
    night.write(run_dir, content(status="stopped"))
    again = path.read_text()
    assert "1. Ran hot.\n\n## My own heading\n- a list" in again and "**stopped**" in again
    night.write(run_dir, content(status="stopped"))
    assert path.read_text() == again


def test_an_empty_directory_still_gives_a_page(tmp_path):
    night.write(tmp_path, report.new(status="failed", reason="no data"))
    text = (tmp_path / "report.md").read_text()
    assert "**failed** (no data)" in text and "jepa.doctor" in text
    assert "Optimisation results" not in text and "Pictures" not in text


@pytest.mark.parametrize(
    ("grades", "told"),
    [
        ({"stretch": True, "target": True, "minimum": True}, "on more data, or longer"),
        ({"target": True, "minimum": True, "stretch": False}, "trainer.max_epochs=6"),
        ({"minimum": True, "target": False}, "hydra/sweeper=optuna"),
        ({"minimum": False}, "The minimum is not met"),
    ],
)
def test_the_next_step_follows_from_the_criteria_met(run_dir, grades, told):
    graded = [criterion(f"{name} a", passed) for name, passed in grades.items()]
    steps = night.next_steps(content(criteria=graded), night.Facts(run_dir))
    assert told in steps[0] and "protocol=all" in steps[-1]


def test_a_level_is_met_when_all_of_it_is():
    both = [criterion("target a", True), criterion("target b", False)]
    assert night.level_met(both, "target") is False and night.level_met(both, "stretch") is None
    assert night.level_met([criterion("target", None)], "target") is None
    assert "target not met; 1 of 2" in night.reached(both)


def test_a_representation_that_does_not_beat_its_untrained_self_leads_the_next_steps(run_dir):
    worse = {"untrained": {"test/ridge/error": entry(0.1)}}
    steps = night.next_steps(content(controls=worse), night.Facts(run_dir))
    assert "does not beat the untrained encoder" in steps[0]


def test_attention_is_timed_and_nothing_of_the_model_changes(run_dir, monkeypatch):
    monkeypatch.setattr("jepa.attention_speed.SECONDS", 0.0)
    model = build(drop_path=0.2).eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    kernels = [m.attention for m in model.modules() if hasattr(m, "attention")]
    random = torch.get_rng_state()
    speed = compare_attention(model, images(4), precision="32-true")
    assert speed["n"] == 4 and speed["ratio"] == pytest.approx(speed["plain"] / speed["sdpa"])
    assert [m.attention for m in model.modules() if hasattr(m, "attention")] == kernels
    assert torch.equal(random, torch.get_rng_state()) and not model.training
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    night.write(run_dir, content(attention_speed=speed))
    assert f"{speed['ratio']:.2f} x as fast as the plain one" in (run_dir / "report.md").read_text()


def test_each_kernel_is_the_one_that_was_timed(monkeypatch):
    monkeypatch.setattr("jepa.attention_speed.SECONDS", 0.0)
    model, seen = build(), []
    loss = model.loss
    model.loss = lambda x: seen.append(model.encoder.trunk.blocks[0].attention) or loss(x)
    compare_attention(model, images(4), precision="32-true")
    assert seen == ["sdpa", "plain"] * 4


@pytest.mark.parametrize(
    ("asked", "compiled", "timed"),
    [(True, False, True), (False, False, False), (True, True, False)],
)
def test_attention_is_timed_where_it_is_asked_for(monkeypatch, asked, compiled, timed):
    monkeypatch.setattr("jepa.attention_speed.SECONDS", 0.0)
    cfg = OmegaConf.create(
        {"report": {"time_attention": asked}, "model": {"compile": compiled},
         "data": {"batch_size": 4}, "trainer": {"precision": "bf16-mixed"}}
    )  # fmt: skip
    found = attention_speed(cfg, Data(), build())
    assert bool(found) == timed and (not timed or found["attention_speed"]["n"] == 4)


def test_a_model_without_the_choice_is_not_timed():
    assert compare_attention(torch.nn.Linear(2, 2), torch.zeros(1, 2), precision="32-true") is None
