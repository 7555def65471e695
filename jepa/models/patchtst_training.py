"""What all models of the PatchTST family share: the encoder, its codes, and how it is trained.

Axes: b windows, c channels, l time steps, r rows (one for each channel of a window, or for each
window where channels are mixed), n patches, d width, e code.
"""

import math
from collections.abc import Callable
from functools import partial

import lightning as L
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor
from torch.optim import Optimizer

from jepa.models.optimization import (
    bounded_steps,
    build_optimizer,
    log_step,
    scheduled,
    set_weight_decay,
)
from jepa.nn.checks import check_choice, check_range
from jepa.nn.ema import has_gradients
from jepa.nn.norm import moments, standardize
from jepa.nn.series_encoder import PatchTSTEncoder
from jepa.schedules import cosine, warmup_cosine
from jepa.spec import SeriesSpec

POOLS = ("flatten", "mean", "last")
SCHEDULES = ("cosine", "onecycle", "type3", "constant")
DISTANCES = {"mse": F.mse_loss, "mae": F.l1_loss, "smooth_l1": F.smooth_l1_loss}
ONECYCLE_START = 1 / 25  # of torch's OneCycleLR, which the authors use


def check_series(spec: object) -> None:
    """Refuse data of another kind.

    Raises:
        ValueError: then.
    """
    if not isinstance(spec, SeriesSpec):
        raise ValueError(
            "model=patchtst takes series, but this data describes itself by "
            f"{type(spec).__name__}: give a series, for example data=series data.path=my.csv, or a "
            "model for such data"
        )


def weighted_mean(
    values: Float[Tensor, "*shape"], weight: Bool[Tensor, "*shape"] | None
) -> Float[Tensor, ""]:
    """Average where the weight is True; without any such place, 0."""
    if weight is None:
        return values.mean()
    return torch.where(weight, values, 0.0).sum() / weight.sum().clamp(min=1)


def rate(
    step: int,
    *,
    schedule: str,
    warmup: int,
    total: int,
    final: float,
    epoch_steps: int,
    first_epoch: float,
) -> float:
    """Return the learning-rate factor of a step.

    `type3` of the authors' code keeps the rate for four epochs, then takes 0.9 of it each epoch;
    their `lradj TST` is `onecycle`, here without the cycle of the betas.

    >>> settings = dict(warmup=0, total=100, final=0.0, epoch_steps=10, first_epoch=1.0)
    >>> [round(rate(s, schedule="type3", **settings), 2) for s in (0, 39, 40, 50)]
    [1.0, 1.0, 0.9, 0.81]
    """
    scale = first_epoch if step < epoch_steps else 1.0
    if schedule == "cosine":
        return scale * warmup_cosine(step, warmup=warmup, total=total, final=final)
    if schedule == "onecycle":
        if step < warmup:
            return scale * cosine(step, total=warmup, start=ONECYCLE_START, end=1.0)
        return scale * cosine(step - warmup, total=total - warmup, start=1.0, end=final)
    rising = min(1.0, (step + 1) / (warmup + 1))
    falling = 0.9 ** max(0, step // epoch_steps - 3) if schedule == "type3" else 1.0
    return scale * rising * falling


class SeriesModel(L.LightningModule):
    """An encoder of patches, and the settings that all who train it share.

    Args:
        spec: the series.
        patch, stride, end_padding: how windows are cut, see `PatchTSTEncoder`.
        width, depth, n_heads, mlp_ratio: of the encoder; the hidden layer has `mlp_ratio * width`.
        dropout: of tokens, hidden layers and branches.
        norm: `batch`, `layer` or `rms`.
        pre_norm: normalise what a branch sees, not what it leaves.
        residual_attention: add the scores of the blocks before to those of a block.
        double_dropout: drop the attention branch twice, as the authors' code does.
        activation: `gelu` or `relu`.
        channels: `independent` or `mixed`.
        instance_norm: take location and scale of each window and channel out, and put them back.
        pool: how codes of patches become one: `flatten` (joined), `mean` or `last`.
        recompute: keep less than half for the gradient and compute the rest again, which is slower.
        compile: compile the encoder.
        schedule: `cosine`, `onecycle`, `type3` or `constant`, after the warm-up.
        warmup_share: part of all steps spent warming up the learning rate.
        warmup_steps: the same in steps; only one of the two may be positive.
        final_lr_share: part of the learning rate left at the last step, of `cosine` and `onecycle`.
        first_epoch_lr_share: part of the learning rate that the first epoch has.
        weight_decay_end: where a cosine takes the optimizer's weight decay; None keeps it.
        optimizer: builds the optimizer from parameter groups.

    Raises:
        ValueError: if a setting is out of its range.
    """

    predicts_target = False
    heap_share = 1.36  # measured: jepa/step_memory.py

    def __init__(
        self,
        *,
        spec: SeriesSpec,
        patch: int,
        stride: int,
        end_padding: bool,
        width: int,
        depth: int,
        n_heads: int,
        mlp_ratio: float,
        dropout: float,
        norm: str,
        pre_norm: bool,
        residual_attention: bool,
        double_dropout: bool,
        activation: str,
        channels: str,
        instance_norm: bool,
        pool: str,
        recompute: bool,
        compile: bool,
        schedule: str,
        warmup_share: float | None,
        warmup_steps: int | None,
        final_lr_share: float,
        first_epoch_lr_share: float,
        weight_decay_end: float | None,
        optimizer: Callable[..., Optimizer],
    ):
        super().__init__()
        check_series(spec)
        check_choice("model.pool", pool, POOLS)
        check_choice("model.schedule", schedule, SCHEDULES)
        check_range("model.warmup_share", warmup_share or 0.0, low=0, high=1)
        check_range("model.warmup_steps", warmup_steps or 0, low=0)
        check_range("model.final_lr_share", final_lr_share, low=0, high=1)
        check_range("model.first_epoch_lr_share", first_epoch_lr_share, low=0, high=1)
        if warmup_share and warmup_steps:
            raise ValueError(
                f"model.warmup_share={warmup_share} and model.warmup_steps={warmup_steps} both say "
                "how long to warm up: set one of them, and the other to 0"
            )
        self.spec, self.pool, self.instance_norm = spec, pool, instance_norm
        self.schedule, self.final_lr_share = schedule, final_lr_share
        self.warmup_share, self.warmup_steps = warmup_share or 0.0, warmup_steps or 0
        self.first_epoch_lr_share = first_epoch_lr_share
        self.weight_decay_end = weight_decay_end
        self.optimizer = optimizer
        self.encoder = PatchTSTEncoder(
            spec.n_channels,
            spec.look_back,
            patch=patch,
            stride=stride,
            end_padding=end_padding,
            width=width,
            depth=depth,
            n_heads=n_heads,
            mlp_ratio=mlp_ratio,
            dropout=dropout,
            norm=norm,
            pre_norm=pre_norm,
            residual_attention=residual_attention,
            double_dropout=double_dropout,
            activation=activation,
            channels=channels,
            recompute=recompute,
        )
        self.total_steps = 0  # known when fitting starts
        if compile:
            self.encoder.compile()

    @property
    def embed_dim(self) -> int:
        """Length of a code."""
        return len(self.code_names())

    def code_names(self) -> list[str]:
        """Name each entry of a code: the patch (or `mean`, or `last`), `_`, the dimension; moments.

        The moments are those of the channel, or of every channel where these are mixed.
        """
        parts = [self.pool]
        if self.pool == "flatten":
            parts = [f"patch{i}" for i in range(self.encoder.n_patches)]
        names = [f"{part}_{i}" for part in parts for i in range(self.encoder.width)]
        if not self.encoder.mixed:
            return [*names, "location", "scale"]
        of = range(self.spec.n_channels)
        return [*names, *(f"location_{i}" for i in of), *(f"scale_{i}" for i in of)]

    @torch.no_grad()
    def embed(
        self, x: Float[Tensor, "b c l"], mask: Bool[Tensor, "b c _"] | None = None
    ) -> Float[Tensor, "r e"]:
        """Code windows; the last columns are the location and the scale that were taken out."""
        observed = self.observed(mask)
        location, scale = self.moments(x, observed)
        z = standardize(x, location, scale, observed)
        taken_out = torch.stack([location, scale]).squeeze(-1)  # [2, b, c]
        columns = taken_out.permute(1, 0, 2) if self.encoder.mixed else taken_out.permute(1, 2, 0)
        codes = self.pooled(self.code(self.encoder.cut(z)))
        return torch.cat([codes, columns.reshape(codes.shape[0], -1)], dim=1)

    def code(self, patches: Float[Tensor, "r n p"]) -> Float[Tensor, "r n d"]:
        """Code patches as a probe is to see them."""
        return self.encoder(patches)

    def pooled(self, codes: Float[Tensor, "r n d"]) -> Float[Tensor, "r e"]:
        """Make one code of those of all patches."""
        if self.pool == "flatten":
            return codes.flatten(1)
        return codes.mean(1) if self.pool == "mean" else codes[:, -1]

    @property
    def n_pooled(self) -> int:
        """Length of a pooled code."""
        return self.encoder.width * (self.encoder.n_patches if self.pool == "flatten" else 1)

    def observed(self, mask: Tensor | None) -> Tensor | None:
        """Return the part of a batch's mask that speaks of `x`."""
        return None if mask is None else mask[..., : self.spec.look_back]

    def moments(self, x: Tensor, observed: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return location and scale of each window and channel: 0 and 1 without instance norm."""
        if self.instance_norm:
            return moments(x, observed)
        return torch.zeros_like(x[..., :1]), torch.ones_like(x[..., :1])

    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure=None) -> None:
        """Step, with the weight decay of this step; then do what the model does after one."""
        step = self.global_step
        set_weight_decay(
            optimizer,
            step,
            total=self.total_steps,
            start=self.weight_decay_start,
            end=self.weight_decay_end,
        )
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        if has_gradients(optimizer):  # else nothing was stepped
            log_step(self, optimizer, step, **self.after_step(step))

    def after_step(self, step: int) -> dict[str, float]:
        """Return what else there is to log."""
        return {}

    def _epoch_steps(self) -> int:
        """Return how many steps an epoch has; all there are, where the data has no length."""
        trainer = self.trainer
        trainer.fit_loop.setup_data()  # else it is not known yet under trainer.max_steps
        if trainer.num_training_batches == float("inf"):
            return self.total_steps
        return max(1, math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches))

    def configure_optimizers(self):  # pyright: ignore[reportIncompatibleMethodOverride]
        """Build optimizer and schedule."""
        self.total_steps = bounded_steps(self.trainer)
        optimizer, self.weight_decay_start = build_optimizer(self.optimizer, [self])
        factor = partial(
            rate,
            schedule=self.schedule,
            warmup=self.warmup_steps or round(self.warmup_share * self.total_steps),
            total=self.total_steps,
            final=self.final_lr_share,
            epoch_steps=self._epoch_steps(),
            first_epoch=self.first_epoch_lr_share,
        )
        return scheduled(optimizer, factor)
