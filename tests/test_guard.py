"""The guard: no broken step reaches the weights, and a run that diverges goes back or stops."""

import inspect
import time
from types import FunctionType, SimpleNamespace

import lightning as L
import pytest
import torch
import yaml
from guard_cases import SETTINGS, Plant, Silent, events, fit, read
from lightning.pytorch.plugins.precision import MixedPrecision

from jepa.callbacks import pace as pace_module
from jepa.callbacks.divergence import Divergence
from jepa.callbacks.finite import broken, verdict
from jepa.callbacks.guard import Guard
from jepa.callbacks.pace import Pace
from jepa.callbacks.schedule import Schedules, replanned
from jepa.config import CONF
from jepa.schedules import warmup_cosine

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_broken_step_reaches_nothing_and_training_goes_on(tmp_path, precision):
    plant = Plant(3, 7)
    _, model, _ = fit(tmp_path, plant, precision=precision)
    assert {step for step, moved in plant.moved.items() if not moved} == {3, 7}
    assert len(plant.moved) == 12
    assert [one["step"] for one in events(tmp_path, "skip")] == [3, 7]
    assert all(value.isfinite().all() for value in model.state_dict().values())


@pytest.mark.parametrize("micro", [0, 1, 2])
def test_one_broken_micro_batch_drops_its_whole_group(tmp_path, micro):
    plant = Plant(2, micro=micro)
    fit(tmp_path, plant, n_steps=5, accumulate_grad_batches=3)
    assert plant.moved == {0: True, 1: True, 2: False, 3: True, 4: True}
    assert len(events(tmp_path, "skip")) == 1


def test_a_broken_gradient_under_a_finite_loss_is_dropped(tmp_path):
    class Spoil(L.Callback):
        def on_after_backward(self, trainer, pl_module):
            if trainer.global_step == 4:
                next(iter(pl_module.encoder.parameters())).grad.view(-1)[-1] = torch.nan

    plant = Plant()
    fit(tmp_path, Spoil(), plant)
    assert [step for step, moved in plant.moved.items() if not moved] == [4]
    assert "nan" not in events(tmp_path, "skip")[0]["loss"]


def test_float16_leaves_its_overflow_to_the_scaler_and_drops_the_rest(tmp_path):
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)  # overflows at first
    plugin = MixedPrecision("16-mixed", "cpu", scaler)
    plant = Plant(36)
    _, model, _ = fit(tmp_path, plant, n_steps=40, plugins=[plugin])
    still = [step for step, moved in plant.moved.items() if not moved]
    assert still[0] == 0 and 36 in still and 35 not in still
    assert [one["step"] for one in events(tmp_path, "skip")] == [36]
    assert all(value.isfinite().all() for value in model.state_dict().values())


def test_the_same_steps_without_a_guard_ruin_the_weights(tmp_path):
    _, model, _ = fit(tmp_path, Plant(3), guard=Silent)
    assert any(value.isnan().any() for value in model.state_dict().values())


def test_a_guard_with_nothing_to_do_changes_no_bit(tmp_path):
    knobs = {"dropout": 0.2}
    on, off = (fit(tmp_path, knobs=knobs, guard=one)[1].state_dict() for one in (Guard, Silent))
    assert all(torch.equal(on[key], off[key]) for key in on)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("value", [torch.inf, torch.nan, 6e4])
def test_one_question_finds_a_broken_value_and_changes_none(dtype, value):
    tensors = [torch.randn(3, 2).to(dtype), torch.randn(5).to(dtype)]
    tensors[1][3] = value
    before = [one.clone() for one in tensors]
    assert bool(broken(tensors)) == (value != 6e4)
    assert all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(tensors, before, strict=True))  # fmt: skip  # noqa: E501


@pytest.mark.parametrize(
    ("loss", "finite", "scale", "expected"),
    [
        (1.0, True, 8.0, "good"), (1.0, False, 8.0, "scaled"), (1.0, False, 1.0, "broken"),
        (float("nan"), False, 8.0, "broken"), (float("inf"), True, 8.0, "broken"),
    ],
)  # fmt: skip
def test_the_overflow_of_a_scaler_is_its_own_affair(loss, finite, scale, expected):
    scaler = SimpleNamespace(get_scale=lambda: scale)
    trainer = SimpleNamespace(precision_plugin=SimpleNamespace(scaler=scaler))
    assert verdict(trainer, loss, finite) == expected


def test_too_many_broken_steps_go_back_with_half_the_rate_and_then_stop(tmp_path):
    plant = Plant(*range(5, 100))
    settings = {"max_skips": 2, "max_restores": 2, "every_share": 0.01}
    runner, _, guard = fit(tmp_path, plant, n_steps=40, settings=settings, knobs={"final_lr_share": 1.0})  # fmt: skip  # noqa: E501
    assert [one["step"] for one in events(tmp_path, "restore")] == [8, 11]
    assert plant.rates[8] == pytest.approx(5e-3) and plant.rates[11] == pytest.approx(2.5e-3)
    assert runner.global_step == 14 and "3 broken steps" in guard.reason
    assert events(tmp_path, "guard_stop")[0]["reason"] == guard.reason


def test_weights_that_a_last_good_step_has_ruined_are_not_gone_back_to(tmp_path):
    class Spike(L.Callback):  # the loss of this step is sound, and its update is not
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.global_step == 5:
                trainer.optimizers[0].param_groups[0]["lr"] = 1e30

    settings = {"max_skips": 0, "max_restores": 1, "smoothing": 1, "every_share": 0.01}
    runner, model, guard = fit(tmp_path, Spike(), settings=settings)
    assert (guard.n_restores, guard.n_skipped, runner.global_step) == (1, 1, 12)
    assert all(value.abs().max() < 100 for value in model.state_dict().values())


def test_rare_broken_steps_never_add_up(tmp_path):
    _, _, guard = fit(tmp_path, Plant(*range(0, 24, 2)), n_steps=24, settings={"max_skips": 1})
    assert guard.n_skipped == 12 and guard.n_restores == 0


class Jump(L.Callback):
    """A hundred times the rate from step 20; how far the weights are from there at every step."""

    def __init__(self):
        self.start, self.far = {}, []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        now = pl_module.state_dict()
        if trainer.global_step == 20 and not self.start:
            self.start = {key: value.clone() for key, value in now.items()}
            for config in trainer.lr_scheduler_configs:
                config.scheduler.base_lrs = [100 * rate for rate in config.scheduler.base_lrs]
        far = sum((now[key] - value).float().norm().item() for key, value in self.start.items())
        self.far.append(far)


def test_a_diverging_run_goes_back_to_where_it_was_sound_and_warms_up(tmp_path):
    settings = {"loss_ratio": 1.5, "smoothing": 4, "every_share": 0.01, "max_restores": 1}
    knobs = {"warmup_share": 0.05, "final_lr_share": 1.0}
    fit(tmp_path, n_steps=60, settings=settings, knobs=knobs)
    assert not events(tmp_path, "restore")  # its own rate is no divergence
    jump = Jump()
    fit(tmp_path, jump, n_steps=60, settings=settings, knobs=knobs)
    (found,) = events(tmp_path, "restore")
    assert 20 < found["step"] < 40 and "times its best" in found["why"]
    assert jump.far[found["step"]] < 0.5 * max(jump.far[: found["step"]])
    assert found["warmup"] == 2 * 3
    assert found["lr"] == [pytest.approx(0.5 * 100 * 1e-2 / 7)] * 2  # the first step of seven


def test_divergence_is_a_loss_far_above_its_best_or_an_objective_that_only_rises():
    one = Divergence(loss_ratio=3.0, smoothing=2, rising=3)
    for loss in (5.0, 5.0, 1.0, 1.0, 1.0, 1.0, 1.0, 4.9, 4.9, 4.9, 4.9):
        one.note_loss(loss)  # far above its best, and below where it began
        assert not one.verdict() and not one.is_suspect()
    for loss in (6.0, 6.0, 6.0):
        one.note_loss(loss)
    assert one.is_suspect() and "the training loss" in one.verdict()
    one.reset()
    for value in (1.0, 2.0, 3.0, 2.5, 2.6, 2.7):
        one.note_objective(value)
        assert not one.verdict()
    one.note_objective(2.8)
    assert "rose 3 validations" in one.verdict()


def test_another_warm_up_and_another_end():
    from functools import partial

    base = partial(warmup_cosine, warmup=4, total=100)
    assert [replanned(base, total=None, warmups=[])(s) for s in (0, 50)] == [base(0), base(50)]
    again = replanned(base, total=None, warmups=[[50, 3]])
    assert [again(s) / base(s) for s in (49, 50, 51, 52, 53)] == [1.0, 0.25, 0.5, 0.75, 1.0]
    assert replanned(base, total=60, warmups=[])(60) == 0.0
    assert isinstance(again, FunctionType)  # of which a checkpoint holds nothing


def test_a_late_run_is_made_sparing_and_then_replanned():
    trainer = SimpleNamespace(
        global_step=100, estimated_stepping_batches=1000, check_val_every_n_epoch=5,
        log_every_n_steps=10, lr_scheduler_configs=[],
    )  # fmt: skip
    module, schedules, pace = SimpleNamespace(total_steps=1000), Schedules(), Pace()
    assert pace.judge(trainer, module, schedules, 1.0, 1000.0) is None
    done = pace.judge(trainer, module, schedules, 1.0, 500.0)
    assert done["action"] == "rarer"
    assert (trainer.check_val_every_n_epoch, trainer.log_every_n_steps) == (10, 100)
    assert module.total_steps == 1000
    done = pace.judge(trainer, module, schedules, 1.0, 500.0)
    assert done["action"] == "replan" and module.total_steps == schedules.total == 600
    assert pace.judge(trainer, module, schedules, 1.0, 500.0) is None
    assert pace.judge(trainer, module, schedules, 1.0, 550.0) is None
    done = pace.judge(trainer, module, schedules, 1.0, 600.0)  # it had looked later than it is
    assert done["action"] == "replan" and module.total_steps == schedules.total == 700
    pace.judge(trainer, module, schedules, 0.1, 600.0)
    assert schedules.total == 1000  # never more than was asked for


def test_a_validation_between_two_looks_does_not_count_as_the_cost_of_a_step(monkeypatch):
    """A step takes one second, a validation of 50 steps thirty: 1.6 seconds a step."""
    timer = SimpleNamespace(_duration=1000.0, time_elapsed=lambda: clock[0])
    trainer = SimpleNamespace(
        global_step=0, estimated_stepping_batches=2000, check_val_every_n_epoch=1,
        log_every_n_steps=10, lr_scheduler_configs=[], world_size=1,
    )  # fmt: skip
    monkeypatch.setattr(pace_module, "timer_of", lambda trainer: timer)
    module, schedules, pace, clock = SimpleNamespace(total_steps=2000), Schedules(), Pace(), [0.0]
    ends = []
    while clock[0] < 1000:
        pace.look(trainer, module, schedules)
        ends.append(schedules.total)
        trainer.global_step += 1
        clock[0] += 31.0 if trainer.global_step % 50 == 0 else 1.0
    later = [end for end in ends[200:] if end]
    assert trainer.global_step == 640 and max(abs(end - 640) for end in later) <= 64


class Slow(L.Callback):
    def on_train_batch_end(self, *args):
        time.sleep(0.02)


@pytest.mark.parametrize("on", [True, False])
def test_a_run_over_its_time_ends_its_schedules_in_time(tmp_path, on):
    plant, time_limit = Plant(), {"max_time": {"seconds": 2}, "log_every_n_steps": 1}
    fit(tmp_path, Slow(), plant, n_steps=400, settings={"over_budget": on}, **time_limit)
    actions = [one["action"] for one in events(tmp_path, "over_budget")]
    assert actions[:2] == (["rarer", "replan"] if on else [])
    assert (plant.rates[-1] < 0.2 * 1e-2) == on and len(plant.rates) < 200


def test_what_has_fired_survives_a_checkpoint(tmp_path):
    _, _, guard = fit(tmp_path, Plant(3, 4, 5), settings={"max_skips": 2})
    content = guard.state_dict()
    torch.save(content, tmp_path / "state.pt")
    other = Guard(run_dir=str(tmp_path), **SETTINGS)
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert other.n_restores == 1 and other.n_skipped == 3
    assert other.state_dict() == content


class Rise(L.Callback):
    """Make the objective worse at every validation, and the rate too high, from a step on."""

    def __init__(self, step):
        self.step = step

    def on_validation_batch_end(self, trainer, pl_module, *args):
        pl_module.log("val/rise", float(trainer.global_step))

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step >= self.step:
            for group in trainer.optimizers[0].param_groups:
                group["lr"] = 0.3


BROKEN = {"steps": (8, 9, 10)}
KNOBS = [
    ("max_skips", 1, 3, BROKEN),
    ("max_restores", 0, 2, BROKEN | {"max_skips": 0}),
    ("dumps", 0, 2, BROKEN),
    ("every_share", 0.05, 1.0, BROKEN | {"max_skips": 1}),
    ("loss_ratio", None, 1.2, {"max_restores": 9}),
    ("smoothing", 2, 9, {"loss_ratio": 1.2, "max_restores": 9}),
    ("rising", None, 2, {"monitor": "val/rise", "max_restores": 9}),
    ("monitor", "val/loss", "val/rise", {"rising": 5, "max_restores": 9}),
]


@pytest.mark.parametrize(("knob", "one", "other", "rest"), KNOBS)
def test_every_setting_of_a_step_changes_the_run(tmp_path, knob, one, other, rest):
    def outcome(value):
        folder = tmp_path / str(value).replace("/", "_")
        folder.mkdir()
        settings = {key: v for key, v in rest.items() if key != "steps"} | {knob: value}
        plants = (Plant(*rest.get("steps", ())), Rise(12))
        _, model, _ = fit(folder, *plants, n_steps=20, settings=settings, val_check_interval=2)
        n_dumps = len(list(folder.glob("dumps/*")))
        weights = sum(p.sum().item() for p in model.parameters())
        return [event["kind"] for event in read(folder)], n_dumps, weights

    assert outcome(one) != outcome(other)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("max_skips", -1), ("max_restores", -1), ("dumps", -1), ("every_share", 0.0),
        ("loss_ratio", 1.0), ("smoothing", 0), ("rising", 1),
    ],
)  # fmt: skip
def test_a_setting_out_of_range_is_refused(tmp_path, setting, value):
    with pytest.raises(ValueError, match=rf"guard\.{setting}"):
        Guard(run_dir=str(tmp_path), **SETTINGS | {setting: value})


def test_the_yaml_sets_every_setting_and_python_none():
    elsewhere = {"over_budget", "out_of_memory", "parts"}  # the last two in test_guard_runs.py
    assert {name for name, *_ in KNOBS} | elsewhere == SETTINGS.keys()
    keys = yaml.safe_load((CONF / "guard" / "default.yaml").read_text()).keys() - {"_target_"}
    parameters = inspect.signature(Guard).parameters
    assert keys == parameters.keys() == SETTINGS.keys() | {"run_dir"}
    assert all(p.default is inspect.Parameter.empty for p in parameters.values())
    assert not yaml.safe_load((CONF / "guard" / "none.yaml").read_text())
