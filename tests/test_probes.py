import importlib
import inspect
import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression, Ridge, RidgeClassifier
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.preprocessing import StandardScaler

from jepa.metrics import Measured, chance
from jepa.probes import linear, sgd
from jepa.probes.knn import find_neighbours
from jepa.probes.label_free import alpha_req, isotropy, label_free, rankme
from jepa.probes.linear import L2_PATH, fit_logistic, fit_ridge
from jepa.probes.prepare import gram, shuffle
from jepa.probes.raw import MAX_CODES, raw_features

CONF = Path(__file__).parents[1] / "conf" / "probe"
NAMES = ("ridge", "logistic", "knn", "sgd_linear", "mlp", "few_shot")
N_CLASSES = {"binary": 2, "multiclass": 4, "regression": 0}
PAIRS = [(n, t) for n in NAMES for t in N_CLASSES if (n, t) != ("logistic", "regression")]
QUICK = {
    "sgd_linear": {"n_epochs": 2, "batch_size": 16},
    "mlp": {"n_epochs": 3, "width": 8, "batch_size": 16},
    "knn": {"k": 7, "ks": [1, 5]},
    "few_shot": {"n_episodes": 2, "shots": [1, 3], "rows": [4, 8]},
}


def read(name):
    conf = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    assert conf.pop("_partial_") is True
    module, function = conf.pop("_target_").rsplit(".", 1)
    return getattr(importlib.import_module(module), function), conf


def build(name, **changed):
    function, conf = read(name)
    return partial(function, **conf | QUICK.get(name, {}) | changed)


def case(task="binary", *, n=120, m=60, e=6, seed=0, noise=0.5):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n + m, e, generator=g) * torch.arange(1.0, e + 1) + 3
    z = (x[:, 0] - 3) + 0.3 * (x[:, 1] - 3) + noise * torch.randn(n + m, generator=g)
    y = {
        "regression": 50 + 10 * z,
        "binary": (z > 0.5).long(),
        "multiclass": (z + 2).clamp(0, 3.9).long(),
    }[task]
    return x[:n], y[:n], x[n:], y[n:]


def scaled(x_train, x_val):
    scaler = StandardScaler().fit(x_train.double().numpy())
    return scaler.transform(x_train.double().numpy()), scaler.transform(x_val.double().numpy())


def same(a, b):
    return a.keys() == b.keys() and all(
        a[k] == b[k] or (math.isnan(a[k]) and math.isnan(b[k])) for k in a
    )


class TestContract:
    @pytest.mark.parametrize(("name", "task"), PAIRS)
    def test_every_probe_returns_measured_metrics_with_an_error(self, name, task):
        scores = build(name)(*case(task), n_bootstrap=20)
        headline = "rmse" if task == "regression" else "accuracy"
        expected = scores[headline] if task == "regression" else 1 - scores[headline]
        assert scores["error"] == pytest.approx(expected)
        assert scores["error"].low <= scores["error"] <= scores["error"].high
        assert all(
            isinstance(scores[k], Measured) and scores[k].n == 60 for k in ("error", headline)
        )

    @pytest.mark.parametrize(("name", "task"), PAIRS)
    def test_every_probe_learns(self, name, task):
        enough = {"sgd_linear": {"n_epochs": 20}, "mlp": {"n_epochs": 20, "lr": 0.01}}
        data = case(task, n=200, m=100, noise=0.1)
        blind = chance(data[1], data[3])["error"]
        assert build(name, **enough.get(name, {}))(*data)["error"] < 0.9 * blind

    @pytest.mark.parametrize("name", NAMES)
    def test_the_yaml_holds_every_setting_and_python_none_of_its_numbers(self, name):
        function, conf = read(name)
        parameters = inspect.signature(function).parameters
        given = {key for key, p in parameters.items() if p.kind is p.KEYWORD_ONLY}
        assert conf.keys() == given - {"n_bootstrap"}
        defaults = {key: parameters[key].default for key in conf}
        assert all(d in (inspect.Parameter.empty, None) for d in defaults.values())

    def test_auto_takes_the_keys_of_ridge(self):
        assert yaml.safe_load((CONF / "auto.yaml").read_text())["defaults"] == ["ridge", "_self_"]

    @pytest.mark.parametrize("name", NAMES)
    def test_it_repeats_and_leaves_the_global_random_state_and_its_input_alone(self, name):
        data = case("multiclass")
        copies = [v.clone() for v in data]
        state = torch.get_rng_state()
        first = build(name)(*data, n_bootstrap=5)
        assert torch.equal(torch.get_rng_state(), state)
        torch.rand(7)
        assert same(first, build(name)(*data, n_bootstrap=5))
        assert all(torch.equal(a, b) for a, b in zip(data, copies, strict=True))

    @pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
    @pytest.mark.parametrize("name", NAMES)
    def test_it_trains_inside_no_grad_and_inference_mode(self, name, mode):
        outside = build(name)(*case())
        with mode():
            data = tuple(v.clone() for v in case())
            inside = build(name)(*data)
            assert not torch.is_grad_enabled()
        assert same(inside, outside)

    @pytest.mark.parametrize("name", NAMES)
    def test_features_that_carry_a_gradient_get_none(self, name):
        x_train, y_train, x_val, y_val = case()
        x_train.requires_grad_()
        assert same(build(name)(x_train, y_train, x_val, y_val), build(name)(*case()))
        assert x_train.grad is None

    @pytest.mark.parametrize("name", NAMES)
    def test_the_scored_rows_choose_nothing(self, name):
        """Scores of a split are those of its halves: no row of it moves a fit or a setting."""
        task = "binary" if name in ("logistic", "few_shot") else "regression"
        x_train, y_train, x_val, y_val = case(task)

        def total(rows):
            value = build(name)(x_train, y_train, x_val[rows], y_val[rows])["error"]
            return value**2 if task == "regression" else value

        assert (total(slice(0, 30)) + total(slice(30, 60))) / 2 == pytest.approx(
            total(slice(0, 60)), rel=1e-5
        )

    @pytest.mark.parametrize("name", (*NAMES, "label_free"))
    def test_features_that_are_not_finite_are_counted(self, name):
        x_train, y_train, x_val, y_val = case()
        x_train[3, 0], x_train[4, 1], x_train[4, 2] = math.nan, math.inf, -math.inf
        with pytest.raises(ValueError, match="2 of 120 rows"):
            label_free(x_train) if name == "label_free" else build(name)(
                x_train, y_train, x_val, y_val
            )

    @pytest.mark.parametrize("name", NAMES)
    def test_large_half_precision_features_are_finite(self, name):
        x_train, y_train, x_val, y_val = case()
        scores = build(name)((x_train * 1000).half(), y_train, (x_val * 1000).half(), y_val)
        assert math.isfinite(scores["error"])

    def test_no_rows_are_refused(self):
        x_train, y_train, x_val, y_val = case()
        with pytest.raises(ValueError, match="training rows"):
            build("ridge")(x_train[:0], y_train[:0], x_val, y_val)

    @pytest.mark.parametrize("name", NAMES)
    @settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(data=st.data())
    def test_degenerate_input_gives_numbers(self, name, data):
        n, m = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 4))
        e = data.draw(st.integers(1, 8))
        c = 0 if name != "logistic" and data.draw(st.booleans()) else data.draw(st.integers(1, 5))
        g = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
        x = torch.randn(n + m, e, generator=g) * data.draw(st.sampled_from([0.0, 1e-20, 1.0, 1e15]))
        x = x + data.draw(st.sampled_from([0.0, 1.0, -1e6]))
        y = torch.randint(c, (n + m,), generator=g) if c else torch.randn(n + m, generator=g)
        scores = build(name)(x[:n], y[:n], x[n:], y[n:], n_bootstrap=3)
        for key, value in scores.items():
            assert math.isfinite(value) or key in ("roc_auc", "r2"), key

    @pytest.mark.parametrize("name", NAMES)
    def test_splits_may_lack_each_others_classes(self, name):
        x_train, _, x_val, _ = case()
        y_train, y_val = torch.arange(120) % 3, 1 + torch.arange(60) % 4
        scores = build(name)(x_train, y_train, x_val, y_val)
        assert 0.25 <= scores["error"] <= 1  # two of the four classes were never seen


class TestRidge:
    @pytest.mark.parametrize("n", [100, 20])  # more rows than features, and fewer
    @pytest.mark.parametrize("l2", [0.1, 30.0])
    def test_values_equal_scikit_learn(self, n, l2):
        x_train, y_train, x_val, _ = case("regression", n=n, e=40)
        a, b = scaled(x_train, x_val)
        expected = Ridge(alpha=l2).fit(a, y_train.double()).predict(b)
        found = fit_ridge(x_train, y_train, n_classes=0, l2=l2, seed=0)(x_val)[:, 0]
        np.testing.assert_allclose(found, expected, rtol=1e-8)

    @pytest.mark.parametrize("task", ["binary", "multiclass"])
    def test_labels_equal_scikit_learn(self, task):
        x_train, y_train, x_val, _ = case(task)
        a, b = scaled(x_train, x_val)
        expected = RidgeClassifier(alpha=3.0).fit(a, y_train).predict(b)
        predict = fit_ridge(x_train, y_train, n_classes=N_CLASSES[task], l2=3.0, seed=0)
        assert (predict(x_val).argmax(1).numpy() == expected).all()

    def test_gram_in_blocks_equals_the_product(self):
        a = torch.randn(20, 600, dtype=torch.float64)
        torch.testing.assert_close(gram(a), a.T @ a)

    @pytest.mark.parametrize("probe", [linear.ridge, partial(linear.logistic, max_iter=50)])
    def test_strong_noise_takes_a_strong_penalty(self, probe):
        data = case(n=100, m=2000, e=60, noise=3.0)
        weak = probe(*data, l2=1e-2, seed=0)["error"]
        assert probe(*data, seed=0)["error"] < weak

    def test_the_chosen_penalty_is_the_best_on_held_out_training_rows(self):
        x, y, x_val, y_val = case("regression", n=60, e=30, noise=2.0)
        order, n_fit = shuffle(len(x), 0)
        a = torch.from_numpy(scaled(x, x)[0])[order]
        y_ordered = y[order].double()
        losses = {}
        for l2 in L2_PATH:
            model = Ridge(alpha=l2, fit_intercept=False)
            offset = y_ordered[:n_fit].mean()
            model.fit(a[:n_fit], y_ordered[:n_fit] - offset)
            losses[l2] = (
                (model.predict(a[n_fit:]) + offset.item()) - y_ordered[n_fit:].numpy()
            ) ** 2
        best = min(losses, key=lambda l2: losses[l2].sum())
        assert best not in (L2_PATH[0], L2_PATH[-1])
        chosen = linear.ridge(x, y, x_val, y_val, seed=0)
        assert same(chosen, linear.ridge(x, y, x_val, y_val, l2=best, seed=0))

    def test_held_out_rows_come_back_into_the_fit(self):
        x, y, x_val, y_val = case("regression", n=50)
        order, n_fit = shuffle(len(x), 0)
        whole = linear.ridge(x, y, x_val, y_val, l2=1.0, seed=0)
        kept = order[:n_fit]
        assert whole != linear.ridge(x[kept], y[kept], x_val, y_val, l2=1.0, seed=0)
        assert 0 < n_fit < 50 and sorted(order.tolist()) == list(range(50))

    def test_probabilities_are_better_than_a_guess(self):
        data = case(n=400, m=400)
        share = data[1].double().mean()
        entropy = -(share * share.log() + (1 - share) * (1 - share).log())
        assert linear.ridge(*data, seed=0)["log_loss"] < 0.7 * entropy

    def test_collinear_features_without_penalty_are_explained(self):
        x_train, y_train, x_val, y_val = case()
        x_train, x_val = (x.repeat(1, 2) for x in (x_train, x_val))
        with pytest.raises(ValueError, match=r"probe\.l2=-1"):
            linear.ridge(x_train, y_train, x_val, y_val, l2=-1.0, seed=0)

    def test_constant_features_change_nothing(self):
        x_train, y_train, x_val, y_val = case()
        plain = linear.ridge(x_train, y_train, x_val, y_val, seed=0)
        wide = [torch.cat([x, torch.full((len(x), 1), 7.3)], dim=1) for x in (x_train, x_val)]
        padded = linear.ridge(wide[0], y_train, wide[1], y_val, seed=0)
        assert all(padded[k] == pytest.approx(plain[k]) for k in plain)


class TestLogistic:
    @pytest.mark.parametrize("n", [100, 25])
    @pytest.mark.parametrize("task", ["binary", "multiclass"])
    def test_probabilities_equal_scikit_learn(self, task, n):
        x_train, y_train, x_val, _ = case(task, n=n, e=30)
        assert len(y_train.unique()) == N_CLASSES[task]
        a, b = scaled(x_train, x_val)
        model = LogisticRegression(C=0.5, tol=1e-10, max_iter=5000).fit(a, y_train)
        predict = fit_logistic(
            x_train, y_train, n_classes=N_CLASSES[task], l2=2.0, max_iter=100, seed=0
        )
        np.testing.assert_allclose(predict(x_val), model.predict_proba(b), atol=2e-5)

    def test_values_are_sent_to_ridge(self):
        with pytest.raises(ValueError, match="probe=ridge"):
            build("logistic")(*case("regression"))

    def test_separable_classes_stay_finite(self):
        x = torch.linspace(-1, 1, 40)[:, None]
        scores = build("logistic")(x, (x[:, 0] > 0).long(), x, (x[:, 0] > 0).long())
        assert scores["error"] == 0 and math.isfinite(scores["log_loss"])


def closeness(distance):
    return np.exp((1 - distance) / 0.1)


class TestKnn:
    @pytest.mark.parametrize("k", [1, 5])
    def test_weighted_votes_equal_scikit_learn(self, k):
        x_train, y_train, x_val, y_val = case("multiclass")
        a, b = scaled(x_train, x_val)
        model = KNeighborsClassifier(k, metric="cosine", weights=closeness).fit(a, y_train)
        found = build("knn", k=k, ks=[k], temperature=0.1)(x_train, y_train, x_val, y_val)
        assert found["accuracy"] == pytest.approx(model.score(b, y_val))
        assert found[f"accuracy_k{k}"] == found["accuracy"]

    def test_weighted_means_equal_scikit_learn(self):
        x_train, y_train, x_val, y_val = case("regression")
        a, b = scaled(x_train, x_val)
        model = KNeighborsRegressor(5, metric="cosine", weights=closeness).fit(a, y_train)
        found = build("knn", k=5, temperature=0.1)(x_train, y_train, x_val, y_val)
        expected = np.sqrt(np.mean((model.predict(b) - y_val.numpy()) ** 2))
        assert found["rmse"] == pytest.approx(expected, rel=1e-5)

    def test_chunks_do_not_change_the_neighbours(self, monkeypatch):
        x_train, _, x_val, _ = case()
        whole = find_neighbours(x_train, x_val, k=3)
        monkeypatch.setattr("jepa.probes.knn._QUERIES", 7)
        for a, b in zip(whole, find_neighbours(x_train, x_val, k=3), strict=True):
            torch.testing.assert_close(a, b)

    def test_all_components_unwhitened_leave_the_neighbours_and_whitened_ones_are_mahalanobis(self):
        x_train, y_train, x_val, _ = case(e=5)
        features = find_neighbours(x_train, x_val, k=3)
        for a, b in zip(features, find_neighbours(x_train, x_val, k=3, components=9), strict=True):
            torch.testing.assert_close(a, b)
        a, b = scaled(x_train, x_val)
        whiten = PCA(whiten=True).fit(a)
        model = KNeighborsClassifier(3, metric="cosine").fit(whiten.transform(a), y_train)
        wanted = model.kneighbors(whiten.transform(b), return_distance=False)
        _, found = find_neighbours(x_train, x_val, k=3, components=5, power=1.0)
        assert (found.numpy() == wanted).all()

    def test_directions_without_a_size_are_left_out(self):
        x_train, y_train, x_val, y_val = case("multiclass")
        doubled = [torch.cat([x, x], 1) for x in (x_train, x_val)]
        once = build("knn", components=6, power=1.0)(x_train, y_train, x_val, y_val)
        twice = build("knn", components=12, power=1.0)(doubled[0], y_train, doubled[1], y_val)
        assert twice["accuracy"] == once["accuracy"]

    @pytest.mark.parametrize("changed", [{"components": 0}, {"power": 1.5}])
    def test_components_are_checked(self, changed):
        with pytest.raises(ValueError, match=r"probe.components .* probe.power"):
            build("knn", **changed)(*case())

    def test_fewer_rows_than_neighbours_are_all_asked(self):
        x_train, y_train, x_val, y_val = case("regression", n=4)
        all_of_them = build("knn", k=4, ks=[4])(x_train, y_train, x_val, y_val)
        assert (
            build("knn", k=20, ks=[4])(x_train, y_train, x_val, y_val)["error"]
            == (all_of_them["error"])
        )

    def test_settings_are_checked(self):
        with pytest.raises(ValueError, match=r"ks=\[0\]"):
            build("knn", ks=[0])(*case())


class TestSgd:
    def test_a_binary_task_has_one_output(self):
        assert sgd.Targets(torch.tensor([0, 1]), 2).n_outputs == 1
        assert sgd.Targets(torch.tensor([0, 1]), 3).n_outputs == 3
        assert sgd.Targets(torch.rand(2), 0).n_outputs == 1

    @pytest.mark.parametrize("task", N_CLASSES)
    def test_a_linear_probe_reaches_the_closed_form(self, task):
        data = case(task, n=300, m=300)
        trained = build("sgd_linear", n_epochs=40, weight_decay=0.0, lr=0.1, batch_size=50)(*data)
        exact = build("ridge" if task == "regression" else "logistic", l2=1e-2)(*data)
        key = "rmse" if task == "regression" else "log_loss"
        assert trained[key] == pytest.approx(exact[key], rel=0.03)

    def test_a_hidden_layer_learns_what_a_line_cannot(self):
        x = torch.randn(600, 2, generator=torch.Generator().manual_seed(0))
        y = (x[:, 0] * x[:, 1] > 0).long()
        data = x[:400], y[:400], x[400:], y[400:]
        assert build("ridge")(*data)["error"] > 0.3
        assert build("mlp", n_epochs=25, lr=0.03, width=32)(*data)["error"] < 0.15

    def test_early_stopping_keeps_the_best_weights(self, monkeypatch):
        data = case(n=60, e=20, noise=3.0)
        epochs = []
        run = sgd.Descent.run

        def counted(self, *args):
            for one in run(self, *args):
                epochs.append(one)
                yield one

        monkeypatch.setattr(sgd.Descent, "run", counted)
        impatient = build("mlp", n_epochs=200, patience=3, lr=0.03, width=64)(*data)
        assert 3 < len(epochs) < 200
        patient = build("mlp", n_epochs=200, patience=200, lr=0.03, width=64)(*data)
        assert len(epochs) > 200
        assert max(impatient["log_loss"], patient["log_loss"]) < 1.5  # the last ones are far worse

    @pytest.mark.parametrize(
        ("name", "bad"),
        [("sgd_linear", {"lr": 0.0}), ("sgd_linear", {"n_epochs": 0}), ("mlp", {"dropout": 1.0}),
         ("mlp", {"batch_size": 0}), ("sgd_linear", {"weight_decay": -1.0})],
    )  # fmt: skip
    def test_settings_are_checked(self, name, bad):
        with pytest.raises(
            ValueError, match=f"probe.{next(iter(bad))}.*{next(iter(bad.values()))}"
        ):
            build(name, **bad)(*case())


class TestFewShot:
    def test_more_labels_help_and_the_largest_is_the_headline(self):
        scores = build("few_shot", shots=[40, 1], n_episodes=5)(*case(n=400, m=400))
        assert scores["accuracy_shot40"] > scores["accuracy_shot1"]
        assert scores["accuracy"] == scores["accuracy_shot40"] == pytest.approx(1 - scores["error"])
        assert scores["accuracy_shot1_std"] > 0

    def test_every_class_gives_as_many_rows(self):
        from jepa.probes.few_shot import draw

        y = torch.tensor([0] * 50 + [1] * 5 + [2] * 2)
        rows = draw(y, 3, 4, torch.Generator().manual_seed(0))
        assert y[rows].bincount().tolist() == [3, 3, 2]
        assert len(rows.unique()) == len(rows)

    def test_interval_equals_students_t(self):
        from jepa.probes.few_shot import summarize

        mean, low, high, std = summarize([1.0, 2.0, 3.0, 4.0, 5.0])
        half = 2.776 * math.sqrt(2.5) / math.sqrt(5)
        assert (mean, std) == (3.0, pytest.approx(math.sqrt(2.5)))
        assert (low, high) == pytest.approx((3 - half, 3 + half))

    def test_settings_are_checked(self):
        with pytest.raises(ValueError, match="n_episodes=1"):
            build("few_shot", n_episodes=1)(*case())


class TestLabelFree:
    @pytest.mark.parametrize("shape", [(200, 20), (20, 50)])
    def test_rankme_equals_the_singular_values_of_the_features(self, shape):
        x = torch.randn(*shape) @ torch.randn(shape[1], shape[1]) + 1
        s = np.linalg.svd(x.double().numpy(), compute_uv=False)
        p = s / s.sum()
        assert label_free(x)["rankme"] == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-3)

    def test_rankme_counts_equal_directions(self):
        assert rankme(torch.tensor([2.0, 2.0, 2.0, 0.0])) == pytest.approx(3, rel=1e-4)

    @pytest.mark.parametrize("shape", [(200, 20), (20, 50)])
    def test_isotropy_equals_its_definition(self, shape):
        x = torch.randn(*shape) * torch.arange(1.0, shape[1] + 1) + 5
        variances = np.linalg.eigvalsh(np.cov(x.double().numpy().T))
        expected = variances.sum() ** 2 / (shape[1] * (variances**2).sum())
        assert label_free(x)["isotropy"] == pytest.approx(expected)
        assert isotropy(torch.eye(4), n_features=4) == pytest.approx(1)

    def test_alpha_req_finds_the_exponent_of_a_power_law(self):
        assert alpha_req(torch.arange(1.0, 50.0).double() ** -1.3) == pytest.approx(1.3)

    def test_mean_cosine_equals_the_mean_over_pairs(self):
        x = torch.randn(30, 4) + 1
        cosines = torch.cosine_similarity(x[:, None], x[None], dim=-1)
        pairs = cosines[~torch.eye(30, dtype=torch.bool)]
        assert label_free(x)["mean_cosine"] == pytest.approx(pairs.mean().item(), rel=1e-5)

    def test_entropy_and_std_of_independent_columns(self):
        x = torch.randn(20_000, 3) * torch.tensor([1.0, 1.0, 4.0])
        found = label_free(x)
        p = np.array([1, 1, 16]) / 18
        entropy = -(p * np.log(p)).sum() / np.log(3)
        assert found["spectrum_entropy"] == pytest.approx(entropy, abs=0.01)
        assert found["std_mean"] == pytest.approx(2, rel=0.03)
        assert found["std_min"] == pytest.approx(1, rel=0.03)

    def test_a_collapse_shows_in_every_measure(self):
        healthy = label_free(torch.randn(100, 8))
        direction = torch.randn(1, 8)
        point = label_free(direction.repeat(100, 1))
        assert point["rankme"] == pytest.approx(1, abs=1e-3) and point["std_mean"] < 1e-6
        assert point["mean_cosine"] == pytest.approx(1) and point["spectrum_entropy"] < 1e-6
        line = label_free(torch.randn(100, 1) * direction)
        assert line["isotropy"] == pytest.approx(1 / 8) and healthy["isotropy"] > 0.7
        assert line["rankme"] < 1.01 < healthy["rankme"]

    @pytest.mark.parametrize("x", [torch.zeros(5, 3), torch.ones(1, 4), torch.full((4, 1), -2.0)])
    def test_degenerate_features_give_numbers(self, x):
        found = label_free(x)
        assert all(
            math.isfinite(v) for k, v in found.items() if k not in ("alpha_req", "mean_cosine")
        )


class TestRaw:
    def test_numbers_categories_and_missing_values(self):
        nan = math.nan
        train = torch.tensor([[1.0, nan, 2], [2.0, 5.0, 3], [3.0, 6.0, 2]])
        val = torch.tensor([[nan, nan, 1], [4.0, 7.0, 3]])
        a, b = raw_features(train, val, (0, 0, 5))
        assert a.tolist() == [[1, 0, 1, 1, 0, 0], [2, 5, 0, 0, 1, 0], [3, 6, 0, 1, 0, 0]]
        assert b.tolist() == [[0, 0, 1, 0, 0, 1], [4, 7, 0, 0, 1, 0]]

    def test_a_large_category_keeps_its_most_frequent_codes(self):
        codes = torch.arange(600).repeat_interleave(torch.arange(600) // 100 + 1)
        train = codes.float()[:, None]
        a, b = raw_features(train, torch.tensor([[599.0], [0.0]]), (600,))
        assert a.shape[1] == MAX_CODES + 1
        assert (a.sum(1) == 1).all()
        assert b[0, :-1].sum() == 1 and b[1, -1] == 1

    def test_columns_must_match(self):
        with pytest.raises(ValueError, match="got 1 for 2"):
            raw_features(torch.rand(2, 2), torch.rand(2, 2), (0,))

    def test_a_probe_reads_them(self):
        x, y = torch.randn(80, 3), torch.arange(80) % 2
        x[:, 2] = (y + 2).float()
        x[::7, 0] = math.nan
        a, b = raw_features(x[:60], x[60:], (0, 0, 4))
        assert build("ridge")(a, y[:60], b, y[60:])["error"] == 0


# one changed value for each setting of each yaml
KNOBS = {
    "ridge": {"l2": 7.0, "seed": 1},
    "logistic": {"l2": 1e3, "max_iter": 1, "seed": 1},
    "knn": {"k": 3, "ks": [2], "temperature": 10.0, "components": 2, "power": 1.0},
    "sgd_linear": {
        "lr": 1e-3, "weight_decay": 1.0, "n_epochs": 3, "batch_size": 20, "seed": 1,
    },
    "mlp": {
        "width": 9, "dropout": 0.6, "lr": 1e-4, "weight_decay": 1.0, "n_epochs": 4, "patience": 1,
        "batch_size": 20, "seed": 1,
    },
    "few_shot": {"shots": [2], "rows": [5], "n_episodes": 3, "l2": 100.0, "seed": 1},
}  # fmt: skip


def test_knobs_are_all_listed():
    for name in NAMES:
        assert KNOBS[name].keys() == read(name)[1].keys()


@pytest.mark.parametrize(("name", "knob"), [(n, k) for n, knobs in KNOBS.items() for k in knobs])
def test_every_setting_changes_the_outcome(name, knob):
    task = "binary" if name == "logistic" or knob in ("shots", "seed") else "regression"
    data = case(task, n=60, e=20, noise=2.0)
    extra = {"components": 4} if knob == "power" else {}
    if knob == "patience":  # a loss that goes up and down on its way down
        data = case(task, n=60, e=5, noise=0.1)
        extra = {"n_epochs": 60, "lr": 0.05}
    base = build(name, **extra)(*data)
    assert not same(build(name, **extra, **{knob: KNOBS[name][knob]})(*data), base)
