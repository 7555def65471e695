"""scikit-learn's contract, mixed tables, and what fit must leave alone."""

import inspect
import pickle
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from omegaconf import OmegaConf
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import jepa
from jepa import TJEPAEncoder
from jepa.config import CONF

SMALL = {
    "width": 4, "depth": 1, "n_heads": 2, "predictor_width": 4, "predictor_depth": 1,
    "predictor_n_heads": 2, "max_epochs": 1, "accelerator": "cpu",
}  # fmt: skip
# Nothing fails. check_array_api_input skips itself unless SCIPY_ARRAY_API is set.
EXPECTED_FAILURES: dict[str, str] = {}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def mixed(n_rows=40, seed=0):
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(
        {
            "size": rng.normal(size=n_rows),
            "colour": rng.choice(["red", "green", None], n_rows),
            "count": rng.integers(0, 9, n_rows),
            "day": pd.Timestamp("2024-01-31") + pd.to_timedelta(rng.integers(0, 99, n_rows), "D"),
            "kind": pd.Categorical(rng.choice(["a", "b"], n_rows)),
        }
    )
    frame.loc[::7, "size"] = np.nan
    return frame


def encoder(**settings):
    return TJEPAEncoder(**SMALL | {"random_state": 0} | settings)


def weights(fitted):
    return torch.cat([p.flatten() for p in fitted.model_.parameters()])


@parametrize_with_checks(
    [TJEPAEncoder(**SMALL)], expected_failed_checks=lambda _: EXPECTED_FAILURES
)
def test_scikit_learns_checks(estimator, check, monkeypatch):
    # it wants any value stored, to be refused in `fit`; the type checker of the tests is earlier
    monkeypatch.setattr(TJEPAEncoder, "__init__", inspect.unwrap(TJEPAEncoder.__init__))
    check(estimator)


def test_a_mixed_table_goes_through_a_pipeline():
    frame = mixed()
    y = (frame["count"] > 4).astype(int)
    pipeline = make_pipeline(encoder(), StandardScaler(), LogisticRegression())
    pipeline.fit(frame, y)
    assert set(pipeline.predict(mixed(9, seed=1))) <= {0, 1}
    codes = pipeline[0].transform(frame)
    assert codes.dtype == np.float32 and codes.shape == (40, 4 * pipeline[0].table_.spec.n_features)
    assert np.isfinite(codes).all()


def test_a_grid_search_sets_numpy_numbers():
    y = (mixed()["count"] > 4).astype(int)
    pipeline = make_pipeline(encoder(), LogisticRegression())
    grid = {"tjepaencoder__width": np.array([2, 4]), "tjepaencoder__lr": np.array([1e-3])}
    search = GridSearchCV(pipeline, grid, cv=2).fit(mixed(), y)
    assert search.best_estimator_[0].model_.width in (2, 4)


def test_columns_are_found_by_name():
    frame = mixed()
    fitted = encoder().fit(frame)
    turned = frame[list(frame.columns[::-1])].assign(unknown=1)
    np.testing.assert_array_equal(fitted.transform(frame), fitted.transform(turned))
    with pytest.raises(ValueError, match="missing:\n- size"):
        fitted.transform(frame.drop(columns="size"))


def test_unseen_categories_and_missing_values_have_finite_codes():
    frame = mixed()
    fitted = encoder().fit(frame)
    frame = frame.astype(object)
    frame["colour"] = "never seen"
    frame[["size", "kind", "day"]] = None
    assert np.isfinite(fitted.transform(frame)).all()


def test_names_of_the_codes():
    fitted = encoder().fit(mixed())
    names = fitted.get_feature_names_out()
    assert names[0] == "size_0" and len(names) == fitted.transform(mixed()).shape[1]
    array = encoder().fit(np.random.default_rng(0).normal(size=(20, 3)))
    assert list(array.get_feature_names_out()[:5]) == ["x0_0", "x0_1", "x0_2", "x0_3", "x1_0"]
    assert array.get_feature_names_out(["a", "b", "c"])[4] == "b_0"
    mean = encoder(representation="mean").fit(mixed())
    assert list(mean.get_feature_names_out()) == ["mean_0", "mean_1", "mean_2", "mean_3"]


def test_pandas_output_keeps_the_index():
    frame = mixed().set_index(np.arange(100, 140))
    codes = encoder().set_output(transform="pandas").fit_transform(frame)
    assert list(codes.index) == list(frame.index) and codes.columns[0] == "size_0"


def test_a_pickle_gives_the_same_codes():
    fitted = encoder().fit(mixed())
    again = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(fitted.transform(mixed()), again.transform(mixed()))
    assert clone(fitted).get_params() == fitted.get_params()


def test_random_state_decides_the_weights():
    one, two, other = (encoder(random_state=s, dropout=0.1).fit(mixed()) for s in (1, 1, 2))
    assert torch.equal(weights(one), weights(two))
    assert not torch.equal(weights(one), weights(other))
    free = [encoder(random_state=None).fit(mixed()) for _ in range(2)]
    assert not torch.equal(weights(free[0]), weights(free[1]))


@pytest.mark.parametrize("settings", [{}, {"random_state": None}, {"width": 3}])
def test_global_random_states_are_left_alone(settings):
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    estimator = encoder(dropout=0.1, **settings)
    if "width" in settings:  # and when fit fails half-way
        with pytest.raises(ValueError, match=r"model\.width=3"):
            estimator.fit(mixed())
    else:
        estimator.fit(mixed()).transform(mixed())
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])


def test_y_is_not_looked_at():
    y = mixed()["count"]
    assert torch.equal(weights(encoder().fit(mixed())), weights(encoder().fit(mixed(), y)))


def test_training_moves_the_weights():
    short, long = (encoder(max_epochs=n).fit(mixed()) for n in (1, 3))
    assert not torch.equal(weights(short), weights(long))


# every parameter but those of the device, the seed and the screen
OTHER = {
    "preset": "tjepa_paper_jannis", "width": 8, "depth": 2, "n_heads": 1, "dropout": 0.3,
    "numeric_embedding": "periodic", "representation": "mean", "predictor_width": 8,
    "predictor_depth": 2, "predictor_n_heads": 1, "lr": 0.1, "weight_decay": 0.9,
    "model_settings": {"n_reg": 3}, "scaler": "minmax",
    "table_settings": {"kinds": {"count": "category"}}, "max_epochs": 2, "batch_size": 10,
}  # fmt: skip


@pytest.mark.parametrize("name", OTHER)
def test_every_parameter_does_something(name):
    # the last step's learning rate is 0: two epochs, so that one has an effect
    plain = encoder(max_epochs=3).fit_transform(mixed())
    changed = encoder(**{"max_epochs": 3, name: OTHER[name]}).fit_transform(mixed())
    assert plain.shape != changed.shape or not np.array_equal(plain, changed)


def test_every_parameter_is_listed():
    assert OTHER.keys() == TJEPAEncoder().get_params().keys() - {
        "accelerator", "random_state", "verbose",
    }  # fmt: skip


def test_what_is_not_given_is_the_presets():
    preset = OmegaConf.load(CONF / "model" / "tjepa.yaml")
    settings = {k: v for k, v in SMALL.items() if k in ("max_epochs", "accelerator")}
    model = TJEPAEncoder(**settings).fit(mixed()).model_
    assert (model.width, model.momentum) == (preset.width, preset.momentum)


def test_verbose_shows_the_progress(capsys):
    encoder().fit(mixed())
    assert capsys.readouterr() == ("", "")
    encoder(verbose=True).fit(mixed())
    assert "samples/s" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("table", "settings", "message"),
    [
        (mixed()[["size"]], {}, "needs two that vary, got n_features=1"),
        (mixed().assign(size=1.0)[["size", "count"]], {}, "'count' varies"),
        (mixed().iloc[:1], {}, "n_samples=1"),
        (mixed().iloc[:0], {}, "0 sample"),
        (mixed().assign(count=np.inf), {}, "'count' holds 40 infinite values"),
        (mixed(), {"preset": "absent"}, "preset must be one of tjepa.*'absent'"),
        (mixed(), {"model_settings": {"widht": 3}}, "'widht'; nearest: 'width'"),
        (mixed(), {"max_epochs": 0}, "max_epochs must be at least 1, got 0"),
        (mixed(), {"batch_size": 0}, "batch_size must be at least 1, got 0"),
        (mixed(), {"scaler": "log"}, "scaler must be one of.*'log'"),
        (mixed(), {"accelerator": "tpu"}, "accelerator must be one of.*'tpu'"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*constant or empty")
def test_what_cannot_be_learnt_from_is_refused(table, settings, message):
    with pytest.raises(ValueError, match=message):
        encoder(**settings).fit(table)


def test_a_table_smaller_than_the_batch_is_one_batch():
    fitted = encoder(batch_size=1000).fit(mixed(5))
    assert fitted.transform(mixed(3)).shape[0] == 3


def test_before_fit_there_are_no_codes():
    for method in ("transform", "get_feature_names_out"):
        with pytest.raises(NotFittedError):
            getattr(encoder(), method)(*([mixed()] if method == "transform" else []))


def test_public_names_load_when_used():
    assert set(jepa.__all__) <= set(dir(jepa))
    assert all(hasattr(jepa, name) for name in jepa.__all__)
    with pytest.raises(AttributeError, match="'jepa' has no attribute 'absent'"):
        _ = jepa.absent


def test_importing_the_package_is_quick_and_loads_no_torch():
    code = (
        "import sys, time; start = time.perf_counter(); import jepa; "
        "print(time.perf_counter() - start, 'torch' in sys.modules, 'hydra' in sys.modules)"
    )
    command = [sys.executable, "-c", code]
    runs = [subprocess.run(command, capture_output=True, text=True, check=True) for _ in range(3)]
    seconds, *loaded = min(run.stdout.split() for run in runs)
    assert float(seconds) < 0.2 and loaded == ["False", "False"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_nearly_the_same_codes_and_a_pickle_for_the_cpu():
    fitted = encoder(accelerator="gpu").fit(mixed())
    assert {p.device.type for p in fitted.model_.parameters()} == {"cpu"}
    codes = fitted.transform(mixed())
    alone = pickle.loads(pickle.dumps(fitted)).set_params(accelerator="cpu").transform(mixed())
    np.testing.assert_allclose(codes, alone, rtol=1e-3, atol=1e-4)
