"""`-m hydra/sweeper=optuna`: Hydra's Optuna sweeper, by default over the model's own space."""

from dataclasses import dataclass

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra_plugins.hydra_optuna_sweeper.config import OptunaSweeperConf
from hydra_plugins.hydra_optuna_sweeper.optuna_sweeper import OptunaSweeper
from omegaconf import OmegaConf


class SearchSpaceSweeper(OptunaSweeper):
    """Sweep `cfg.search` when no space is given by hand."""

    def sweep(self, arguments: list[str]) -> None:
        """Start the sweep.

        Raises:
            ValueError: if there is nothing to search; Optuna would repeat one run n times.
        """
        sweeper = self.sweeper
        config = sweeper.config
        assert config is not None  # set up before a sweep starts
        if not sweeper.params and config.get("search"):
            sweeper.params = OmegaConf.create(dict(config.search))
        if not sweeper.params:
            model = config.hydra.runtime.choices.model
            raise ValueError(f"no search space for {model=}: write conf/search/{model}.yaml")
        if not any(argument.startswith("test=") for argument in arguments):
            arguments = [*arguments, "test=false"]  # the test split is for the best trial, once
        super().sweep(arguments)


@dataclass
class SearchSpaceSweeperConf(OptunaSweeperConf):
    """The plugin's settings, with our class behind them."""

    _target_: str = f"{__name__}.{SearchSpaceSweeper.__name__}"


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
