"""`-m hydra/sweeper=optuna`: search with Optuna, by default over the model's own space.

Built on Hydra's Optuna sweeper, whose settings it keeps: search-space syntax, samplers, storage,
multi-objective studies. Its loop is our own (`driver.py`): that of the plugin waits for whole
batches, knows no pruned trial, and ends with the first error.
"""

import functools
import logging
import shutil
import signal
import subprocess
import sys
import time
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.utils import instantiate
from hydra_plugins.hydra_optuna_sweeper.config import OptunaSweeperConf, TPESamplerConfig
from hydra_plugins.hydra_optuna_sweeper.optuna_sweeper import OptunaSweeper
from omegaconf import OmegaConf

from jepa.config import UserError
from jepa.sweeps import local, slurm
from jepa.sweeps.driver import ASKED, Settings, Sweep
from jepa.sweeps.feasible import Checker
from jepa.sweeps.in_process import InProcess
from jepa.sweeps.report import record, summarize, write_all, write_page, write_tables
from jepa.sweeps.space import Space, read_space
from jepa.sweeps.study import alone, best_of, build_pruner, check_space, open_storage
from jepa.sweeps.table import Screen

if TYPE_CHECKING:
    import optuna

log = logging.getLogger(__name__)

PAGE_S = 60.0  # between two drawings of report.html


class SearchSpaceSweeper(OptunaSweeper):
    """Sweep `cfg.search` when no space is given by hand.

    Args:
        pruner: `median`, `hyperband` or `none`; it sees the objective at every validation.
        max_retries: of a trial that the machine failed.
        plugin: the settings of Hydra's own sweeper.
    """

    def __init__(self, *, pruner: str, max_retries: int, **plugin: Any):
        super().__init__(**plugin)
        self.pruner, self.max_retries = pruner, max_retries

    def sweep(self, arguments: list[str]) -> None:
        """Run trials until there are `n_trials` in the study, those of earlier commands included.

        Raises:
            ValueError: if there is nothing to search; Optuna would repeat one run n times.
            UserError: if the study cannot be opened, is of another space, or cannot be written.
            PlanError: if every trial was pruned, as none fits.
            RuntimeError: if too many trials failed.
        """
        from optuna.exceptions import StorageInternalError

        plugin = self.sweeper
        config = plugin.config
        assert config is not None  # set up before a sweep starts
        if plugin.n_trials < 1 or plugin.n_jobs < 1:
            raise ValueError(
                "hydra.sweeper.n_trials and n_jobs must be at least 1, "
                f"got n_trials={plugin.n_trials}, n_jobs={plugin.n_jobs}"
            )
        space = self.read_space(arguments)
        folder = Path(config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)  # its storage may lie there
        with alone(folder):  # two drivers would both create its tables
            study = self.open_study(space, folder)
        launcher = self.launcher(len(study.directions))
        record(
            folder,
            storage=plugin.storage,
            name=study.study_name,
            command=getattr(launcher, "command", None) or local.own_command(),
        )
        here = isinstance(launcher, local.LocalLauncher)
        n_jobs = 1 if isinstance(launcher, InProcess) else plugin.n_jobs
        checker = Checker(n_jobs=n_jobs if here else None)
        is_ours = OmegaConf.select(config, "model._target_") is not None
        with (
            Screen(study, n_trials=plugin.n_trials, n_jobs=n_jobs) as screen,
            closing(checker),
        ):
            pages = Pages(study, folder)

            def told(trial: Any, outcome: Any) -> None:
                screen.tell(trial, outcome)
                pages.write()

            sweep = Sweep(
                study,
                space,
                launcher.start,
                launcher.ready,
                folder,
                Settings(
                    n_trials=plugin.n_trials,
                    n_jobs=n_jobs,
                    max_failure_rate=plugin.max_failure_rate,
                    max_retries=self.max_retries,
                    extender=plugin.custom_search_space_extender,
                    config=config,
                    refuse=checker.refuse if is_ours else None,
                ),
                told,
                screen.show,
                getattr(launcher, "adopt", None),
            )
            try:
                sweep.run()
            except StorageInternalError as error:
                raise UserError(unwritable(plugin.storage, folder, error)) from error
            finally:
                pages.finish()
        leave_if_asked(sweep.heard)
        conclude(study, folder)
        if config.get("test") and "test=false" not in arguments:
            test_best(study, folder)

    def read_space(self, arguments: list[str]) -> Space:
        """Return the space of the command, or of the model.

        Raises:
            ValueError: if there is nothing to search.
        """
        plugin, config = self.sweeper, self.sweeper.config
        assert config is not None  # set up before a sweep starts
        if "test" in config and not any(one.startswith("test=") for one in arguments):
            arguments = [*arguments, "test=false"]  # the test split is for the best trial, once
        search: Any = plugin.params or config.get("search") or {}
        space = read_space(dict(search), arguments)
        if not space.distributions:
            model = config.hydra.runtime.choices.get("model")
            raise ValueError(f"no search space for {model=}: write conf/search/{model}.yaml")
        return space

    def open_study(self, space: Space, folder: Path) -> "optuna.Study":
        """Return the study, new or of an earlier command.

        Raises:
            UserError: if its storage cannot be opened, or it is of another space.
        """
        import optuna

        plugin, config = self.sweeper, self.sweeper.config
        assert config is not None  # set up before a sweep starts
        optuna.logging.set_verbosity(optuna.logging.WARNING)  # the screen says it
        study = optuna.create_study(
            study_name=plugin.study_name or config.get("study") or folder.name,
            storage=open_storage(plugin.storage, folder),
            sampler=build_sampler(plugin, space),
            pruner=build_pruner(self.pruner),
            directions=plugin._get_directions(),  # pyright: ignore[reportArgumentType]
            load_if_exists=True,
        )
        check_space(study, space)
        if study.trials:  # the same draws again would repeat the first trials
            study.sampler = build_sampler(plugin, space, shift=len(study.trials))
        return study

    def launcher(self, n_objectives: int) -> Any:
        """Return what starts trials: a process for each, unless another launcher was asked for."""
        plugin, config = self.sweeper, self.sweeper.config
        assert config is not None and plugin.launcher is not None  # set up before a sweep starts
        launcher = plugin.launcher
        asked = [one for one in config.hydra.overrides.hydra if "launcher" in one]
        if isinstance(launcher, slurm.SlurmLauncher):
            launcher.n_objectives = n_objectives
            return launcher
        if not isinstance(launcher, local.LocalLauncher):
            if asked or type(launcher).__name__ != "BasicLauncher":
                return InProcess(launcher, n_objectives=n_objectives)
            launcher = local.LocalLauncher()
            launcher.config = config
        launcher.n_jobs, launcher.n_objectives = plugin.n_jobs, n_objectives
        return launcher


class Pages:
    """Writes the tables after every trial; a process of its own draws the page, now and then."""

    def __init__(self, study: "optuna.Study", folder: Path):
        self.study, self.folder = study, folder
        self.began = time.monotonic()
        self.known: dict[int, list[Any]] = {}
        self.drawing: subprocess.Popen | None = None

    def write(self) -> None:
        """Write; plots take seconds, and trials are not to wait for them."""
        with suppress(OSError):  # a full disk costs a table, not the sweep
            write_tables(self.study, self.folder, self.known)
            drawn = self.drawing is None or self.drawing.poll() is not None
            if drawn and time.monotonic() - self.began > PAGE_S:
                self.began = time.monotonic()
                line = [sys.executable, "-m", "jepa.sweeps.report", f"run={self.folder}"]
                silent = subprocess.DEVNULL
                self.drawing = subprocess.Popen(line, stdout=silent, stderr=silent)

    def finish(self) -> None:
        """Write everything, once the last trial is told."""
        if self.drawing is not None:
            self.drawing.wait()
        with suppress(OSError):
            write_all(self.study, self.folder)


def unwritable(storage: str | None, folder: Path, error: BaseException) -> str:
    """Word the end of a sweep whose study can be written no more."""
    while error.__cause__ is not None:
        error = error.__cause__
    free = shutil.disk_usage(folder).free / 2**20
    return (
        f"the study in {storage or folder} cannot be written: {error} ({free:.0f} MiB are free in "
        f"{folder}); mend that, and the same command goes on: what was told is kept"
    )


def leave_if_asked(heard: int) -> None:
    """Leave with the exit code of the signal that ended the sweep; say how it goes on."""
    if not heard:
        return
    by = ASKED.get(heard) or signal.Signals(heard).name
    print(f"stopped by {by}: the same command goes on", flush=True)
    sys.exit(max(0, 128 + heard) if heard > 0 else 0)


def test_best(study: "optuna.Study", folder: Path) -> None:
    """Score the best checkpoint of the best trial on the test split, once."""
    best = best_of(study.get_trials(deepcopy=False))
    if best is None or study.user_attrs.get("tested") == best.number:
        return
    directory = folder / str(best.number)
    line = [sys.executable, "-m", "jepa.evaluate", f"run={local.quoted(str(directory))}"]
    print(f"the best trial, {best.number}, on the test split:", flush=True)
    done = subprocess.run([*line, "split=test"], check=False)
    if done.returncode == 0:
        study.set_user_attr("tested", best.number)
        with suppress(OSError):
            write_page(study, folder)  # with that score


def build_sampler(plugin: Any, space: Space, *, shift: int = 0) -> "optuna.samplers.BaseSampler":
    """Return the sampler; that of a grid is still to be told the space.

    Args:
        plugin: the stock sweeper, with the sampler as it was asked for.
        space: what is searched.
        shift: added to its seed.
    """
    sampler = plugin.sampler
    if isinstance(sampler, functools.partial):
        choices = plugin._to_grid_sampler_choices
        return sampler({key: choices(one) for key, one in space.distributions.items()})
    node = plugin.config.hydra.get("sweeper", {}).get("sampler")
    if not shift or node is None or node.get("seed") is None:
        return sampler
    shifted = OmegaConf.merge(node, {"seed": node.seed + shift})
    allowed = ("hydra_plugins.hydra_optuna_sweeper.*", "optuna.samplers.*")
    return instantiate(shifted, _execution_whitelist_=allowed)


def conclude(study: "optuna.Study", folder: Path) -> None:
    """Write optimization_results.yaml: the best trial, and how many ended how.

    Raises:
        PlanError: if every trial was pruned.
        RuntimeError: if no other trial came to an end either.
    """
    counts = summarize(study)
    results: dict[str, Any] = {"name": "optuna", "trials": counts}
    if counts["complete"] and len(study.directions) > 1:
        results["solutions"] = [{"params": t.params, "values": t.values} for t in study.best_trials]
    elif counts["complete"]:
        best = study.best_trial
        results |= {"best_trial": best.number, "best_value": best.value, "best_params": best.params}
        log.info("best of %s: trial %s, %.6g, %s", counts, best.number, best.value, best.params)
    OmegaConf.save(OmegaConf.create(results), folder / "optimization_results.yaml")
    if not counts["complete"]:
        from jepa.plan import PlanError

        last = study.trials[-1].user_attrs.get("ended", "")
        error = PlanError if counts["pruned"] and not counts["fail"] else RuntimeError
        raise error(f"no trial was completed, of {counts}; the last: {last}")


@dataclass
class SearchSpaceSweeperConf(OptunaSweeperConf):
    """The plugin's settings, with our class behind them."""

    _target_: str = f"{__name__}.{SearchSpaceSweeper.__name__}"
    n_jobs: int = 1
    max_failure_rate: float = 0.5  # of the trials told, once there are ten
    max_retries: int = 3
    pruner: str = "median"  # hyperband | none


@dataclass
class SeededTPEConf(TPESamplerConfig):
    """The plugin's default sampler, seeded, and aware of the trials in flight."""

    seed: Any = "${oc.select:seed,0}"
    constant_liar: bool = True


def register() -> None:
    """Make `hydra/sweeper=optuna` ours; call it before Hydra reads the command line.

    Discovering plugins stores the plugin's own node under that name, so discovery comes first.
    """
    Plugins.instance().register(SearchSpaceSweeper)
    local.register()
    slurm.register()
    nodes = {
        ("hydra/sweeper", "optuna"): SearchSpaceSweeperConf,
        ("hydra/sweeper/sampler", "tpe"): SeededTPEConf,
    }
    for (group, name), node in nodes.items():
        ConfigStore.instance().store(
            group=group, name=name, node=node, provider="jepa", replace=True
        )
