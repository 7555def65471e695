"""T-JEPA: predict the latent code of hidden columns from the visible ones.

Thimonier et al., "T-JEPA: Augmentation-Free Self-Supervised Learning for Tabular Data",
ICLR 2025, arXiv:2410.05016.

Axes: b rows, f columns (one token each), r REG tokens, c context, u hidden tokens asked for,
k target masks, m target, d width, p predictor width, e code.
"""

from collections.abc import Callable
from functools import partial

import lightning as L
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.optim import Optimizer
from torchmetrics import MeanMetric

from jepa.models.optimization import (
    bounded_steps,
    build_optimizer,
    log_step,
    scheduled,
    set_weight_decay,
)
from jepa.nn.checks import check_choice, check_heads, check_range, check_shares
from jepa.nn.ema import Teacher, has_gradients
from jepa.nn.embed import ColumnTokenizer, build_numbers, table
from jepa.nn.masking import Masks, draw_count, split_tokens, stream
from jepa.nn.transformer import CrossTransformer, Transformer
from jepa.schedules import linear, warmup_cosine
from jepa.spec import TabularSpec

COMPILED_LEVELS = 4  # shares drawn under `compile`, so that few shapes occur
NOTHING_HIDDEN = "shows every column, so that none is left to predict"
LOSSES = {"mse": F.mse_loss, "smooth_l1": F.smooth_l1_loss}
PREDICTORS = {"joint": Transformer, "cross": CrossTransformer}


def _check_columns(spec: object, *, n_reg: int, representation: str) -> None:
    """Refuse data of another kind, a table with nothing to hide, a representation without tokens.

    Raises:
        ValueError: then.
    """
    if not isinstance(spec, TabularSpec):
        raise ValueError(
            f"model=tjepa takes tables, but this data describes itself by {type(spec).__name__}: "
            "give a table, for example data=table data.path=my.csv, or a model for such data"
        )
    if spec.n_features < 2:
        raise ValueError(
            f"T-JEPA hides columns from one another and needs two, got {spec.columns}: give it a "
            "table with more columns (data=...)"
        )
    check_range("model.n_reg", n_reg, low=0)
    check_choice("model.representation", representation, ("flatten", "mean", "reg", "concat"))
    if representation in ("reg", "concat") and not n_reg:
        raise ValueError(
            f"model.representation={representation} needs REG tokens, got model.n_reg=0: set "
            "model.n_reg=1, or model.representation=flatten"
        )


class RowEncoder(nn.Module):
    """Columns to tokens to codes, with learned REG tokens in front."""

    def __init__(self, tokenizer: ColumnTokenizer, trunk: Transformer, *, n_reg: int, width: int):
        super().__init__()
        self.n_reg = n_reg
        self.tokenizer = tokenizer
        self.reg = table(n_reg, width) if n_reg else None
        self.trunk = trunk

    def forward(
        self,
        x: Float[Tensor, "b f"],
        *,
        visible: Int[Tensor, "b c"] | None = None,
        only: Int[Tensor, "b m"] | None = None,
    ) -> Float[Tensor, "b n d"]:
        """Encode the `visible` columns, or all; return REG and their codes, or `only` some of them.

        REG tokens join after the columns are chosen: they are never hidden, and no column's index
        moves.
        """
        tokens = self.tokenizer(x, visible)
        if self.reg is not None:
            tokens = torch.cat([self.reg.expand(x.shape[0], -1, -1), tokens], dim=1)
        return self.trunk(tokens, None if only is None else only + self.n_reg)


class Predictor(nn.Module):
    """Context codes and the names of hidden columns to predicted codes of these.

    Args:
        trunk: a `Transformer` sees context and queries of one target mask together (the paper); in
            a `CrossTransformer` the queries see the context only, so each hidden column is
            predicted once however many masks it is in.
    """

    def __init__(
        self,
        n_features: int,
        trunk: Transformer | CrossTransformer,
        *,
        n_reg: int,
        width: int,
        predictor_width: int,
    ):
        super().__init__()
        self.n_reg = n_reg
        self.narrow = nn.Linear(width, predictor_width)
        self.column = table(n_features, predictor_width)
        self.query = table(predictor_width)
        self.trunk = trunk
        self.widen = nn.Linear(predictor_width, width)

    def forward(self, context: Float[Tensor, "b n d"], masks: Masks) -> Float[Tensor, "b k m d"]:
        """Predict the columns of every target mask in one call."""
        seen = self.narrow(context)
        position = F.embedding(masks.context, self.column)
        seen = torch.cat([seen[:, : self.n_reg], seen[:, self.n_reg :] + position], dim=1)
        if isinstance(self.trunk, CrossTransformer):
            queries = self.query + F.embedding(masks.hidden, self.column)
            return self.widen(self.trunk(queries, seen))[:, masks.slots]
        return self._joint(seen, masks.targets)

    def _joint(
        self, seen: Float[Tensor, "b n p"], targets: Int[Tensor, "b k m"]
    ) -> Float[Tensor, "b k m d"]:
        """Append the queries of each mask to a copy of the context; read the queries back."""
        n_masks, n_target = targets.shape[1:]
        queries = (self.query + F.embedding(targets, self.column)).flatten(0, 1)
        seen = seen.repeat_interleave(n_masks, dim=0) if n_masks > 1 else seen
        places = torch.arange(seen.shape[1], seen.shape[1] + n_target, device=seen.device)
        tokens = torch.cat([seen, queries], dim=1)
        codes = self.widen(self.trunk(tokens, places.expand(len(tokens), -1)))
        return codes.unflatten(0, (-1, n_masks))


class TJEPA(L.LightningModule):
    """Context encoder, slow target encoder, predictor; an error in latent space.

    Args:
        spec: the columns.
        seed: decides the masks, with the epoch and the step.
        width, depth, n_heads, mlp_ratio: of the encoder; the hidden layer has `mlp_ratio * width`.
        dropout: of encoder and predictor, on attention weights, hidden layers and branches.
        n_reg: learned REG tokens (Sec. 3): always visible, never predicted.
        context_share_low, context_share_width: each batch draws the visible share of the columns
            from [low, low + width]; at least one column, and one is left.
        target_share_low, target_share_width: likewise the share that one target mask predicts, at
            most what is hidden.
        n_target_masks: distinct target masks for each row.
        predictor: `joint` (context and queries attend to one another) or `cross` (queries attend to
            the context).
        predictor_width, predictor_depth, predictor_n_heads, predictor_mlp_ratio: its size.
        momentum, momentum_end: of the slow copy, linear in the step.
        loss: `mse` or `smooth_l1`.
        target_norm: `layer` (each code), `batch` (each dimension over the batch) or `none`.
        warmup_share: part of all steps spent warming up the learning rate.
        final_lr_share: part of the learning rate left at the last step, along a cosine.
        weight_decay_end: where a cosine takes the optimizer's weight decay; None keeps it.
        optimizer: builds the optimizer from parameter groups.
        numeric_embedding: `linear`, `periodic` or `piecewise`.
        n_frequencies: of `periodic`, for each column.
        n_bins: of `piecewise`, for each column.
        representation: what `embed` returns: all columns' codes (`flatten`), their `mean`, the
            `reg` tokens' codes, or the mean and those (`concat`).
        compile: compile the transformers; counts of columns are then drawn from a few levels.

    Raises:
        ValueError: if a setting is out of its range.
    """

    heap_share = 1.43  # measured: jepa/step_memory.py

    def __init__(
        self,
        *,
        spec: TabularSpec,
        seed: int,
        width: int,
        depth: int,
        n_heads: int,
        mlp_ratio: float,
        dropout: float,
        n_reg: int,
        context_share_low: float,
        context_share_width: float,
        target_share_low: float,
        target_share_width: float,
        n_target_masks: int,
        predictor: str,
        predictor_width: int,
        predictor_depth: int,
        predictor_n_heads: int,
        predictor_mlp_ratio: float,
        momentum: float,
        momentum_end: float,
        loss: str,
        target_norm: str,
        warmup_share: float,
        final_lr_share: float,
        weight_decay_end: float | None,
        optimizer: Callable[..., Optimizer],
        numeric_embedding: str,
        n_frequencies: int,
        n_bins: int,
        representation: str,
        compile: bool,
    ):
        super().__init__()
        _check_columns(spec, n_reg=n_reg, representation=representation)
        check_heads("model.", width, n_heads)
        check_heads("model.predictor_", predictor_width, predictor_n_heads)
        check_shares(
            "model.context_share", context_share_low, context_share_width, all_taken=NOTHING_HIDDEN
        )
        check_shares("model.target_share", target_share_low, target_share_width)
        for key, value in (("depth", depth), ("n_target_masks", n_target_masks)):
            check_range(f"model.{key}", value, low=1)
        check_range("model.predictor_depth", predictor_depth, low=1)
        for key, value in (
            ("dropout", dropout),
            ("momentum", momentum),
            ("momentum_end", momentum_end),
            ("warmup_share", warmup_share),
            ("final_lr_share", final_lr_share),
        ):
            check_range(f"model.{key}", value, low=0, high=1)
        check_choice("model.loss", loss, tuple(LOSSES))
        check_choice("model.target_norm", target_norm, ("layer", "batch", "none"))
        check_choice("model.predictor", predictor, tuple(PREDICTORS))
        self.spec, self.seed, self.width, self.n_reg = spec, seed, width, n_reg
        self.context_share = (context_share_low, context_share_width)
        self.target_share = (target_share_low, target_share_width)
        self.n_target_masks = n_target_masks
        self.momentum, self.momentum_end = momentum, momentum_end
        self.distance, self.target_norm = LOSSES[loss], target_norm
        self.warmup_share, self.final_lr_share = warmup_share, final_lr_share
        self.weight_decay_end = weight_decay_end
        self.optimizer = optimizer
        self.representation = representation
        self.n_levels = COMPILED_LEVELS if compile else 0
        numbers = build_numbers(
            numeric_embedding,
            [q for q, n in zip(spec.quantiles, spec.cardinalities, strict=True) if n == 0],
            width,
            n_frequencies=n_frequencies,
            n_bins=n_bins,
        )
        self.encoder = RowEncoder(
            ColumnTokenizer(spec.cardinalities, width, numbers),
            Transformer(width, depth, n_heads, mlp_ratio=mlp_ratio, dropout=dropout),
            n_reg=n_reg,
            width=width,
        )
        trunk = PREDICTORS[predictor](
            predictor_width,
            predictor_depth,
            predictor_n_heads,
            mlp_ratio=predictor_mlp_ratio,
            dropout=dropout,
        )
        self.predictor = Predictor(
            spec.n_features, trunk, n_reg=n_reg, width=width, predictor_width=predictor_width
        )
        self.teacher = Teacher(self.encoder)
        self.val_loss = MeanMetric()
        self.total_steps = 0  # known when fitting starts
        if compile:
            for net in (self.encoder, self.predictor, self.teacher.net):
                net.get_submodule("trunk").compile(dynamic=True)

    @property
    def embed_dim(self) -> int:
        """Length of the code of a row."""
        return len(self.code_names())

    def code_names(self) -> list[str]:
        """Name each entry of a code: the column (or `mean`, or `reg0`, ...), `_`, the dimension."""
        regs = [f"reg{i}" for i in range(self.n_reg)]
        parts = {
            "flatten": list(self.spec.columns),
            "mean": ["mean"],
            "reg": regs,
            "concat": ["mean", *regs],
        }[self.representation]
        return [f"{part}_{i}" for part in parts for i in range(self.width)]

    @torch.no_grad()
    def embed(self, x: Float[Tensor, "b f"]) -> Float[Tensor, "b e"]:
        """Code rows with the teacher, from all columns (flattened, as in the authors' probe)."""
        codes = self.teacher(x)
        regs, columns = codes[:, : self.n_reg].flatten(1), codes[:, self.n_reg :]
        if self.representation == "flatten":
            return columns.flatten(1)
        if self.representation == "mean":
            return columns.mean(1)
        return regs if self.representation == "reg" else torch.cat([columns.mean(1), regs], dim=1)

    def masks(self, x: Float[Tensor, "b f"], *key: int | str) -> Masks:
        """Draw masks for the rows of `x`; the same key gives the same masks.

        All ranks draw the same counts, and each its own indices.
        """
        n = self.spec.n_features
        counts = torch.Generator().manual_seed(stream("counts", *key))
        count = partial(draw_count, n, generator=counts, n_levels=self.n_levels)
        n_context = count(self.context_share, most=n - 1)
        n_target = count(self.target_share, most=n - n_context)
        indices = torch.Generator(x.device).manual_seed(stream("indices", self.global_rank, *key))
        return split_tokens(
            len(x),
            n,
            n_context=n_context,
            n_target=n_target,
            n_masks=self.n_target_masks,
            generator=indices,
        )

    def loss(self, x: Float[Tensor, "b f"], masks: Masks | None = None) -> Float[Tensor, ""]:
        """Predict the teacher's codes of hidden columns; by default, those of the first step."""
        if masks is None:
            masks = self.masks(x, self.seed, 0, 0)
        predicted = self.predictor(self.encoder(x, visible=masks.context), masks)
        return self.distance(predicted, self._targets(x, masks))

    def _targets(self, x: Float[Tensor, "b f"], masks: Masks) -> Float[Tensor, "b k m d"]:
        """Codes of the hidden columns by the teacher, who sees all columns."""
        codes = self.teacher(x, only=masks.hidden)
        if self.target_norm == "layer":
            codes = F.layer_norm(codes, codes.shape[-1:])
        elif self.target_norm == "batch":
            variance, mean = torch.var_mean(codes, dim=(0, 1), correction=0)
            codes = (codes - mean) * torch.rsqrt(variance + 1e-5)
        return codes[:, masks.slots]

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Log and return the loss."""
        x = batch["x"]
        loss = self.loss(x, self.masks(x, self.seed, self.current_epoch, batch_idx))
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Log the mean loss of held-out rows, under masks that no epoch and no seed changes."""
        x = batch["x"]
        self.val_loss.update(self.loss(x, self.masks(x, "val", batch_idx)), weight=len(x))
        self.log("val/loss", self.val_loss)

    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure=None) -> None:
        """Step the student, then move the teacher: once per step, also under accumulation."""
        step = self.global_step
        set_weight_decay(
            optimizer,
            step,
            total=self.total_steps,
            start=self.weight_decay_start,
            end=self.weight_decay_end,
        )
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        if not has_gradients(optimizer):
            return  # nothing was stepped
        momentum = linear(step, total=self.total_steps, start=self.momentum, end=self.momentum_end)
        self.teacher.update(self.encoder, momentum)
        log_step(self, optimizer, step, momentum=momentum)

    def configure_optimizers(self):  # pyright: ignore[reportIncompatibleMethodOverride]
        """Build optimizer and schedule."""
        self.total_steps = bounded_steps(self.trainer)
        nets = [self.encoder, self.predictor]
        optimizer, self.weight_decay_start = build_optimizer(self.optimizer, nets)
        factor = partial(
            warmup_cosine,
            warmup=round(self.warmup_share * self.total_steps),
            total=self.total_steps,
            final=self.final_lr_share,
        )
        return scheduled(optimizer, factor)
