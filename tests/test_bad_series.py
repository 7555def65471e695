"""Bad series: one message with the value, the key and the fix, before any compute."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jepa.data.electricity import Electricity
from jepa.data.ohlcv import Ohlcv
from jepa.data.series import Series
from jepa.data.series_card import SeriesCard
from jepa.data.series_frames import SeriesFrame, read_series
from jepa.data.toy_ohlcv import ToyOhlcv
from jepa.data.toy_series import ToySeries
from jepa.data.weather import Weather

TOY = {"look_back": 6, "horizon": 3, "batch_size": 4}


def good(n_steps=60):
    rng = np.random.default_rng(0)
    dates = pd.date_range("2024-01-01", periods=n_steps, freq="h")
    return pd.DataFrame(
        {"date": dates, "a": rng.normal(size=n_steps), "b": rng.normal(size=n_steps)}
    )


def long(n_steps=60):
    return (
        good(n_steps)
        .rename(columns={"date": "ds", "a": "y"})
        .assign(unique_id="u")[["unique_id", "ds", "y"]]
    )


def prepare(tmp_path, frame, **settings):
    path = tmp_path / "series.csv"
    if frame is not None:
        frame.to_csv(path, index=False)
    data = Series(**{"path": str(path)} | TOY | settings)
    data.prepare()
    return data


def refused(tmp_path, frame, *words, error=ValueError, **settings):
    """Prepare; the one message must hold all words."""
    with pytest.raises(error) as caught:
        prepare(tmp_path, frame, **settings)
    for word in words:
        assert word in str(caught.value), str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"horizon": 0}, ["data.horizon", "0"]),
        ({"look_back": -3}, ["data.look_back", "-3"]),
        ({"batch_size": 0}, ["data.batch_size", "0"]),
        ({"protocol": "official"}, ["data.protocol", "official_drop_last", "'official'"]),
        ({"period": 7}, ["data.period", "data.look_back=6", "7"]),
        ({"format": "tall"}, ["data.format", "wide, long", "'tall'"]),
        ({"gaps": "fill"}, ["data.gaps", "refuse, missing, rows", "'fill'"]),
        ({"id_column": "k"}, ["data.id_column=k", "no effect", "data.format=long"]),
        ({"split": "random"}, ["data.split", "ett, ratio, dates, chunks", "'random'"]),
        ({"purge": 4}, ["data.purge=4", "no effect", "data.split=dates"]),
        ({"chunk": 20}, ["data.chunk=20", "no effect", "data.split=chunks"]),
        ({"split_seed": 2}, ["data.split_seed=2", "no effect", "data.split=chunks"]),
        ({"val_share": 0.6, "test_share": 0.4}, ["data.val_share=0.6", "data.test_share=0.4"]),
        ({"val_share": -0.1}, ["data.val_share=-0.1"]),
        ({"split": "dates"}, ["data.split=dates", "data.val_start"]),
        ({"split": "chunks"}, ["data.split=chunks", "data.chunk"]),
        ({"split": "dates", "val_start": "soon"}, ["data.val_start=soon", "a date"]),
        ({"split": "dates", "val_start": "2031"}, ["data.val_start=2031", "a date"]),
        ({"split": "dates", "val_start": "2031-01-01"}, ["data.val_start=2031", "2024-01-01"]),
        (
            {"split": "dates", "val_start": "2024-01-03", "test_start": "2024-01-02"},
            ["data.val_start=2024-01-03", "before", "data.test_start=2024-01-02"],
        ),
        ({"split": "dates", "val_start": "2024-01-02", "purge": -1}, ["data.purge", "-1"]),
        ({"split": "ett"}, ["data.split=ett", "60 steps of h", "data.split=ratio"]),
        ({"split": "chunks", "chunk": 8}, ["data.chunk=8", "at least 9"]),
        ({"split": "chunks", "chunk": 10}, ["2 validation windows", "100", "data.chunk"]),
        ({"drop": ["A"]}, ["data.drop", "'A'", "'a'"]),
        ({"drop": ["a", "b"]}, ["0 columns", "'date'"]),
        ({"time_column": "when"}, ["'when'", "data.time_column", "date"]),
        ({"batch_size": 50}, ["data.batch_size=50", "training split has 34"]),
    ],
)  # fmt: skip
def test_a_setting_that_cannot_be_is_refused(tmp_path, wrong, words):
    refused(tmp_path, good(), *words, **wrong)


def test_a_missing_file_is_named(tmp_path):
    refused(tmp_path, None, "series.csv", "does not exist", error=FileNotFoundError)


@pytest.mark.parametrize("n_steps", [2, 5, 9, 12])
def test_a_series_too_short_names_both_and_the_longest_usable(tmp_path, n_steps):
    refused(
        tmp_path, good(n_steps), f"{n_steps} steps", "data.look_back=6", "data.horizon=3", "at most"
    )


def test_the_longest_usable_look_back_is_usable(tmp_path):
    refused(tmp_path, good(40), "at most 25", look_back=30)
    assert len(prepare(tmp_path, good(40), look_back=25, batch_size=1).splits["train"]) == 1


def test_a_horizon_longer_than_a_split_names_the_longest(tmp_path):
    refused(tmp_path, good(60), "val split", "data.horizon", "at most 6", horizon=7)
    assert len(prepare(tmp_path, good(60), horizon=6).splits["val"]) == 1


def test_unsorted_times_are_refused(tmp_path):
    frame = good()
    frame.loc[[10, 11], "date"] = frame.loc[[11, 10], "date"].to_numpy()
    refused(tmp_path, frame, "unsorted", "row 12", "2024-01-01 10:00:00", "sort")


def test_duplicated_times_are_refused(tmp_path):
    frame = good()
    frame.loc[10, "date"] = frame.loc[9, "date"]
    refused(tmp_path, frame, "duplicated", "rows 10 and 11", "2024-01-01 09:00:00")


def test_a_gap_is_refused_by_its_first_absent_time(tmp_path):
    refused(
        tmp_path, good().drop(index=[20, 21, 30]),
        "2024-01-01 20:00:00", "3 absent", "data.gaps=missing", "data.gaps=rows",
    )  # fmt: skip
    numbered = good().assign(date=range(60)).drop(index=[7])
    refused(tmp_path, numbered, "7 is absent", "step of 1")


def test_times_without_a_step_are_refused(tmp_path):
    dates = good()["date"] + pd.to_timedelta(np.arange(60) ** 2, unit="s")
    refused(tmp_path, good().assign(date=dates), "no regular step", "data.gaps=rows")
    far = good().assign(date=[*range(59), 10**12])
    refused(tmp_path, far, "no regular step", "1000000000000", gaps="missing")


@pytest.mark.parametrize("bad", ["01/02/2024", "soon", "", "2024-13-01"])
def test_an_unreadable_time_is_named(tmp_path, bad):
    frame = good().astype({"date": str})
    frame.loc[4, "date"] = bad
    refused(tmp_path, frame, "'date'", "row 5", "2024-12-31")


def test_a_time_that_is_no_whole_number_is_named(tmp_path):
    refused(tmp_path, good().assign(date=np.arange(60) + 0.5), "'date'", "0.5", "row 1")


@pytest.mark.parametrize("bad", ["abc", "1,5", "inf", "-inf"])
def test_a_cell_that_is_no_number_is_named_by_row_and_column(tmp_path, bad):
    frame = good().astype({"b": object})
    frame.loc[6, "b"] = bad
    refused(tmp_path, frame, "'b'", "row 7", "data.drop=[b]")


def test_columns_of_one_name_are_refused(tmp_path):
    frame = good()
    frame.columns = ["date", "a", "a"]
    refused(tmp_path, frame, "unique", "'a'")


def test_a_constant_channel_is_kept_with_one_warning(tmp_path):
    with pytest.warns(UserWarning, match="never change.*'b'") as seen:
        data = prepare(tmp_path, good().assign(b=7.1))
    assert sum("never change" in str(one.message) for one in seen) == 1
    assert data.spec.scale[1] == 1.0 and data.splits["train"].values[1].abs().max() < 1e-6


def test_a_channel_without_values_is_refused(tmp_path):
    frame = good()
    frame.loc[:50, "b"] = np.nan
    refused(tmp_path, frame, "'b'", "no value in the training steps", "data.drop=[b]")


def test_a_value_far_beyond_the_training_steps_is_refused(tmp_path):
    frame = good()
    frame.loc[55, "a"] = 1e12
    refused(tmp_path, frame, "'a'", "1e+12", "step 56", "data.drop=[a]")


def test_exogenous_columns_are_refused_not_ignored(tmp_path):
    refused(
        tmp_path,
        long().assign(price=1.0),
        "'price'",
        "exogenous",
        "data.drop=[price]",
        format="long",
    )
    data = prepare(tmp_path, long().assign(price=1.0), format="long", drop=["price"])
    assert data.spec.channels == ("u",)


@pytest.mark.parametrize("column", ["unique_id", "ds", "y"])
def test_an_absent_column_of_a_long_file_is_named(tmp_path, column):
    key = {"unique_id": "id", "ds": "time", "y": "value"}[column]
    refused(
        tmp_path, long().drop(columns=column), f"'{column}'", f"data.{key}_column", format="long"
    )


def test_faults_of_one_series_of_a_panel_name_it(tmp_path):
    both = pd.concat([long(), long().assign(unique_id="v").drop(index=[9])])
    refused(tmp_path, both, "series 'v'", "2024-01-01 09:00:00", format="long")
    twice = pd.concat([long(), long().iloc[:1]])
    refused(tmp_path, twice, "series 'u'", "unsorted", format="long")
    nameless = long()
    nameless.loc[3, "unique_id"] = None
    refused(tmp_path, nameless, "'unique_id'", "row 4", format="long")
    daily = long().assign(unique_id="v", ds=pd.date_range("2024-01-01", periods=60, freq="D"))
    refused(tmp_path, pd.concat([long(), daily]), "different steps", "'v'", format="long")


def test_a_series_of_a_panel_too_short_for_a_window_is_told(tmp_path):
    both = pd.concat([long(), long(8).assign(unique_id="v")])
    with pytest.warns(UserWarning, match="1 of 2 series are shorter"):
        data = prepare(tmp_path, both, format="long")
    assert len(data.splits["train"]) == 42 - 9 + 1


@pytest.mark.parametrize(
    "text", ["", "date,a\n", "date\n2024-01-01\n2024-01-02\n", "date,a\n2024-01-01,1\n"]
)
def test_a_file_without_a_series_is_refused(tmp_path, text):
    path = tmp_path / "series.csv"
    path.write_text(text)
    with pytest.raises(ValueError) as caught:
        prepare(tmp_path, None)
    assert "\n" not in str(caught.value)


def test_a_published_file_that_differs_is_refused(tmp_path, monkeypatch):
    (tmp_path / "weather").mkdir()
    good(300).to_csv(tmp_path / "weather" / "weather.csv", index=False)
    weather = Weather(data_dir=str(tmp_path), **TOY)
    with pytest.raises(ValueError, match="wrong checksum"):
        weather.prepare()
    card = SeriesCard(place="weather/weather.csv", source="here", rows=300, channels=21)
    monkeypatch.setattr(Weather, "card", card)
    with (
        pytest.warns(UserWarning, match="unverified"),
        pytest.raises(ValueError, match=r"21 channels.*found.* 2"),
    ):
        weather.prepare()


def test_a_published_file_that_is_absent_names_its_place(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        Electricity(data_dir=str(tmp_path), **TOY).prepare()
    assert str(tmp_path / "electricity" / "electricity.csv") in str(caught.value)
    assert "JEPA_DATA" in str(caught.value)


def test_an_official_protocol_without_a_whole_batch_is_refused(tmp_path):
    refused(tmp_path, good(), "official_drop_last", "data.batch_size=20",
            protocol="official_drop_last", batch_size=20)  # fmt: skip


@pytest.mark.parametrize(
    ("toy", "wrong", "word"),
    [
        (ToySeries, {"n_channels": 0}, "data.n_channels"),
        (ToySeries, {"missing_share": 1.0}, "data.missing_share"),
        (ToyOhlcv, {"n_days": 1}, "data.n_days"),
        (ToyOhlcv, {"price": "low"}, "data.price"),
        (ToyOhlcv, {"threshold": 0.0}, "data.threshold"),
        (ToyOhlcv, {"sentinels": "drop"}, "sentinels"),
    ],
)
def test_a_drawn_set_refuses_wrong_settings(toy, wrong, word):
    with pytest.raises((ValueError, TypeError), match=word):
        toy(**TOY | wrong)


def test_labels_of_one_class_are_refused():
    with pytest.raises(ValueError, match=r"'below'.*data.threshold"):
        ToyOhlcv(**TOY, n_days=200, threshold=5.0).prepare()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda bars: bars.drop(columns="close"), ["'close'", "a, high"]),
        (lambda bars: bars.assign(close=0.0), ["'close'", "row 1", "above 0"]),
        (lambda bars: bars.assign(high=bars["high"].mask(bars.index == 3)), ["'high'", "row 4"]),
    ],
)
def test_market_bars_without_prices_are_refused(tmp_path, change, words):
    path = tmp_path / "bars.csv"
    bars = good().drop(columns="b").assign(high=101.0, close=100.0)
    change(bars).to_csv(path, index=False)
    with pytest.raises(ValueError) as caught:
        Ohlcv(path=str(path), **TOY).prepare()
    assert all(word in str(caught.value) for word in words), str(caught.value)


CELLS = st.one_of(
    st.sampled_from(["", "0", "1", "2", "3", "1e400", "nan", "inf", "a", '"', "1/2/2024", "Ω"]),
    st.sampled_from(["2024-01-01", "2024-01-02", "2024-01-03 00:00", "2024/1/4", "9999-12-31"]),
    st.integers(-(10**20), 10**20).map(str),
    st.floats().map(str),
    st.text(max_size=6),
)  # fmt: skip


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    rows=st.lists(st.lists(CELLS, min_size=3, max_size=3), max_size=5),
    header=st.sampled_from([["date", "a", "b"], ["unique_id", "ds", "y"]]),
    gaps=st.sampled_from(["refuse", "missing", "rows"]),
)
def test_any_file_is_a_series_or_one_plain_refusal(tmp_path, rows, header, gaps):
    path = tmp_path / "any.csv"
    pd.DataFrame(rows, columns=header).to_csv(path, index=False)
    try:
        frame = read_series(path, format="wide" if "date" in header else "long", gaps=gaps)
    except ValueError as error:
        assert str(error) and "Traceback" not in str(error)
    else:
        assert isinstance(frame, SeriesFrame) and not np.isinf(frame.values).any()
        assert frame.values.shape == (len(frame.channels), sum(frame.lengths))
