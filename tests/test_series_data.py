"""Series: windows, borders, scaling, protocol, panels, resuming, and the drawn sets."""

import hashlib
import os
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from jepa.data.base import DataModule
from jepa.data.batches import Samples
from jepa.data.etth1 import ETTh1
from jepa.data.ettm1 import ETTm1
from jepa.data.exchange import Exchange
from jepa.data.illness import Illness
from jepa.data.ohlcv import Ohlcv
from jepa.data.series import Series, SeriesData, fit_scale, scaled
from jepa.data.series_card import SeriesCard
from jepa.data.series_frames import SeriesFrame, from_wide, read_series
from jepa.data.series_splits import ChunkSplit, DateSplit, EttSplit, RatioSplit, Span
from jepa.data.series_times import future_index, season_of
from jepa.data.toy_ohlcv import ToyOhlcv
from jepa.data.toy_series import ToySeries
from jepa.data.weather import Weather
from jepa.data.windows import Windows, gather, gather_points
from jepa.run import FROM_A_FILE

DATA = Path(os.environ.get("JEPA_DATA", "data"))
CONF = Path(__file__).parents[1] / "conf" / "data"


class Frames(SeriesData):
    """A set made of a given frame."""

    def __init__(self, frame, split=None, **series):
        super().__init__(**{"look_back": 6, "horizon": 3, "batch_size": 4} | series)
        self.frame = frame
        self.split = split or RatioSplit()

    def load(self):
        return self.frame


def table(n_steps=100, n_channels=2, seed=0, freq="h"):
    rng = np.random.default_rng(seed)
    dates = pd.date_range("2024-01-01", periods=n_steps, freq=freq)
    return pd.DataFrame(
        {"date": dates} | {f"c{i}": rng.normal(size=n_steps) for i in range(n_channels)}
    )


def frame(n_steps=100, **other):
    return from_wide(table(n_steps, **other), time_column="date", gaps="refuse")


def counting(n_steps=100):
    """Every value is its own step."""
    values = pd.DataFrame({"date": pd.RangeIndex(n_steps), "a": np.arange(n_steps) * 1.0})
    return from_wide(values, time_column="date", gaps="refuse")


def prepared(one=None, **settings):
    data = Frames(frame() if one is None else one, **settings)
    data.prepare()
    return data


def steps_of(data, split):
    """Steps of the future of every window, from the values themselves."""
    location, scale = data.spec.location[0], data.spec.scale[0]
    parts = [batch["y"][:, 0] * scale + location for batch in data._ordered(split)]
    return torch.cat(parts).round().long()


def write(path, content):
    content.to_csv(path, index=False)
    return str(path)


def from_file(tmp_path, content, **settings):
    data = Series(
        **{
            "path": write(tmp_path / "s.csv", content),
            "look_back": 6,
            "horizon": 3,
            "batch_size": 4,
        }
        | settings
    )
    data.prepare()
    return data


# windows


@pytest.mark.parametrize("way", [gather, gather_points])
def test_a_gather_copies_the_steps_from_each_start(way):
    values = torch.arange(20.0).reshape(2, 10)
    got = way(values, torch.tensor([7, 0]), 3)
    assert got.tolist() == [[[7, 8, 9], [17, 18, 19]], [[0, 1, 2], [10, 11, 12]]]
    assert got.is_contiguous()


def test_a_window_is_the_past_and_the_steps_right_after_it():
    data = prepared(counting())
    batch = data.splits["val"].take(torch.tensor([0, 2]))
    x, y = (batch[k] * data.spec.scale[0] + data.spec.location[0] for k in ("x", "y"))
    assert x.shape == (2, 1, 6) and y.shape == (2, 1, 3) and "mask" not in batch
    assert x[0, 0].round().tolist() == list(range(64, 70))  # reaches into the training steps
    assert y[0, 0].round().tolist() == [70, 71, 72] and y[1, 0].round().tolist() == [72, 73, 74]


def test_splits_keep_the_contract():
    for data in (prepared(), ToySeries(look_back=8, horizon=4, batch_size=4, n_steps=200)):
        data.prepare()
        assert isinstance(data, DataModule) and data.spec.n_channels == len(data.spec.channels)
        for part in data.splits.values():
            assert isinstance(part, Samples) and isinstance(part, Windows)
            moved = part.to(torch.device("cpu"))
            assert moved.values.data_ptr() == part.values.data_ptr()
            batch = part.take(torch.arange(2))
            assert all(v.dtype in (torch.float32, torch.bool) for v in batch.values())


def test_all_splits_share_one_copy_of_the_series():
    data = prepared()
    assert len({part.values.data_ptr() for part in data.splits.values()}) == 1
    assert data.splits["train"].values.shape == (2, 100)


def test_a_device_holds_the_series_once():
    data = prepared()
    device = torch.device("meta")  # every copy to it is a new tensor
    data.trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=device))
    data.setup("fit")
    values = {id(part.values) for part in data.on_device.values()}
    assert len(values) == 1 and all(part.device == device for part in data.on_device.values())
    assert all(part.starts.device == device for part in data.on_device.values())


@pytest.mark.parametrize("batch_size", [1, 7, 128])
@pytest.mark.parametrize("split", ["val", "test"])
def test_every_window_comes_once_and_in_order(batch_size, split):
    one = counting(900)
    data = prepared(one, batch_size=batch_size)
    begin, end = {"val": (630, 720), "test": (720, 900)}[split]
    futures = steps_of(data, split)
    assert futures[:, 0].tolist() == list(range(begin, end - 3 + 1))
    assert (futures.diff(dim=1) == 1).all()


def test_resuming_in_the_middle_of_an_epoch_gives_the_remaining_batches():
    data = prepared(batch_size=4)
    batches = data.train_dataloader()
    batches.set_epoch(1)
    running = iter(batches)
    list(islice(running, 3))
    state = batches.state_dict()
    rest = [batch["x"] for batch in running]
    again = prepared(batch_size=4).train_dataloader()
    again.load_state_dict(state)
    resumed = [batch["x"] for batch in again]
    assert len(rest) == len(resumed) == len(batches) - 3
    assert all(torch.equal(a, b) for a, b in zip(rest, resumed, strict=True))


def test_probe_batches_count_channel_windows():
    data = prepared(frame(300, n_channels=3))
    x = torch.cat([b["x"] for b in data.probe_batches("train", max_rows=30, seed=1)])
    assert x.shape == (10, 3, 6)
    again = torch.cat([b["x"] for b in data.probe_batches("train", max_rows=30, seed=1)])
    assert torch.equal(x, again)
    assert sum(len(b["x"]) for b in data.probe_batches("val")) == len(data.splits["val"])


# splits


@pytest.mark.parametrize(
    ("split", "look_back", "train", "val", "test"),
    [
        (Span(0, 8640, 0), 336, 8209, None, None),
        (Span(8640, 11520, 0), 336, None, 2785, None),
        (Span(11520, 14400, 0), 336, None, None, 2785),
        (Span(11520, 14400, 0), 512, None, None, 2785),
    ],
)
def test_official_ett_windows(split, look_back, train, val, test):
    assert len(split.starts(look_back, 96)) == (train or val or test)


@pytest.mark.parametrize(("freq", "daily"), [("h", 24), ("15min", 96)])
def test_ett_borders_are_months_of_thirty_days(freq, daily):
    n = 600 * daily + 50
    one = SeriesFrame(
        channels=("a",),
        values=np.zeros((1, n)),
        series=("",),
        bounds=(0, n),
        times=(pd.date_range("2016-07-01", periods=n, freq=freq),),
        frequency=freq,
    )
    spans = EttSplit().spans(one, look_back=336, horizon=96)
    assert {k: (v[0].begin, v[0].end) for k, v in spans.items()} == {
        "train": (0, 360 * daily),
        "val": (360 * daily, 480 * daily),
        "test": (480 * daily, 600 * daily),
    }


def test_ratio_rounds_as_the_official_code():
    for n in (966, 7588, 17544, 26304, 52696):
        (train,), (val,), (test,) = (
            RatioSplit()
            .spans(
                SeriesFrame(
                    channels=("a",),
                    values=np.zeros((1, n)),
                    series=("",),
                    bounds=(0, n),
                    times=(pd.RangeIndex(n),),
                    frequency="1",
                ),
                look_back=9,
                horizon=9,
            )
            .values()
        )
        assert train.end == int(n * 0.7) == val.begin
        assert n - test.begin == int(n * 0.2) and val.end == test.begin


def test_dates_split_at_their_times_and_purge_steps_before_them():
    split = DateSplit(val_start="2024-01-03 00:00", test_start="2024-01-04", purge=5)
    spans = split.spans(frame(100), look_back=6, horizon=3)
    ends = {name: (part[0].begin, part[0].end) for name, part in spans.items()}
    assert ends == {"train": (0, 43), "val": (48, 67), "test": (72, 100)}
    without = DateSplit(val_start=60).spans(counting(), look_back=6, horizon=3)
    assert list(without) == ["train", "val"] and without["val"][0].end == 100


def test_no_future_of_a_training_window_lies_in_another_split():
    data = prepared(counting(300), split=DateSplit(val_start=200, test_start=250, purge=4))
    train, val, test = (set(steps_of(data, s).flatten().tolist()) for s in ("train", "val", "test"))
    assert max(train) == 195 and min(val) == 200 and max(val) == 245 and min(test) == 250


def test_chunks_share_no_step_and_windows_stay_inside():
    data = prepared(counting(3000), split=ChunkSplit(chunk=60, val_share=0.1, test_share=0.1))
    seen = {}
    for name, part in data.splits.items():
        starts = part.starts.numpy()
        assert ((starts % 60) + 9 <= 60).all() and len(starts) % 52 == 0
        seen[name] = set(starts // 60)
    assert len(seen["val"]) == len(seen["test"]) == 5 and len(seen["train"]) == 40
    assert not seen["val"] & seen["train"] and not seen["test"] & seen["train"]
    other = prepared(counting(3000), split=ChunkSplit(chunk=60, split_seed=1))
    assert set(other.splits["val"].starts.numpy() // 60) != seen["val"]


def test_a_share_of_zero_means_no_such_split():
    data = prepared(split=RatioSplit(val_share=0.0, test_share=0.25))
    assert list(data.splits) == ["train", "test"] and data.val_dataloader() == []
    data = prepared(split=RatioSplit(val_share=0.25, test_share=0.0))
    assert list(data.splits) == ["train", "val"]


# scaling


def test_only_training_steps_are_fitted_on():
    before = frame(100)
    after = SeriesFrame(**{**vars(before), "values": before.values.copy()})
    after.values[:, 70:] = 50.0
    one, two = prepared(before), prepared(after)
    assert one.spec == two.spec
    assert torch.equal(one.preprocessing["scale"], two.preprocessing["scale"])
    assert torch.equal(one.splits["train"].values[:, :70], two.splits["train"].values[:, :70])


def test_scaling_is_the_mean_and_deviation_of_the_known_training_values():
    one = frame(100)
    one.values[0, ::3] = np.nan
    data = prepared(one)
    known = one.values[0, :70][~np.isnan(one.values[0, :70])]
    assert data.spec.location[0] == pytest.approx(known.mean())
    assert data.spec.scale[0] == pytest.approx(known.std())
    restored = data.splits["train"].values.double() * data.preprocessing["scale"][:, None]
    restored += data.preprocessing["location"][:, None]
    assert np.allclose(restored[1], one.values[1], atol=1e-5)


def test_huge_values_do_not_overflow():
    location, scale = fit_scale(np.array([[1e300, 3e300]]), ["a"])
    assert location[0] == pytest.approx(2e300) and scale[0] == pytest.approx(1e300)


def test_missing_values_are_zero_and_masked():
    one = frame(100)
    one.values[1, 10] = np.nan
    batch = prepared(one).splits["train"].take(torch.tensor([5]))
    assert batch["mask"].shape == (1, 2, 9) and batch["mask"].dtype == torch.bool
    assert (~batch["mask"]).nonzero().tolist() == [[0, 1, 5]]
    assert batch["x"][0, 1, 5] == 0


# protocol


@pytest.mark.parametrize("batch_size", [4, 7])
def test_official_drop_last_leaves_out_the_last_incomplete_batch_and_says_so(batch_size):
    whole = prepared(counting(200), batch_size=batch_size)
    cut = prepared(counting(200), batch_size=batch_size, protocol="official_drop_last")
    assert whole.stamp == "" and cut.stamp == "official_drop_last"
    assert "official_drop_last" in cut.describe() and "official" not in whole.describe()
    for split in ("val", "test"):
        n = len(whole.splits[split])
        assert len(cut.splits[split]) == n // batch_size * batch_size
        assert torch.equal(
            cut.splits[split].starts, whole.splits[split].starts[: n - n % batch_size]
        )
    assert len(cut.splits["train"]) == len(whole.splits["train"])


# reading


def long(*series):
    parts = [
        pd.DataFrame(
            {"unique_id": name, "ds": pd.RangeIndex(a, a + n), "y": np.arange(n) * 1.0 + a}
        )
        for name, a, n in series
    ]
    return pd.concat(parts, ignore_index=True)


def test_series_of_the_same_times_are_channels(tmp_path):
    mixed = long(("u", 0, 60), ("v", 0, 60)).sample(frac=1, random_state=0)
    data = from_file(tmp_path, mixed.sort_values("ds"), format="long")
    assert set(data.spec.channels) == {"u", "v"} and data.splits["train"].values.shape == (2, 60)


def test_series_of_other_times_are_a_panel_of_one_channel(tmp_path):
    data = from_file(tmp_path, long(("u", 0, 60), ("v", 7, 90)), format="long")
    assert data.spec.channels == ("y",) and data.preprocessing["series"] == ["u", "v"]
    assert data.splits["train"].values.shape == (1, 150)
    assert len(data.splits["train"]) == (42 - 9 + 1) + (62 - 9 + 1)
    for split in data.splits:
        for batch in data._ordered(split):  # no window has steps of two series
            steps = torch.cat([batch["x"], batch["y"]], dim=2) * data.spec.scale[0]
            assert torch.allclose(steps.diff(dim=2), torch.ones(1), atol=1e-3)
    assert "2 series" in data.describe()


def test_columns_are_named_by_the_settings(tmp_path):
    renamed = long(("u", 0, 60)).rename(columns={"unique_id": "id", "ds": "t", "y": "value"})
    data = from_file(
        tmp_path, renamed, format="long", id_column="id", time_column="t", value_column="value"
    )
    assert data.spec.channels == ("u",)
    wide = table(60).rename(columns={"date": "when"})
    assert from_file(tmp_path, wide, time_column="when").spec.channels == ("c0", "c1")
    assert from_file(tmp_path, wide, time_column="when", drop=["c1"]).spec.channels == ("c0",)


def test_parquet_may_hold_the_times_as_its_index(tmp_path):
    path = tmp_path / "s.parquet"
    table(60).set_index("date").to_parquet(path)
    assert read_series(path).frequency == "h"


@pytest.mark.parametrize(
    ("freq", "season"), [("h", 24), ("15min", 96), ("D", 7), ("W", 52), ("MS", 12), ("B", 5)]
)
def test_times_go_on_at_their_frequency(freq, season):
    times = pd.date_range("2024-01-01", periods=40, freq=freq)
    one = from_wide(
        pd.DataFrame({"date": times[:30].astype(str), "a": range(30)}),
        time_column="date",
        gaps="refuse",
    )
    assert (future_index(one.times[0][-1], one.frequency, 10) == times[30:]).all()
    assert season_of(one.times[0], one.frequency) == season


def test_numbered_times_go_on_at_their_step():
    one = from_wide(
        pd.DataFrame({"date": [10, 15, 20], "a": [1, 2, 3]}), time_column="date", gaps="refuse"
    )
    assert list(future_index(one.times[0][-1], one.frequency, 2)) == [25, 30]
    assert season_of(one.times[0], one.frequency) == 0


@pytest.mark.parametrize("freq", ["h", "MS"])
def test_gaps_become_missing_values_or_steps_by_choice(freq):
    holed = table(50, freq=freq).drop(index=[20, 21, 30])
    one = from_wide(holed, time_column="date", gaps="missing")
    assert one.values.shape == (2, 50) and np.flatnonzero(np.isnan(one.values[0])).tolist() == [
        20,
        21,
        30,
    ]
    assert from_wide(holed, time_column="date", gaps="rows").values.shape == (2, 47)


def test_a_sentinel_is_read_as_missing_also_by_a_later_forecast(tmp_path):
    content = table(60)
    content.loc[3, "c0"] = -9999.0
    data = from_file(tmp_path, content, sentinel=-9999)
    assert (~data.splits["train"].observed).nonzero().tolist() == [[0, 3]]
    again = read_series(data.path, **data.preprocessing["reading"])
    assert np.isnan(again.values).sum() == 1 and again.channels == data.spec.channels


def test_dates_of_other_forms_are_read(tmp_path):
    content = pd.DataFrame(
        {"date": ["1990/1/1 0:00", "1990/1/2 0:00", "1990/1/3 0:00"], "a": [1, 2, 3]}
    )
    assert read_series(write(tmp_path / "s.csv", content)).times[0][-1] == pd.Timestamp(
        "1990-01-03"
    )
    zoned = content.assign(
        date=["2020-03-07 00:00-05:00", "2020-03-08 00:00-05:00", "2020-03-09 00:00-04:00"]
    )
    one = read_series(write(tmp_path / "z.csv", zoned), gaps="rows")
    assert one.times[0][-1] == pd.Timestamp("2020-03-09 04:00")


# sets


def test_toy_series_is_the_same_for_every_seed_and_has_its_season():
    one, two = (ToySeries(look_back=48, horizon=24, batch_size=8, seed=s) for s in (0, 1))
    one.prepare(), two.prepare()
    assert torch.equal(one.splits["train"].values, two.splits["train"].values)
    assert one.spec.period == 24 and one.spec.n_channels == 3
    values = one.splits["train"].values
    seasonal, repeated = ((values[:, k:] - values[:, :-k]).square().mean() for k in (24, 12))
    assert seasonal < 0.5 * repeated


BASE = {
    "n_steps": 300, "n_channels": 2, "noise": 0.3, "missing_share": 0.0, "look_back": 24,
    "horizon": 8, "batch_size": 8, "effective_batch_size": None, "seed": 0,
    "protocol": "corrected", "period": None, "drop": None,
}  # fmt: skip
OTHER = {
    "n_steps": 310, "n_channels": 3, "noise": 0.1, "missing_share": 0.1, "look_back": 25,
    "horizon": 9, "batch_size": 9, "effective_batch_size": 16, "seed": 1,
    "protocol": "official_drop_last", "period": 12, "drop": ["c0"],
}  # fmt: skip


def outcome(**settings):
    data = ToySeries(**settings)
    data.prepare()
    first = next(iter(data.train_dataloader()))
    tensors = {key: value.numpy().tobytes() for key, value in first.items()}
    sizes = {name: len(part) for name, part in data.splits.items()}
    return data.spec, sizes, data.effective_batch_size, tensors


@pytest.mark.parametrize("knob", BASE)
def test_toy_series_knob_does_something(knob):
    assert outcome(**BASE | {knob: OTHER[knob]}) != outcome(**BASE)


BARS = {"n_days": 300, "threshold": 0.01, "price": "high"}


@pytest.mark.parametrize(
    ("knob", "other"), [("n_days", 310), ("threshold", 0.02), ("price", "close")]
)
def test_toy_ohlcv_knob_does_something(knob, other):
    def labels(**settings):
        data = ToyOhlcv(look_back=10, horizon=2, batch_size=8, **settings)
        data.prepare()
        return data.splits["train"].labels.tolist()

    assert labels(**BARS | {knob: other}) != labels(**BARS)


DATES = {"split": "dates", "val_start": "2024-01-08", "test_start": "2024-01-12", "purge": 0}
CHUNKS = {"split": "chunks", "chunk": 60, "val_share": 0.3, "test_share": 0.2, "split_seed": 0}


@pytest.mark.parametrize(
    ("base", "change"),
    [
        ({}, {"val_share": 0.2}),
        ({}, {"test_share": 0.1}),
        ({}, {"split": "dates", "val_start": "2024-01-08"}),
        (DATES, {"val_start": "2024-01-09"}),
        (DATES, {"test_start": "2024-01-13"}),
        (DATES, {"purge": 5}),
        (CHUNKS, {"chunk": 65}),
        (CHUNKS, {"val_share": 0.5}),
        (CHUNKS, {"test_share": 0.3}),
        (CHUNKS, {"split_seed": 1}),
    ],
)
def test_split_setting_does_something(tmp_path, base, change):
    def starts(**settings):
        data = from_file(tmp_path, table(400), **settings)
        return {name: part.starts.tolist() for name, part in data.splits.items()}

    assert starts(**base | change) != starts(**base)


def test_what_a_checkpoint_carries_is_plain(tmp_path):
    data = from_file(tmp_path, table(60), drop=["c1"])
    torch.save(data.preprocessing, tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert state["last"] == ["2024-01-03 11:00:00"] and state["frequency"] == "h"
    again = read_series(data.path, drop=state["drop"], **state["reading"])
    values, observed = scaled(again, state["location"].numpy(), state["scale"].numpy())
    assert torch.equal(values, data.splits["train"].values) and observed.all()


def test_the_label_looks_ahead_at_the_price_and_nothing_else():
    close = np.array([100.0, 100.0, 100.0, 100.0, 100.0, 100.0] * 20)
    high = close + 0.5
    high[50] = 101.0
    content = pd.DataFrame(
        {"date": pd.bdate_range("2020-01-01", periods=120), "High": high, "close": close}
    )
    one = from_wide(content, time_column="date", gaps="rows")
    data = ToyOhlcv(look_back=5, horizon=3, batch_size=4)
    assert np.flatnonzero(data.labels(one) == 1).tolist() == [47, 48, 49]  # reached, not passed
    assert np.flatnonzero(data.labels(one) == -1).tolist() == [117, 118, 119]
    by_close = ToyOhlcv(look_back=5, horizon=3, batch_size=4, price="close")
    assert not (by_close.labels(one) == 1).any()


@pytest.mark.parametrize("horizon", [1, 3, 5])
def test_market_labels_go_with_the_last_step_of_their_window(tmp_path, horizon):
    toy = ToyOhlcv(look_back=10, horizon=horizon, batch_size=16, n_days=400)
    toy.prepare()
    raw = toy.load()
    path = write(
        tmp_path / "bars.csv",
        pd.DataFrame(raw.values.T, columns=list(raw.channels)).assign(date=raw.times[0]),
    )
    data = Ohlcv(path=path, look_back=10, horizon=horizon, batch_size=16)
    data.prepare()
    assert data.spec.task == "binary" and data.spec.classes == ("below", "above")
    high, close = (raw.values[raw.channels.index(name)] for name in ("high", "close"))
    for part in data.splits.values():
        batch = part.take(torch.arange(len(part)))
        assert batch["y"].dtype == torch.int64 and batch["x"].shape[1:] == (5, 10)
        for start, label in zip(part.starts.tolist(), batch["y"].tolist(), strict=True):
            now = start + 9
            assert label == (high[now + 1 : now + 1 + horizon].max() >= close[now] * 1.01)
    assert len(data.splits["val"]) == len(toy.splits["val"])


def test_weather_sentinels_are_masked_or_kept(tmp_path, monkeypatch):
    content = table(300)
    content.loc[7, "c1"] = -9999.0
    (tmp_path / "weather").mkdir()
    path = tmp_path / "weather" / "weather.csv"
    write(path, content)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    card = SeriesCard(
        place="weather/weather.csv", source="here", rows=300, channels=2, sha256=digest
    )
    monkeypatch.setattr(Weather, "card", card)
    settings = {"data_dir": str(tmp_path), "look_back": 6, "horizon": 3, "batch_size": 4}
    masked, kept = Weather(**settings), Weather(**settings, sentinels="keep")
    masked.prepare(), kept.prepare()
    assert (~masked.splits["train"].observed).nonzero().tolist() == [[1, 7]]
    assert kept.splits["train"].observed is None and kept.spec.scale[1] > 100


@pytest.mark.parametrize(
    "path",
    [p for p in sorted(CONF.glob("*.yaml")) if "look_back" in p.read_text()],
    ids=lambda path: path.stem,
)
def test_every_series_yaml_builds_its_set(path):
    cfg = OmegaConf.merge(
        {"paths": {"data_dir": "nowhere"}, "seed": 3}, {"data": OmegaConf.load(path)}
    )
    if OmegaConf.is_missing(cfg.data, "path"):
        cfg.data.path = "nowhere.csv"
    with FROM_A_FILE:  # as a run rebuilds it from a checkpoint
        data = instantiate(cfg.data)
    assert isinstance(data, SeriesData) and data.seed == 3 and data.stamp == ""


# real files


def real(data, place, **settings):
    if not (DATA / place).is_file():
        pytest.skip(f"{place} is not below JEPA_DATA={DATA}")
    one = data(
        **{"data_dir": str(DATA), "look_back": 336, "horizon": 96, "batch_size": 128} | settings
    )
    one.prepare()
    return one


@pytest.mark.ci
@pytest.mark.parametrize(
    ("data", "place", "windows"),
    [
        (ETTh1, "ett/ETTh1.csv", (8209, 2785, 2785)),
        (ETTm1, "ett/ETTm1.csv", (34129, 11425, 11425)),
        (Exchange, "exchange_rate/exchange_rate.csv", (4880, 665, 1422)),
    ],
)
def test_published_series_have_their_official_windows(data, place, windows):
    one = real(data, place)
    assert tuple(len(part) for part in one.splits.values()) == windows
    train = one.splits["train"].values[:, : len(one.splits["train"]) + 431]
    assert train.mean(1).abs().max() < 1e-4 and (train.std(1, correction=0) - 1).abs().max() < 1e-4


@pytest.mark.ci
def test_illness_has_its_windows():
    one = real(Illness, "illness/national_illness.csv", look_back=104, horizon=24, batch_size=16)
    assert [len(part) for part in one.splits.values()] == [549, 74, 170]
