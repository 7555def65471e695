"""What a config leaves to be worked out: the width of a size, and the batch that fits the device.

Nothing is written to the config; `jepa.settle` puts the answers into its copy.
"""

from typing import Any, cast

import torch
from hydra.utils import instantiate
from torch import nn

from jepa.budget import parameters_of, solve_width
from jepa.plan import BatchPlan, PlanError, device_bytes, plan_batch
from jepa.spec import Spec
from jepa.step_memory import build_unallocated

DEEPEST_POST_NORM = 48  # blocks; beyond, only pre-norm with LayerNorm can be expected to train


def resolve_size(cfg: Any, spec: Spec) -> int | None:
    """Return the width that gives the model the parameters `size` asks for; None without a size.

    Raises:
        ValueError: for an unknown size, and for a depth that its norm does not train.
        PlanError: if no width comes near enough.
    """
    if cfg.get("size") is None:
        return None
    size = parameters_of(cfg.size)
    check_depth(cfg.model)
    return solve_width(
        lambda width: build(cfg, spec, width=width), size=size, multiple=cfg.model.n_heads
    )


def check_depth(model: Any) -> None:
    """Refuse a very deep model that does not normalise, by LayerNorm, what its branches see.

    Raises:
        ValueError: then, if the model has these settings.
    """
    norm, pre_norm = model.get("norm", "layer"), model.get("pre_norm", True)
    if model.depth > DEEPEST_POST_NORM and not (pre_norm and norm == "layer"):
        raise ValueError(
            f"model.depth={model.depth} with model.norm={norm}, model.pre_norm={pre_norm} will not "
            f"train: above {DEEPEST_POST_NORM} blocks set model.norm=layer model.pre_norm=true"
        )


def resolve_batch(
    cfg: Any, spec: Spec, device: torch.device, *, n_devices: int = 1
) -> BatchPlan | None:
    """Return the batch that fits, where `trainer.accumulate_grad_batches=auto` asks for it.

    Its micro-batch is the largest divisor of what one of `n_devices` has to do that is at most
    `data.batch_size` and fits the device.

    Raises:
        ValueError: without `data.effective_batch_size`, or if the devices do not divide it.
        PlanError: if not even one sample fits: with the bytes needed, the bytes there, and advice.
    """
    if cfg.trainer.accumulate_grad_batches != "auto":
        return None
    effective = cfg.data.get("effective_batch_size")
    if effective is None:
        raise ValueError(
            "trainer.accumulate_grad_batches=auto needs data.effective_batch_size=<samples of one "
            "optimizer step>"
        )
    if effective < 1 or effective % n_devices:
        raise ValueError(
            f"data.effective_batch_size={effective} must be a positive multiple of the devices, "
            f"{n_devices}"
        )
    there = device_bytes(device) // (n_devices if device.type == "cpu" else 1)
    plan = plan_batch(
        build_unallocated(lambda: build(cfg, spec)),
        effective_batch=effective // n_devices,
        device_bytes=there,
        precision=cfg.trainer.precision,
        device=device,
        max_batch=cfg.data.batch_size,
    )
    if not plan.fits:
        raise PlanError(plan.advice)
    return plan


def build(cfg: Any, spec: Spec, **settings: Any) -> nn.Module:
    """Build the model of a config, with other settings where given."""
    return cast(nn.Module, instantiate(cfg.model, **settings)(spec=spec))


def pick_device(accelerator: str) -> torch.device:
    """Return the device that Lightning takes for `trainer.accelerator`."""
    if accelerator in ("gpu", "cuda", "auto") and torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    if accelerator in ("gpu", "mps", "auto") and torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")
