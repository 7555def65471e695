"""A broken step as a file that `python -m jepa.replay` can take again."""

from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from jepa.callbacks.finite import Step, scale_of
from jepa.callbacks.record import Record
from jepa.checkpoint import FULL, write_file


def write_dump(
    run_dir: Path, trainer: L.Trainer, pl_module: L.LightningModule, step: Step
) -> Path | None:
    """Write `dumps/step_<n>/step.ckpt`; return its folder, None where the disk is full.

    It is a checkpoint of ours with what the step read beside it: plain tensors, numbers and text.
    Each rank writes its own, the further ones to `step_<n>_rank_<r>`.
    """
    rank = trainer.global_rank
    folder = run_dir / "dumps" / f"step_{trainer.global_step}{f'_rank_{rank}' if rank else ''}"
    try:
        write_file(content_of(trainer, pl_module, step), folder / "step.ckpt")
    except OSError as error:
        if error.errno not in FULL:
            raise
        rank_zero_warn(f"{folder} could not be written ({error}): free space")
        return None
    return folder


def content_of(trainer: L.Trainer, pl_module: L.LightningModule, step: Step) -> dict[str, Any]:
    """Return what makes a step what it was."""
    callbacks = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
    record = next((one.content for one in callbacks if isinstance(one, Record)), {})
    return {
        **record,
        "state_dict": pl_module.state_dict(),
        "optimizer_states": [one.state_dict() for one in trainer.optimizers],
        "global_step": trainer.global_step,
        "epoch": trainer.current_epoch,
        "rank": trainer.global_rank,
        "precision": str(trainer.precision),
        "scale": scale_of(trainer),
        "batches": [{"batch_idx": i, "batch": plain(batch)} for i, batch in step.batches],
        "random": step.random,
        "losses": torch.stack(step.losses).cpu(),
    }


def plain(batch: Any) -> dict[str, Tensor]:
    """Return the tensors of a batch, each with no more memory behind it than its own."""
    return {key: one.cpu().clone() for key, one in batch.items() if isinstance(one, Tensor)}
