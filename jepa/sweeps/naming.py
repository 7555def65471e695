"""The name of a study: what the same command finds again, and another command does not."""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig

from jepa.config import CONF, without_sweep


def with_study(arguments: Sequence[str], config_name: str = "config") -> list[str]:
    """Return the arguments, of a multirun with a `study=`, so that all its jobs agree on it."""
    args = get_args_parser().parse_intermixed_args(list(arguments))
    given = any(one.split("=")[0].lstrip("+") == "study" for one in args.overrides)
    if not args.multirun or given:
        return list(arguments)
    try:
        choices = composed(filter(is_own, args.overrides), config_name).hydra.runtime.choices
    except HydraException:
        return list(arguments)  # what is wrong with them is told where they are checked
    parts = [choices.get(group) for group in ("model", "data", "experiment")]
    name = "_".join(str(part) for part in parts if part) or config_name
    return [*arguments, f"study={name}_{digest(args.overrides)}"]


def sweep_directory(arguments: Sequence[str], config_name: str) -> tuple[DictConfig, Path]:
    """Return the config of a multirun's first job, and the directory of all.

    Raises:
        HydraException: where the arguments do not compose.
    """
    args = get_args_parser().parse_intermixed_args(with_study(arguments, config_name))
    cfg = composed(args.overrides, config_name)
    return cfg, Path(cfg.hydra.sweep.dir)


def composed(overrides: Iterable[str], config_name: str) -> DictConfig:
    """Return the config with the first value of each sweep."""
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    plain = [one for override in parsed if (one := without_sweep(override)) is not None]
    with initialize_config_dir(str(CONF), job_name=config_name):
        words = [one.input_line or "" for one in plain]
        return compose(config_name, words, return_hydra_config=True)


def digest(overrides: Sequence[str]) -> str:
    """Return 8 hex digits of the settings in any order, without how and where the sweep runs."""
    own = sorted(filter(is_own, overrides))
    return hashlib.sha256("\n".join(own).encode()).hexdigest()[:8]


def is_own(override: str) -> bool:
    """Tell whether an override is of the runs, not of how and where they are made."""
    return not override.lstrip("+~").startswith("hydra")
