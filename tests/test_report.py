import json
import math

import pytest

from jepa import report


def one(value, low=None, high=None, n=10):
    return {"value": value, "low": low, "high": high, "n": n}


def example(ours, untrained):
    return report.new(
        status="finished",
        reason="trainer.max_epochs=3 reached",
        objective={"name": "probe/ridge/error", "value": 0.1},
        metrics={"test/ridge/error": ours},
        controls={"untrained": {"test/ridge/error": untrained}, "raw": {}, "chance": {}},
    )


def test_a_report_has_the_keys_of_record_for_every_ending():
    content = report.new(status="failed", reason="ValueError")
    assert list(content) == [
        "schema", "status", "reason", "objective", "metrics", "controls", "baselines", "criteria",
        "vitals", "events",
    ]  # fmt: skip


def test_a_representation_worse_than_its_untrained_self_is_said_in_words():
    (line,) = report.verdict(example(one(0.3), one(0.2)))
    assert "DOES NOT BEAT its untrained self" in line and "+50.0%" in line


def test_overlapping_intervals_are_not_called_a_win_without_a_caveat():
    (line,) = report.verdict(example(one(0.19, 0.15, 0.25), one(0.2, 0.16, 0.26)))
    assert "beats" in line and "may be chance" in line
    (line,) = report.verdict(example(one(0.1, 0.08, 0.12), one(0.2, 0.16, 0.26)))
    assert "beats" in line and "chance" not in line


@pytest.mark.parametrize(("low", "doubtful"), [(-0.1, True), (0.01, False)])
def test_a_difference_measured_in_pairs_decides_by_its_own_interval(low, doubtful):
    baseline = {"test/mse": one(0.3, 0.1, 0.9), "test/error": one(0.3, 0.1, 0.9)}
    baseline["test/error"]["difference"] = one(0.1, low, 0.2)
    content = report.new(
        status="finished",
        reason="",
        metrics={"test/error": one(0.4, 0.2, 1.0), "test/forecast/error": one(0.5, 0.2, 1.0)},
        baselines={"closed_form": baseline},
    )
    own, probed = report.verdict(content)
    assert ("holds 0" in own) == doubtful and "overlap" not in own
    assert "intervals overlap" in probed  # the pairs were those of the model's own forecasts


def test_a_baseline_stands_beside_its_metric_whatever_was_probed():
    baselines = {"closed_form": {"test/mse": one(0.3), "test/original/mse": one(3.0)}}
    content = report.new(status="", reason="", baselines=baselines)
    for key, value in (
        ("test/mse", 0.3), ("test/forecast/mse", 0.3), ("test/original/mse", 3.0),
        ("test/finetune/original/mse", 3.0),
    ):  # fmt: skip
        assert report.beside(content, "closed_form", key)["value"] == value
    assert report.beside(content, "closed_form", "test/forecast/rankme") is None
    assert report.beside(content, "repeat_last", "test/mse") is None


def test_the_protocol_stands_in_the_heading():
    assert report.markdown(report.new(status="", reason="", stamp="x")).startswith("# Report (x)\n")
    assert report.markdown(report.new(status="", reason="")).startswith("# Report\n")


@pytest.mark.parametrize(
    ("criterion", "passed"),
    [
        ({"metric": "test/ridge/error", "at_most": 0.15}, True),
        ({"metric": "test/ridge/error", "at_most": 0.05}, False),
        ({"metric": "test/ridge/error", "at_least": 0.05}, True),
        ({"metric": "test/ridge/error", "at_most": 0.6, "against": "untrained"}, True),
        ({"metric": "test/ridge/error", "at_most": 0.4, "against": "untrained"}, False),
        ({"metric": "test/knn/error", "at_most": 0.4}, None),
    ],
)
def test_criteria_are_graded(criterion, passed):
    content = example(one(0.1), one(0.2))
    (graded,) = report.grade([{"name": "target", **criterion}], content)
    assert graded["passed"] is passed


@pytest.mark.parametrize("bad", [{"metric": "x"}, {"at_most": 1}, {"metric": "x", "atmost": 2}])
def test_a_criterion_that_asks_for_nothing_is_refused(bad):
    with pytest.raises(ValueError, match="criteria"):
        report.grade([bad], example(one(0.1), one(0.2)))


def test_written_reports_read_back_unrounded(tmp_path):
    content = example(report.entry(1 / 3), report.entry(float("nan")))
    report.write(tmp_path, content)
    read = json.loads((tmp_path / "report.json").read_text())
    assert read["metrics"]["test/ridge/error"]["value"] == 1 / 3
    assert read["controls"]["untrained"]["test/ridge/error"]["value"] is None
    assert "test/ridge/error" in (tmp_path / "report.md").read_text()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["report.json", "report.md"]


def test_a_number_that_is_none_does_not_cost_the_report(tmp_path):
    content = report.new(status="finished", reason="", objective={"name": "e", "value": math.nan})
    report.write(tmp_path, content | {"metrics": {"val/x": one(-math.inf, 0.1, 0.2)}})
    read = json.loads((tmp_path / "report.json").read_text())
    assert read["objective"]["value"] is None
    assert read["metrics"] == {"val/x": one(None, 0.1, 0.2)}
