"""Build what a config describes, and open what a run has left.

A checkpoint is untrusted: it is read without unpickling code, and the config inside may call
constructors of models and data of this package and of `torch.optim` only.
"""

import dataclasses
import functools
import inspect
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import lightning as L
import torch
from hydra.utils import UNSAFE_DISABLE_EXECUTION_CHECKS, execution_whitelist, instantiate
from omegaconf import DictConfig, OmegaConf

from jepa.config import CONF
from jepa.environment import environment
from jepa.spec import KINDS, SeriesSpec, Spec, kind_of
from jepa.stored import from_a_file, parse_config

# What a config from a file may call, and what one that the user wrote may.
FROM_A_FILE = from_a_file()
FROM_THE_USER = execution_whitelist(UNSAFE_DISABLE_EXECUTION_CHECKS, reset=True)
MAY_DIFFER = {"dropout", "recompute", "compile"}  # between pretraining and what follows
Probes = dict[str, Callable[..., dict[str, float]]]


def build_model(cfg: DictConfig, spec: Spec) -> L.LightningModule:
    """Return the model with its first weights, the same ones for the same `cfg.seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(cfg.seed)
        return instantiate(cfg.model)(spec=spec)


def build_probes(cfg: DictConfig, spec: Spec) -> Probes:
    """Return the probes of a settled config by name; the one behind the objective first.

    Raises:
        ValueError: for a name without a file in `conf/probe`, or a probe for another task.
    """
    if spec.task == "none":
        return {}
    probes = {name: build_probe(cfg, name) for name in cfg.probes}
    if isinstance(spec, SeriesSpec) and spec.task == "forecast":
        return {name: for_forecasts(name, one, spec.horizon) for name, one in probes.items()}
    return probes


def build_probe(cfg: DictConfig, name: str) -> Callable[..., dict[str, float]]:
    """Return one probe: the composed one with its overrides, another from its file."""
    return instantiate(cfg.probe if name == cfg.probe_name else probe_file(name))


def probe_file(name: str) -> DictConfig:
    """Return the settings of a probe.

    Raises:
        ValueError: if there is none of that name.
    """
    path = CONF / "probe" / f"{name}.yaml"
    if not path.exists():
        valid = sorted(p.stem for p in path.parent.glob("*.yaml") if p.stem != "auto")
        raise ValueError(f"probes: there is no probe {name!r}; valid: {', '.join(valid)}")
    return cast(DictConfig, OmegaConf.load(path))


def for_forecasts(name: str, probe: Callable, horizon: int) -> Callable[..., dict[str, float]]:
    """Tell a probe how many steps a future has.

    Raises:
        ValueError: if it scores labels only.
    """
    if "horizon" not in inspect.signature(probe).parameters:
        raise ValueError(
            f"probe {name!r} scores one label or number for each row, but this data asks for the "
            f"next {horizon} steps: give probe=forecast"
        )
    return functools.partial(probe, horizon=horizon)


def check_probes(cfg: DictConfig, probes: Probes, spec: Spec) -> None:
    """Try every probe on a few made-up rows of the task, and see that the objective will exist.

    Raises:
        ValueError: for a setting a probe refuses, an objective that nothing logs, and a name in
            `callbacks.probe.names` that is no probe of the run.
    """
    named = OmegaConf.select(cfg, "callbacks.probe.names")
    unknown = [] if named is None else [name for name in named if name not in probes]
    if unknown:
        raise ValueError(
            f"callbacks.probe.names has {', '.join(unknown)}, but probes={list(probes)}: "
            "name it there as well"
        )
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(24, 3, generator=generator)
    if isinstance(spec, SeriesSpec) and spec.task == "forecast":
        x = x.abs()  # the last column is a scale
        y = torch.randn(24, spec.horizon, generator=generator)
    elif spec.task == "regression":
        y = x.sum(1)
    else:
        y = torch.arange(24) % min(spec.n_classes or 2, 4)
    logged = {"train/loss", "val/loss"}
    for name, probe in probes.items():
        metrics = probe(x, y, x, y)
        if named is None or name in named:
            logged |= {f"probe/{name}/{metric}" for metric in metrics}
    if cfg.objective not in logged and not cfg.objective.startswith(("probe/label_free/", "val/")):
        raise ValueError(
            f"objective={cfg.objective}: nothing logs that; valid: {', '.join(sorted(logged))}"
        )


def find_checkpoint(run: str | Path, prefer: str = "best.ckpt", *, key: str = "run") -> Path:
    """Return the checkpoint a run directory or a path names: `best.ckpt`, else `last.ckpt`.

    Args:
        run: the directory or the file.
        prefer: which one of a directory to take.
        key: the setting that named it.

    Raises:
        FileNotFoundError: naming what was looked for.
    """
    path = Path(run)
    if path.is_file():
        return path
    folder = path / "checkpoints"
    for name in (prefer, "best.ckpt", "last.ckpt"):
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(
        f"{key}={run}: neither a checkpoint nor a directory with checkpoints/best.ckpt or last.ckpt"
    )


def read_file(path: Path) -> dict[str, Any]:
    """Load a file of weights, ours or not; nothing in it is executed.

    Raises:
        ValueError: if it holds anything but plain values and tensors.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(content, dict):
            raise TypeError(f"it holds a {type(content).__name__}")
    except OSError:
        raise
    except Exception as error:  # a foreign file can fail anywhere inside; it runs nothing
        raise ValueError(
            f"{path} is not a checkpoint of jepa, or it is damaged; nothing in it was executed "
            f"({type(error).__name__})"
        ) from error
    return content


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Load a checkpoint of ours; nothing in the file is executed.

    Raises:
        ValueError: for any other file.
    """
    content = read_file(path)
    missing = {"state_dict", "config", "spec", "preprocessing"} - set(content)
    if missing:
        raise ValueError(f"{path} is not a checkpoint of jepa: it has no {', '.join(missing)}")
    try:
        parse_config(content["config"])
        spec_of(content)
    except Exception as error:
        raise ValueError(f"{path}: its config or spec is damaged: {error}") from error
    return content


def spec_of(checkpoint: dict[str, Any]) -> Spec:
    """Return the spec a checkpoint carries."""
    fields = dict(checkpoint["spec"])
    return KINDS[fields.pop("kind", "table")](**fields)


def load_model(
    run: str | Path, trust: Sequence[str] = ()
) -> tuple[DictConfig, L.LightningModule, dict[str, Any]]:
    """Return (config, model with the saved weights, checkpoint content), from one file alone.

    Args:
        run: a checkpoint, or a run directory, of which the best one is taken.
        trust: packages of your own that its config may call.

    Raises:
        FileNotFoundError: if there is no checkpoint.
        ValueError: if it is not one of ours, is of another version, or weights and config do not
            fit.
        hydra.errors.InstantiationException: if its config calls anything else.
    """
    path = find_checkpoint(run)
    checkpoint = read_checkpoint(path)
    cfg = parse_config(checkpoint["config"])
    try:
        with from_a_file(trust):
            model = build_model(cfg, spec_of(checkpoint))
    except TypeError as error:  # settings that came, or went, since
        told = str(error).splitlines()[0]
        raise ValueError(
            f"{path} is of another version of jepa, whose settings differ: {told}: read it with "
            "that version (environment.json in the run directory), or train again"
        ) from error
    try:
        model.load_state_dict(checkpoint["state_dict"])
    except RuntimeError as error:
        raise ValueError(f"{path}: weights and config do not fit: {error}") from error
    return cfg, model.eval(), checkpoint


def start_from(cfg: DictConfig, model: L.LightningModule) -> Path:
    """Put the encoder of `cfg.init_from` into the model; return the checkpoint it came from.

    That may be a file of the authors of a model, where ours can read it.

    Raises:
        FileNotFoundError: if there is no checkpoint.
        ValueError: if it does not fit, or the model takes none.
    """
    path = find_checkpoint(cfg.init_from, key="init_from")
    content = read_file(path)
    state, theirs = content, OmegaConf.create({})
    if {"state_dict", "config"} <= content.keys():
        state, theirs = content["state_dict"], parse_config(content["config"]).model
    try:
        transfer(model, state, cfg.model, theirs)
    except ValueError as error:
        raise ValueError(f"init_from={cfg.init_from}: {error}") from error
    return path


def transfer(
    model: L.LightningModule, state: dict[str, Any], own: DictConfig, theirs: DictConfig
) -> None:
    """Put the encoder's weights among these into the model.

    Args:
        model: takes them.
        state: the weights of another model.
        own: its settings.
        theirs: settings of that other model. Those that build the encoder must agree, for not all
            of them show in the shapes of its weights.

    Raises:
        ValueError: if they do not fit, or the model takes none.
    """
    if not hasattr(model, "transfer"):
        raise ValueError(
            f"a {type(model).__name__} cannot start from the encoder of another run: give a model "
            "that can, as model=patchtst (resume= goes on with the same model)"
        )
    built_by = set(inspect.signature(type(model.encoder)).parameters) - MAY_DIFFER
    other = [str(k) for k in theirs if k in built_by and theirs[k] != own.get(k)]
    if other:
        raise ValueError(
            "the encoders differ: "
            + ", ".join(f"model.{key}={theirs[key]} there, {own.get(key)} here" for key in other)
        )
    model.transfer(state)  # pyright: ignore[reportCallIssue]


# For each kind of data, its name in a message and what of its spec a checkpoint insists on.
IDENTITY = {
    "table": ("another table", ("columns", "cardinalities", "classes")),
    "series": ("another series", ("channels", "look_back", "horizon", "task", "classes")),
    "images": ("other images", ("n_channels", "height", "width", "task", "classes")),
}


def check_data(checkpoint: dict[str, Any], data: Any, path: Path) -> None:
    """Refuse data that is not what a checkpoint was trained on.

    Raises:
        ValueError: naming the first difference.
    """
    saved = spec_of(checkpoint)
    kind, here = kind_of(saved), kind_of(data.spec)
    if kind != here:
        raise ValueError(
            f"{path} was trained on {kind}, but this data is {here}: give a fitting data="
        )
    other, names = IDENTITY[kind]
    for name in names:
        a, b = getattr(saved, name), getattr(data.spec, name)
        if a != b:
            raise ValueError(f"{path} was trained on {other}: {difference(name, a, b)}")
    if not same(checkpoint["preprocessing"], data.preprocessing):
        raise ValueError(
            f"{path} was trained on {other}, or on other rows of it: what is fitted on the "
            "training rows differs (jepa.embed and jepa.forecast take any table or series with "
            "these columns)"
        )


def difference(name: str, a: Any, b: Any) -> str:
    """Word how a part of a spec differs; lists of other lengths by their lengths too."""
    if not isinstance(a, tuple):
        return f"its {name} is {a}, here it is {b}"
    sizes = (f"{len(a)} ", f"{len(b)} ") if len(a) != len(b) else ("", "")
    return f"its {sizes[0]}{name} are {brief(a)}, here they are {sizes[1]}{brief(b)}"


def check_model(checkpoint: dict[str, Any], cfg: DictConfig, model: Any, path: Path) -> None:
    """Refuse to resume from a checkpoint of another model.

    Raises:
        ValueError: naming the settings that differ.
    """
    theirs = parse_config(checkpoint["config"]).model
    if theirs._target_ != cfg.model._target_:
        raise ValueError(
            f"resume={path} holds a {theirs._target_}, this run trains a {cfg.model._target_}: "
            "give the matching model=, or resume=never"
        )
    saved = {key: value.shape for key, value in checkpoint["state_dict"].items()}
    if saved != {key: value.shape for key, value in model.state_dict().items()}:
        keys = {*theirs, *cfg.model} - {"optimizer", "seed"}
        other = sorted(key for key in keys if theirs.get(key) != cfg.model.get(key))
        settings = ", ".join(f"model.{key}={theirs.get(key)}" for key in other)
        raise ValueError(
            f"resume={path} holds a model of other sizes: it was built with {settings}"
        )


def same(a: Any, b: Any) -> bool:
    """Compare nested plain values and tensors; NaN equals NaN."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.shape == b.shape and torch.equal(a.nan_to_num(), b.nan_to_num())
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


def brief(values: Sequence[Any]) -> str:
    """Show a list by its first few values."""
    more = f", ... ({len(values)})" if len(values) > 6 else ""
    return "[" + ", ".join(str(v) for v in values[:6]) + more + "]"


def spec_state(spec: Spec) -> dict[str, Any]:
    """Return the spec as plain values, with its kind."""
    return {"kind": kind_of(spec), **dataclasses.asdict(spec)}


def write_records(run_dir: Path, cfg: DictConfig) -> str:
    """Write config.yaml (settled) and environment.json; return the config's text."""
    text = OmegaConf.to_yaml(cfg)
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "config.yaml").write_text(text, encoding="utf-8")
    (run_dir / "environment.json").write_text(json.dumps(environment(), indent=1) + "\n")
    return text
