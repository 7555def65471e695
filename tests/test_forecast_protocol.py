"""What stands behind every number of a forecast: sums over windows, baselines, the probe."""

import json
import os
import subprocess
import sys
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from sklearn.linear_model import Ridge
from support import overrides_for, run_training, settings, write_table

from jepa import baselines
from jepa.data.batches import OrderedBatches
from jepa.data.etth1 import ETTh1
from jepa.data.toy_series import ToySeries
from jepa.data.windows import Windows
from jepa.forecasting import Errors, score_forecasts
from jepa.metrics import mean_over_blocks
from jepa.nn.norm import normalize
from jepa.probes.forecast import forecast, held_out

DATA = Path(os.environ.get("JEPA_DATA", "data"))
LOOK_BACK, HORIZON = 12, 5


def windows(*, n_steps=80, n_channels=2, missing=False, starts=None, seed=0):
    g = torch.Generator().manual_seed(seed)
    values = torch.randn(n_channels, n_steps, generator=g).cumsum(1) + 3
    observed = None
    if missing:
        observed = torch.rand(n_channels, n_steps, generator=g) > 0.01
        values = values * observed
    if starts is None:
        starts = torch.arange(n_steps - LOOK_BACK - HORIZON + 1)
    return Windows(
        values=values, starts=starts, observed=observed, look_back=LOOK_BACK, horizon=HORIZON
    )


def fitted(split):
    return baselines.fit_linear(
        split.values, split.starts, look_back=LOOK_BACK, horizon=HORIZON, observed=split.observed
    )


def brute_force(split):
    """The closed form written out: every complete window of every channel as a row."""
    batch = split.take(torch.arange(len(split)))
    x, y = batch["x"].flatten(0, 1).double(), batch["y"].flatten(0, 1).double()
    if "mask" in batch:
        whole = batch["mask"].flatten(0, 1).all(1)
        x, y = x[whole], y[whole]
    mean = x.mean(1, keepdim=True)
    a, b = (x - mean).numpy(), (y - mean).numpy()
    alpha = 1e-3 * np.square(a).sum(0).mean()
    return Ridge(alpha=alpha, fit_intercept=False).fit(a, b).coef_.T


class TestBaselines:
    @pytest.mark.parametrize(
        "split",
        [
            windows(),
            windows(missing=True),
            windows(starts=torch.tensor([0, 1, 2, 7, 20, 21, 40, 63])),
            windows(starts=torch.arange(0, 60, 2), n_channels=3),
        ],
        ids=["neighbours", "missing", "runs", "strided"],
    )
    def test_the_closed_form_equals_ridge_on_every_window(self, split):
        np.testing.assert_allclose(fitted(split), brute_force(split), rtol=1e-6, atol=1e-9)

    def test_windows_of_one_step_have_a_closed_form(self):
        values = torch.randn(1, 9)
        found = baselines.fit_linear(values, torch.arange(8), look_back=1, horizon=1)
        assert found.item() == 0  # nothing is left of a window of one step but its mean

    def test_a_constant_series_is_forecast_as_it_is(self):
        split = windows()
        constant = torch.full_like(split.values, 3.0)
        weights = baselines.fit_linear(constant, split.starts, look_back=LOOK_BACK, horizon=HORIZON)
        x = torch.full((2, 2, LOOK_BACK), 5.0)
        assert (baselines.linear_forecast(x, weights) == 5).all()

    def test_no_complete_window_is_said(self):
        split = windows()
        with pytest.raises(ValueError, match="no training window of 17 steps"):
            baselines.fit_linear(
                split.values, split.starts, look_back=LOOK_BACK, horizon=HORIZON,
                observed=torch.zeros_like(split.values, dtype=torch.bool),
            )  # fmt: skip

    def test_repeat_last_and_seasonal_naive_repeat(self):
        x = torch.tensor([[[1.0, 2.0, 3.0, 4.0]]])
        assert baselines.repeat_last(x, horizon=3).tolist() == [[[4, 4, 4]]]
        assert baselines.seasonal_naive(x, horizon=5, period=3).tolist() == [[[2, 3, 4, 2, 3]]]
        with pytest.raises(ValueError, match="period=5"):
            baselines.seasonal_naive(x, horizon=5, period=5)

    def test_missing_steps_repeat_the_last_known_value(self):
        x = torch.tensor([[[0.0, 2.0, 0.0, 4.0], [0.0, 0.0, 0.0, 0.0]]])
        known = torch.tensor([[[False, True, False, True], [False] * 4]])
        assert baselines.fill(x, known).tolist() == [[[2, 2, 2, 4], [0, 0, 0, 0]]]
        assert baselines.fill(x, None) is x


class TestErrors:
    @pytest.mark.parametrize("missing_share", [0.0, 0.05])
    def test_the_size_of_the_batch_changes_no_number(self, missing_share):
        data = ToySeries(
            look_back=24, horizon=8, batch_size=16, n_steps=400, missing_share=missing_share
        )
        data.prepare()
        split = data.splits["test"]
        layer = torch.nn.Linear(24, 8)

        def scores(batch_size):
            (errors,) = score_forecasts(
                {"model": lambda x, mask: layer(x)},
                OrderedBatches(split, batch_size),
                scale=data.spec.scale,
            ).values()
            return errors.metrics(block=32), errors.breakdown()

        whole = scores(len(split))
        for batch_size in (1, 7, 128):
            metrics, breakdown = scores(batch_size)
            assert metrics == pytest.approx(whole[0], rel=1e-6)
            assert breakdown["mse"]["per_step"] == pytest.approx(whole[1]["mse"]["per_step"])

    def test_units_steps_and_channels_equal_their_definitions(self):
        predicted, y = torch.randn(6, 2, 3), torch.randn(6, 2, 3)
        observed = torch.rand(6, 2, 3) > 0.3
        scale = torch.tensor([2.0, 5.0])
        errors = Errors(scale.tolist())
        errors.update(predicted[:4], y[:4], observed[:4])
        errors.update(predicted[4:], y[4:], observed[4:])
        metrics, parts = errors.metrics(block=1), errors.breakdown()
        square, n = (predicted - y).square() * observed, observed.sum()
        original = square * scale[:, None].square()
        assert metrics["error"] == metrics["mse"] == pytest.approx((square.sum() / n).item())
        assert metrics["original/mse"] == pytest.approx((original.sum() / n).item())
        per_step = square.sum((0, 1)) / observed.sum((0, 1))
        per_channel = original.sum((0, 2)) / observed.sum((0, 2))
        assert parts["mse"]["per_step"] == pytest.approx(per_step.tolist())
        assert parts["original/mse"]["per_channel"] == pytest.approx(per_channel.tolist())
        absolute = ((predicted - y).abs() * scale[:, None] * observed).sum() / n
        assert metrics["original/mae"] == pytest.approx(absolute.item())

    def test_a_channel_never_observed_has_no_error(self):
        errors = Errors([1.0, 1.0])
        observed = torch.tensor([[[True], [False]]])
        errors.update(torch.ones(1, 2, 1), torch.zeros(1, 2, 1), observed)
        assert errors.breakdown()["mae"]["per_channel"] == [1.0, None]


class TestIntervals:
    def test_blocks_widen_the_interval_of_neighbours_that_err_together(self):
        sums = torch.randn(40).repeat_interleave(25).square()
        ones = torch.ones(1000)
        alone = mean_over_blocks(sums, ones, block=1, n_bootstrap=300)
        together = mean_over_blocks(sums, ones, block=50, n_bootstrap=300)
        assert alone == together == pytest.approx(sums.mean().item())
        assert together.high - together.low > 3 * (alone.high - alone.low)

    def test_blocks_of_one_row_equal_the_bootstrap_of_the_mean(self):
        sums = torch.randn(400) + 2
        found = mean_over_blocks(sums, torch.ones(400), block=1, n_bootstrap=2000)
        half = 1.96 * sums.std().item() / 20
        assert found.high - found.low == pytest.approx(2 * half, rel=0.1)

    def test_the_seed_decides_the_blocks(self):
        sums, ones = torch.rand(100), torch.ones(100)
        a, b, c = (mean_over_blocks(sums, ones, block=5, n_bootstrap=50, seed=s) for s in (0, 0, 1))
        assert (a.low, a.high) == (b.low, b.high) != (c.low, c.high)

    def test_fewer_than_two_blocks_have_no_interval(self):
        found = mean_over_blocks(torch.rand(9), torch.ones(9), block=5, n_bootstrap=50)
        assert found.low is found.high is None and found.n == 9


def codes(n=300, *, f=6, h=3, seed=0, noise=0.1):
    """Codes that end with location and scale, and futures that are linear in them."""
    g = torch.Generator().manual_seed(seed)
    features, location = torch.randn(n, f, generator=g), torch.randn(n, 1, generator=g)
    scale = torch.rand(n, 1, generator=g) + 0.1
    y = features @ torch.randn(f, h, generator=torch.Generator().manual_seed(9))
    y = (y + noise * torch.randn(n, h, generator=g)) * scale + location
    return torch.cat([features, location, scale], dim=1), y


def by_hand(x, y, x_val, l2):
    """Weighted ridge on features over their root mean square, by scikit-learn."""
    features, location, scale = x[:, :-2].double(), x[:, -2:-1].double(), x[:, -1:].double()
    sizes = features.square().mean(0).sqrt()
    weight = (scale.square() / scale.square().mean())[:, 0].numpy()
    left = ((y.double() - location) / scale).numpy()
    fit = Ridge(alpha=l2, fit_intercept=False).fit((features / sizes).numpy(), left, weight)
    predicted = torch.from_numpy(fit.predict((x_val[:, :-2].double() / sizes).numpy()))
    return predicted * x_val[:, -1:] + x_val[:, -2:-1]


class TestProbe:
    @pytest.mark.parametrize("l2", [0.1, 50.0])
    def test_it_equals_weighted_ridge(self, l2, monkeypatch):
        monkeypatch.setattr("jepa.probes.forecast._ROWS", 7)  # sums of chunks are those of all
        (x, y), (x_val, y_val) = codes(), codes(50, seed=1)
        found = forecast(x, y, x_val, y_val, l2=l2, seed=0)
        error = by_hand(x, y, x_val, l2) - y_val
        assert found["error"] == found["mse"] == pytest.approx(error.square().mean().item())
        assert found["mae"] == pytest.approx(error.abs().mean().item())

    def test_the_penalty_is_chosen_on_held_out_rows(self):
        noisy = {"f": 40, "noise": 5.0}
        (x, y), (x_val, y_val) = codes(60, **noisy), codes(400, **noisy, seed=1)
        chosen = forecast(x, y, x_val, y_val, seed=0)["error"]
        assert chosen < forecast(x, y, x_val, y_val, l2=1e-2, seed=0)["error"]

    def test_the_held_out_rows_are_one_stretch_placed_by_the_seed(self):
        rows = held_out(100, 3).nonzero()[:, 0]
        assert len(rows) == 20 and rows[-1] - rows[0] == 19
        assert not torch.equal(rows, held_out(100, 4).nonzero()[:, 0])

    def test_the_seed_reaches_the_choice(self):
        (x, y), (x_val, y_val) = codes(60, f=30, noise=2.0), codes(60, f=30, seed=1)
        assert len({forecast(x, y, x_val, y_val, seed=s)["error"] for s in range(8)}) > 1

    def test_missing_targets_are_left_out(self):
        (x, y), (x_val, y_val) = codes(), codes(50, seed=1)
        gone, part = y.clone(), y_val.clone()
        gone[::3, 1] = torch.nan
        part[::2, 0] = torch.nan
        kept = ~gone.isnan().any(1)
        found = forecast(x, gone, x_val, part, l2=1.0, seed=0)
        assert found["error"] < 0.1
        error = (by_hand(x[kept], y[kept], x_val, 1.0) - y_val)[~part.isnan()]
        assert found["mse"] == pytest.approx(error.square().mean().item(), rel=1e-6)

    def test_mixed_channels_have_a_map_each(self):
        parts, futures = zip(*(codes(200, seed=s) for s in (1, 2)), strict=True)
        shared = torch.cat([p[:, :-2] for p in parts], dim=1)
        statistics = torch.stack([p[:, -2:] for p in parts], dim=2).flatten(1)  # all of one kind
        x, y = torch.cat([shared, statistics], dim=1), torch.cat(futures, dim=1)
        found = forecast(x[:150], y[:150], x[150:], y[150:], seed=0, horizon=3)
        assert found["error"] < 0.05

    def test_labels_are_sent_to_ridge(self):
        x, _ = codes(20)
        with pytest.raises(ValueError, match="probe=ridge"):
            forecast(x, torch.arange(20) % 2, x, torch.arange(20) % 2, seed=0)

    def test_codes_that_are_not_finite_are_refused(self):
        x, y = codes(20)
        x[3, 0] = torch.inf
        with pytest.raises(ValueError, match="1 of 20 rows"):
            forecast(x, y, x, y, seed=0)

    @pytest.mark.parametrize("n", [1, 2, 3])
    def test_a_few_rows_give_a_number(self, n):
        x, y = codes(n)
        assert np.isfinite(forecast(x, y, x, y, seed=0)["error"])


@pytest.mark.ci
@pytest.mark.slow
@pytest.mark.parametrize(
    ("horizon", "mse", "mae"),
    [(96, 0.3701, 0.3914), (192, 0.4033, 0.4106), (336, 0.4264, 0.4246), (720, 0.4225, 0.4430)],
)
def test_the_closed_form_gives_the_known_errors_of_etth1(horizon, mse, mae):
    """An exact test of reader, borders, scaler, windows and metric at once."""
    if not (DATA / "ett" / "ETTh1.csv").is_file():
        pytest.skip(f"ett/ETTh1.csv is not below JEPA_DATA={DATA}")
    data = ETTh1(data_dir=str(DATA), look_back=336, horizon=horizon, batch_size=128)
    data.prepare()
    train = data.splits["train"]
    weights = baselines.fit_linear(
        train.values, train.starts, look_back=336, horizon=horizon, observed=train.observed
    )
    (errors,) = score_forecasts(
        {"closed_form": lambda x, mask: baselines.linear_forecast(x, weights)},
        OrderedBatches(data.splits["test"], 128),
        scale=data.spec.scale,
    ).values()
    found = errors.metrics(block=336 + horizon)
    assert found["mse"] == pytest.approx(mse, abs=5e-4)
    assert found["mae"] == pytest.approx(mae, abs=5e-4)


class Layer(torch.nn.Linear):
    def __init__(self, look_back, width, slope=1.0):
        super().__init__(look_back, width)
        self.slope = slope


class Coder(L.LightningModule):
    """Stands in for a self-supervised model: codes of each channel, then location and scale."""

    def __init__(self, *, spec, width, slope=1.0):
        super().__init__()
        self.encoder = Layer(spec.look_back, width, slope)

    def embed(self, x):
        z, location, scale = normalize(x)
        return torch.cat([self.encoder(z), location, scale], dim=-1).flatten(0, 1)

    def loss(self, x):
        z = normalize(x)[0]
        return (self.encoder(z) @ self.encoder.weight - z).square().mean()

    def training_step(self, batch, batch_idx):
        return self.loss(batch["x"])

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", self.loss(batch["x"]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Forecaster(Coder):
    """Stands in for a supervised one."""

    predicts_target = True

    def __init__(self, *, spec, width, slope=1.0):
        super().__init__(spec=spec, width=width, slope=slope)
        self.head = torch.nn.Linear(width, spec.horizon)

    def predict(self, x, mask=None):
        z, location, scale = normalize(x, mask)
        return self.head(self.encoder(z)) * scale + location

    def loss(self, x, y=0.0):
        return (self.predict(x) - y).square().mean()

    def transfer(self, state):
        own = self.encoder.state_dict()
        for key, value in own.items():
            if state[f"encoder.{key}"].shape != value.shape:
                raise ValueError(f"encoder.{key} has another shape")
        self.encoder.load_state_dict({key: state[f"encoder.{key}"] for key in own})

    def training_step(self, batch, batch_idx):
        return self.loss(batch["x"], batch["y"])

    def validation_step(self, batch, batch_idx):
        self.log("val/error", self.loss(batch["x"], batch["y"]))


def node(model, **settings):
    target = {"_target_": f"test_forecast_protocol.{model}", "_partial_": True}
    return target | {"width": 4, "slope": 1.0} | settings


def run(folder, model, *overrides, **keys):
    """Train a stand-in on the toy series, as the command does; return the report."""
    from jepa.run import FROM_THE_USER
    from jepa.train import train

    cfg = settings(
        folder, "data=toy_series", "data.n_steps=400", "data.look_back=24", "data.horizon=8",
        "data.batch_size=16", "trainer=cpu", "trainer.max_epochs=1", "logger=csv",
        "trainer.check_val_every_n_epoch=1", *overrides,
    )  # fmt: skip
    OmegaConf.set_struct(cfg, False)
    cfg.model = node(model)
    cfg = OmegaConf.merge(cfg, keys)
    folder.mkdir(exist_ok=True)
    with FROM_THE_USER:
        train(cfg, folder)
    return json.loads((folder / "report.json").read_text())


NAMES = ("error", "mse", "mae", "original/mse", "original/mae")
BASELINES = ("closed_form", "seasonal_naive", "repeat_last")


class TestRuns:
    def test_a_forecaster_is_scored_by_its_own_forecasts(self, tmp_path, capsys):
        report = run(tmp_path, "Forecaster")
        assert report["objective"]["name"] == "val/error" and report["objective"]["value"] > 0
        assert report["metrics"].keys() == {f"test/{name}" for name in NAMES}
        assert report["metrics"]["test/mse"]["n"] == 73  # every test window, whatever the batch
        assert list(report["controls"]) == ["untrained"]
        assert list(report["baselines"]) == list(BASELINES)
        assert all(one.keys() == report["metrics"].keys() for one in report["baselines"].values())
        closed = report["baselines"]["closed_form"]["test/mse"]
        gap = report["metrics"]["test/mse"]["value"] - closed["value"]
        assert closed["difference"]["value"] == pytest.approx(gap)
        assert closed["difference"]["low"] < gap < closed["difference"]["high"]
        parts = report["breakdown"]["model"]["test/original/mse"]
        assert len(parts["per_step"]) == 8 and len(parts["per_channel"]) == 3
        assert "stamp" not in report and "stamp" not in report["metrics"]["test/mse"]
        shown = capsys.readouterr().out
        assert "closed_form" in shown and "the closed-form linear forecast" in shown

    def test_codes_are_scored_by_the_forecast_probe(self, tmp_path):
        report = run(tmp_path, "Coder")
        assert report["objective"]["name"] == "probe/forecast/error"
        assert {f"test/forecast/{name}" for name in ("error", "mse", "mae")} <= set(
            report["metrics"]
        )
        assert list(report["controls"]) == ["untrained", "raw"]
        assert report["metrics"]["test/forecast/mse"]["n"] == 73 * 3
        assert set(report["baselines"]) == set(BASELINES)

    def test_a_forecaster_is_probed_where_that_is_asked_for(self, tmp_path):
        report = run(tmp_path, "Forecaster", "probes=[forecast]")
        assert {"test/mse", "test/forecast/mse"} <= set(report["metrics"])
        assert report["objective"]["name"] == "val/error"
        with (tmp_path / "metrics.csv").open() as file:
            assert "probe/forecast/error" in file.readline()

    def test_every_number_of_the_flattering_protocol_says_so(self, tmp_path, capsys):
        report = run(tmp_path, "Forecaster", "data.protocol=official_drop_last")
        assert report["stamp"] == "official_drop_last"
        assert report["metrics"]["test/mse"]["n"] == 64  # 73 windows, batches of 16
        groups = [report["metrics"], *report["controls"].values(), *report["baselines"].values()]
        assert all(one["stamp"] == report["stamp"] for group in groups for one in group.values())
        assert (tmp_path / "report.md").read_text().startswith("# Report (official_drop_last)")
        said = [line for line in capsys.readouterr().out.splitlines() if "DOES NOT BEAT" in line]
        assert said and all("official_drop_last" in line for line in said)

    def test_missing_values_reach_no_number_as_zeros(self, tmp_path):
        report = run(tmp_path, "Forecaster", "data.missing_share=0.002")
        assert set(report["baselines"]) == set(BASELINES)
        assert report["baselines"]["closed_form"]["test/mse"]["value"] < 1

    def test_a_criterion_may_stand_against_a_baseline(self, tmp_path):
        criteria = [
            {"name": "a", "metric": "test/mse", "at_most": 1e9, "against": "closed_form"},
            {"name": "b", "metric": "test/forecast/mse", "at_most": 1e-9, "against": "repeat_last"},
        ]
        report = run(tmp_path, "Forecaster", "probes=[forecast]", criteria=criteria)
        assert [one["passed"] for one in report["criteria"]] == [True, False]
        baseline = report["baselines"]["repeat_last"]["test/mse"]["value"]
        measured = report["metrics"]["test/forecast/mse"]["value"]
        assert report["criteria"][1]["value"] == pytest.approx(measured / baseline)

    def test_a_model_starts_from_the_encoder_of_another_run(self, tmp_path):
        run(tmp_path / "a", "Coder")
        idle = {"init_from": str(tmp_path / "a"), "trainer": {"max_steps": 1}}
        run(tmp_path / "b", "Forecaster", **idle)
        saved = [
            torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)
            for name in "ab"
        ]
        a, b = (one["state_dict"]["encoder.weight"] for one in saved)
        assert (a - b).abs().max() < 0.05  # one step of SGD away
        with pytest.raises(ValueError, match=r"init_from=.*Coder cannot start"):
            run(tmp_path / "c", "Coder", init_from=str(tmp_path / "a"))
        with pytest.raises(FileNotFoundError, match="init_from=nowhere"):
            run(tmp_path / "d", "Forecaster", init_from="nowhere")

    def test_stages_follow_from_the_best_checkpoint(self, tmp_path):
        stages = {
            "probe": {"model": node("Forecaster")},
            "finetune": {"model": node("Forecaster"), "trainer": {"max_epochs": 2}},
        }
        report = run(tmp_path, "Coder", stages=stages)
        for name in stages:
            stage = json.loads((tmp_path / name / "report.json").read_text())
            for metric in NAMES:
                assert (
                    report["metrics"][f"test/{name}/{metric}"] == stage["metrics"][f"test/{metric}"]
                )
            assert report["breakdown"][name] == stage["breakdown"]["model"]
        assert "max_epochs=2" in stage["reason"]
        assert report["objective"]["name"] == "probe/forecast/error"
        start = OmegaConf.load(tmp_path / "finetune" / "config.yaml").init_from
        assert start == str(tmp_path / "checkpoints" / "best.ckpt")

    def test_a_stage_takes_the_width_that_a_size_asks_for(self, tmp_path):
        from jepa.stages import stages_of

        composed = OmegaConf.create({
            "size": "2m", "resume": "never", "trainer": {"max_epochs": 3}, "model": {"width": 16},
            "stages": {"probe": {"model": {"width": "${model.width}"}}},
            "time_budget": {"hours": 8},
        })  # fmt: skip
        settled = composed.copy()
        settled.model.width = 180
        stage = stages_of(composed, settled, tmp_path)["probe"]
        assert (stage.model.width, stage.size, stage.trainer.max_epochs) == (180, None, 3)
        assert stage.time_budget.hours is None  # those hours are of the first run

    @pytest.mark.parametrize(
        ("stages", "message"),
        [
            ({"probe": {"trainer": {}}}, r"stages\.probe takes model"),
            ({"probe": {"model": node("Forecaster"), "epochs": 3}}, "epochs"),
            (
                {"probe": {"model": node("Forecaster", width=5)}},
                r"stages\.probe: .*width=4 there, 5 here",
            ),
            ({"probe": {"model": node("Forecaster", slope=2.0)}}, "slope=1.0 there, 2.0 here"),
            ({"probe": {"model": node("Coder")}}, r"stages\.probe: a Coder cannot start"),
        ],
    )
    def test_a_stage_that_would_fail_fails_before_training(self, tmp_path, stages, message):
        with pytest.raises(ValueError, match=message):
            run(tmp_path, "Coder", stages=stages)
        assert not (tmp_path / "checkpoints").exists()

    @pytest.mark.parametrize(
        ("model", "override", "message"),
        [
            ("Coder", "probes=[knn]", r"'knn'.*next 8 steps.*probe=forecast"),
            ("Coder", "objective=probe/forecast/rmse", "objective=probe/forecast/rmse"),
            ("Forecaster", "objective=probe/forecst/error", "nothing logs that"),
        ],
    )
    def test_what_would_fail_later_fails_before_training(self, tmp_path, model, override, message):
        with pytest.raises(ValueError, match=message):
            run(tmp_path, model, override)
        assert not (tmp_path / "checkpoints").exists()

    def test_a_table_is_not_probed_for_forecasts(self, tmp_path):
        table = write_table(tmp_path / "table.csv")
        with pytest.raises(ValueError, match="probe=ridge"):
            run_training(tmp_path / "run", *overrides_for(table), "probes=[forecast]")

    def test_a_checkpoint_of_other_channels_is_refused(self, tmp_path):
        run(tmp_path / "a", "Forecaster")
        for change, message in (
            ("data.n_channels=2", r"its 3 channels are \[c0, c1, c2\], here they are 2 \[c0, c1\]"),
            ("data.look_back=23", "its look_back is 24, here it is 23"),
            ("data.horizon=7", "its horizon is 8, here it is 7"),
        ):
            with pytest.raises(ValueError, match=message):
                run(tmp_path / "b", "Forecaster", change, resume=str(tmp_path / "a"))


TINY = (
    "data.n_steps=400", "data.look_back=24", "data.horizon=8", "data.batch_size=16", "trainer=cpu",
    "trainer.max_epochs=1", "trainer.check_val_every_n_epoch=1", "logger=csv", "model.width=8",
    "model.depth=1", "model.n_heads=2", "model.patch=8", "model.stride=8",
)  # fmt: skip


class TestPatchTST:
    def test_a_run_writes_what_is_of_record(self, tmp_path):
        value = run_training(tmp_path, "data=toy_series", "model=patchtst", *TINY)
        report = json.loads((tmp_path / "report.json").read_text())
        assert {"objective", "metrics", "controls", "baselines", "breakdown"} <= report.keys()
        assert report["objective"] == {"name": "val/error", "value": value}
        assert report["metrics"].keys() == {f"test/{name}" for name in NAMES}
        assert set(report["baselines"]) == set(BASELINES)
        files = {path.name for path in tmp_path.iterdir()}
        assert {"config.yaml", "metrics.csv", "report.md", "checkpoints"} <= files
        cfg = OmegaConf.load(tmp_path / "config.yaml")
        assert cfg.probe_name == "forecast" and cfg.probes == []

    def test_validation_logs_what_the_report_says(self, tmp_path):
        """The model's own sums over validation windows are those of the report."""
        run_training(tmp_path, "data=toy_series", "model=patchtst", *TINY, "test=false")
        report = json.loads((tmp_path / "report.json").read_text())
        logged = report["objective"]["value"]
        assert report["metrics"]["val/error"]["value"] == pytest.approx(logged, rel=1e-5)

    def test_a_classifier_is_scored_beside_the_class_shares(self, tmp_path):
        tiny = [one for one in TINY if not one.startswith(("data.n_steps", "data.horizon"))]
        run_training(tmp_path, "data=toy_ohlcv", "data.n_days=1200", "model=patchtst", *tiny)
        report = json.loads((tmp_path / "report.json").read_text())
        assert {"test/error", "test/roc_auc", "test/log_loss"} <= set(report["metrics"])
        assert list(report["controls"]) == ["untrained", "chance"] and not report["baselines"]
        error = report["metrics"]["test/error"]
        assert error["low"] <= error["value"] <= error["high"]
        assert report["objective"]["name"] == "val/error"

    @pytest.mark.slow
    @pytest.mark.ci
    def test_the_commands_train_pretrain_and_evaluate(self, tmp_path):
        def command(module, *arguments):
            done = subprocess.run(
                [sys.executable, "-m", f"jepa.{module}", *arguments], cwd=tmp_path, check=False,
                capture_output=True, text=True, timeout=600,
            )  # fmt: skip
            assert not done.returncode, done.stderr
            return done.stdout

        command(
            "train", "+experiment=patchtst_ssl_etth1", "data=toy_series", "hydra.run.dir=out",
            *TINY, "stages.probe.trainer.max_epochs=1", "stages.finetune.trainer.max_epochs=2",
        )  # fmt: skip
        report = json.loads((tmp_path / "out" / "report.json").read_text())
        assert {"test/forecast/mse", "test/probe/mse", "test/finetune/mse"} <= set(
            report["metrics"]
        )
        assert all(one["passed"] is not None for one in report["criteria"])
        states = [
            torch.load(path / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
            for path in (tmp_path / "out", tmp_path / "out" / "probe")
        ]
        names = [name for name in states[0] if name.startswith("encoder.")]
        best = torch.load(tmp_path / "out" / "checkpoints" / "best.ckpt", weights_only=True)
        for name in names:  # statistics of the norms too
            assert torch.equal(states[1][name], best["state_dict"][name]), name
        shown = command("evaluate", "run=out/finetune", "probe=forecast", "split=val")
        assert "val/forecast/mse" in shown and "closed_form" in shown
        content = json.loads((tmp_path / "out" / "finetune" / "evaluation.json").read_text())
        assert {"val/mse", "val/forecast/mse"} <= set(content["metrics"])
