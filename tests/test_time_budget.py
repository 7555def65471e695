"""`time_budget.hours`: as many steps as the time holds, the same ones after a resume."""

from dataclasses import replace

import pytest
import torch
from resume_cases import Kill, last, run_until, settings_of
from support import settings

from jepa import time_budget
from jepa.config import UserError, check_command_line
from jepa.run import FROM_THE_USER, build_probes
from jepa.settle import settle
from jepa.stored import parse_config
from jepa.time_budget import Costs, fill, measure, planned

COSTS = Costs(step_s=10.0, validation_s=100.0, row_s=0.1)


def settled(tmp_path, *overrides):
    """Return the settled config and prepared data of a small run on images."""
    from hydra.utils import instantiate

    cfg = settings(tmp_path, *settings_of("hjepa", tmp_path, *overrides))
    with FROM_THE_USER:
        data = instantiate(cfg.data)
        data.prepare()
        return settle(cfg, data), data


def test_the_steps_their_validations_checks_and_the_scoring_fill_the_time(tmp_path):
    cfg, data = settled(tmp_path, "time_budget.hours=10", "trainer.limit_train_batches=8")
    steps, seconds, said = fill(cfg, data, COSTS)
    n_checked = 2 * 512 / 0.025
    scored = 2 * (60 + len(data.splits["val"]))  # test=false
    assert seconds == pytest.approx(0.97 * 36000 - 0.1 * scored)
    used = steps * 10.0 + steps / 16 * 100.0 + 0.1 * n_checked  # validated every second epoch
    assert used <= seconds < used + 20
    assert "10 s each" in said and "epochs of 8 batches" in said


@pytest.mark.parametrize(
    ("change", "more"),
    [
        (dict(step_s=5.0), True),
        (dict(validation_s=10.0), True),
        (dict(row_s=0.2), False),
    ],
)
def test_every_cost_counts(tmp_path, change, more):
    cfg, data = settled(tmp_path, "time_budget.hours=10")
    before, after = (fill(cfg, data, one)[0] for one in (COSTS, replace(COSTS, **change)))
    assert (after > before) == more and after != before


def test_a_budget_too_short_says_what_takes_it(tmp_path):
    cfg, data = settled(tmp_path, "time_budget.hours=0.1")
    with pytest.raises(ValueError, match=r"time_budget\.hours=0\.1 is too short.*report\.max_rows"):
        fill(cfg, data, replace(COSTS, row_s=50.0))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["time_budget.hours=0"], "above 0"),
        (["time_budget.hours=1", "trainer.max_steps=5"], r"trainer\.max_steps=5"),
        (["time_budget.hours=1", "trainer.devices=2"], r"time_budget\.steps"),
    ],
)
def test_a_budget_that_cannot_be_is_refused(tmp_path, overrides, words):
    cfg, data = settled(tmp_path, *overrides)
    with pytest.raises(ValueError, match=words):
        planned(cfg, data, {}, None)


def test_without_a_budget_nothing_is_timed(tmp_path, monkeypatch):
    monkeypatch.setattr(time_budget, "measure", None)
    cfg, data = settled(tmp_path)
    assert planned(cfg, data, {}, None) is cfg


def test_a_given_plan_is_not_timed_and_ends_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(time_budget, "measure", None)
    cfg, data = settled(tmp_path, "time_budget.hours=1", "time_budget.steps=7")
    result = planned(cfg, data, {}, None)
    assert (result.trainer.max_steps, result.trainer.max_epochs) == (7, -1)
    assert result.trainer.max_time is None and cfg.trainer.max_steps == -1
    cfg, data = settled(
        tmp_path, "time_budget.hours=1", "time_budget.steps=7", "time_budget.seconds=9"
    )
    assert planned(cfg, data, {}, None).trainer.max_time == {"seconds": 9}


def test_timing_notices_every_part_and_leaves_the_random_numbers_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(time_budget, "TRIAL_S", 0.0)
    cfg, data = settled(tmp_path)
    before = torch.get_rng_state()
    with FROM_THE_USER:
        costs = measure(cfg, data, build_probes(cfg, data.spec))
    assert min(costs.step_s, costs.validation_s, costs.row_s) > 0.0
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.slow
@pytest.mark.ci
def test_a_planned_run_is_the_run_of_so_many_steps_and_a_resumed_one_keeps_the_plan(
    tmp_path, monkeypatch
):
    plain = ["trainer.max_epochs=-1", "trainer.max_steps=20", "callbacks.early_stopping=null"]
    run_until(None, tmp_path / "plain", settings_of("hjepa", tmp_path, *plain))
    budget = ["time_budget.hours=1", "callbacks.early_stopping=null", "guard.over_budget=false"]
    arguments = settings_of("hjepa", tmp_path, *budget)
    monkeypatch.setattr(time_budget, "fill", lambda *_: (20, 3000.0, ""))
    run_until(None, tmp_path / "whole", arguments)
    one, other = (last(tmp_path / name)["state_dict"] for name in ("plain", "whole"))
    assert all(torch.equal(one[key], other[key]) for key in one)
    plan = parse_config(last(tmp_path / "whole")["config"]).time_budget
    assert plan == {"hours": 1, "steps": 20, "seconds": 3000.0}
    run_until(Kill(1, 4), tmp_path / "cut", arguments)
    monkeypatch.setattr(time_budget, "measure", None)
    run_until(None, tmp_path / "cut", [*arguments, "resume=auto"])
    assert last(tmp_path / "cut")["global_step"] == 20
    one, other = (last(tmp_path / name)["state_dict"] for name in ("whole", "cut"))
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.slow
@pytest.mark.ci
def test_a_run_without_a_plan_is_not_given_one_later(tmp_path):
    arguments = settings_of("hjepa", tmp_path)
    run_until(Kill(1, 4), tmp_path / "run", arguments)
    with pytest.raises(ValueError, match="leave time_budget out"):
        run_until(None, tmp_path / "run", [*arguments, "resume=auto", "time_budget.hours=1"])


@pytest.mark.parametrize("name", ["imagenet100", "imagenet1k"])
def test_an_absent_folder_is_refused_before_torch_is_imported(tmp_path, name):
    arguments = [f"data={name}", "model=hjepa_small", f"paths.data_dir={tmp_path}"]
    with pytest.raises(UserError, match=rf"{tmp_path}/{name}.*train/<class>/.*data=mixture"):
        check_command_line(arguments, "config")
    check_command_line([*arguments, "--cfg", "job"], "config")  # printing needs no images
    (tmp_path / name).mkdir()
    check_command_line(arguments, "config")
