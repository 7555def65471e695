"""Build what a config describes, and open what a run has left.

A checkpoint is untrusted: it is read without unpickling code, and the config inside may call
constructors of models and data of this package and of `torch.optim` only.
"""

import copy
import dataclasses
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import lightning as L
import torch
from hydra.utils import UNSAFE_DISABLE_EXECUTION_CHECKS, execution_whitelist, instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf

from jepa.config import CONF
from jepa.spec import KINDS, Spec, kind_of


def shipped(group: str) -> tuple[str, ...]:
    """Return the constructors that the yaml files of a group name."""
    nodes = (OmegaConf.load(path) for path in (CONF / group).glob("*.yaml"))
    return tuple(sorted({node._target_ for node in nodes if "_target_" in node}))


# What a config from a file may call, and what one that the user wrote may.
FROM_A_FILE = execution_whitelist(
    (*shipped("model"), *shipped("data"), "torch.optim.*"), reset=True
)
FROM_THE_USER = execution_whitelist(UNSAFE_DISABLE_EXECUTION_CHECKS, reset=True)
Probes = dict[str, Callable[..., dict[str, float]]]


def build_model(cfg: DictConfig, spec: Spec) -> L.LightningModule:
    """Return the model with its first weights, the same ones for the same `cfg.seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(cfg.seed)
        return instantiate(cfg.model)(spec=spec)


def build_probes(cfg: DictConfig) -> Probes:
    """Return the probes of `cfg.probes` by name; the one behind the objective first.

    Raises:
        ValueError: for a name without a file in `conf/probe`.
    """
    if isinstance(cfg.probes, str):
        raise ValueError(f"probes takes a list, got {cfg.probes}: give probes=[{cfg.probes}]")
    names = [cfg.probe_name if name == "auto" else name for name in cfg.probes]
    return {name: build_probe(cfg, name) for name in dict.fromkeys([cfg.probe_name, *names])}


def build_probe(cfg: DictConfig, name: str) -> Callable[..., dict[str, float]]:
    """Return one probe: the composed one with its overrides, another from its file."""
    if name == cfg.probe_name:
        return instantiate(cfg.probe)
    path = CONF / "probe" / f"{name}.yaml"
    if not path.exists():
        valid = sorted(p.stem for p in path.parent.glob("*.yaml") if p.stem != "auto")
        raise ValueError(f"probes: there is no probe {name!r}; valid: {', '.join(valid)}")
    return instantiate(OmegaConf.load(path))


def check_probes(cfg: DictConfig, probes: Probes, spec: Spec) -> None:
    """Try every probe on a few made-up rows of the task, and see that the objective will exist.

    Raises:
        ValueError: for a setting a probe refuses, and for an objective nothing logs.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(24, 3, generator=generator)
    y = x.sum(1) if spec.task == "regression" else torch.arange(24) % min(spec.n_classes or 2, 4)
    logged = {"train/loss", "val/loss"}
    for name, probe in probes.items():
        logged |= {f"probe/{name}/{metric}" for metric in probe(x, y, x, y)}
    if cfg.objective not in logged and not cfg.objective.startswith(("probe/label_free/", "val/")):
        raise ValueError(
            f"objective={cfg.objective}: nothing logs that; valid: {', '.join(sorted(logged))}"
        )


def settle(cfg: DictConfig, data: Any) -> DictConfig:
    """Return a copy in which every `auto` has its value and every interpolation is resolved."""
    settled = copy.deepcopy(cfg)
    OmegaConf.set_struct(settled, False)
    if settled.probe_name == "auto":
        settled.probe_name = "ridge"
    if settled.objective == "auto":
        settled.objective = objective_of(settled.probe_name, data)
    if settled.get("trainer") is not None:
        trainer = settled.trainer
        if trainer.accumulate_grad_batches == "auto":
            trainer.accumulate_grad_batches = accumulation(data, n_devices(trainer))
    return cast(DictConfig, OmegaConf.create(OmegaConf.to_container(settled, resolve=True)))


def objective_of(probe_name: str, data: Any) -> str:
    """Return the metric to minimise: a probe's error, or a loss where there is nothing to probe."""
    if "val" not in data.splits:
        return "train/loss"
    return "val/loss" if data.spec.task == "none" else f"probe/{probe_name}/error"


def n_devices(trainer: DictConfig) -> int:
    """Return how many processes the trainer starts."""
    devices = trainer.devices
    if isinstance(devices, ListConfig):
        return len(devices) * trainer.num_nodes
    if devices in (-1, "-1", "auto"):
        devices = max(torch.cuda.device_count(), 1)
    return int(devices) * trainer.num_nodes


def accumulation(data: Any, devices: int) -> int:
    """Return how many batches make `data.effective_batch_size` rows.

    Raises:
        ValueError: where they do not divide.
    """
    rows, wanted = data.batch_size * devices, data.effective_batch_size
    if wanted is None:
        raise ValueError(
            "trainer.accumulate_grad_batches=auto needs data.effective_batch_size=<rows per step>"
        )
    if wanted % rows:
        raise ValueError(
            f"data.effective_batch_size={wanted} must be a multiple of data.batch_size x devices = "
            f"{data.batch_size} x {devices}"
        )
    return wanted // rows


def find_checkpoint(run: str | Path, prefer: str = "best.ckpt") -> Path:
    """Return the checkpoint a run directory or a path names: `best.ckpt`, else `last.ckpt`.

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
        f"run={run}: neither a checkpoint nor a directory with checkpoints/best.ckpt or last.ckpt"
    )


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Load a checkpoint of ours; nothing in the file is executed.

    Raises:
        ValueError: for any other file.
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
    missing = {"state_dict", "config", "spec", "preprocessing"} - set(content)
    if missing:
        raise ValueError(f"{path} is not a checkpoint of jepa: it has no {', '.join(missing)}")
    try:
        OmegaConf.create(content["config"])
        spec_of(content)
    except Exception as error:
        raise ValueError(f"{path}: its config or spec is damaged: {error}") from error
    return content


def spec_of(checkpoint: dict[str, Any]) -> Spec:
    """Return the spec a checkpoint carries."""
    fields = dict(checkpoint["spec"])
    return KINDS[fields.pop("kind", "table")](**fields)


def load_model(run: str | Path) -> tuple[DictConfig, L.LightningModule, dict[str, Any]]:
    """Return (config, model with the saved weights, checkpoint content), from one file alone.

    Args:
        run: a checkpoint, or a run directory, of which the best one is taken.

    Raises:
        FileNotFoundError: if there is no checkpoint.
        ValueError: if it is not one of ours, or weights and config do not fit.
    """
    path = find_checkpoint(run)
    checkpoint = read_checkpoint(path)
    cfg = cast(DictConfig, OmegaConf.create(checkpoint["config"]))
    with FROM_A_FILE:
        model = build_model(cfg, spec_of(checkpoint))
    try:
        model.load_state_dict(checkpoint["state_dict"])
    except RuntimeError as error:
        raise ValueError(f"{path}: weights and config do not fit: {error}") from error
    return cfg, model.eval(), checkpoint


def check_table(checkpoint: dict[str, Any], data: Any, path: Path) -> None:
    """Refuse data that is not the table a checkpoint was trained on.

    Raises:
        ValueError: naming the first difference.
    """
    saved = spec_of(checkpoint)
    for name in ("columns", "cardinalities", "classes"):
        a, b = list(getattr(saved, name)), list(getattr(data.spec, name))
        if a != b:
            raise ValueError(
                f"{path} was trained on another table: its {name} are {brief(a)}, here they are "
                f"{brief(b)}"
            )
    if not same(checkpoint["preprocessing"], data.preprocessing):
        raise ValueError(
            f"{path} was trained on another table, or on other rows of it: what is fitted on the "
            "training rows differs (jepa.embed takes any table with these columns)"
        )


def check_model(checkpoint: dict[str, Any], cfg: DictConfig, model: Any, path: Path) -> None:
    """Refuse to resume from a checkpoint of another model.

    Raises:
        ValueError: naming the settings that differ.
    """
    theirs = cast(DictConfig, OmegaConf.create(checkpoint["config"])).model
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


def brief(values: list[Any]) -> str:
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


def environment() -> dict[str, Any]:
    """Describe the software, the machine and the command."""
    import importlib.metadata as metadata

    names = ("jepa", "torch", "lightning", "hydra-core", "torchmetrics", "numpy", "pandas")
    versions = {}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "command": [Path(sys.executable).name, *sys.orig_argv[1:]],
        "python": platform.python_version(),
        "versions": versions,
        "platform": platform.platform(),
        "cpu": {"count": os.cpu_count(), "torch_threads": torch.get_num_threads()},
        "cuda": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "commit": commit(),
    }


def commit() -> str | None:
    """Return the checkout's commit, with `+` where files differ; None outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
