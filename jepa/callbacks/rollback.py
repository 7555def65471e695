"""Go back to healthy weights, and take smaller steps from there."""

import copy
from typing import Any

import torch

State = dict[str, Any]


def snapshot(trainer: Any, pl_module: Any) -> State:
    """Return a copy of the weights, on the CPU, and of the state of the optimizers."""
    return {
        "model": {key: value.cpu().clone() for key, value in pl_module.state_dict().items()},
        "optimizers": [held(copy.deepcopy(one.state_dict())) for one in trainer.optimizers],
    }


def held(value: Any) -> Any:
    """Return nested plain values with their tensors on the CPU."""
    if isinstance(value, torch.Tensor):
        return value.cpu()
    if isinstance(value, dict):
        return {key: held(one) for key, one in value.items()}
    return [held(one) for one in value] if isinstance(value, list) else value


def put_back(trainer: Any, pl_module: Any, saved: State) -> None:
    """Put a snapshot back; the step, and with it the schedules and the data, go on."""
    pl_module.load_state_dict(saved["model"])
    for optimizer, state in zip(trainer.optimizers, saved["optimizers"], strict=True):
        optimizer.load_state_dict(copy.deepcopy(state))


def scale_rates(trainer: Any, factor: float) -> None:
    """Multiply every learning rate, from the next step on; a checkpoint keeps it."""
    for config in trainer.lr_scheduler_configs:
        scheduler = config.scheduler
        scheduler.base_lrs = [factor * rate for rate in scheduler.base_lrs]
    refresh_rates(trainer)


def refresh_rates(trainer: Any) -> None:
    """Set the rates of the next step: those that a restored optimizer brought are old."""
    for config in trainer.lr_scheduler_configs:
        scheduler = config.scheduler
        parts = (scheduler.optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas)
        for group, rate, share in zip(*parts, strict=True):
            group["lr"] = rate * share(scheduler.last_epoch)
