"""Pictures for TensorBoard: images as the context encoder sees them, histograms of the weights."""

from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from jaxtyping import Float
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor
from torchvision.utils import make_grid

HIDDEN = 0.15  # brightness of what the context encoder does not see


class Pictures(L.Callback):
    """Write pictures where TensorBoard is among the loggers; nothing elsewhere.

    Args:
        n_images: of the first training batch, augmented, above the same ones as the context encoder
            sees them; only for images.
        histograms: of every trained parameter at every validation.

    Raises:
        ValueError: for a negative number.
    """

    def __init__(self, *, n_images: int, histograms: bool):
        if n_images < 0:
            raise ValueError(f"callbacks.pictures.n_images must be at least 0, got {n_images}")
        self.n_images, self.histograms = n_images, histograms

    @rank_zero_only
    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Write the images of the very first batch."""
        if trainer.global_step or batch_idx or not self.n_images or batch["x"].ndim != 4:
            return
        x = batch["x"][: self.n_images].detach()
        shown = torch.cat([bright(x), bright(x) * visible(pl_module, x)]).cpu()
        for writer in writers(trainer):
            writer.add_image("images and their context", make_grid(shown, nrow=len(x)), 0)

    @rank_zero_only
    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the histograms."""
        if not self.histograms or trainer.sanity_checking:
            return
        for writer in writers(trainer):
            for name, one in pl_module.named_parameters():
                if one.requires_grad:
                    writer.add_histogram(name, one.detach().float().cpu(), trainer.global_step)


def writers(trainer: L.Trainer) -> list[Any]:
    """Return TensorBoard's writers among the loggers."""
    return [one.experiment for one in trainer.loggers if isinstance(one, TensorBoardLogger)]


def bright(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """Return model input as images between 0 and 1, each by its own darkest and brightest value."""
    low, high = x.amin((1, 2, 3), keepdim=True), x.amax((1, 2, 3), keepdim=True)
    return (x - low) / (high - low).clamp_min(1e-6)


def visible(model: Any, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 1 h w"]:
    """Return 1 where the context encoder sees an image in the first step, little elsewhere."""
    context = model.masks(x, model.seed, 0, 0).context
    rows, columns = model.encoder.grid
    seen = torch.full((len(x), rows * columns), HIDDEN, device=x.device)
    seen = seen.scatter_(1, context, 1.0).view(-1, 1, rows, columns)
    return F.interpolate(seen, x.shape[2:], mode="nearest")
