"""How large gradients, weights and steps are: `train/grad_norm`, `weight_norm`, `update_norm`."""

from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor
from torch.optim import Optimizer


class Norms(L.Callback):
    """Log Euclidean norms over all trained parameters, at the steps at which metrics are written.

    The gradient's is before clipping. A step whose gradient the guard has taken is left out.
    """

    def __init__(self) -> None:
        self.before: list[Tensor] = []

    @rank_zero_only
    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer
    ) -> None:
        """Log what there is before the step, and keep the weights until it is done."""
        every = trainer.log_every_n_steps  # pyright: ignore[reportAttributeAccessIssue]
        trained = with_gradient(optimizer)
        if (trainer.global_step + 1) % every or not trained:
            return
        self.before = [p.detach().clone() for p in trained]
        norms = {
            "train/grad_norm": norm([p.grad for p in trained if p.grad is not None]),
            "train/weight_norm": norm(self.before),
        }
        pl_module.log_dict(norms, rank_zero_only=True)

    @rank_zero_only
    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Log how far the weights have moved."""
        if not self.before:
            return
        trained = with_gradient(trainer.optimizers[0])
        if len(trained) == len(self.before):  # else the guard went back
            moved = torch._foreach_sub([p.detach() for p in trained], self.before)  # pyright: ignore[reportPrivateImportUsage]
            pl_module.log("train/update_norm", norm(list(moved)), rank_zero_only=True)
        self.before = []


def with_gradient(optimizer: Any) -> list[Tensor]:
    """Return the parameters of an optimizer that have a gradient."""
    return [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]


def norm(tensors: list[Tensor]) -> Tensor:
    """Return the Euclidean norm of all entries together."""
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(tensors)))  # pyright: ignore[reportPrivateImportUsage]
