"""Sweeps: what is searched reaches the run, pruned trials end no study, the twelve studies."""

import functools
import subprocess
import sys
import weakref
from types import SimpleNamespace

import optuna
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from support import BARS, settings

from jepa.allocator import free_memory
from jepa.plan import PlanError, count_parameters
from jepa.resolve import check_depth, pick_device, resolve_batch, resolve_size
from jepa.run import FROM_THE_USER
from jepa.sweeps.optuna import SearchSpaceSweeper
from jepa.sweeps.space import read_space
from jepa.sweeps.studies import main, run_all, studies

HPO = ("+experiment=patchtst_hpo", "trainer=cpu")


def composed(tmp_path, *overrides):
    return settings(tmp_path, *HPO, *overrides)


# every searched key reaches the run


def sampled(cfg):
    """A trial's overrides, from the lowest values of the space."""
    space = read_space(dict(cfg.search), [])
    low = {key: lowest(one) for key, one in space.distributions.items()}
    return space, low


def lowest(distribution):
    return getattr(distribution, "low", None) or distribution.choices[0]


def highest(distribution):
    return getattr(distribution, "high", None) or distribution.choices[-1]


def built(cfg, spec=BARS):
    """What a trial would train: the shapes of its model, its dropout, optimizer and schedule."""
    with FROM_THE_USER:
        width = resolve_size(cfg, spec) or cfg.model.width
        model = instantiate(cfg.model, width=width)(spec=spec)
        model._trainer = SimpleNamespace(
            estimated_stepping_batches=cfg.trainer.max_epochs * 8,
            num_training_batches=8,
            accumulate_grad_batches=1,
            fit_loop=SimpleNamespace(setup_data=lambda: None),
        )
        configured = model.configure_optimizers()
    group = configured["optimizer"].param_groups[0]
    schedule = configured["lr_scheduler"]["scheduler"].lr_lambdas[0]
    shares = {module.share for module in model.modules() if hasattr(module, "share")}
    return {
        "shapes": [tuple(p.shape) for p in model.parameters()],
        "n_heads": model.encoder.blocks[0].n_heads,
        "dropout": shares,
        "lr": group["initial_lr"],
        "weight_decay": group["weight_decay"],
        "schedule": [schedule(step) for step in (50, 150, 250, 390)],
    }


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A trial at the lowest end of the space of the smallest size."""
    path = tmp_path_factory.mktemp("run")
    space, low = sampled(composed(path, "size=2m"))
    fixed = ["size=2m", *space.overrides(low)]
    return path, space, fixed, built(composed(path, *fixed))


SEARCHED = {
    "model.optimizer.lr": {"lr"},
    "model.optimizer.weight_decay": {"weight_decay"},
    "model.warmup_steps": {"schedule"},
    "trainer.max_epochs": {"schedule"},
    "model.dropout": {"dropout"},
    "model.mlp_ratio": {"shapes"},
    "model.depth": {"shapes"},
    "model.n_heads": {"n_heads"},
}


@pytest.mark.parametrize("key", SEARCHED)
def test_a_searched_key_changes_what_is_trained(base, key):
    path, space, fixed, before = base
    value = highest(space.distributions[key])
    after = built(composed(path, *fixed, f"{key}={value}"))
    changed = {name for name in before if before[name] != after[name]}
    assert SEARCHED[key] <= changed


def test_every_searched_key_is_tested(base):
    assert base[1].distributions.keys() == SEARCHED.keys()


@pytest.mark.parametrize(("size", "n"), [("2m", 80), ("2b", 75)])
def test_the_listed_grid_is_searched_by_its_points(tmp_path, size, n):
    cfg = composed(tmp_path, "search=patchtst_grid", f"size={size}")
    space, low = sampled(cfg)
    assert space.points == {"model"} and len(space.distributions["model"].choices) == n
    trial = composed(tmp_path, "search=patchtst_grid", f"size={size}", *space.overrides(low))
    assert trial.size is None  # so that the point's width stays
    for one in low["model"].split(" "):
        key, value = one.split("=")
        assert str(OmegaConf.select(trial, key)).removesuffix(".0") in (value, value[:-2], "None")


# the space


def test_arguments_of_the_command_win_over_the_space():
    space = read_space({"a.b": "choice(1, 2)", "c": "interval(0, 1)"}, ["a.b=3", "d='x y'"])
    assert space.distributions.keys() == {"c"}
    assert space.overrides({"c": 0.5}) == ("a.b=3", "d='x y'", "c=0.5")


def test_plain_values_of_a_space_are_given_to_every_trial():
    space = read_space({"a": None, "b": True, "c": "choice(1, 2)", "d": 1}, [])
    assert space.overrides({"c": 1}) == ("a=null", "b=true", "d=1", "c=1")


def test_sweeps_on_the_command_line_join_the_space():
    space = read_space({"a": "choice(1, 2)"}, ["b=1,2,3", "a=tag(log, interval(0.1, 1))"])
    assert space.distributions["b"].choices == (1, 2, 3)
    assert space.distributions["a"].log


# the loop


class Launcher:
    """Runs `task` on the overrides, and returns what Hydra's launchers return."""

    def __init__(self, task):
        self.task, self.seen = task, []

    def launch(self, overrides, initial_job_idx):
        self.seen += [(initial_job_idx + i, one) for i, one in enumerate(overrides)]
        return [Result(self.task, one) for one in overrides]


class Result:
    def __init__(self, task, overrides):
        self.task, self.overrides = task, dict(one.split("=", 1) for one in overrides)

    @property
    def return_value(self):
        return self.task(self.overrides)


def sweep(task, folder, *, n_trials=4, n_jobs=1, storage=None, rate=1.0, sampler=None):
    """Sweep `x` in [0, 1] with our sweeper behind a launcher of our own."""
    sweeper = SearchSpaceSweeper.__new__(SearchSpaceSweeper)
    hydra = {"sweep": {"dir": str(folder)}, "overrides": {"hydra": []}}
    config = OmegaConf.create({"hydra": hydra, "search": None, "test": True})
    sweeper.pruner, sweeper.max_retries = "none", 0
    sweeper.sweeper = SimpleNamespace(
        config=config,
        params={"x": "choice(0.25, 0.5, 0.75)" if sampler else "interval(0.0, 1.0)"},
        launcher=Launcher(task),
        sampler=sampler or optuna.samplers.RandomSampler(seed=0),
        study_name="s",
        storage=storage,
        n_trials=n_trials,
        n_jobs=n_jobs,
        max_failure_rate=rate,
        custom_search_space_extender=None,
        _to_grid_sampler_choices=lambda distribution: distribution.choices,
        _get_directions=lambda: ["minimize"],
    )
    sweeper.sweep(["test=false"])
    return sweeper.sweeper.launcher.seen, OmegaConf.load(folder / "optimization_results.yaml")


@pytest.fixture(autouse=True)
def freed(monkeypatch):
    """Counts how often memory is released, which takes long in a process of this size."""
    times = []
    monkeypatch.setattr("jepa.sweeps.in_process.free_memory", lambda: times.append(1))
    return times


def test_memory_is_released_between_trials(tmp_path, freed):
    sweep(lambda overrides: 0.0, tmp_path, n_trials=3)
    assert len(freed) == 3


def test_what_a_trial_leaves_in_cycles_is_released():
    class Model:
        pass

    model = Model()
    model.trainer = SimpleNamespace(model=model)
    left = weakref.ref(model)
    del model
    free_memory()
    assert left() is None


def test_a_trial_that_fits_nowhere_is_pruned_and_a_failed_one_does_not_end_the_study(tmp_path):
    outcomes = iter([PlanError("no batch fits"), 0.3, RuntimeError("diverged"), float("nan"), 0.2])

    def task(overrides):
        outcome = next(outcomes)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    seen, results = sweep(task, tmp_path, n_trials=5)
    assert [number for number, _ in seen] == [0, 1, 2, 3, 4]
    assert results.trials == {"complete": 2, "pruned": 1, "fail": 2}
    assert (results.best_trial, results.best_value) == (4, 0.2)
    assert f"x={results.best_params.x}" in seen[4][1]
    assert all("test=false" in overrides for _, overrides in seen)


def test_pruned_is_what_optuna_is_told(tmp_path):
    storage = f"sqlite:///{tmp_path}/optuna.db"

    def task(overrides):
        raise PlanError("needs 30 GiB, has 20 GiB")

    with pytest.raises(PlanError, match="needs 30 GiB, has 20 GiB"):
        sweep(task, tmp_path, n_trials=2, storage=storage)
    trials = optuna.load_study(study_name="s", storage=storage).trials
    assert [trial.state.name for trial in trials] == ["PRUNED", "PRUNED"]


def test_a_study_goes_on_to_its_number_of_trials_and_keeps_their_numbers(tmp_path):
    storage = f"sqlite:///{tmp_path}/optuna.db"
    task = lambda overrides: float(overrides["x"])  # noqa: E731
    first, _ = sweep(task, tmp_path, n_trials=3, n_jobs=2, storage=storage)
    more, results = sweep(task, tmp_path, n_trials=5, storage=storage)
    assert [number for number, _ in first + more] == [0, 1, 2, 3, 4]
    assert sweep(task, tmp_path, n_trials=5, storage=storage)[0] == []
    assert results.trials.complete == 5


def test_failures_end_a_study_where_that_is_asked_for(tmp_path):
    def task(overrides):
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match=r"max_failure_rate=0\.0"):
        sweep(task, tmp_path, rate=0.0, n_trials=12)


def test_a_grid_ends_with_its_last_point(tmp_path):
    grid = functools.partial(optuna.samplers.GridSampler)
    seen, _ = sweep(lambda o: float(o["x"]), tmp_path, n_trials=10, sampler=grid)
    assert len(seen) == 3


def test_a_model_without_a_space_is_told_so(tmp_path):
    sweeper = SearchSpaceSweeper.__new__(SearchSpaceSweeper)
    choices = {"runtime": {"choices": {"model": "mine"}}}
    config = OmegaConf.create({"hydra": choices, "search": None})
    sweeper.sweeper = SimpleNamespace(config=config, params=None, n_trials=1, n_jobs=1)
    with pytest.raises(ValueError, match=r"conf/search/mine.yaml"):
        sweeper.sweep(["seed=1"])


# what is worked out of a config


def test_a_size_gives_the_width_of_so_many_parameters(tmp_path):
    cfg = composed(tmp_path, "size=2m", "model.depth=6", "model.n_heads=4")
    with FROM_THE_USER:
        width = resolve_size(cfg, BARS)
        model = instantiate(cfg.model, width=width)(spec=BARS)
    assert width % 4 == 0 and count_parameters(model) == pytest.approx(2e6, rel=0.05)
    assert resolve_size(composed(tmp_path, "size=null"), BARS) is None


@pytest.mark.parametrize("settings", [{"norm": "batch"}, {"pre_norm": False}])
def test_a_very_deep_model_needs_pre_norm_and_layer_norm(settings):
    deep = {"depth": 49, "norm": "layer", "pre_norm": True}
    check_depth(OmegaConf.create(deep))
    check_depth(OmegaConf.create(deep | settings | {"depth": 48}))
    with pytest.raises(ValueError, match=r"depth=49.*model.norm=layer model.pre_norm=true"):
        check_depth(OmegaConf.create(deep | settings))


SMALL = ("size=null", "model.width=16", "model.depth=1", "data.effective_batch_size=96")


def test_a_batch_is_the_largest_divisor_up_to_the_one_that_is_set(tmp_path, monkeypatch):
    cfg = composed(tmp_path, *SMALL, "data.batch_size=40")
    with FROM_THE_USER:
        plan = resolve_batch(cfg, BARS, torch.device("cpu"), n_devices=2)
        assert plan is not None and (plan.micro_batch, plan.accumulate) == (24, 2)
        cfg.trainer.accumulate_grad_batches = 1
        assert resolve_batch(cfg, BARS, torch.device("cpu")) is None


def test_a_batch_that_fits_nowhere_is_an_error_of_the_planner(tmp_path, monkeypatch):
    monkeypatch.setattr("jepa.resolve.device_bytes", lambda device: 2**12)
    with FROM_THE_USER, pytest.raises(PlanError, match=r"may be used"):
        resolve_batch(composed(tmp_path, *SMALL, "data.batch_size=96"), BARS, torch.device("cpu"))


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("data.effective_batch_size=null", "needs data.effective_batch_size"),
        ("data.effective_batch_size=97", "effective_batch_size=97 must be a positive multiple"),
    ],
)
def test_a_batch_that_cannot_be_worked_out_is_told(tmp_path, override, words):
    with pytest.raises(ValueError, match=words):
        resolve_batch(composed(tmp_path, *SMALL, override), BARS, torch.device("cpu"), n_devices=2)


def test_without_an_accelerator_the_cpu_is_planned_for(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert {pick_device(name).type for name in ("auto", "cpu", "gpu")} == {"cpu"}


# the twelve studies


def test_the_studies_are_four_sizes_by_three_horizons(tmp_path):
    names = [study.name for study in studies(tmp_path)]
    assert len(names) == len(set(names)) == 12
    command = studies(tmp_path)[5].command(50, ["seed=1"])
    for word in ("+experiment=patchtst_hpo", "size=20m", "data.horizon=5", "seed=1"):
        assert word in command
    assert "hydra.sweeper.n_trials=50" in command


def finish(study, n_trials):
    study.folder.mkdir(parents=True)
    results = {"trials": {"complete": n_trials - 1, "pruned": 1, "fail": 0}}
    OmegaConf.save(OmegaConf.create(results), study.folder / "optimization_results.yaml")


def test_finished_studies_are_skipped_and_a_failed_one_stops_nothing(tmp_path):
    plan = studies(tmp_path)
    finish(plan[0], 3)
    finish(plan[1], 2)  # of three
    commands = []

    def run(command):
        commands.append(command)
        return int("size=200m" in command)

    outcome = list(run_all(plan, n_trials=3, run=run).values())
    assert outcome == ["SKIP"] + ["PASS"] * 5 + ["FAIL"] * 3 + ["PASS"] * 3
    assert len(commands) == 11


def test_an_interruption_ends_the_row_with_a_summary(tmp_path):
    def run(command):
        if "size=20m" in command:
            raise KeyboardInterrupt
        return 0

    outcome = list(run_all(studies(tmp_path), n_trials=3, run=run).values())
    assert outcome == ["PASS"] * 3 + ["NOT RUN"] * 9


def test_the_row_starts_where_it_is_told(tmp_path, monkeypatch, capsys):
    ran = []
    monkeypatch.setattr(subprocess, "call", lambda command: ran.append(command) or 0)
    monkeypatch.setattr("jepa.sweeps.studies.run_all", functools.partial(run_all, run=ran_ok(ran)))
    assert main("start_from=11", "n_trials=2", f"dir={tmp_path}", "trainer=cpu") == 0
    assert [("size=2b" in command, "trainer=cpu" in command) for command in ran] == [
        (True,) * 2
    ] * 2
    assert capsys.readouterr().out.count("PASS") == 2


def ran_ok(ran):
    return lambda command: ran.append(command) or 0


@pytest.mark.parametrize("argument", ["start_from=13", "start_from=x", "n_trials=0", "--help"])
def test_arguments_that_mean_nothing_show_the_use(argument):
    with pytest.raises(SystemExit, match=r"use: python -m jepa\.sweeps\.studies"):
        main(argument)


@pytest.mark.slow
class TestProcesses:
    command = (
        sys.executable, "-m", "jepa.train", "-m", "hydra/sweeper=optuna", *HPO, "data.horizon=1",
        "logger=csv", "hydra.sweep.dir=sweep", "hydra.sweeper.n_jobs=1",
    )  # fmt: skip

    def run(self, tmp_path, *arguments):
        return subprocess.run(
            [*self.command, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
        )

    def test_two_billion_parameters_are_pruned_where_they_do_not_fit(self, tmp_path):
        from jepa.plan import device_bytes

        if device_bytes("cpu") > 40 * 2**30:
            pytest.skip("this machine has room for two billion parameters")
        done = self.run(tmp_path, "size=2b", "hydra.sweeper.n_trials=2")
        assert done.returncode == 1 and "GiB may be used" in done.stderr
        results = OmegaConf.load(tmp_path / "sweep" / "optimization_results.yaml")
        assert results.trials == {"complete": 0, "pruned": 2, "fail": 0}

    def test_two_million_parameters_are_trained(self, tmp_path):
        done = self.run(
            tmp_path, "size=2m", "hydra.sweeper.n_trials=3", "trainer.max_epochs=1",
            "model.depth=2", "data.n_days=1200", "model.warmup_steps=2",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        results = OmegaConf.load(tmp_path / "sweep" / "optimization_results.yaml")
        assert results.trials.complete == 3 and 0 <= results.best_value <= 1
        config = OmegaConf.load(tmp_path / "sweep" / "1" / "config.yaml")
        assert config.trainer.accumulate_grad_batches * config.data.batch_size == 256
