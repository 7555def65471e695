"""Forecasting a file: the checkpoint is enough, and the past is all a forecast knows."""

import json
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from jepa import run
from jepa.config import CONF
from jepa.data.series import Series
from jepa.data.series_frames import from_long, from_wide
from jepa.data.toy_series import ToySeries
from jepa.forecast import batches, check_settings, main, write_frames
from jepa.forecasting import score_forecasts
from jepa.new_series import as_panel, check_horizon, check_model, in_order, read_file
from jepa.origins import find_blind, forecast_windows, long_frames, place_origins, roll_out
from jepa.plots import Panel, draw_forecasts
from jepa.spec import SeriesSpec, TabularSpec

LOOK_BACK, HORIZON = 8, 4
CPU = torch.device("cpu")
SIZE = {"patch": 4, "stride": 2, "width": 4, "depth": 1, "n_heads": 2}


class Drift:
    """Carry the last step's change on: exact on straight lines. `quantiles` lie around it."""

    predicts_target = True

    def __init__(self, quantiles=(), horizon=HORIZON):
        self.quantiles = quantiles
        self.steps = torch.arange(1, horizon + 1)
        self.n_seen = []

    def to(self, device):
        return self

    def predict(self, x, mask=None):
        self.n_seen.append(None if mask is None else int(mask.sum()))
        return x[..., -1:] + (x[..., -1:] - x[..., -2:-1]) * self.steps

    def predict_quantiles(self, x, mask=None):
        width = torch.tensor([q - 0.5 for q in self.quantiles])
        return self.predict(x, mask)[..., None] + width * self.steps[:, None]


def lines(n_steps=40, slopes=(1.0, -2.0), start="2024-01-01", freq="h"):
    """Write straight lines, in which every forecast is known."""
    steps = np.arange(n_steps)
    columns = {f"c{i}": 100.0 * i + slope * steps for i, slope in enumerate(slopes)}
    return pd.DataFrame({"date": pd.date_range(start, periods=n_steps, freq=freq)} | columns)


def long_form(frame):
    return frame.melt("date", var_name="unique_id", value_name="y").rename(columns={"date": "ds"})


def trained(tmp_path, frame, **settings):
    """Return (spec, preprocessing) as a run on this table would leave them."""
    path = tmp_path / "train.csv"
    frame.to_csv(path, index=False)
    data = Series(
        path=str(path), look_back=LOOK_BACK, horizon=HORIZON, batch_size=4, period=4, **settings
    )
    data.prepare()
    path.unlink()
    return data.spec, data.preprocessing


def predict(model, frame, spec, *, windows=0, horizon=HORIZON, step=None, size=3):
    where = place_origins(
        frame, look_back=LOOK_BACK, horizon=horizon, windows=windows, step=step
    )  # fmt: skip
    found, errors = forecast_windows(
        model, where.windows(spec), batches(len(where), size),
        spec=spec, horizon=horizon, device=CPU,
    )  # fmt: skip
    return pd.concat(long_frames(where, found, n_rows=7), ignore_index=True), errors


@pytest.fixture
def opened(tmp_path, monkeypatch):
    """Let the command find a model that is not trained."""
    (tmp_path / "last.ckpt").touch()

    def open_with(model, frame, **settings):
        spec, state = trained(tmp_path, frame, **settings)
        content = {"spec": run.spec_state(spec), "preprocessing": state}
        monkeypatch.setattr(run, "load_model", lambda *_: (None, model, content))
        return tmp_path / "last.ckpt"

    return open_with


def command(**settings):
    settings = {"accelerator": "cpu"} | settings
    with initialize_config_dir(str(CONF), job_name="forecast"):
        cfg = compose("forecast", [f"{key}={value}" for key, value in settings.items()])
    return main(cfg)


def test_a_forecast_follows_the_file_in_its_own_units(tmp_path):
    spec, _ = trained(tmp_path, lines())
    found, errors = predict(Drift(), from_wide(lines(), time_column="date", gaps="refuse"), spec)
    assert not errors and list(found) == ["unique_id", "ds", "cutoff", "y_hat"]
    assert found["unique_id"].tolist() == ["c0"] * 4 + ["c1"] * 4
    expected = lines(44).tail(4)
    for name in ("c0", "c1"):
        own = found[found["unique_id"] == name]
        np.testing.assert_allclose(own["y_hat"], expected[name], rtol=1e-5)
        assert own["ds"].tolist() == expected["date"].tolist()
        assert set(own["cutoff"]) == {lines()["date"].iloc[-1]}


def test_numbered_steps_go_on_as_numbers(tmp_path):
    frame = lines().assign(date=np.arange(0, 400, 10))
    spec, _ = trained(tmp_path, frame)
    found, _ = predict(Drift(), from_wide(frame, time_column="date", gaps="refuse"), spec)
    assert found["ds"].tolist()[:4] == [400, 410, 420, 430] and set(found["cutoff"]) == {390}


def test_cutoffs_end_at_the_end_of_the_file_and_the_future_is_not_seen(tmp_path):
    spec, _ = trained(tmp_path, lines())
    table = lines()
    found, _ = predict(
        Drift(), from_wide(table, time_column="date", gaps="refuse"), spec, windows=3, step=2
    )
    assert found["ds"].max() == table["date"].iloc[-1]
    assert [pd.Timestamp(t) for t in found["cutoff"].unique()] == list(table["date"].iloc[[31, 33, 35]])  # fmt: skip  # noqa: E501
    np.testing.assert_allclose(found["y_hat"], found["y"], rtol=1e-5)
    changed = table.copy()
    changed.loc[32:, ["c0", "c1"]] = -50.0
    again, _ = predict(
        Drift(), from_wide(changed, time_column="date", gaps="refuse"), spec, windows=3, step=2
    )
    first = found["cutoff"] == found["cutoff"].min()
    np.testing.assert_array_equal(found[first]["y_hat"], again[first]["y_hat"])
    assert (again[first]["y"] == -50.0).all()


def test_the_size_of_the_parts_changes_nothing(tmp_path):
    spec, _ = trained(tmp_path, lines())
    frame = from_wide(lines(), time_column="date", gaps="refuse")
    one, _ = predict(Drift((0.1, 0.9)), frame, spec, windows=5, size=1)
    all_at_once, _ = predict(Drift((0.1, 0.9)), frame, spec, windows=5, size=99)
    pd.testing.assert_frame_equal(one, all_at_once)


def test_quantiles_have_columns_and_a_shorter_horizon_cuts_them(tmp_path):
    spec, _ = trained(tmp_path, lines())
    frame = from_wide(lines(), time_column="date", gaps="refuse")
    found, _ = predict(Drift((0.1, 0.5, 0.9)), frame, spec, horizon=2)
    assert list(found)[4:] == ["q0.1", "q0.5", "q0.9"] and len(found) == 4
    np.testing.assert_allclose(found["q0.5"], found["y_hat"])
    assert (found["q0.1"] < found["y_hat"]).all() and (found["y_hat"] < found["q0.9"]).all()


def test_rolling_out_goes_on_from_the_forecasts(tmp_path):
    spec, _ = trained(tmp_path, lines())
    frame = from_wide(lines(), time_column="date", gaps="refuse")
    found, _ = predict(Drift((0.1, 0.9)), frame, spec, horizon=11)
    expected = lines(51).tail(11)
    np.testing.assert_allclose(found["y_hat"][:11], expected["c0"], rtol=1e-5)
    assert list(found) == ["unique_id", "ds", "cutoff", "y_hat"]  # no quantiles
    assert found["ds"].tolist()[:11] == expected["date"].tolist()


def test_rolling_out_takes_its_forecasts_for_seen():
    model, mask = Drift(), torch.ones(1, 1, LOOK_BACK, dtype=torch.bool)
    mask[..., :3] = False
    rolled = roll_out(model.predict, torch.arange(8.0).view(1, 1, 8), mask, horizon=10)
    assert rolled.flatten().tolist() == list(range(8, 18))
    assert model.n_seen == [5, 8, 8]


def test_missing_values_are_masked_and_missing_truth_is_not_scored(tmp_path):
    spec, _ = trained(tmp_path, lines())
    table = lines()
    table.loc[[10, 30, 37], "c0"] = np.nan
    frame = from_wide(table, time_column="date", gaps="refuse")
    found, errors = predict(Drift(), frame, spec, windows=1)
    truth = found[found["unique_id"] == "c0"]["y"]
    assert truth.isna().tolist() == [False, True, False, False]
    assert errors["model"].metrics(block=1)["mse"] == pytest.approx(0.0, abs=1e-8)
    sums = torch.cat(errors["model"].windows, dim=1)
    assert sums[-1].item() == 7  # of 2 channels and 4 steps
    assert found["y_hat"].notna().all()


def test_a_channel_that_was_not_seen_is_not_forecast(tmp_path):
    spec, _ = trained(tmp_path, lines())
    table = lines()
    table.loc[28:, "c1"] = np.nan
    frame = from_wide(table, time_column="date", gaps="refuse")
    with pytest.warns(UserWarning, match="1 of 2 channel windows hold no value"):
        found, _ = predict(Drift(), frame, spec)
    assert found["y_hat"].isna().tolist() == [False] * 4 + [True] * 4
    table.loc[28:, "c0"] = np.nan
    frame = from_wide(table, time_column="date", gaps="refuse")
    where = place_origins(frame, look_back=LOOK_BACK, horizon=HORIZON)
    with pytest.raises(ValueError, match="no channel has a value in the last 8 steps"):
        find_blind(where.windows(spec))


def test_scores_stand_beside_those_of_naive_forecasts(tmp_path):
    spec, _ = trained(tmp_path, lines())
    frame = from_wide(lines(), time_column="date", gaps="refuse")
    _, errors = predict(Drift(), frame, spec, windows=4)
    assert set(errors) == {"model", "repeat_last", "seasonal_naive"}
    mse = {name: one.metrics(block=1)["original/mse"] for name, one in errors.items()}
    expected = np.mean([(slope * step) ** 2 for slope in (1, 2) for step in (1, 2, 3, 4)])
    assert mse["repeat_last"] == pytest.approx(expected, rel=1e-5)
    assert mse["model"] == pytest.approx(0.0, abs=1e-6)
    assert mse["seasonal_naive"] > mse["repeat_last"]


@pytest.mark.parametrize("missing_share", [0.0, 0.1])
def test_every_cutoff_of_the_test_split_gives_the_error_of_the_test_split(missing_share):
    data = ToySeries(
        n_steps=200, n_channels=2, missing_share=missing_share,
        look_back=LOOK_BACK, horizon=HORIZON, batch_size=8,
    )  # fmt: skip
    data.prepare()
    preset = OmegaConf.merge(OmegaConf.load(CONF / "model" / "patchtst.yaml"), SIZE)
    with run.FROM_A_FILE:
        model = run.build_model(OmegaConf.create({"seed": 0, "model": preset}), data.spec).eval()
    split = score_forecasts(
        {"model": model.predict}, data.test_dataloader(), scale=data.spec.scale
    )["model"].metrics(block=1)
    n_windows = len(data.splits["test"])
    _, errors = predict(model, data.load(), data.spec, windows=n_windows, step=1, size=5)
    for key, value in errors["model"].metrics(block=1).items():
        assert value == pytest.approx(split[key], rel=1e-6), key


def test_channels_are_found_by_name_in_either_format(tmp_path):
    spec, state = trained(tmp_path, lines())
    lines()[["c1", "date", "c0"]].to_csv(tmp_path / "wide.csv", index=False)
    long_form(lines()).to_parquet(tmp_path / "long.parquet", index=False)
    wide = read_file(str(tmp_path / "wide.csv"), state, spec, {"format": None})
    long = read_file(str(tmp_path / "long.parquet"), state, spec, {"format": "long"})
    for frame in (wide, long):
        assert frame.channels == ("c0", "c1")
        np.testing.assert_array_equal(frame.values, lines()[["c0", "c1"]].to_numpy().T)


def test_a_panel_takes_series_of_any_name_and_length(tmp_path):
    ragged = long_form(lines()).drop(index=[0, 1, 2, 3])
    spec, state = trained(tmp_path, ragged, format="long")
    assert spec.channels == ("y",)
    other = pd.concat([long_form(lines(20, (3.0,))), long_form(lines(9, (1.0,), "2025-02-03"))])
    other["unique_id"] = ["new"] * 20 + ["short"] * 9
    other.to_csv(tmp_path / "a.csv", index=False)
    frame = read_file(str(tmp_path / "a.csv"), state, spec, {})
    found, _ = predict(Drift(), frame, spec)
    assert found["unique_id"].tolist() == ["new"] * 4 + ["short"] * 4
    np.testing.assert_allclose(found["y_hat"], [60, 63, 66, 69, 9, 10, 11, 12], rtol=1e-4)
    with pytest.warns(UserWarning, match="1 of 2 series are shorter than the 12 steps"):
        scored, _ = predict(Drift(), frame, spec, windows=1)
    assert set(scored["unique_id"]) == {"new"}
    other[other["unique_id"] == "new"].to_csv(tmp_path / "a.csv", index=False)
    alone = read_file(str(tmp_path / "a.csv"), state, spec, {})
    assert predict(Drift(), alone, spec)[0].equals(found[:4])


def test_as_panel_makes_every_channel_a_series():
    spec = SeriesSpec(channels=("y",), look_back=8, horizon=4, location=(0.0,), scale=(1.0,))
    frame = as_panel(from_wide(lines(), time_column="date", gaps="refuse"), spec)
    assert frame.series == ("c0", "c1") and frame.bounds == (0, 40, 80)
    np.testing.assert_array_equal(frame.values[0, 40:], lines()["c1"])


def test_the_sentinel_of_the_training_file_is_missing_here_too(tmp_path):
    spec, state = trained(tmp_path, lines(), sentinel=-9999.0)
    table = lines()
    table.loc[5, "c0"] = -9999.0
    table.to_csv(tmp_path / "a.csv", index=False)
    assert np.isnan(read_file(str(tmp_path / "a.csv"), state, spec, {}).values).sum() == 1
    there = read_file(str(tmp_path / "a.csv"), state, spec, {"sentinel": 0.0})
    assert np.isnan(there.values).sum() == 1 and np.isnan(there.values[0, 0])


def test_a_column_left_out_in_training_is_left_out_here(tmp_path):
    spec, state = trained(tmp_path, lines().assign(note="a"), drop=["note"])
    for name, table in (("a.csv", lines()), ("b.csv", lines().assign(note="b"))):
        table.to_csv(tmp_path / name, index=False)
        assert read_file(str(tmp_path / name), state, spec, {}).channels == ("c0", "c1")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop(columns="c1"), r"lacks channel 'c1' \(1 of 2"),
        (lambda t: t.assign(extra=1.0), r"not trained on 'extra'.*data\.drop=\[extra\]"),
        (lambda t: t.drop(index=20), r"there is a gap: 2024-01-01 20:00"),
        (lambda t: pd.concat([t.head(5), t.iloc[4:]]), "duplicated"),
        (lambda t: t.iloc[::-1], "unsorted"),
        (lambda t: t.assign(c0="high"), "'high'.*finite number"),
        (lambda t: t.assign(date=np.arange(40)), "step by 1, those of training by h"),
        (lambda t: t.iloc[::2], "step by 2h, those of training by h"),
    ],
)
def test_a_file_unlike_the_training_file_is_refused(tmp_path, change, message):
    spec, state = trained(tmp_path, lines())
    table = lines()
    change(table).to_csv(tmp_path / "bad.csv", index=False)
    with pytest.raises(ValueError, match=message):
        read_file(str(tmp_path / "bad.csv"), state, spec, {})


def test_exogenous_columns_of_a_long_file_are_refused(tmp_path):
    spec, state = trained(tmp_path, long_form(lines()), format="long")
    long_form(lines()).assign(holiday=0).to_csv(tmp_path / "bad.csv", index=False)
    with pytest.raises(ValueError, match=r"'holiday' is exogenous"):
        read_file(str(tmp_path / "bad.csv"), state, spec, {})


def test_series_of_other_times_are_no_channels():
    spec = SeriesSpec(
        channels=("c0", "c1"), look_back=8, horizon=4, location=(0.0,) * 2, scale=(1.0,) * 2
    )
    ragged = long_form(lines()).drop(index=[0])
    frame = from_long(
        ragged, time_column="ds", id_column="unique_id", value_column="y", gaps="refuse"
    )
    with pytest.raises(ValueError, match="2 series of the file do not share their times"):
        in_order(frame, spec)


@pytest.mark.parametrize(("ours", "theirs"), [("W-SUN", "W-MON"), ("7D", "W-MON"), ("60min", "h")])
def test_one_step_may_have_two_names(tmp_path, ours, theirs):
    spec, state = trained(tmp_path, lines(freq=ours))
    lines(freq=theirs).to_csv(tmp_path / "a.csv", index=False)
    assert read_file(str(tmp_path / "a.csv"), state, spec, {}).lengths == [40]


def test_a_file_too_short_says_how_long_it_must_be():
    def place(n_steps, **settings):
        frame = from_wide(lines(n_steps), time_column="date", gaps="refuse")
        return place_origins(frame, look_back=LOOK_BACK, horizon=HORIZON, **settings)

    with pytest.raises(ValueError, match="has 7 steps, but the model looks back 8"):
        place(7)
    assert len(place(8)) == 1
    with pytest.raises(ValueError, match="needs 12 for windows=1 of horizon 4 with step=4: give"):
        place(11, windows=1)
    with pytest.raises(ValueError, match=r"needs 20 .*; at most windows=2"):
        place(19, windows=3)
    assert len(place(20, windows=3)) == 3


def test_the_horizon_is_at_most_the_trained_one_unless_rolled():
    assert check_horizon(None, 96, roll=False) == 96 and check_horizon(24, 96, roll=False) == 24
    assert check_horizon(200, 96, roll=True) == 200
    with pytest.raises(ValueError, match=r"data\.horizon=97 is longer than the 96.*roll=true"):
        check_horizon(97, 96, roll=False)
    for value in (0, -1, 2.5):
        with pytest.raises(ValueError, match=r"data\.horizon must be a whole number"):
            check_horizon(value, 96, roll=True)


def test_models_that_do_not_forecast_are_refused_with_the_way_on():
    table = TabularSpec(columns=("a",), cardinalities=(0,), quantiles=((0.0, 1.0),), task="none")
    common = dict(channels=("c",), look_back=8, horizon=4, location=(0.0,), scale=(1.0,))
    series = SeriesSpec(**common)
    label = SeriesSpec(**common, task="binary", classes=("below", "above"))

    class Pretrained:
        predicts_target = False

    for spec, model, message in (
        (table, object(), "of table, and only a model of series forecasts"),
        (label, Drift(), "tells below from above"),
        (series, Pretrained(), r"has no forecast head: train one.*init_from=r"),
    ):
        with pytest.raises(ValueError, match=message):
            check_model(spec, model, "r")
    assert check_model(series, Drift(), "r") is series


def test_the_command_writes_forecasts_and_a_picture(opened, tmp_path, capsys):
    checkpoint = opened(Drift((0.1, 0.5, 0.9)), lines())
    lines(30, start="2025-01-01").to_csv(tmp_path / "new.csv", index=False)
    out = tmp_path / "out.csv"
    command(run=checkpoint, out=out, **{"data.path": tmp_path / "new.csv", "data.horizon": 3})
    found = pd.read_csv(out, parse_dates=["ds", "cutoff"])
    assert list(found) == ["unique_id", "ds", "cutoff", "y_hat", "q0.1", "q0.5", "q0.9"]
    assert found["ds"][0] == pd.Timestamp("2025-01-02 06:00") and len(found) == 6
    assert (tmp_path / "out.png").read_bytes()[:4] == b"\x89PNG"
    assert not (tmp_path / "out.json").exists() and not list(tmp_path.glob(".*"))
    assert "6 forecasts from 1 windows of 2 channels" in capsys.readouterr().out


def test_the_command_scores_every_cutoff(opened, tmp_path, capsys):
    checkpoint = opened(Drift(), lines())
    lines().to_csv(tmp_path / "new.csv", index=False)
    out = tmp_path / "out.parquet"
    settings = {"data.path": tmp_path / "new.csv", "windows": 3, "step": 5, "n_plots": 0}
    command(run=checkpoint, out=out, **settings)
    found = pq.read_table(out).to_pandas()
    content = json.loads((tmp_path / "out.json").read_text())
    assert len(found) == 2 * 3 * 4 and not (tmp_path / "out.png").exists()
    assert [one["cutoff"] for one in content["cutoffs"]] == sorted(found["cutoff"].astype(str).unique())  # fmt: skip  # noqa: E501
    assert [one["n"] for one in content["cutoffs"]] == [8, 8, 8]
    assert content["metrics"]["mse"]["value"] == pytest.approx(0.0, abs=1e-8)
    assert content["baselines"]["repeat_last"]["original/mae"]["value"] == pytest.approx(3.75)
    assert len(content["breakdown"]["mse"]["per_step"]) == 4
    shown = capsys.readouterr().out
    assert "all 3" in shown and "3 of 3 windows end within the time of the training file" in shown


def test_csv_and_parquet_hold_the_same(opened, tmp_path):
    checkpoint = opened(Drift(), lines(freq="D"))
    lines(freq="D").to_csv(tmp_path / "new.csv", index=False)
    for name in ("a.csv", "a.parquet"):
        settings = {"data.path": tmp_path / "new.csv", "windows": 2, "n_plots": 0}
        command(run=checkpoint, out=tmp_path / name, **settings)
    assert "2024-02-01," in (tmp_path / "a.csv").read_text()  # days have no hours
    read = pd.read_csv(tmp_path / "a.csv", parse_dates=["ds", "cutoff"])
    pd.testing.assert_frame_equal(
        read, pd.read_parquet(tmp_path / "a.parquet"), check_dtype=False, rtol=1e-12
    )


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    out = tmp_path / "a.csv"
    out.write_text("old")

    def frames():
        yield pd.DataFrame({"ds": [1], "y_hat": [1.0]})
        raise OSError(28, "No space left on device")

    with pytest.raises(ValueError, match=r"cannot be written.*nothing was left behind"):
        write_frames(out, frames())
    assert out.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["a.csv"]


def test_settings_are_checked_first(tmp_path):
    def settings(**changes):
        given = {"run": "r", "data.path": "b.csv", "out": "a.csv"} | changes
        with initialize_config_dir(str(CONF), job_name="forecast"):
            return compose("forecast", [f"{key}={value}" for key, value in given.items()])

    assert check_settings(settings()).name == "a.csv"
    for changes, message in (
        ({"out": "a.npy"}, "must end in .csv or .parquet"),
        ({"out": tmp_path / "absent" / "a.csv"}, "no folder"),
        ({"out": "b.csv"}, "would overwrite the series"),
        ({"windows": -1}, "windows must be a whole number from 0"),
        ({"windows": "null"}, "windows must be a whole number from 0, got None"),
        ({"windows": 2, "step": 0}, "step must be a whole number from 1"),
        ({"step": 3}, "step=3 has no effect without windows"),
        ({"batch_size": 0}, "batch_size must be a whole number from 1"),
        ({"n_plots": -2}, "n_plots must be a whole number from 0"),
    ):
        with pytest.raises(ValueError, match=message):
            check_settings(settings(**changes))


def test_a_picture_shows_fan_and_truth(tmp_path):
    fan = np.arange(4.0)[:, None] + np.array([-1.0, 0.0, 1.0])
    common = dict(times=np.arange(12), history=np.arange(8.0), forecast=np.arange(4.0))
    plain = Panel(title="a", fan=np.empty((4, 0)), **common)
    full = Panel(title="a", fan=fan, levels=(0.1, 0.5, 0.9), truth=np.full(4, np.nan), **common)
    sizes = set()
    for i, panels in enumerate(([plain], [full], [plain, full])):
        draw_forecasts(tmp_path / f"{i}.png", panels)
        sizes.add((tmp_path / f"{i}.png").stat().st_size)
    assert len(sizes) == 3 and min(sizes) > 5000


@pytest.mark.slow
@pytest.mark.ci
def test_the_checkpoint_of_a_run_forecasts_a_new_file_without_the_training_file(tmp_path):
    def call(module, *arguments):
        return subprocess.run(
            [sys.executable, "-m", module, *map(str, arguments)],
            cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    lines(400, (0.01, -0.01)).to_csv(tmp_path / "train.csv", index=False)
    trained = call(
        "jepa.train", "data=series", "data.path=train.csv", "data.look_back=16", "data.horizon=8",
        "data.batch_size=16", "model=patchtst", "model.quantiles=[0.1,0.5,0.9]",
        *(f"model.{key}={value}" for key, value in SIZE.items()),
        "trainer=cpu", "trainer.max_epochs=1", "logger=csv", "hydra.run.dir=run",
    )  # fmt: skip
    assert trained.returncode == 0, trained.stdout + trained.stderr
    (tmp_path / "train.csv").unlink()
    lines(60, (0.02, 0.0), "2025-01-01").to_csv(tmp_path / "new file, (1).csv", index=False)
    source = 'data.path="new file, (1).csv"'
    done = call("jepa.forecast", "run=run", source, "data.horizon=5", "accelerator=cpu")
    assert done.returncode == 0, done.stdout + done.stderr
    found = pd.read_csv(tmp_path / "forecast.csv")
    assert len(found) == 10 and np.isfinite(found[["y_hat", "q0.1", "q0.9"]].to_numpy()).all()
    scored = call("jepa.forecast", "run=run/checkpoints/last.ckpt", source, "windows=4", "out=b.parquet")  # fmt: skip  # noqa: E501
    assert scored.returncode == 0 and "all 4" in scored.stdout, scored.stderr
    assert {path.name for path in tmp_path.iterdir()} == {
        "run", "new file, (1).csv", "forecast.csv", "forecast.png",
        "b.parquet", "b.png", "b.json",
    }  # fmt: skip
    for argument, message in (
        ("data.horizon=9", "longer than the 8 steps"),
        ("data.horizon=0", "data.horizon must be a whole number"),
        ("widows=2", "did you mean windows"),
        ("data.path=absent.csv", "does not exist"),
    ):
        failed = call("jepa.forecast", "run=run", source, "out=c.csv", argument)
        assert failed.returncode and message in failed.stderr, failed.stderr
        assert "Traceback" not in failed.stderr and failed.stderr.count("error:") == 1
    assert not (tmp_path / "c.csv").exists()
