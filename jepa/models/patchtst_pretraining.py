"""Pretraining of PatchTST: masked values, and codes of a slow encoder.

Nie et al., "A Time Series is Worth 64 Words: Long-term Forecasting with Transformers", ICLR 2023,
arXiv:2211.14730, Sec. 3.2. The JEPA objective is that of Assran et al., "Self-Supervised Learning
from Images with a Joint-Embedding Predictive Architecture", CVPR 2023, arXiv:2301.08243, on patches
of time.

Axes: b windows, c channels, l time steps, r rows (one for each channel of a window, or for each
window where channels are mixed), n patches, k visible, m hidden, p values of a patch, d width, t
predictor width.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torchmetrics import MeanMetric

from jepa.models.patchtst_training import DISTANCES, SeriesModel, weighted_mean
from jepa.nn.checks import check_choice, check_heads, check_range
from jepa.nn.dropout import Dropout
from jepa.nn.ema import Teacher
from jepa.nn.masking import Masks, split_future, split_tokens, stream
from jepa.nn.norm import standardize
from jepa.nn.transformer import Transformer, take
from jepa.schedules import linear

MASKS = ("random", "future")


class Pretraining(SeriesModel):
    """Hide patches of every row, and predict something of them from the others.

    Args:
        seed: decides the masks, with the epoch and the step.
        mask: hide patches at `random`, or those at the end (`future`).
        mask_share: part of the patches that is hidden.
        leaky_revin: take location and scale from all patches, as the authors' code does, and not
            from the visible ones alone.
        loss: `mse`, `mae` or `smooth_l1`.
        settings: see `SeriesModel`.

    Raises:
        ValueError: if a setting is out of its range, or if a patch would show what another hides.
    """

    def __init__(
        self,
        *,
        seed: int,
        mask: str,
        mask_share: float,
        leaky_revin: bool,
        loss: str,
        patch: int,
        stride: int,
        end_padding: bool,
        **settings,
    ):
        super().__init__(patch=patch, stride=stride, end_padding=end_padding, **settings)
        check_choice("model.mask", mask, MASKS)
        check_choice("model.loss", loss, tuple(DISTANCES))
        check_range("model.mask_share", mask_share, low=0, high=1)
        if stride < patch:
            raise ValueError(
                f"model.stride={stride} is shorter than model.patch={patch}, so that a hidden "
                f"patch shares steps with visible ones: set model.stride={patch}"
            )
        if end_padding:
            raise ValueError(
                "model.end_padding=true repeats the last value, which may be hidden: set "
                "model.end_padding=false"
            )
        n = self.encoder.n_patches
        self.n_hidden = n - int(n * (1 - mask_share))  # rounded as in the authors' code
        if not 0 < self.n_hidden < n:
            raise ValueError(
                f"model.mask_share={mask_share} hides {self.n_hidden} of {n} patches, and some "
                "must be hidden and some be seen: take another share, or a shorter model.patch"
            )
        self.seed, self.mask, self.leaky_revin = seed, mask, leaky_revin
        self.distance = DISTANCES[loss]
        self.val_loss = MeanMetric()

    def masks(self, x: Float[Tensor, "b c l"], *key: int | str) -> Masks:
        """Draw masks for every row of `x`; the same key gives the same masks."""
        n, n_rows = self.encoder.n_patches, len(x) * (1 if self.encoder.mixed else x.shape[1])
        if self.mask == "future":
            return split_future(n_rows, n, n_target=self.n_hidden, device=x.device)
        generator = torch.Generator(x.device).manual_seed(stream(self.global_rank, *key))
        return split_tokens(
            n_rows, n, n_context=n - self.n_hidden, n_target=self.n_hidden, generator=generator
        )

    def patches(
        self, x: Float[Tensor, "b c l"], masks: Masks, observed: Bool[Tensor, "b c l"] | None
    ) -> Float[Tensor, "r n p"]:
        """Cut windows that are normalised by what can be seen of them."""
        seen = observed
        if not self.leaky_revin:
            seen = self._visible_steps(x, masks)
            seen = seen if observed is None else seen & observed
        return self.encoder.cut(standardize(x, *self.moments(x, seen), observed))

    def _visible_steps(self, x: Tensor, masks: Masks) -> Bool[Tensor, "b c l"]:
        """Tell which steps of each channel lie in a visible patch."""
        visible = torch.zeros(len(masks.context), self.encoder.n_patches, dtype=torch.bool)
        visible = visible.to(x.device).scatter_(1, masks.context, True)
        steps = visible.new_zeros(len(visible), x.shape[-1])
        first = (x.shape[-1] - self.encoder.patch) % self.encoder.stride
        places = steps[:, first:].unfold(-1, self.encoder.patch, self.encoder.stride)
        places.copy_(visible[..., None].expand_as(places))
        return steps.reshape(len(x), -1, x.shape[-1]).expand_as(x)

    def loss(
        self,
        x: Float[Tensor, "b c l"],
        mask: Bool[Tensor, "b c _"] | None = None,
        masks: Masks | None = None,
    ) -> Float[Tensor, ""]:
        """Predict what is hidden; by default, under the masks of the first step."""
        raise NotImplementedError

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Log and return the loss."""
        masks = self.masks(batch["x"], self.seed, self.current_epoch, batch_idx)
        loss = self.loss(batch["x"], batch.get("mask"), masks)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Log the mean loss of held-out windows, under masks that no epoch and no seed changes."""
        masks = self.masks(batch["x"], "val", batch_idx)
        loss = self.loss(batch["x"], batch.get("mask"), masks)
        self.val_loss.update(loss, weight=len(batch["x"]))
        self.log("val/loss", self.val_loss)


class PatchTSTMasked(Pretraining):
    """Masked pretraining (Sec. 3.2): hidden patches are zeros, and their values are predicted.

    Args:
        head_dropout: share dropped before the head.
        settings: see `Pretraining`.
    """

    def __init__(self, *, head_dropout: float, **settings):
        super().__init__(**settings)
        check_range("model.head_dropout", head_dropout, low=0, high=1)
        head = nn.Linear(self.encoder.width, self.encoder.to_token.in_features)
        self.head = nn.Sequential(Dropout(head_dropout), head)

    def loss(
        self,
        x: Float[Tensor, "b c l"],
        mask: Bool[Tensor, "b c _"] | None = None,
        masks: Masks | None = None,
    ) -> Float[Tensor, ""]:
        """Predict the normalised values of hidden patches, where they are known."""
        masks = self.masks(x, self.seed, 0, 0) if masks is None else masks
        observed = self.observed(mask)
        patches = self.patches(x, masks, observed)
        hidden = torch.zeros(patches.shape[:2], dtype=torch.bool, device=x.device)
        hidden = hidden.scatter_(1, masks.hidden, True)
        codes = self.encoder(patches.masked_fill(hidden[..., None], 0.0))
        predicted, target = self.head(take(codes, masks.hidden)), take(patches, masks.hidden)
        known = observed
        if observed is not None:
            known = self.encoder.cut(observed).take_along_dim(masks.hidden[..., None], dim=1)
        return weighted_mean(self.distance(predicted, target, reduction="none"), known)


class PatchPredictor(nn.Module):
    """Codes of visible patches and the places of hidden ones to predicted codes of these."""

    def __init__(self, n_patches: int, width: int, trunk: Transformer, *, predictor_width: int):
        super().__init__()
        self.narrow = nn.Linear(width, predictor_width)
        self.position = nn.Parameter(torch.empty(n_patches, predictor_width).uniform_(-0.02, 0.02))
        self.query = nn.Parameter(torch.empty(predictor_width).uniform_(-0.02, 0.02))
        self.trunk = trunk
        self.widen = nn.Linear(predictor_width, width)

    def forward(self, context: Float[Tensor, "r k d"], masks: Masks) -> Float[Tensor, "r m d"]:
        """Append a query for each hidden patch to the context; read the queries back."""
        seen = self.narrow(context) + F.embedding(masks.context, self.position)
        queries = self.query + F.embedding(masks.hidden, self.position)
        places = torch.arange(seen.shape[1], seen.shape[1] + queries.shape[1], device=seen.device)
        tokens = torch.cat([seen, queries], dim=1)
        return self.widen(self.trunk(tokens, places.expand(len(tokens), -1)))


class PatchTSTJEPA(Pretraining):
    """Predict the slow encoder's codes of hidden patches from the codes of visible ones.

    Both encoders see the same normalised values; the targets are layer-normed.

    Args:
        predictor_width, predictor_depth, predictor_n_heads, predictor_mlp_ratio: its size.
        momentum, momentum_end: of the slow copy, linear in the step.
        dropout: of encoder and predictor.
        settings: see `Pretraining`.
    """

    def __init__(
        self,
        *,
        predictor_width: int,
        predictor_depth: int,
        predictor_n_heads: int,
        predictor_mlp_ratio: float,
        momentum: float,
        momentum_end: float,
        dropout: float,
        **settings,
    ):
        super().__init__(dropout=dropout, **settings)
        check_heads("model.predictor_", predictor_width, predictor_n_heads)
        check_range("model.predictor_depth", predictor_depth, low=1)
        check_range("model.momentum", momentum, low=0, high=1)
        check_range("model.momentum_end", momentum_end, low=0, high=1)
        self.momentum, self.momentum_end = momentum, momentum_end
        trunk = Transformer(
            predictor_width,
            predictor_depth,
            predictor_n_heads,
            mlp_ratio=predictor_mlp_ratio,
            dropout=dropout,
        )
        self.predictor = PatchPredictor(
            self.encoder.n_patches, self.encoder.width, trunk, predictor_width=predictor_width
        )
        self.teacher = Teacher(self.encoder)

    def code(self, patches: Float[Tensor, "r n p"]) -> Float[Tensor, "r n d"]:
        """Code with the slow encoder."""
        return self.teacher(patches)

    def loss(
        self,
        x: Float[Tensor, "b c l"],
        mask: Bool[Tensor, "b c _"] | None = None,
        masks: Masks | None = None,
    ) -> Float[Tensor, ""]:
        """Predict the layer-normed codes of hidden patches."""
        masks = self.masks(x, self.seed, 0, 0) if masks is None else masks
        patches = self.patches(x, masks, self.observed(mask))
        target = take(self.teacher(patches), masks.hidden)
        predicted = self.predictor(self.encoder(patches, masks.context), masks)
        return self.distance(predicted, F.layer_norm(target, target.shape[-1:]))

    def after_step(self, step: int) -> dict[str, float]:
        """Move the slow encoder: once per step, also under accumulation."""
        momentum = linear(step, total=self.total_steps, start=self.momentum, end=self.momentum_end)
        self.teacher.update(self.encoder, momentum)
        return {"momentum": momentum}
