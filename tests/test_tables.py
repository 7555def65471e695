"""Columns to features: kinds, scales, codes, dates, the target, and the state in a checkpoint."""

import io
from datetime import date

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.preprocessing import MinMaxScaler, QuantileTransformer, StandardScaler

from jepa.data.columns import PARTS, infer_kind
from jepa.data.tables import TableTransform


def mixed(n_rows=60, seed=0):
    """A table with a column of every kind, with gaps."""
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(
        {
            "size": rng.normal(size=n_rows),
            "level": rng.integers(0, 3, n_rows),
            "colour": rng.choice(["red", "green", "blue"], n_rows),
            "open": rng.random(n_rows) > 0.5,
            "day": pd.date_range("2023-11-30 05:00", periods=n_rows, freq="31h"),
            "income": rng.choice(["low", "high"], n_rows),
        }
    )
    frame.loc[3, "size"] = np.nan
    frame["colour"] = frame["colour"].astype(object)
    frame.loc[4, "colour"] = None
    return frame


def saved_and_loaded(transform):
    """Through a file, as a checkpoint does it."""
    file = io.BytesIO()
    torch.save(transform.state(), file)
    file.seek(0)
    return TableTransform.from_state(torch.load(file, weights_only=True))


def codes(transform, **columns):
    return transform.encode(pd.DataFrame(columns))[:, 0].tolist()


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([1, 2, 1], "number"),
        ([1.5, None], "number"),
        ([True, False], "category"),
        (["a", "b"], "category"),
        (["1", "2"], "category"),
        ([True, None, 1], "category"),
        (pd.Categorical([1, 2]), "category"),
        (pd.array([1, None], dtype="Int64"), "number"),
        (pd.to_datetime(["2024-01-31", None]), "date"),
        (["2024-01-31", None], "date"),
        (["2024-01-31 23:59:00", "2024-01-31T23:59Z"], "date"),
        (["2024-01-31", "2024-02-31"], "category"),
        (["2024-01-31", "n/a"], "category"),
        ([date(2024, 1, 31)], "date"),
        (pd.to_timedelta([1, 2], unit="h"), "number"),
    ],
)
def test_kinds_are_inferred_from_dtype_and_values(values, kind):
    assert infer_kind(pd.Series(values)) == kind


def test_a_table_with_every_kind_gives_the_spec_that_models_need():
    transform = TableTransform(target="income").fit(mixed())
    spec = transform.spec
    assert spec.columns[:4] == ("size", "level", "colour", "open")
    assert [name.removeprefix("day.") for name in spec.columns[4:]] == list(PARTS)
    assert spec.cardinalities[:4] == (0, 0, 5, 4)
    assert [len(q) for q in spec.quantiles[:4]] == [65, 65, 0, 0]
    assert (spec.task, spec.classes) == ("binary", ("high", "low"))
    assert "colour" in transform.describe() and "5 codes" in transform.describe()


def test_missing_is_code_0_or_nan_and_unseen_is_code_1():
    transform = TableTransform().fit(mixed())
    new = mixed().head(3).astype({"open": object})
    new["colour"] = ["violet", np.nan, pd.NA]
    new["open"] = [None, True, False]
    new["size"] = pd.array([None, 1.0, 2.0], dtype="Float64")
    x = transform.encode(new)
    at = transform.feature_names.index
    assert x[:, at("colour")].tolist() == [1, 0, 0]
    assert x[:, at("open")].tolist() == [0, 3, 2]
    assert torch.isnan(x[:, at("size")]).tolist() == [True, False, False]
    assert torch.isfinite(x[:, at("day.days")]).all()


def test_a_category_column_without_a_single_value_is_missing_everywhere():
    transform = TableTransform().fit(mixed())
    for empty in ([None, None], [np.nan, np.nan], [pd.NA, pd.NA], ["", "  "]):
        new = mixed().head(2).assign(colour=pd.Series(empty, dtype=object))
        assert transform.encode(new)[:, transform.feature_names.index("colour")].tolist() == [0, 0]


@pytest.mark.parametrize(
    "again",
    [["3", "5", None], [3.0, 5.0, np.nan], ["3.0", "5.", ""], pd.array([3, 5, None], "Int64")],
)
def test_a_category_keeps_its_codes_when_the_dtype_changes(again):
    transform = TableTransform(kinds={"a": "category"}).fit(pd.DataFrame({"a": [3, 5, 3, 4]}))
    assert codes(transform, a=again) == [2, 4, 0]


def test_codes_do_not_depend_on_which_of_1_and_true_comes_first():
    transform = TableTransform().fit(pd.DataFrame({"a": ["True", "1", "x"]}))
    assert codes(transform, a=[True, 1]) == codes(transform, a=[1, True])[::-1] == [3, 2]


def test_a_number_column_read_as_text_is_still_a_number():
    transform = TableTransform().fit(pd.DataFrame({"a": [1.0, 2.0, 3.0]}))
    as_text = transform.encode(pd.DataFrame({"a": ["1", " 2 ", "", None]}))
    as_numbers = transform.encode(pd.DataFrame({"a": [1, 2, None, None]}))
    torch.testing.assert_close(as_text, as_numbers, equal_nan=True)
    with pytest.raises(ValueError, match="'a' is read as a number, but holds 'abc'"):
        transform.encode(pd.DataFrame({"a": ["1", "abc"]}))


def test_columns_are_found_by_name_and_others_are_ignored():
    transform = TableTransform().fit(mixed())
    frame = mixed()
    shuffled = frame[frame.columns[::-1]].assign(more=1)
    torch.testing.assert_close(transform.encode(frame), transform.encode(shuffled), equal_nan=True)
    with pytest.raises(ValueError, match="lacks 2 of 6 columns: 'size', 'colour'"):
        transform.encode(frame.drop(columns=["size", "colour"]))


def test_quantiles_agree_with_scikit_learn_away_from_the_ends():
    rng = np.random.default_rng(0)
    x = np.stack([rng.normal(size=3000), rng.exponential(size=3000), rng.integers(0, 9, 3000)], 1)
    ours = TableTransform().fit(pd.DataFrame(x)).encode(pd.DataFrame(x))
    theirs = QuantileTransformer(output_distribution="normal", subsample=None).fit_transform(x)
    inside = np.abs(theirs) < 3
    assert inside.mean() > 0.9
    np.testing.assert_allclose(ours.numpy()[inside], theirs[inside], atol=1e-4)


def test_quantile_scores_of_tied_ends_are_their_middle_rank():
    frame = pd.DataFrame({"gain": [0.0] * 80 + list(range(1, 21))})
    x = TableTransform().fit(frame).encode(frame)[:, 0]
    assert abs(x[0].item() - torch.special.ndtri(torch.tensor(0.4)).item()) < 0.02
    assert x.abs().max() < 3  # half a row of 100 is the outermost rank


@pytest.mark.parametrize(
    ("scaler", "reference"), [("standard", StandardScaler()), ("minmax", MinMaxScaler())]
)
def test_standard_and_minmax_equal_scikit_learn(scaler, reference):
    x = np.random.default_rng(0).normal(3.0, 7.0, size=(50, 2))
    ours = TableTransform(scaler=scaler).fit(pd.DataFrame(x)).encode(pd.DataFrame(x))
    np.testing.assert_allclose(ours.numpy(), reference.fit_transform(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scaler", ["quantile", "standard", "minmax"])
def test_scaling_keeps_the_order_and_stays_finite_far_outside(scaler):
    train = pd.DataFrame({"a": np.r_[np.zeros(20), np.geomspace(1e-3, 1e9, 30)]})
    transform = TableTransform(scaler=scaler).fit(train)
    new = pd.DataFrame({"a": np.r_[-1e308, -1e9, np.linspace(-1, 2e9, 50), 1e308]})
    x = transform.encode(new)[:, 0]
    assert torch.isfinite(x).all() and (x.diff() >= 0).all()


@pytest.mark.parametrize("scaler", ["quantile", "standard", "minmax"])
def test_spec_quantiles_are_those_of_the_scaled_training_values(scaler):
    frame = mixed()[["size"]]
    transform = TableTransform(scaler=scaler).fit(frame)
    x = transform.encode(frame)[:, 0].numpy()
    expected = np.quantile(x[~np.isnan(x)], np.linspace(0, 1, 65))
    np.testing.assert_allclose(transform.spec.quantiles[0], expected, atol=1e-5)


def test_dates_become_numeric_parts():
    days = ["2024-02-29 12:00:00", "2023-01-01 00:00:00", "2022-12-31 06:00:00", None]
    frame = pd.DataFrame({"day": days})
    transform = TableTransform(scaler="minmax").fit(frame)
    x = transform.encode(frame)
    parts = {name.split(".")[1]: x[:, j] for j, name in enumerate(transform.feature_names)}
    assert parts["year"][:3].tolist() == [1.0, 0.5, 0.0]
    assert parts["hour"][:3].tolist() == [1.0, 0.0, 0.5]
    assert parts["weekday"][:3].tolist() == [0.0, 1.0, pytest.approx(2 / 3)]  # Thu, Sun, Sat
    assert torch.isnan(x[3]).all()
    as_dates = transform.encode(pd.DataFrame({"day": pd.to_datetime(pd.Series(days))}))
    torch.testing.assert_close(as_dates, x, equal_nan=True)


def test_dates_without_a_clock_give_no_hour():
    frame = pd.DataFrame({"day": ["2024-02-29", "2023-01-01", "2022-12-31"]})
    assert "day.hour" not in TableTransform().fit(frame).feature_names


def test_kinds_can_be_overridden():
    frame = mixed().assign(code=["7", "8"] * 30)
    kinds = {"level": "category", "day": "drop", "code": "number", "colour": "category"}
    transform = TableTransform(kinds=kinds).fit(frame)
    kind = {feature.name: feature.kind for feature in transform.features}
    assert kind["level"] == "category" and kind["code"] == "number" and "day.year" not in kind


def test_rare_categories_share_the_code_of_unseen_ones():
    frame = pd.DataFrame({"a": ["x"] * 5 + ["y"] * 2 + ["z"]})
    assert codes(TableTransform(min_count=1).fit(frame), a=["x", "y", "z", "?"]) == [2, 3, 4, 1]
    assert codes(TableTransform(min_count=2).fit(frame), a=["x", "y", "z", "?"]) == [2, 3, 1, 1]


def test_constant_and_empty_columns_are_dropped_with_one_warning():
    frame = pd.DataFrame({"a": [1, 2, 3], "b": 7, "c": None, "d": "same", "e": [None, 5, 5]})
    with pytest.warns(UserWarning, match="3 columns .* left out: b, c, d") as caught:
        transform = TableTransform().fit(frame)
    assert len(caught) == 1
    assert transform.feature_names == ("a", "e")  # where e is missing says something


def test_a_table_without_rows_has_its_columns_checked():
    transform = TableTransform().fit(mixed())
    assert transform.encode(mixed().head(0)).shape == (0, len(transform.features))
    blank = pd.DataFrame(columns=mixed().columns, dtype=object)
    assert transform.encode(blank).shape == (0, len(transform.features))
    with pytest.raises(ValueError, match="lacks 1 of 6"):
        transform.encode(blank.drop(columns="size"))


@pytest.mark.parametrize(
    ("values", "task", "classes"),
    [
        (["b", "a", "b", "a"], "binary", ("a", "b")),
        ([True, False, True, False], "binary", ("False", "True")),
        ([10, 9, 2, 10, 9, 2], "multiclass", ("2", "9", "10")),
        ([0.0, 1.0, 1.0, 0.0], "binary", ("0", "1")),
        ([0.5, 1.5, 2.5, 0.5], "regression", ()),
        (list(range(21)) * 2, "regression", ()),
        (list(range(20)) * 2, "multiclass", tuple(map(str, range(20)))),
        (pd.Categorical(["x", "y", "x", "y"]), "binary", ("x", "y")),
    ],
)
def test_the_task_follows_the_target(values, task, classes):
    frame = pd.DataFrame({"y": values})
    frame["a"] = np.arange(len(frame))
    transform = TableTransform(target="y").fit(frame)
    assert (transform.target.task, transform.target.classes) == (task, classes)
    y = transform.encode_target(frame)
    assert y.dtype == (torch.float32 if task == "regression" else torch.int64)
    if task == "regression":
        assert y.tolist() == list(values)
    else:
        values = [int(v) if isinstance(v, float) else v for v in values]
        assert [classes[i] for i in y] == [str(v) for v in values]


def test_without_a_task_the_target_is_neither_feature_nor_label():
    frame = mixed()
    transform = TableTransform(target="income", task="none").fit(frame)
    assert "income" not in transform.feature_names
    assert transform.encode_target(frame) is None and transform.spec.classes == ()
    assert TableTransform().fit(frame).target.task == "none"


@pytest.mark.parametrize("scaler", ["quantile", "standard", "minmax"])
def test_the_state_survives_a_file_and_encodes_the_same(scaler):
    transform = TableTransform(target="income", scaler=scaler).fit(mixed())
    again = saved_and_loaded(transform)
    new = mixed(seed=1)
    assert torch.equal(again.encode(new).isnan(), transform.encode(new).isnan())
    assert torch.equal(again.encode(new).nan_to_num(), transform.encode(new).nan_to_num())
    assert torch.equal(again.encode_target(new), transform.encode_target(new))
    assert again.spec == transform.spec
    assert again.describe() == transform.describe()


CELLS = st.one_of(
    st.none(),
    st.just(pd.NA),
    st.just(float("nan")),
    st.booleans(),
    st.integers(-5, 5),
    st.integers(),
    st.floats(allow_nan=False),
    st.text(max_size=4),
    st.sampled_from(["2024-01-31", "1", "1.0", "nan", "inf", " ", "None", "a,b", "x" * 300]),
    st.dates().map(str),
    st.datetimes(),
)


@st.composite
def frames(draw):
    n_rows = draw(st.integers(1, 8))
    kinds = [CELLS, st.floats(), st.integers(-(2**62), 2**62), st.text(max_size=3), st.booleans()]
    columns = {}
    for i in range(draw(st.integers(1, 4))):
        cell = draw(st.sampled_from(kinds))
        values = draw(st.lists(cell, min_size=n_rows, max_size=n_rows))
        columns[f"c{i}"] = pd.Series(values, dtype=draw(st.sampled_from([None, object])))
    return pd.DataFrame(columns)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(frame=frames(), new=frames(), scaler=st.sampled_from(["quantile", "standard", "minmax"]))
@pytest.mark.filterwarnings("ignore")
def test_any_frame_is_either_refused_with_a_message_or_encoded_within_range(frame, new, scaler):
    try:
        transform = TableTransform(scaler=scaler).fit(frame)
    except ValueError as error:
        assert len(str(error)) > 20
        return
    x = transform.encode(frame)
    check_range(transform, x)
    again = saved_and_loaded(transform)
    torch.testing.assert_close(again.encode(frame), x, rtol=0, atol=0, equal_nan=True)
    try:
        check_range(transform, transform.encode(new))
    except ValueError as error:
        assert len(str(error)) > 20


def check_range(transform, x):
    assert not torch.isinf(x).any()
    for j, cardinality in enumerate(transform.spec.cardinalities):
        if cardinality:
            assert ((x[:, j] >= 0) & (x[:, j] < cardinality) & (x[:, j] == x[:, j].floor())).all()
        else:
            levels = torch.tensor(transform.spec.quantiles[j])
            assert torch.isfinite(levels).all() and (levels.diff() >= 0).all()
