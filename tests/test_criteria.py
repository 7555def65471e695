"""Criteria of an epoch and of the end: graded while a run trains, and taken over by the report."""

import json

import pytest
from resume_cases import Kill, run_until, settings_of
from small_hjepa import build, fit

from jepa import report
from jepa.callbacks.collapse import Collapse
from jepa.callbacks.criteria import Criteria

EARLY = {"name": "early", "metric": "train/loss", "at_most": 1e9, "epoch": 1}
FALLS = {"name": "falls", "metric": "train/loss", "at_most": 0.99, "against": "start", "epoch": 2}
NEVER = {"name": "never", "metric": "train/loss", "at_most": 1e9, "epoch": 9}
END = {"name": "end", "metric": "train/loss", "at_most": 1e-9}
UNKNOWN = {"name": "unknown", "metric": "test/x", "at_least": 0}


def graded(tmp_path, *criteria, **trainer):
    callback = Criteria(run_dir=str(tmp_path), criteria=criteria)
    fit(build(), callbacks=[callback], n_steps=8, **trainer)
    return report.read_events(tmp_path)


def test_criteria_are_graded_when_their_epoch_ends_and_at_the_end(tmp_path, capsys):
    events = graded(tmp_path, EARLY, FALLS, NEVER, END, UNKNOWN)
    found = {e["name"]: (e["step"], e["passed"]) for e in events}
    assert found == {"early": (4, True), "falls": (8, True), "end": (8, False)}
    assert (
        "criterion falls: train/loss / start after epoch 2 <= 0.99: yes" in capsys.readouterr().out
    )
    content = report.new(status="", reason="", events=events)
    passed = [c["passed"] for c in report.grade([EARLY, FALLS, NEVER, END, UNKNOWN], content)]
    assert passed == [True, True, None, False, None]
    assert "train/loss / start after epoch 2 <= 0.99" in report.markdown(
        content | {"criteria": report.grade([FALLS], content)}
    )


def test_an_epoch_cut_short_is_not_graded(tmp_path):
    callback = Criteria(run_dir=str(tmp_path), criteria=[EARLY])
    fit(build(), callbacks=[callback], n_steps=3)
    assert report.read_events(tmp_path) == []


def test_the_health_of_the_codes_is_graded_by_its_newest_check(tmp_path, monkeypatch):
    health = {"name": "health", "metric": "health/std", "at_least": 0.2}
    watch = Collapse(run_dir=str(tmp_path), every_share=0.5, n_rows=16, patience=2, action="warn", seed=0)  # fmt: skip  # noqa: E501
    monkeypatch.setattr(Collapse, "measure", lambda *_: {"std": 0.5})
    callback = Criteria(run_dir=str(tmp_path), criteria=[health])
    fit(build(), callbacks=[watch, callback], n_steps=8)
    (event,) = (e for e in report.read_events(tmp_path) if e["kind"] == "criterion")
    assert event["value"] == 1.0 and event["passed"]


@pytest.mark.parametrize("epoch", [0, 1.5, "ten"])
def test_an_epoch_that_cannot_be_is_refused(epoch):
    with pytest.raises(ValueError, match="epoch: a whole number"):
        report.grade([EARLY | {"epoch": epoch}], report.new(status="", reason=""))


def test_a_value_that_is_no_number_is_not_a_pass(tmp_path):
    callback = Criteria(run_dir=str(tmp_path), criteria=[EARLY])
    fit(build(optimizer=dict(lr=1e30)), callbacks=[callback], n_steps=4)
    (event,) = report.read_events(tmp_path)
    assert event["value"] is None and event["passed"] is None


@pytest.mark.slow
@pytest.mark.ci
def test_a_resumed_run_compares_with_the_first_start_and_reports_it(tmp_path):
    falls = "{name: falls, metric: train/loss, against: start, at_most: 2.0, epoch: 3}"
    arguments = settings_of("hjepa", tmp_path, f"criteria=[{falls}]")
    run_until(None, tmp_path / "whole", arguments)
    run_until(Kill(1, 4), tmp_path / "cut", arguments)
    run_until(None, tmp_path / "cut", [*arguments, "resume=auto"])
    values = []
    for name in ("whole", "cut"):
        content = json.loads((tmp_path / name / "report.json").read_text())
        values.append(content["criteria"][0]["value"])
    assert values[0] == values[1] is not None
