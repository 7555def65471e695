"""The collapse watch: judged against step 0, slow to change its mind, and acting as told."""

import json
from types import SimpleNamespace

import pytest
import torch

from jepa.bands import Band, bands
from jepa.callbacks.collapse import MAX_RESTORES, Collapse
from jepa.probes.health import health, nearest_agreement
from tests.support import overrides_for, run_training, write_table

HEALTHY, BAD, WARN = {"std": 1.0}, {"std": 0.01}, {"std": 0.15}


def watch(tmp_path, **settings):
    base = dict(every_share=0.1, n_rows=16, patience=2, action="stop", seed=0)
    return Collapse(run_dir=str(tmp_path), **base | settings)


def trainer(**parts):
    return SimpleNamespace(global_step=7, should_stop=False, optimizers=[], **parts)


def events(tmp_path, kind="collapse"):
    path = tmp_path / "events.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [one for one in map(json.loads, lines) if one["kind"] == kind]


def test_a_band_has_three_states_on_its_side():
    low, high = Band("low", 0.4, 0.1), Band("high", 5, 50)
    assert [low.state(v) for v in (1.0, 0.4, 0.3, 0.05)] == [
        "healthy",
        "healthy",
        "warn",
        "critical",
    ]
    assert [high.state(v) for v in (1.0, 6.0, 60.0)] == ["healthy", "warn", "critical"]
    assert low.state(float("nan")) == "critical"


def test_bands_are_ordered():
    for group in ("features", "run"):
        for name, band in bands(group).items():
            sign = 1 if band.side == "high" else -1
            assert sign * band.warn < sign * band.critical, name


def test_health_is_zero_in_a_full_collapse_and_not_otherwise():
    rng = torch.Generator().manual_seed(0)
    codes, y = torch.randn(64, 8, generator=rng), torch.arange(64) % 4
    one = health(codes[:1].expand(64, 8).contiguous(), y)
    assert one["std"] < 1e-6 and one["rankme"] < 1e-3 and one["spread"] < 1e-6
    alive = health(codes, y)
    assert alive["std"] > 0.5 and alive["rankme"] > 4 and alive["spread"] > 0.5


def test_nearest_agreement_is_one_less_chance_for_separate_classes():
    y = torch.arange(40) % 2
    codes = torch.stack([y.float(), 1 - y.float()], dim=1)
    assert nearest_agreement(codes, y) == pytest.approx(0.5)


def test_numbers_have_no_nearest_label():
    assert "knn" not in health(torch.randn(8, 3), torch.randn(8))


def test_one_bad_check_changes_nothing(tmp_path):
    one, run = watch(tmp_path), trainer()
    for values in (BAD, HEALTHY, BAD, HEALTHY):
        one.judge(run, None, values)
    assert one.state == "healthy" and not run.should_stop and not events(tmp_path)


def test_two_bad_checks_stop_the_run_and_say_why(tmp_path):
    one, run = watch(tmp_path), trainer()
    with pytest.warns(UserWarning, match="collapsed: std is 0.01 of its value at step 0"):
        one.judge(run, None, BAD)
        one.judge(run, None, BAD)
    assert run.should_stop and "collapsed at step 7" in one.reason
    assert [e["state"] for e in events(tmp_path)] == ["collapsed"]
    assert [e["action"] for e in events(tmp_path, "collapse_action")] == ["stop"]


def test_a_warning_ends_as_slowly_as_it_began(tmp_path):
    one, run = watch(tmp_path, action="warn"), trainer()
    with pytest.warns(UserWarning):
        for values in (WARN, WARN, HEALTHY, WARN, HEALTHY, HEALTHY):
            one.judge(run, None, values)
    assert [e["state"] for e in events(tmp_path)] == ["warn", "healthy"]


def test_the_action_warn_goes_on(tmp_path):
    one, run = watch(tmp_path, action="warn"), trainer()
    with pytest.warns(UserWarning):
        for _ in range(4):
            one.judge(run, None, BAD)
    assert not run.should_stop and not one.reason


def test_restore_puts_the_healthy_weights_back_and_halves_the_rate(tmp_path):
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    run = trainer(lr_scheduler_configs=[SimpleNamespace(scheduler=schedule)])
    run.optimizers = [optimizer]
    one = watch(tmp_path, action="restore")
    healthy = model.weight.clone()
    one.judge(run, model, HEALTHY)
    for n in range(1, MAX_RESTORES + 1):
        torch.nn.init.zeros_(model.weight)
        with pytest.warns(UserWarning):
            one.judge(run, model, BAD)
            one.judge(run, model, BAD)
        assert torch.equal(model.weight, healthy) and schedule.base_lrs == [0.1 * 0.5**n]
    with pytest.warns(UserWarning):
        one.judge(run, model, BAD)
        one.judge(run, model, BAD)
    assert run.should_stop  # it collapses every time


def test_the_reference_survives_a_checkpoint(tmp_path):
    one, other = watch(tmp_path), watch(tmp_path)
    one.reference, one.n_pending = {"std": 2.0}, 1
    other.load_state_dict(json.loads(json.dumps(one.state_dict())))
    assert other.relative({"std": 1.0}) == {"std": 0.5} and other.n_pending == 1


@pytest.mark.parametrize(
    "setting", [{"action": "pray"}, {"every_share": 0.0}, {"n_rows": 2}, {"patience": 0}]
)
def test_a_setting_out_of_range_is_refused(tmp_path, setting):
    with pytest.raises(ValueError, match=r"callbacks\.collapse"):
        watch(tmp_path, **setting)


def weights(run_dir):
    return torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def test_watching_changes_no_weight(tmp_path):
    table = write_table(tmp_path / "t.csv")
    run_training(tmp_path / "a", *overrides_for(table), "callbacks.collapse=null")
    run_training(tmp_path / "b", *overrides_for(table))
    assert "health/std" in (tmp_path / "b" / "metrics.csv").read_text()
    a, b = weights(tmp_path / "a"), weights(tmp_path / "b")
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_a_run_that_collapses_ends_with_the_reason_in_its_report(tmp_path):
    table = write_table(tmp_path / "t.csv")
    rate = ["model.optimizer.lr=3.0", "trainer.max_epochs=20", "model.warmup_share=0.0"]
    run_training(tmp_path / "run", *overrides_for(table), *rate)
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["status"] == "stopped" and "collapsed at step" in report["reason"]
    assert any(event["kind"] == "collapse" for event in report["events"])


# teacher_spread at every 2.5 % of runs that ended well: T-JEPA on Adult (seed 1) and on California
# (seed 4), both with `callbacks.collapse.action=warn`; and of two planted collapses
RECOVERED = {
    "adult": (0.95, 0.67, 0.46, 0.35, 0.28, 0.23, 0.21, 0.19, 0.17, 0.17, 0.16, 0.16, 0.16, 0.17),
    "california": (
        0.69,
        0.32,
        0.18,
        0.14,
        0.18,
        0.33,
        0.8,
        1.98,
        4.15,
        8.93,
        21.27,
        53.71,
        98.05,
        129.48,
    ),
}
COLLAPSED = {"no predictor": (0.818, 0.301, 0.052, 0.02), "table": (0.973, 0.389, 0.061, 0.023)}


@pytest.mark.parametrize("name", RECOVERED)
def test_a_dip_that_healthy_runs_recover_from_is_no_alarm(tmp_path, name):
    one, run = watch(tmp_path), trainer()
    for value in RECOVERED[name]:
        one.judge(run, None, {"teacher_spread": value})
    assert not events(tmp_path) and not run.should_stop


@pytest.mark.parametrize("name", COLLAPSED)
def test_a_spread_that_is_gone_is_a_collapse_within_a_tenth_of_the_run(tmp_path, name):
    one, run = watch(tmp_path), trainer()
    with pytest.warns(UserWarning, match="collapsed"):
        for value in COLLAPSED[name]:  # each 2.5 %
            one.judge(run, None, {"teacher_spread": value})
    assert run.should_stop
