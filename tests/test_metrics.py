import copy
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk
from torchmetrics.functional.classification import binary_auroc, multiclass_f1_score

from jepa.metrics import (
    Measured,
    chance,
    count_classes,
    score,
    task_of,
    weighted_auc,
    weighted_macro_f1,
    weighted_r2,
    wilson,
)


def binary_case(n=200, *, digits=None, seed=0):
    g = torch.Generator().manual_seed(seed)
    y = (torch.rand(n, generator=g) < 0.3).long()
    p = torch.sigmoid(1.5 * y - 1 + torch.randn(n, generator=g, dtype=torch.float64))
    return (p if digits is None else p.round(decimals=digits)), y


def multiclass_case(n=200, c=4, *, seed=0):
    g = torch.Generator().manual_seed(seed)
    y = torch.multinomial(torch.tensor([0.7, 0.2, 0.07, 0.03][:c]), n, True, generator=g)
    logits = torch.randn(n, c, generator=g, dtype=torch.float64)
    logits[torch.arange(n), y] += 1.5
    return logits.softmax(1), y


def regression_case(n=200, *, seed=0):
    g = torch.Generator().manual_seed(seed)
    y = 1000 + torch.randn(n, generator=g)
    return (y + 0.5 * torch.randn(n, generator=g)).double(), y


def test_measured_is_a_float_that_carries_its_interval():
    one = Measured(0.5, 0.4, 0.6, 10)
    assert one == 0.5 and (one.low, one.high, one.n) == (0.4, 0.6, 10)
    assert type(1.0 - one) is float
    assert Measured(1.0).low is None
    for twin in (copy.deepcopy(one), pickle.loads(pickle.dumps(one))):
        assert (float(twin), twin.low, twin.high, twin.n) == (0.5, 0.4, 0.6, 10)


@pytest.mark.parametrize("digits", [None, 1])  # with ties as well
def test_binary_scores_equal_scikit_learn(digits):
    p, y = binary_case(digits=digits)
    scores = score(p, y, task="binary")
    assert scores.keys() == {"error", "accuracy", "roc_auc", "log_loss"}
    assert scores["accuracy"] == pytest.approx(sk.accuracy_score(y, p > 0.5))
    assert scores["error"] == pytest.approx(1 - scores["accuracy"])
    assert scores["roc_auc"] == pytest.approx(sk.roc_auc_score(y, p), rel=1e-6)
    assert scores["log_loss"] == pytest.approx(sk.log_loss(y, p))


def test_multiclass_scores_equal_scikit_learn():
    p, y = multiclass_case()
    scores = score(p, y, task="multiclass")
    assert scores.keys() == {"error", "accuracy", "macro_f1", "log_loss"}
    assert scores["accuracy"] == pytest.approx(sk.accuracy_score(y, p.argmax(1)))
    assert scores["macro_f1"] == pytest.approx(
        sk.f1_score(y, p.argmax(1), average="macro"), rel=1e-6
    )
    assert scores["log_loss"] == pytest.approx(sk.log_loss(y, p))


def test_labels_give_no_log_loss():
    p, y = multiclass_case()
    scores, whole = score(p.argmax(1), y, task="multiclass"), score(p, y, task="multiclass")
    assert scores.keys() == {"error", "accuracy", "macro_f1"}
    assert all(scores[key] == whole[key] for key in scores)


def test_macro_f1_counts_the_classes_that_occur_as_scikit_learn_does():
    y, said = torch.tensor([0, 0, 3, 3]), torch.tensor([0, 5, 3, 0])
    value = score(said, y, task="multiclass")["macro_f1"]
    assert value == pytest.approx(sk.f1_score(y, said, average="macro"))


def test_regression_scores_equal_scikit_learn_on_the_whole_set():
    predicted, y = regression_case()
    scores = score(predicted, y, task="regression")
    assert scores.keys() == {"error", "rmse", "r2"}
    assert scores["rmse"] == pytest.approx(sk.root_mean_squared_error(y.double(), predicted))
    assert scores["r2"] == pytest.approx(sk.r2_score(y.double(), predicted))
    assert scores["error"] == scores["rmse"]


def test_wilson_equals_the_textbook():
    # Newcombe, Statistics in Medicine 17 (1998), Table I, method 3
    for hits, n, low, high in [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605),
                               (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)]:  # fmt: skip
        assert wilson(hits / n, n) == pytest.approx((low, high), abs=5e-5)


def test_the_interval_of_the_error_mirrors_the_one_of_the_accuracy():
    p, y = binary_case()
    scores = score(p, y, task="binary")
    error, accuracy = scores["error"], scores["accuracy"]
    assert (error.low, error.high) == pytest.approx((1 - accuracy.high, 1 - accuracy.low))
    assert error.low < error < error.high and error.n == len(y)


CASES = {"binary": binary_case, "multiclass": multiclass_case, "regression": regression_case}


@pytest.mark.parametrize("task", CASES)
def test_bootstrap_intervals_only_when_asked_for(task):
    plain = score(*CASES[task](), task=task)
    asked = score(*CASES[task](), task=task, n_bootstrap=200)
    for key, value in asked.items():
        assert value == plain[key]
        assert value.low < value < value.high
        assert (plain[key].low is None) == (
            key not in ("accuracy", "error") or task == "regression"
        )


def test_bootstrap_depends_on_its_seed_and_number_alone():
    def bounds(**kwargs):
        value = score(*regression_case(), task="regression", **kwargs)["r2"]
        return value.low, value.high

    base = bounds(n_bootstrap=100, seed=0)
    torch.rand(3)
    assert bounds(n_bootstrap=100, seed=0) == base
    assert bounds(n_bootstrap=100, seed=1) != base
    assert bounds(n_bootstrap=101, seed=0) != base


def test_chunks_do_not_change_the_interval(monkeypatch):
    whole = score(*binary_case(50), task="binary", n_bootstrap=64)
    monkeypatch.setattr("jepa.metrics._CHUNK", 50 * 16)
    parts = score(*binary_case(50), task="binary", n_bootstrap=64)
    assert all(
        (whole[key].low, whole[key].high) == (parts[key].low, parts[key].high) for key in whole
    )


@pytest.mark.parametrize("digits", [None, 1])
def test_weights_of_one_equal_torchmetrics(digits):
    ones = torch.ones(2, 200, dtype=torch.float64)
    p, y = binary_case(digits=digits)
    assert weighted_auc(p, y)(ones).tolist() == pytest.approx([binary_auroc(p, y).item()] * 2)
    q, labels = multiclass_case()
    f1 = multiclass_f1_score(q, labels, num_classes=4, average="macro").item()
    assert weighted_macro_f1(q.argmax(1), labels)(ones).tolist() == pytest.approx([f1] * 2)
    predicted, target = regression_case()
    r2 = weighted_r2((predicted - target).square(), target.double())(ones)
    assert r2.tolist() == pytest.approx([sk.r2_score(target.double(), predicted)] * 2)


def test_weights_equal_repeated_rows():
    times = torch.tensor([0, 1, 2, 3, 1, 0, 2, 1, 1, 4])
    weights = times.double()[None]
    p, y = binary_case(10, digits=1, seed=3)
    again = [v.repeat_interleave(times) for v in (p, y)]
    assert weighted_auc(p, y)(weights).item() == pytest.approx(sk.roc_auc_score(again[1], again[0]))
    q, labels = multiclass_case(10, seed=1)
    said = q.argmax(1)
    expected = sk.f1_score(
        labels.repeat_interleave(times), said.repeat_interleave(times), average="macro"
    )
    assert weighted_macro_f1(said, labels)(weights).item() == pytest.approx(expected)
    predicted, target = regression_case(10)
    value = weighted_r2((predicted - target).square(), target.double())(weights).item()
    expected = sk.r2_score(*(v.double().repeat_interleave(times) for v in (target, predicted)))
    assert value == pytest.approx(expected)


@pytest.mark.parametrize(
    ("task", "key"),
    [("binary", "roc_auc"), ("binary", "log_loss"), ("binary", "accuracy"),
     ("multiclass", "macro_f1"), ("regression", "rmse"), ("regression", "r2")],
)  # fmt: skip
def test_intervals_cover_the_truth_about_95_times_in_100(task, key):
    truth = score(*CASES[task](100_000, seed=999), task=task)[key]
    n_sets = 100
    found = [
        score(*CASES[task](300, seed=s), task=task, n_bootstrap=100)[key] for s in range(n_sets)
    ]
    covered = np.mean([one.low <= truth <= one.high for one in found])
    assert covered >= 0.88  # .95 less three standard errors; a width of half covers two in three


def test_what_is_undefined_is_nan():
    p, _ = binary_case(5)
    scores = score(p, torch.ones(5).long(), task="binary", n_bootstrap=10)
    assert math.isnan(scores["roc_auc"]) and math.isfinite(scores["log_loss"])
    constant = score(torch.rand(5), torch.full((5,), 3.0), task="regression", n_bootstrap=10)
    assert math.isnan(constant["r2"]) and math.isfinite(constant["rmse"])
    single = score(torch.rand(1), torch.zeros(1), task="regression", n_bootstrap=10)
    assert math.isnan(single["r2"])


def test_log_loss_of_a_sure_mistake_is_finite():
    value = score(torch.tensor([0.0, 1.0]), torch.tensor([1, 1]), task="binary")["log_loss"]
    assert 10 < value < 40


def test_score_refuses_no_rows_and_unknown_tasks():
    with pytest.raises(ValueError, match="n=0"):
        score(torch.empty(0), torch.empty(0), task="regression")
    with pytest.raises(ValueError, match="task='none'"):
        score(torch.rand(2), torch.rand(2), task="none")


def test_the_task_follows_the_targets():
    assert task_of(torch.rand(3)) == "regression"
    assert task_of(torch.tensor([0, 1])) == "binary"
    assert task_of(torch.tensor([0, 0])) == "binary"
    assert task_of(torch.tensor([0, 1]), torch.tensor([2])) == "multiclass"
    assert task_of(torch.tensor([0, 1]), n_classes=5) == "multiclass"
    assert count_classes(torch.tensor([0, 1]), torch.tensor([4])) == 5
    with pytest.raises(ValueError, match="-1"):
        count_classes(torch.tensor([0, -1]))


def test_chance_is_the_majority_class_and_the_mean():
    y_train, y_val = torch.tensor([0, 1, 1]), torch.tensor([1, 1, 0, 1])
    binary = chance(y_train, y_val)
    assert binary["accuracy"] == 0.75 and binary["roc_auc"] == 0.5
    assert binary["log_loss"] == pytest.approx(-(3 * math.log(2 / 3) + math.log(1 / 3)) / 4)
    multi = chance(torch.tensor([2, 2, 0, 1]), torch.tensor([2, 0]))
    assert multi["accuracy"] == 0.5 and multi.keys() == {
        "error",
        "accuracy",
        "macro_f1",
        "log_loss",
    }
    values = chance(torch.tensor([1.0, 3.0]), torch.tensor([2.0, 4.0]))
    assert values["rmse"] == pytest.approx(math.sqrt(2))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_no_finite_input_breaks_the_scores(data):
    task = data.draw(st.sampled_from(sorted(CASES)))
    n = data.draw(st.integers(1, 8))
    share = st.sampled_from([0.0, 0.25, 0.5, 1.0])
    if task == "regression":
        values = st.floats(-1e6, 1e6, width=32)
        predicted = torch.tensor(data.draw(st.lists(values, min_size=n, max_size=n)))
        y = torch.tensor(data.draw(st.lists(values, min_size=n, max_size=n)))
    else:
        c = 2 if task == "binary" else data.draw(st.integers(3, 5))
        p = torch.tensor(data.draw(st.lists(share, min_size=n * c, max_size=n * c))).view(n, c)
        predicted = p[:, 1] if task == "binary" else p / p.sum(1, keepdim=True).clamp_min(1)
        y = torch.tensor(data.draw(st.lists(st.integers(0, c - 1), min_size=n, max_size=n)))
    for key, value in score(predicted, y, task=task, n_bootstrap=20).items():
        assert key in ("roc_auc", "r2") or math.isfinite(value)
        assert value.n == n
