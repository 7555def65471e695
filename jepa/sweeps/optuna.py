"""`-m hydra/sweeper=optuna`: search with Optuna, by default over the model's own space.

Built on Hydra's Optuna sweeper, whose settings it keeps: samplers, storage, the launchers behind
it. Its loop is our own, because that of the plugin knows no pruned trial and ends with the first
error.
"""

import functools
import gc
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.utils import instantiate
from hydra_plugins.hydra_optuna_sweeper.config import OptunaSweeperConf
from hydra_plugins.hydra_optuna_sweeper.optuna_sweeper import OptunaSweeper
from omegaconf import DictConfig, OmegaConf

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Space:
    """What is searched, and what every trial is given.

    Args:
        distributions: by key.
        points: keys whose values are several overrides each, joined by spaces.
        fixed: overrides of every trial.
    """

    distributions: "dict[str, BaseDistribution]"
    points: frozenset[str]
    fixed: tuple[str, ...]

    def overrides(self, values: Mapping[str, Any]) -> tuple[str, ...]:
        """Return the overrides of a trial; those of a point come last, and win."""
        single = [f"{k}={write(v)}" for k, v in values.items() if k not in self.points]
        several = [one for key in values if key in self.points for one in values[key].split(" ")]
        return (*self.fixed, *single, *several)


def read_space(search: Mapping[str, Any], arguments: Sequence[str]) -> Space:
    """Read a search space and the arguments of the command, which win.

    A value of the space is a sweep as on the command line (`choice(1, 2)`), a plain value, or a
    constructor call that returns a list of values or of points (mappings from key to value).
    """
    from hydra_plugins.hydra_optuna_sweeper._impl import create_optuna_distribution_from_override
    from optuna.distributions import CategoricalDistribution

    parser = OverridesParser.create()
    given = [parser.parse_override(argument) for argument in arguments]
    taken = {override.key_or_group for override in given}
    distributions: dict[str, BaseDistribution] = {}
    points, fixed = set(), []
    for key, value in search.items():
        if key in taken:
            continue
        if isinstance(value, DictConfig):
            values = instantiate(value, _execution_whitelist_=("jepa.budget.*",))
            if isinstance(values[0], Mapping):
                points.add(key)
                values = [" ".join(f"{k}={write(v)}" for k, v in one.items()) for one in values]
            distributions[key] = CategoricalDistribution(values)
        else:
            given.append(parser.parse_override(f"{key}={write(value)}"))
    for override in given:
        if override.is_sweep_override():
            key = override.get_key_element()
            distributions[key] = create_optuna_distribution_from_override(override)
        else:
            fixed.append(override.input_line)
    return Space(distributions, frozenset(points), tuple(fixed))


def write(value: object) -> str:
    """Write a value as an override has it."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


class SearchSpaceSweeper(OptunaSweeper):
    """Sweep `cfg.search` when no space is given by hand; prune trials that fit no device."""

    def sweep(self, arguments: list[str]) -> None:
        """Run trials until there are `n_trials` in the study, those of earlier commands included.

        Raises:
            ValueError: if there is nothing to search; Optuna would repeat one run n times.
            PlanError: if every trial was pruned, as none fits.
        """
        import optuna

        plugin = self.sweeper
        config = plugin.config
        assert config is not None  # set up before a sweep starts
        if not any(argument.startswith("test=") for argument in arguments):
            arguments = [*arguments, "test=false"]  # the test split is for the best trial, once
        search: Any = plugin.params or config.get("search") or {}
        space = read_space(dict(search), arguments)
        if not space.distributions:
            model = config.hydra.runtime.choices.model
            raise ValueError(f"no search space for {model=}: write conf/search/{model}.yaml")
        Path(config.hydra.sweep.dir).mkdir(parents=True, exist_ok=True)  # its storage may lie there
        study = optuna.create_study(
            study_name=plugin.study_name,
            storage=plugin.storage,
            sampler=build_sampler(plugin, space),
            direction="minimize",
            load_if_exists=True,
        )
        while (left := n_left(study, plugin.n_trials)) > 0:
            self.launch(study, space, min(left, plugin.n_jobs))
            free_memory()
        conclude(study, Path(config.hydra.sweep.dir))

    def launch(self, study: "optuna.Study", space: Space, n: int) -> None:
        """Run `n` trials and tell the study how each ended."""
        plugin = self.sweeper
        assert plugin.launcher is not None  # set up before a sweep starts
        trials = [study.ask() for _ in range(n)]
        for trial in trials:
            for key, distribution in space.distributions.items():
                trial._suggest(key, distribution)
            if plugin.custom_search_space_extender:
                plugin.custom_search_space_extender(plugin.config, trial)  # pyright: ignore
        overrides = [space.overrides(trial.params) for trial in trials]
        returns = plugin.launcher.launch(overrides, initial_job_idx=trials[0].number)
        failed = 0
        for trial, result in zip(trials, returns, strict=True):
            failed += not tell(study, trial, result)
        if failed > plugin.max_failure_rate * n:
            raise RuntimeError(
                f"{failed} of {n} trials failed, more than hydra.sweeper.max_failure_rate="
                f"{plugin.max_failure_rate} allows: see the logs in their directories"
            )


def tell(study: "optuna.Study", trial: "optuna.Trial", result: Any) -> bool:
    """Tell the study and the log how a trial ended; False if it failed."""
    from optuna.samplers import GridSampler
    from optuna.trial import TrialState

    from jepa.plan import PlanError

    try:
        value = float(result.return_value)
        state = TrialState.FAIL if value != value else TrialState.COMPLETE
        ended = "no objective" if value != value else f"{value:.6g}"
    except PlanError as error:
        value, state, ended = None, TrialState.PRUNED, f"pruned: {error}"
    except Exception as error:  # whatever a run can raise; the next trial may do better
        value, state, ended = None, TrialState.FAIL, f"failed: {type(error).__name__}: {error}"
    trial.set_user_attr("ended", ended)
    try:
        study.tell(trial, value if state == TrialState.COMPLETE else None, state=state)
    except RuntimeError:  # a grid stops a loop of Optuna's at its last point; this one is ours
        if not isinstance(study.sampler, GridSampler):
            raise
    log.info("trial %s: %s", trial.number, ended)
    return state != TrialState.FAIL


def build_sampler(plugin: Any, space: Space) -> "optuna.samplers.BaseSampler":
    """Return the sampler; that of a grid is still to be told the space."""
    if not isinstance(plugin.sampler, functools.partial):
        return plugin.sampler
    choices = plugin._to_grid_sampler_choices
    return plugin.sampler({key: choices(one) for key, one in space.distributions.items()})


def n_left(study: "optuna.Study", n_trials: int) -> int:
    """Return how many trials are to run; those that a killed process left do not count."""
    import optuna

    sampler = study.sampler
    if isinstance(sampler, optuna.samplers.GridSampler):
        n_trials = min(n_trials, len(sampler._all_grids))
    return n_trials - sum(trial.state.is_finished() for trial in study.get_trials(deepcopy=False))


def free_memory() -> None:
    """Let go of what a trial has left: cycles, and the blocks that the device's allocator keeps."""
    gc.collect()
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()


def conclude(study: "optuna.Study", folder: Path) -> None:
    """Write optimization_results.yaml: the best trial, and how many ended how.

    Raises:
        PlanError: if every trial was pruned.
        RuntimeError: if no other trial came to an end either.
    """
    from jepa.plan import PlanError

    trials = study.get_trials(deepcopy=False)
    ended = [trial.state.name.lower() for trial in trials]
    counts = {state: ended.count(state) for state in ("complete", "pruned", "fail")}
    results: dict[str, Any] = {"name": "optuna", "trials": counts}
    if counts["complete"]:
        best = study.best_trial
        results |= {"best_trial": best.number, "best_value": best.value, "best_params": best.params}
        log.info("best of %s: trial %s, %.6g, %s", counts, best.number, best.value, best.params)
    OmegaConf.save(OmegaConf.create(results), folder / "optimization_results.yaml")
    if not counts["complete"]:
        last = trials[-1].user_attrs.get("ended", "")
        error = PlanError if counts["pruned"] and not counts["fail"] else RuntimeError
        raise error(f"no trial was completed, of {counts}; the last: {last}")


@dataclass
class SearchSpaceSweeperConf(OptunaSweeperConf):
    """The plugin's settings, with our class behind them; a failed trial does not end a study."""

    _target_: str = f"{__name__}.{SearchSpaceSweeper.__name__}"
    max_failure_rate: float = 1.0


def register() -> None:
    """Make `hydra/sweeper=optuna` ours; call it before Hydra reads the command line.

    Discovering plugins stores the plugin's own node under that name, so discovery comes first.
    """
    Plugins.instance().register(SearchSpaceSweeper)
    ConfigStore.instance().store(
        group="hydra/sweeper",
        name="optuna",
        node=SearchSpaceSweeperConf,
        provider="jepa",
        replace=True,
    )
