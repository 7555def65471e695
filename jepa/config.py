"""Find `conf/`, refuse unknown keys before anything is imported, and say errors in one message.

A mistyped key is refused before the first heavy import and before a run directory exists.
"""

import difflib
import errno
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn, cast

from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from jepa.signatures import parameters

HERE = Path(__file__).resolve().parent
# An installed wheel carries the folder inside the package, a checkout beside it.
CONF = HERE / "conf" if (HERE / "conf").is_dir() else HERE.parent / "conf"
# Keys Hydra itself reads on a node.
HYDRA_KEYS = {"_target_", "_partial_", "_recursive_", "_convert_", "_args_"}


class UserError(ValueError):
    """Something the user can mend; its text is the whole message."""


def run_command(main: Callable[[], object], config_name: str) -> None:
    """Check the command line, run a `hydra.main` function, and end with a message, not a traceback.

    Unknown keys end the command with exit code 2 before anything is written; other errors the user
    can mend with exit code 1. `HYDRA_FULL_ERROR=1` shows tracebacks.
    """
    full = os.environ.get("HYDRA_FULL_ERROR", "0") not in ("", "0")
    try:
        check_command_line(sys.argv[1:], config_name)
    except UserError as error:
        fail(str(error), code=2)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises instead of printing and exiting
    try:
        main()
    except Exception as error:
        message = None if full else explain(error)
        if message is None:
            raise
        fail(message, code=1)


def fail(message: str, *, code: int) -> NoReturn:
    """Print one message on stderr and leave."""
    sys.stderr.write(f"error: {message}\n")
    sys.exit(code)


def explain(error: BaseException) -> str | None:
    """Return the message of an error that the user can mend, or None for one of our own."""
    from hydra.errors import InstantiationException  # a subclass of HydraException

    if isinstance(error, InstantiationException):  # its cause is the constructor's own message
        cause = error.__cause__
        if cause is None:
            return str(error)
        return explain(cause) or (str(error) if isinstance(cause, TypeError) else None)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return (
            f"the disk is full, or a limit is reached: {error}; free space, or give hydra.run.dir="
        )
    if isinstance(error, ModuleNotFoundError):
        extras = {"mlflow": "mlflow", "wandb": "wandb", "onnx": "export"}
        extra = next((extras[name] for name in extras if name in str(error)), None)
        return extra and f"{error}: install the extra with pip install 'jepa[{extra}]'"
    known = (ValueError, OSError, HydraException, OmegaConfBaseException)
    if isinstance(error, known) or type(error).__name__ == "MisconfigurationException":
        return str(error) or type(error).__name__
    return None


def check_command_line(arguments: list[str], config_name: str) -> None:
    """Compose what the arguments ask for and refuse keys that nothing reads.

    Raises:
        UserError: for an unknown key, naming the nearest valid ones.
    """
    args = get_args_parser().parse_intermixed_args(arguments)
    if args.help or args.hydra_help or args.shell_completion:
        return
    try:
        overrides = OverridesParser.create().parse_overrides(args.overrides)
    except HydraException as error:
        raise UserError(f"{error}\nQuote values with spaces, commas, brackets or `=`, for example: "
                        "'data.path=\"my file (1).csv\"'") from error  # fmt: skip
    plain = [one for override in overrides if (one := without_sweep(override)) is not None]
    with initialize_config_dir(str(CONF), job_name=config_name):
        try:
            cfg = compose(config_name, [o.input_line or "" for o in plain])
        except HydraException as error:
            raise UserError(name_unknown_override(error, plain, config_name)) from error
        except OmegaConfBaseException as error:
            raise UserError(str(error)) from error
        check_numbers(plain, config_name)
    check_keys(cfg, config_name)
    for override in plain:
        if override.key_or_group == "hydra.run.dir" and "resume" in cfg:
            refuse_used(str(cfg.resume), Path(str(override.value())))
    for key in missing(cfg):
        raise UserError(f"{key} has no value: give {key}=<value>")
    if not args.cfg:
        refuse_absent(cfg)
    swept = [o for o in overrides if o.is_sweep_override() and o.value_type is not None]
    for override in swept:
        key = override.key_or_group
        if not override.is_add() and "/" not in key and "." in key and not has_key(cfg, key):
            raise UserError(unknown(key, cfg))


def refuse_used(resume: str, run_dir: Path) -> None:
    """Refuse a run directory that another run has used, before anything in it changes.

    Raises:
        UserError: naming the ways on.
    """
    if resume == "never" and any((run_dir / "checkpoints").glob("*.ckpt")):
        raise UserError(
            f"{run_dir} already holds checkpoints: give resume=auto to go on from them, or another "
            "hydra.run.dir="
        )


def refuse_absent(cfg: DictConfig) -> None:
    """Refuse a data folder that is not there, before anything slow is imported.

    Raises:
        UserError: with the place, what it has to hold, and what to take instead.
    """
    folder = (cfg.get("data") or {}).get("folder")
    if folder is not None and not Path(str(folder)).is_dir():
        raise UserError(
            f"data.folder={folder}: there is no such folder ({Path(str(folder)).absolute()}); it "
            "has to hold train/<class>/ and val/<class>/ with .jpg, .jpeg or .png files, which are "
            "not downloaded. Put it there, or point paths.data_dir (or JEPA_DATA) to the folder "
            "above it; without it give data=mixture, or data=image_folder data.path=<folder>"
        )


def without_sweep(override: Override) -> Override | None:
    """Return the override with the first value of a sweep, None where there is no first value."""
    if not override.is_sweep_override():
        return override
    sweep = override.value()
    if not isinstance(sweep, ChoiceSweep) or not sweep.list:
        return None
    prefix = "+" if override.is_add() else "++" if override.is_force_add() else ""
    first = Override._get_value_element_as_str(sweep.list[0])
    return OverridesParser.create().parse_override(f"{prefix}{override.get_key_element()}={first}")


def check_numbers(overrides: list[Override], config_name: str) -> None:
    """Refuse a word where the config has a number.

    Raises:
        UserError: naming the key and the number it has by default.
    """
    words = [o for o in overrides if not is_choice(o) and isinstance(o.value(), str)]
    if not words:
        return
    default = compose(config_name, [o.input_line or "" for o in overrides if is_choice(o)])
    for override in words:
        key, value = override.key_or_group, str(override.value())
        if "/" in key or not has_key(default, key) or value == "auto" or "${" in value:
            continue
        *parents, last = key.split(".")
        node: Any = default
        for parent in parents:
            node = node._get_node(parent)
        now = node._get_node(last)
        now = None if isinstance(now, DictConfig | ListConfig) else now._value()
        if isinstance(now, int | float) and not isinstance(now, bool):
            raise UserError(f"{key} takes a number, as {now}, got {value!r}")


def name_unknown_override(error: Exception, overrides: list[Override], config_name: str) -> str:
    """Say which override Hydra refused and what it may have been meant to be."""
    text = str(error)
    if option := re.search(r"Could not find '(.+)/([^/']+)'", text):
        names = sorted(path.stem for path in (CONF / option[1]).glob("*.yaml"))
        near = difflib.get_close_matches(option[2], names, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"valid: {', '.join(names)}"
        return f"{option[1]}={option[2]}: there is no such option; {hint}"
    groups = [o.input_line or "" for o in overrides if is_choice(o) or "/" in o.key_or_group]
    values = [o for o in overrides if not is_choice(o) and f"'{o.key_or_group}'" in text]
    if not values:
        return text
    of_hydra = values[0].key_or_group.startswith("hydra.")
    try:
        cfg = compose(config_name, groups, return_hydra_config=of_hydra)
    except (HydraException, OmegaConfBaseException):
        return text
    return unknown(values[0].key_or_group, cfg)


def is_choice(override: Override) -> bool:
    """Tell whether the override picks an option of a config group, as `data=adult` does."""
    return (CONF / override.key_or_group.split("@")[0]).is_dir()


def check_keys(cfg: DictConfig, config_name: str) -> None:
    """Refuse keys that no constructor and no entry point reads.

    Hydra adds unknown keys of a `@package _global_` file without a word; so does `+key=`.

    Raises:
        UserError: naming the key and the nearest valid ones.
    """
    written = main_yaml(config_name)
    roots = set(written) - {"defaults", "hydra"}
    roots |= {path.name for path in CONF.iterdir() if path.is_dir()} - {"hydra", "experiment"}
    for key in cfg:
        if key not in roots:
            raise UserError(unknown(str(key), cfg, roots))
    for key, node in raw_items(cfg):
        if isinstance(node, DictConfig) and key != "search":
            check_node(str(key), node, cfg, written._get_node(key))
    for key in cfg.get("search") or ():
        if not has_key(cfg, str(key)):
            raise UserError(unknown(str(key), cfg))


def main_yaml(config_name: str) -> DictConfig:
    """Return the yaml of a command on top of those it starts from, as doctor from config."""
    own = cast(DictConfig, OmegaConf.load(CONF / f"{config_name}.yaml"))
    names = [one for one in own.get("defaults", ()) if isinstance(one, str) and one != "_self_"]
    return cast(DictConfig, OmegaConf.merge(*map(main_yaml, names), own))


def check_node(path: str, node: DictConfig, cfg: DictConfig, written: object = None) -> None:
    """Check one node of the config and what lies below it; `written` is it in the main yaml."""
    target = node.get("_target_")
    if isinstance(written, DictConfig):
        allowed = {str(key) for key in written}
    elif target is None and (CONF / path).is_dir():
        allowed = declared(path)
    else:
        allowed = parameters(str(target)) if target else None
    for key, value in raw_items(node):
        full = f"{path}.{key}"
        is_plugin = isinstance(value, DictConfig) and "_target_" in value and target is None
        if key in HYDRA_KEYS or is_plugin:
            pass  # a callback or logger of the user's own, under a name of the user's own
        elif allowed is not None and key not in allowed:
            raise UserError(unknown(full, cfg, {f"{path}.{name}" for name in allowed}))
        if isinstance(value, DictConfig):
            check_node(full, value, cfg)


def declared(group: str) -> set[str]:
    """Return the keys that the yaml files of a group without a constructor declare."""
    files = (CONF / group).glob("*.yaml")
    return {str(key) for path in files for key in OmegaConf.load(path)} - {"defaults"}


def raw_items(node: DictConfig) -> Iterator[tuple[str, object]]:
    """Yield the items without resolving interpolations, which may need a running Hydra."""
    for key in node:
        yield str(key), node._get_node(key)


def has_key(cfg: DictConfig, key: str) -> bool:
    """Tell whether the dotted key exists, also where its value is null or missing."""
    *parents, last = key.split(".")
    node: object = cfg
    for parent in parents:
        inside = isinstance(node, DictConfig) and parent in node
        node = node._get_node(parent) if inside else None  # pyright: ignore
    return isinstance(node, DictConfig) and last in node


def unknown(key: str, cfg: DictConfig, valid: set[str] | None = None) -> str:
    """Word the refusal of `key`: its new name, or the nearest valid keys by name and last part."""
    if (now := new_name(key)) is not None:
        return f"unknown key {key}: here it is {now}"
    own = {name for name in dotted(cfg) if not name.startswith("search.")}
    every = sorted({*own, *(valid or ())} - {key})
    leaf = key.split(".")[-1]
    near = difflib.get_close_matches(key, every, n=3, cutoff=0.75)
    by_leaf = difflib.get_close_matches(leaf, {name.split(".")[-1] for name in every}, n=3)
    near += [name for part in by_leaf for name in every if name.split(".")[-1] == part]
    near = list(dict.fromkeys(near))[:3]
    siblings = sorted(valid or every)
    hint = f"did you mean {' or '.join(near)}?" if near else f"valid: {', '.join(siblings[:40])}"
    return f"unknown key {key}: {hint}"


def new_name(key: str) -> str | None:
    """Return what replaces a key of the design documents; None for a key they do not have."""
    renamed = cast(DictConfig, OmegaConf.load(Path(__file__).with_name("renamed.yaml")))
    parts = key.split(".")
    for start in range(len(parts)):
        end = ".".join(parts[start:])
        if end in renamed:
            return renamed[end]
        inner = [
            f"{name} is {renamed[name]}" for name in renamed if str(name).startswith(f"{end}.")
        ]
        if inner:
            return "; ".join(inner)
    return None


def missing(node: DictConfig, prefix: str = "") -> Iterator[str]:
    """Yield the dotted names of keys whose value is `???`."""
    for key, value in raw_items(node):
        if isinstance(value, DictConfig) and not value._is_none():
            yield from missing(value, f"{prefix}{key}.")
        elif OmegaConf.is_missing(node, key):
            yield prefix + key


def dotted(node: DictConfig | ListConfig, prefix: str = "") -> Iterator[str]:
    """Yield the dotted names of all keys."""
    if not isinstance(node, DictConfig) or node._is_none() or node._is_interpolation():
        return
    for key, value in raw_items(node):
        if key in HYDRA_KEYS:
            continue
        yield prefix + key
        if isinstance(value, DictConfig):
            yield from dotted(value, f"{prefix}{key}.")
