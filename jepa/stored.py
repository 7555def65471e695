"""Configs and settings that lie in files: untrusted, so nothing in them runs or is looked up.

A run writes its config with every value resolved. One with interpolations or YAML aliases in it was
not written by a run: `${oc.env:SECRET}` would read the environment of whoever opens it.
"""

import re
import sys
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, cast

import yaml
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from hydra.utils import execution_whitelist
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from jepa.config import CONF, UserError

GROUPS = ("model", "data", "augment", "masking")  # of what a model is rebuilt from
RESOLVER = re.compile(r"\$\{[^}]*:")  # ${oc.env:SECRET}
# A class of torch.optim itself: what its modules import is reached by longer names.
OPTIMIZER = re.compile(r"torch\.optim\.[A-Z]\w*")
NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


def shipped(*groups: str) -> tuple[str, ...]:
    """Return the constructors that the yaml files of some groups name, wherever in them."""
    paths = [path for group in groups for path in (CONF / group).glob("*.yaml")]
    nodes = (OmegaConf.to_container(OmegaConf.load(path)) for path in paths)
    return tuple(sorted({target for node in nodes for target in targets_in(node)}))


def targets_in(node: Any) -> Iterable[str]:
    """Yield every `_target_` of nested plain values."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield str(node["_target_"])
        for one in node.values():
            yield from targets_in(one)
    elif isinstance(node, list):
        for one in node:
            yield from targets_in(one)


def packages(trust: Any) -> tuple[str, ...]:
    """Check the names of the user's own packages.

    Raises:
        UserError: for what is no list of names, and for a package of Python's own.
    """
    if isinstance(trust, str) or not all(isinstance(one, str) for one in trust or ()):
        raise UserError(f"trust takes a list of packages, got {trust!r}: give trust=[my_package]")
    for name in trust or ():
        if not NAME.fullmatch(name):
            raise UserError(f"trust={name!r} is no name of a package: give trust=[my_package]")
        if name.split(".")[0] in sys.stdlib_module_names:
            raise UserError(
                f"trust=[{name}] would let a file run anything: name a package of your own"
            )
    return tuple(trust or ())


def from_a_file(trust: Sequence[str] | ListConfig = ()) -> Any:
    """Return the context in which a config from a file is built.

    It may call the models, data sets and optimizers that are shipped or in torch.optim, and what is
    in the packages of `trust`.

    Raises:
        UserError: see `packages`.
    """
    own = [f"{name}.*" for name in packages(trust)]
    return execution_whitelist((*allowed(), *own), reset=True)


@cache
def allowed() -> tuple[str, ...]:
    """Return what every config from a file may call."""
    return (*shipped(*GROUPS), "torch.optim.*")


def parse_config(text: Any) -> DictConfig:
    """Return the config that a run has stored as YAML text.

    Raises:
        ValueError: for what is no mapping, and for interpolations, missing values and aliases.
    """
    if not isinstance(text, str):
        raise ValueError(f"a config is text, not a {type(text).__name__}")
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):  # a few lines of them fill the memory
            raise ValueError(f"it has the alias *{event.anchor}; a run writes none")
    cfg = OmegaConf.create(text)
    if not isinstance(cfg, DictConfig):
        raise ValueError("it holds no settings")
    for key, value in leaves(OmegaConf.to_container(cfg, resolve=False)):
        if "${" in f"{key}{value}":
            raise ValueError(f"{key}={value}: a run stores its values resolved")
    return cast(DictConfig, cfg)


def read_settings(path: Path) -> dict[str, Any]:
    """Return the settings of a config.yaml by dotted key.

    Raises:
        ValueError: for a file that no run has written.
    """
    try:
        cfg = parse_config(path.read_text(encoding="utf-8"))
    except (ValueError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise ValueError(f"{path} is no config of a run: {error}") from error
    return dict(leaves(OmegaConf.to_container(cfg, resolve=False)))


def leaves(node: Any, prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Yield the dotted keys and values of nested plain values."""
    if isinstance(node, dict | list):
        items = node.items() if isinstance(node, dict) else enumerate(node)
        for key, value in items:
            yield from leaves(value, f"{prefix}.{key}" if prefix else str(key))
        if not node:
            yield prefix, ""
    else:
        yield prefix, node


def check_recorded(overrides: Sequence[str], arguments: Sequence[str] = ()) -> None:
    """Refuse settings of a run directory that would call what is not shipped, or look things up.

    Args:
        overrides: the settings.
        arguments: typed by the user: `trust` and `hydra.searchpath` are taken from them.

    Raises:
        UserError: naming it, and the ways on.
    """
    hint = "if you trust it, give all settings on the command line"
    for one in overrides:
        if one.lstrip("+~").startswith(("hydra.", "hydra/")) or RESOLVER.search(one):
            raise UserError(f"the settings recorded in this run directory hold {one}: {hint}")
    typed = [one for one in arguments if one.startswith("hydra.searchpath=")]
    with initialize_config_dir(str(CONF), job_name="config"):
        try:
            cfg = compose("config", [*typed, *overrides])
        except (HydraException, OmegaConfBaseException) as error:
            raise UserError(
                f"the settings recorded in this run directory do not fit: {error}; give all "
                "settings on the command line"
            ) from error
    own = tuple(f"{name}." for name in trust_of(arguments))
    every = shipped(*(path.name for path in CONF.iterdir() if path.is_dir()))
    for target in targets_in(OmegaConf.to_container(cfg, resolve=False)):
        if target not in every and not OPTIMIZER.fullmatch(target) and not target.startswith(own):
            raise UserError(
                f"the settings recorded in this run directory call {target}: if you trust it, give "
                f"trust=[{target.split('.')[0]}], or all settings on the command line"
            )


def trust_of(arguments: Sequence[str]) -> list[str]:
    """Return the packages that a command line trusts."""
    given = [one.split("=", 1)[1] for one in arguments if one.startswith("trust=")]
    return list(packages(yaml.safe_load(given[-1]))) if given else []
