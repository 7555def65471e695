"""PatchTST: patches of a series as tokens; forecasting and classification.

Nie et al., "A Time Series is Worth 64 Words: Long-term Forecasting with Transformers", ICLR 2023,
arXiv:2211.14730.

Axes: b windows, c channels, l time steps seen, h time steps ahead, q quantiles.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torchmetrics import MeanMetric

from jepa.models.patchtst_training import DISTANCES, SeriesModel, weighted_mean
from jepa.models.patchtst_weights import encoder_of, load_strictly
from jepa.nn.checks import check_choice, check_range
from jepa.nn.dropout import Dropout
from jepa.nn.norm import restore, standardize


def pinball(
    predicted: Float[Tensor, "*shape q"], y: Float[Tensor, "*shape"], quantiles: Sequence[float]
) -> Float[Tensor, "*shape"]:
    """Return the quantile loss (Koenker & Bassett, Econometrica 1978), averaged over quantiles."""
    over = y[..., None] - predicted
    level = torch.tensor(quantiles, dtype=predicted.dtype, device=predicted.device)
    return torch.maximum(level * over, (level - 1) * over).mean(-1)


def ordered(raw: Float[Tensor, "*shape q"], middle: int) -> Float[Tensor, "*shape q"]:
    """Turn free numbers into quantiles that do not cross: the median, and steps away from it."""
    median, step = raw[..., middle : middle + 1], F.softplus(raw)
    above = median + step[..., middle + 1 :].cumsum(-1)
    below = median - step[..., :middle].flip(-1).cumsum(-1).flip(-1)
    return torch.cat([below, median, above], dim=-1)


class PatchTST(SeriesModel):
    """Predict the target itself: the future of every channel, or the class of a window.

    Args:
        loss: `mse`, `mae` or `smooth_l1` of a point forecast, `pinball` of quantiles, `bce` of a
            class; `auto` is `mse`, or what quantiles or classes need.
        quantiles: levels in rising order, with 0.5, which is the point forecast; none for a point
            forecast alone.
        head_dropout: share dropped at the head.
        head_dropout_place: `before` its linear layer (the authors' self-supervised code) or `after`
            it (their supervised code).
        freeze_encoder: train the head alone; the encoder is in eval mode and takes no gradient.
        head_only_epochs: do so for these first epochs, then train all.
        settings: see `SeriesModel`.

    Raises:
        ValueError: if a setting is out of its range.
    """

    predicts_target = True

    def __init__(
        self,
        *,
        loss: str,
        quantiles: Sequence[float],
        head_dropout: float,
        head_dropout_place: str,
        freeze_encoder: bool,
        head_only_epochs: int,
        **settings,
    ):
        super().__init__(**settings)
        self.binary = self.spec.task == "binary"
        self.quantiles = tuple(float(level) for level in quantiles)
        self.loss_name = _choose_loss(loss, self.quantiles, binary=self.binary)
        check_range("model.head_dropout", head_dropout, low=0, high=1)
        check_choice("model.head_dropout_place", head_dropout_place, ("before", "after"))
        check_range("model.head_only_epochs", head_only_epochs, low=0)
        if freeze_encoder and head_only_epochs:
            raise ValueError(
                f"model.freeze_encoder=true trains the head alone to the end, so that "
                f"model.head_only_epochs={head_only_epochs} has no meaning: set one of them"
            )
        self.freeze_encoder, self.head_only_epochs = freeze_encoder, head_only_epochs
        n_channels = self.spec.n_channels
        n_in, n_out = self.n_pooled, self.spec.horizon * max(1, len(self.quantiles))
        if self.binary:
            n_in, n_out = (n_in if self.encoder.mixed else n_in * n_channels), 1
        elif self.encoder.mixed:
            n_out *= n_channels
        linear, dropout = nn.Linear(n_in, n_out), Dropout(head_dropout)
        before = head_dropout_place == "before"
        self.head = nn.Sequential(*((dropout, linear) if before else (linear, dropout)))
        self.encoder.requires_grad_(not freeze_encoder)
        self.val_loss, self.val_error = MeanMetric(), MeanMetric()
        self.val_mse, self.val_mae = MeanMetric(), MeanMetric()

    @property
    def frozen(self) -> bool:
        """Whether only the head is trained now."""
        return self.freeze_encoder or self.current_epoch < self.head_only_epochs

    def train(self, mode: bool = True) -> "PatchTST":
        """Set the mode; a frozen encoder stays in eval mode, its statistics and dropout too."""
        super().train(mode)
        self.encoder.train(mode and not self.frozen)
        return self

    def on_train_epoch_start(self) -> None:
        """Thaw the encoder when its time has come."""
        self.train()

    def forward(
        self, x: Float[Tensor, "b c l"], mask: Bool[Tensor, "b c _"] | None = None
    ) -> Float[Tensor, "..."]:
        """Return forecasts [b, c, h, q] (q is 1 without quantiles), or logits [b, 1]."""
        observed = self.observed(mask)
        location, scale = self.moments(x, observed)
        patches = self.encoder.cut(standardize(x, location, scale, observed))
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            codes = self.encoder(patches)
        pooled = self.pooled(codes)
        if self.binary:
            return self.head(pooled.reshape(x.shape[0], -1))
        # one row holds one channel, or all of them: the same numbers in the same order
        raw = self.head(pooled).reshape(x.shape[0], self.spec.n_channels, self.spec.horizon, -1)
        if self.quantiles:
            raw = ordered(raw, self.quantiles.index(0.5))
        return restore(raw, location[..., None], scale[..., None])

    @torch.no_grad()
    def predict(
        self, x: Float[Tensor, "b c l"], mask: Bool[Tensor, "b c _"] | None = None
    ) -> Float[Tensor, "..."]:
        """Return the point forecast [b, c, h] in scaled units, or the logits [b, 1]."""
        out = self(x, mask)
        if self.binary:
            return out
        return out[..., self.quantiles.index(0.5) if self.quantiles else 0]

    @torch.no_grad()
    def predict_quantiles(
        self, x: Float[Tensor, "b c l"], mask: Bool[Tensor, "b c _"] | None = None
    ) -> Float[Tensor, "b c h q"]:
        """Return the forecast of every level of `quantiles`, in scaled units.

        Raises:
            ValueError: for a model without quantiles.
        """
        if not self.quantiles:
            raise ValueError(
                "this model was trained without quantiles: train it with "
                "model.quantiles=[0.1,0.5,0.9]"
            )
        return self(x, mask)

    def loss(
        self,
        x: Float[Tensor, "b c l"],
        y: Float[Tensor, "b c h"] | Int[Tensor, " b"] | None = None,
        mask: Bool[Tensor, "b c _"] | None = None,
    ) -> Float[Tensor, ""]:
        """Compare the prediction with `y`, where it is known; without `y`, with zeros."""
        out = self(x, mask)
        target = out.new_zeros(out.shape[:-1]) if y is None else y
        return self._distance(out, target, self._known(mask))

    def _known(self, mask: Tensor | None) -> Tensor | None:
        """Return the part of a batch's mask that speaks of `y`."""
        return None if mask is None or self.binary else mask[..., self.spec.look_back :]

    def _distance(self, out: Tensor, y: Tensor, known: Tensor | None) -> Tensor:
        """Return the loss of a prediction."""
        if self.binary:
            return F.binary_cross_entropy_with_logits(out.flatten(), y.flatten().to(out.dtype))
        if self.quantiles:
            return weighted_mean(pinball(out, y, self.quantiles), known)
        distance = DISTANCES[self.loss_name](out[..., 0], y, reduction="none")
        return weighted_mean(distance, known)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Log and return the loss."""
        loss = self.loss(batch["x"], batch["y"], batch.get("mask"))
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Log the errors over all windows: sums over elements, whatever the batches."""
        x, y, mask = batch["x"], batch["y"], batch.get("mask")
        out, known = self(x, mask), self._known(mask)
        n = y.numel() if known is None else int(known.sum())
        self.val_loss.update(self._distance(out, y, known), weight=n)
        if self.binary:
            wrong = (out.flatten() > 0) != y.flatten().bool()
            self.val_error.update(wrong.float().mean(), weight=n)
        else:
            point = out[..., self.quantiles.index(0.5) if self.quantiles else 0]
            for name in ("mse", "mae"):
                error = weighted_mean(DISTANCES[name](point, y, reduction="none"), known)
                getattr(self, f"val_{name}").update(error, weight=n)
                self.log(f"val/{name}", getattr(self, f"val_{name}"))
                if name == "mse":
                    self.val_error.update(error, weight=n)
        self.log("val/loss", self.val_loss)
        self.log("val/error", self.val_error, prog_bar=True)

    def transfer(self, state_dict: Mapping[str, Tensor]) -> None:
        """Take the encoder of another run over, see `transfer`."""
        transfer(self, state_dict)


def transfer(model: SeriesModel, state_dict: Mapping[str, Tensor]) -> None:
    """Load the encoder of a run of this family: of JEPA the slow one, whose codes are probed.

    Raises:
        ValueError: naming every weight that is missing, unknown or of another shape.
    """
    load_strictly(
        model.encoder,
        encoder_of(state_dict),
        advice="pretrain and fine-tune with the same patch, stride, look-back and encoder settings",
    )


def _choose_loss(name: str, quantiles: tuple[float, ...], *, binary: bool) -> str:
    """Return the loss that `auto` stands for, and refuse what does not fit.

    Raises:
        ValueError: for a loss of another task, and for levels that are no quantiles.
    """
    if quantiles:
        rising = list(quantiles) == sorted(set(quantiles))
        if (
            binary
            or not rising
            or 0.5 not in quantiles
            or not 0 < quantiles[0] <= quantiles[-1] < 1
        ):
            raise ValueError(
                "model.quantiles must rise within (0, 1), hold 0.5, and belong to a forecast, got "
                f"{list(quantiles)}: for example [0.1,0.5,0.9], or [] for none"
            )
    fitting = ("bce",) if binary else ("pinball",) if quantiles else tuple(DISTANCES)
    if name == "pinball" and not quantiles and not binary:
        raise ValueError("model.loss=pinball needs levels: set model.quantiles=[0.1,0.5,0.9]")
    check_choice("model.loss", name, ("auto", *fitting))
    return fitting[0] if name == "auto" else name
