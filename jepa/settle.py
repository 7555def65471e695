"""Settle what a config leaves open: the probe, the objective, the width, the batch.

No run writes to its config: a settled one is a copy.
"""

import copy
from typing import Any, cast

import torch
from hydra.utils import get_object
from omegaconf import DictConfig, ListConfig, OmegaConf

from jepa.config import CONF
from jepa.resolve import pick_device, resolve_batch, resolve_size
from jepa.spec import Spec


def predicts_target(cfg: DictConfig) -> bool:
    """Tell whether the model forecasts or classifies itself, without a probe."""
    return bool(getattr(get_object(cfg.model._target_), "predicts_target", False))


def settle(cfg: DictConfig, data: Any, *, predicts_target: bool = False) -> DictConfig:
    """Return a copy in which every `auto` has its value and every interpolation is resolved.

    Args:
        cfg: as composed.
        data: prepared.
        predicts_target: whether the model forecasts or classifies itself: its own error is then
            the objective, and only those probes run that were asked for by name.
    """
    settled = copy.deepcopy(cfg)
    OmegaConf.set_struct(settled, False)
    by_name = settled.probe_name != "auto"
    if not by_name:
        settled.probe_name = probe_of(data.spec)
        path = CONF / "probe" / f"{settled.probe_name}.yaml"
        settled.probe._target_ = OmegaConf.load(path)._target_
    if settled.objective == "auto":
        settled.objective = objective_of(settled.probe_name, data, predicts_target=predicts_target)
    settled.probes = names_of_probes(settled, first=by_name or not predicts_target)
    if OmegaConf.select(settled, "callbacks.probe.names") is not None:
        here = settled.callbacks.probe.names
        settled.callbacks.probe.names = [settled.probe_name if n == "auto" else n for n in here]
    if settled.get("trainer") is not None:
        settle_sizes(settled, data.spec)
    return cast(DictConfig, OmegaConf.create(OmegaConf.to_container(settled, resolve=True)))


def settle_sizes(settled: DictConfig, spec: Spec) -> None:
    """Put in the width that `size` asks for, and the batch that fits the device.

    Raises:
        ValueError: if they cannot be had; a `PlanError` where the device is too small.
    """
    width = resolve_size(settled, spec)
    if width is not None:
        settled.model.width = width
    trainer = settled.trainer
    device = pick_device(trainer.accelerator)
    plan = resolve_batch(settled, spec, device, n_devices=n_devices(trainer))
    if plan is not None:
        trainer.accumulate_grad_batches = plan.accumulate
        settled.data.batch_size = plan.micro_batch


def names_of_probes(cfg: DictConfig, *, first: bool) -> list[str]:
    """Return the probes that run; where `first`, the one of `probe` leads them.

    Raises:
        ValueError: if `probes` is not a list.
    """
    if isinstance(cfg.probes, str):
        raise ValueError(f"probes takes a list, got {cfg.probes}: give probes=[{cfg.probes}]")
    first = first or cfg.objective.startswith(f"probe/{cfg.probe_name}/")
    named = [name for name in cfg.probes if name != "auto"]
    return list(dict.fromkeys([cfg.probe_name, *named] if first else named))


def probe_of(spec: Spec) -> str:
    """Return the probe of a task; both have the same keys, so `probe.l2=3` reaches either."""
    return "forecast" if spec.task == "forecast" else "ridge"


def objective_of(probe_name: str, data: Any, *, predicts_target: bool) -> str:
    """Return the metric to minimise: an error, or a loss where there is nothing to tell."""
    if "val" not in data.splits:
        return "train/loss"
    if predicts_target:
        return "val/error"
    return "val/loss" if data.spec.task == "none" else f"probe/{probe_name}/error"


def n_devices(trainer: DictConfig) -> int:
    """Return how many processes the trainer starts."""
    devices = trainer.devices
    if isinstance(devices, ListConfig):
        return len(devices) * trainer.num_nodes
    if devices in (-1, "-1", "auto"):
        devices = max(torch.cuda.device_count(), 1)
    return int(devices) * trainer.num_nodes
