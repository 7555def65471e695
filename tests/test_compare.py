"""Runs compared: groups, what differs, how sure a difference is, and what is never claimed."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from recorded_runs import write_run

from jepa import comparison, pairs
from jepa.compare_page import by_time, html_page, markdown
from jepa.history import points
from jepa.recorded import open_run
from jepa.samples import Samples, identify, read_samples, write_samples

ROOT = Path(__file__).parents[1]
METRIC = "test/ridge/error"


def groups_of(*folders):
    return comparison.group(comparison.find_runs([str(one) for one in folders]))


def with_setting(folder, key, value):
    """Change one line of a recorded config."""
    path = folder / "config.yaml"
    lines = [f"  {key}: {value}" if one.startswith(f"  {key}:") else one for one in path.read_text().splitlines()]  # fmt: skip  # noqa: E501
    path.write_text("\n".join(lines) + "\n")
    return folder


def labels(folder, share, *, n=2000, seed=0, flips=0, identity="same"):
    """Give a run losses of 0 and 1: `share` wrong, `flips` of them made good."""
    rows = (np.random.default_rng(seed).random(n) < share).astype(float)
    rows[np.flatnonzero(rows)[:flips]] = 0
    write_samples(folder, {METRIC: Samples(rows, 1, False, identity)})
    return folder


# --- statistics, against scipy


def test_pairs_of_seeds_have_students_interval():
    a = {"0": 0.20, "1": 0.22, "2": 0.19, "3": 0.24}
    b = {"0": 0.18, "1": 0.19, "2": 0.18, "3": 0.20}
    found = pairs.over_seeds(a, b)
    expected = scipy.stats.ttest_rel(list(b.values()), list(a.values())).confidence_interval()
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert "pairs of seeds" in found.how


def test_other_seeds_have_welchs_interval():
    a, b = {"0": 0.2, "1": 0.22, "2": 0.19}, {"5": 0.3, "6": 0.35, "7": 0.28, "8": 0.31}
    found = pairs.over_seeds(a, b)
    test = scipy.stats.ttest_ind(list(b.values()), list(a.values()), equal_var=False)
    expected = test.confidence_interval()
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


@pytest.mark.parametrize(("n_worse", "n_better"), [(0, 0), (3, 12), (40, 41), (900, 1000)])
def test_mcnemar_is_the_exact_binomial_test(n_worse, n_better):
    n = n_worse + n_better
    expected = scipy.stats.binomtest(n_worse, n).pvalue if n else 1.0
    assert pairs.mcnemar(n_worse, n_better) == pytest.approx(expected)


@pytest.mark.parametrize(("root", "block"), [(False, 1), (True, 1), (False, 20)])
def test_a_bootstrap_of_pairs_is_as_wide_as_it_should_be(root, block):
    rng = np.random.default_rng(0)
    shared = np.repeat(rng.gamma(2.0, size=4000 // block), block)  # neighbours err together
    a, b = shared, shared + np.repeat(rng.normal(0.1, 0.5, size=4000 // block), block)
    found = pairs.over_samples(a, b.clip(0), root=root, block=block)
    gap = b.clip(0) - a
    error = gap.std() / np.sqrt(len(gap) / block)
    if root:  # the derivative of a root
        error /= 2 * np.sqrt(a.mean())
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.25)
    assert found.low < found.value < found.high


def test_pairs_see_what_two_intervals_cannot():
    rng = np.random.default_rng(1)
    a = (rng.random(2000) < 0.2).astype(float)
    b = a.copy()
    b[np.flatnonzero(a)[:25]] = 0  # 25 samples better, none worse
    assert pairs.over_samples(a, b).sure
    means = [float(one.mean()) for one in (a, b)]
    ends = [{"value": m, "low": m - 0.0175, "high": m + 0.0175} for m in means]
    assert not pairs.from_intervals(*ends).sure


def test_equal_runs_are_rarely_called_different():
    rng = np.random.default_rng(2)
    claims = 0
    for _ in range(300):
        a, b = (rng.random((2, 400)) < 0.3).astype(float)
        claims += pairs.over_samples(a, b, n_bootstrap=400).sure
    assert claims <= 27  # 5 % of 300 are 15; 27 is three standard deviations above


@pytest.mark.parametrize("values", [({"0": 0.2, "1": 0.3}, {"0": 0.1, "1": 0.2}), ({str(i): 0.2 for i in range(4)}, {str(i): 0.1 for i in range(4)})])  # fmt: skip  # noqa: E501
def test_too_few_seeds_and_seeds_that_do_not_scatter_make_no_claim(values):
    found = pairs.over_seeds(*values)
    assert found.low is None and not found.sure


# --- groups and settings


def test_seeds_of_one_setting_are_a_group_and_only_what_differs_is_shown(tmp_path):
    for seed in range(3):
        write_run(tmp_path / "a" / str(seed), seed=seed, error=0.17 + 0.002 * seed)
        folder = write_run(tmp_path / "b" / str(seed), seed=seed, error=0.15 + 0.003 * seed)
        with_setting(folder, "width", 256)
    groups = groups_of(tmp_path / "a", tmp_path / "b")
    assert [len(one.runs) for one in groups] == [3, 3]
    assert comparison.differences(groups) == [("model.width", [128, 256])]
    content = comparison.compare(groups)
    assert content["verdict"].startswith(f"B is better than A in {METRIC}: 0.153 against 0.172")
    assert "3 pairs of seeds" in content["verdict"]


def test_the_same_seed_twice_is_two_groups(tmp_path):
    groups = groups_of(write_run(tmp_path / "a"), write_run(tmp_path / "b"))
    assert len(groups) == 2 and comparison.differences(groups) == []


def test_a_fixed_seed_is_a_setting(tmp_path):
    for seed in (0, 1):
        folder = write_run(tmp_path / str(seed), seed=seed)
        config = folder / "config.yaml"
        config.write_text(config.read_text() + "probe:\n  seed: 0\n")
    assert len(groups_of(tmp_path / "0", tmp_path / "1")) == 1
    config.write_text(config.read_text().replace("probe:\n  seed: 0", "probe:\n  seed: 7"))
    assert len(groups_of(tmp_path / "0", tmp_path / "1")) == 2


# --- the verdict


def test_a_verdict_names_its_interval_or_claims_nothing(tmp_path):
    a = labels(write_run(tmp_path / "a", error=0.168), 0.168)
    b = labels(write_run(tmp_path / "b", error=0.1655), 0.168, flips=5)
    said, sure = comparison.verdict(groups_of(a, b), METRIC)
    assert said.startswith("B is better than A") and sure and "pairs of samples" in said
    for one in (a, b):
        (one / "samples.npz").unlink()
    said, sure = comparison.verdict(groups_of(a, b), METRIC)
    assert said.startswith("No difference is shown") and not sure and "as if independent" in said


def test_other_samples_are_not_taken_in_pairs(tmp_path):
    a = labels(write_run(tmp_path / "a"), 0.168)
    b = labels(write_run(tmp_path / "b"), 0.168, flips=25, identity="other rows")
    assert "independent" in comparison.difference(*groups_of(a, b), METRIC).how


def test_the_best_of_many_needs_a_wider_interval(tmp_path):
    folders = [labels(write_run(tmp_path / "0", error=0.168), 0.168)]
    folders.append(labels(write_run(tmp_path / "1", error=0.1645), 0.168, flips=7))
    two, sure = comparison.verdict(groups_of(*folders), METRIC)
    assert sure and "95 %" in two
    for i in range(2, 20):
        folders.append(labels(write_run(tmp_path / str(i), error=0.4), 0.4))
    many, _ = comparison.verdict(groups_of(*folders), METRIC)
    assert "99.7 % interval" in many and "next" in many


def test_other_data_is_not_compared(tmp_path):
    a, b = write_run(tmp_path / "a"), write_run(tmp_path / "b", error=0.01)
    config = b / "config.yaml"
    config.write_text(config.read_text().replace("fashion_mnist.FashionMnist", "mnist.Mnist"))
    content = comparison.compare(groups_of(a, b), criteria=[{"metric": METRIC, "at_most": 1}])
    assert content["verdict"].startswith("Not comparable") and not content["sure"]
    assert content["tests"] == content["criteria"] == []


def test_runs_without_a_common_error_are_not_compared(tmp_path):
    a, b = write_run(tmp_path / "a"), write_run(tmp_path / "b")
    report = b / "report.json"
    report.write_text(report.read_text().replace("test/ridge", "val/knn"))
    content = comparison.compare(groups_of(a, b))
    assert "no scored error in common" in content["verdict"] and content["metric"] is None
    markdown(content)


@pytest.mark.parametrize(
    ("criterion", "error", "passed"),
    [
        ({"metric": METRIC, "improvement": 0.05}, 0.150, True),
        ({"metric": METRIC, "improvement": 0.05}, 0.162, False),
        ({"metric": "test/ridge/accuracy", "improvement": 0.05}, 0.12, True),
        ({"metric": "test/ridge/accuracy", "improvement": 0.05}, 0.16, False),
        ({"metric": METRIC, "at_most": 0.9}, 0.150, True),
        ({"metric": METRIC, "at_least": 0.9}, 0.150, False),
        ({"metric": "test/knn/error", "at_most": 0.9}, 0.150, None),
    ],
)
def test_criteria_against_another_run_are_graded(tmp_path, criterion, error, passed):
    groups = groups_of(write_run(tmp_path / "a"), write_run(tmp_path / "b", error=error))
    (graded,) = comparison.grade([criterion], groups)
    assert graded["passed"] is passed


@pytest.mark.parametrize("bad", [{"metric": "x"}, {"improvement": 1}, {"metric": "x", "atmost": 2}])
def test_a_criterion_that_asks_for_nothing_is_refused(tmp_path, bad):
    groups = groups_of(write_run(tmp_path / "a"), write_run(tmp_path / "b"))
    with pytest.raises(ValueError, match="criteria"):
        comparison.grade([bad], groups)


# --- what is bad


@pytest.mark.parametrize(
    ("runs", "words"),
    [
        (["a"], "names .*a alone, and a comparison needs two"),
        (["a", "a"], "named twice"),
        (["a", "nowhere"], "there is no such directory"),
        (["a", "empty"], "neither metrics.csv nor report.json"),
    ],
)
def test_what_cannot_be_compared_is_refused(tmp_path, runs, words):
    write_run(tmp_path / "a")
    (tmp_path / "empty").mkdir()
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        comparison.find_runs([str(tmp_path / one) for one in runs])


def test_a_metric_that_not_all_have_is_refused(tmp_path):
    groups = groups_of(write_run(tmp_path / "a"), write_run(tmp_path / "b"))
    with pytest.raises(ValueError, match="metric=test/knn/error: not all runs have it; all have"):
        comparison.pick_metric(groups, "test/knn/error")
    assert comparison.pick_metric(groups, "test/ridge/accuracy") == "test/ridge/accuracy"


def test_samples_are_read_back_and_a_damaged_file_is_named(tmp_path):
    rows = np.array([0.5, 1.5, 0.0])
    write_samples(tmp_path, {METRIC: Samples(rows, 2, True, identify(rows))})
    found = read_samples(tmp_path)[METRIC]
    assert np.allclose(found.rows, rows) and (found.block, found.root) == (2, True)
    assert found.identity == identify(rows) != identify(rows[::-1].copy())
    path = tmp_path / "samples.npz"
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ValueError, match=r"samples\.npz is damaged"):
        read_samples(tmp_path)
    assert read_samples(tmp_path / "none") == {}


# --- what is written


def test_curves_by_time_use_the_seconds_of_training(tmp_path):
    slow = write_run(tmp_path / "slow", "input-bound")
    run = open_run(slow)
    curve = by_time(points(run.rows, "train/loss"), run)
    assert curve[-1][0] == pytest.approx(3999 * 64 / 150 / 60, rel=0.01)
    assert curve[len(curve) // 2][0] == pytest.approx(curve[-1][0] / 2, rel=0.05)
    for row in run.rows:
        row.pop("time/train_s", None)
    assert by_time(points(run.rows, "train/loss"), run) == []


def test_a_page_shows_every_run(tmp_path):
    a, b = write_run(tmp_path / "a"), write_run(tmp_path / "b", error=0.15)
    groups = groups_of(a, b)
    content = comparison.compare(groups, criteria=[{"metric": METRIC, "improvement": 0.05}])
    page, text = html_page(groups, content).replace("<wbr>", ""), markdown(content)
    assert page.count("<figure>") == 4  # error and loss, by step and by time
    for words in ("test/ridge/error better by 5 %", "+10.7 %", str(a), str(b)):
        assert words in text and words in page


def command(*more):
    return [sys.executable, "-m", "jepa.compare", *more]


@pytest.mark.slow
@pytest.mark.ci
def test_the_command_compares_twenty_runs(tmp_path):
    for i in range(20):
        folder = write_run(tmp_path / "sweep" / str(i), error=0.15 + 0.001 * i)
        labels(with_setting(folder, "width", 64 + i), 0.15 + 0.001 * i, n=10_000)
    out = tmp_path / "out"
    arguments = command(f"runs=[{tmp_path / 'sweep'}]", f"out={out}")
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "interval" in done.stdout
    assert sorted(path.name for path in out.iterdir()) == ["compare.html", "compare.json", "compare.md"]  # fmt: skip  # noqa: E501
    assert len(json.loads((out / "compare.json").read_text())["groups"]) == 20


@pytest.mark.slow
@pytest.mark.ci
def test_two_trained_runs_are_compared_in_pairs_of_test_samples(tmp_path):
    from support import overrides_for, run_training, write_table

    table = write_table(tmp_path / "t.csv", n_rows=400)
    for width in (8, 16):
        run_training(tmp_path / f"w{width}", *overrides_for(table), f"model.width={width}")
    groups = groups_of(tmp_path / "w8", tmp_path / "w16")
    content = comparison.compare(groups)
    settings = [one["setting"] for one in content["differences"]]
    assert settings == ["model.width"]
    (test,) = content["tests"]
    assert "pairs of samples" in test["how"] and test["p"] is not None
    scored = groups[0].runs[0].report["metrics"][test["metric"]]
    rows = groups[0].samples[test["metric"]].rows
    assert rows.mean() == pytest.approx(scored["value"]) and len(rows) == scored["n"]
