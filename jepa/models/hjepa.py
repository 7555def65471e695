"""H-JEPA: predict the features of hidden rectangles of an image, at several scales.

One level is I-JEPA: Assran et al., "Self-Supervised Learning from Images with a Joint-Embedding
Predictive Architecture", CVPR 2023, arXiv:2301.08243. Further levels are averages of the teacher's
features over squares of patches, predicted from the same predictor through a pyramid.

Axes: b images, c channels, n patches, k visible patches, m target blocks, p patches of a block,
r rectangles (b * m), o patches after averaging, d width, e code.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, cast

import lightning as L
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Generator, Tensor
from torch.optim import Optimizer
from torchmetrics import MeanMetric

from jepa.models.hjepa_checks import check_local, check_spec, check_views
from jepa.models.hjepa_codes import LAST, OWN, embed_each, parts_of, representations
from jepa.models.hjepa_looks import Looks, look
from jepa.models.hjepa_weights import transfer
from jepa.models.optimization import (
    bounded_steps,
    build_optimizer,
    log_step,
    scheduled,
    set_weight_decay,
)
from jepa.nn.blocks import Blocks, Masking
from jepa.nn.checks import check_choice, check_range
from jepa.nn.ema import Teacher, has_gradients
from jepa.nn.levels import Levels
from jepa.nn.losses import CodeTerms
from jepa.nn.masking import stream
from jepa.nn.pyramid import Pyramid
from jepa.nn.vit import ATTENTIONS, BlockPredictor, ViT, init_weights
from jepa.schedules import linear, warmup_cosine
from jepa.spec import ImageSpec

LOSSES = {"mse": F.mse_loss, "smooth_l1": F.smooth_l1_loss}
REPRESENTATIONS = ("mean", "last4", "levels", "patches")


class HJEPA(L.LightningModule):
    """Context encoder, slow target encoder, predictor; an error in latent space for every level.

    Args:
        spec: the images.
        seed: decides the masks, with the epoch and the step.
        masking: draws the visible patches and the rectangles to predict.
        patch: side of a patch in pixels.
        width, depth, n_heads, mlp_ratio: of the encoder (tiny 192, 12, 3; small 384, 12, 6; base
            768, 12, 12; large 1024, 24, 16; huge 1280, 32, 16).
        position: `sincos` (added to tokens) or `rope` (turns queries and keys), of both networks.
        layer_scale: start of the factors on the encoder's branches; None for no factors.
        drop_path: share of the images for which the encoder's last block is left out; it rises
            from 0 in the first.
        attention: `sdpa` (the fused kernel), `plain`, or `auto`, the faster of both.
        gradient_checkpointing: compute blocks again in the backward pass, to save memory.
        predictor_width, predictor_depth, predictor_n_heads, predictor_mlp_ratio: its size.
        predictor_mode: `blocks` predicts each block on its own, as I-JEPA; in `joint` the blocks of
            an image see one another.
        levels: scales at which features are predicted; 1 is I-JEPA.
        level_weights: weight of each level's error, finest first; their sum is divided out.
        level_source: targets of all levels from the `last` block, or coarser ones from earlier
            `depths` (block depth * (levels - level) / levels).
        last_k_targets: blocks averaged for a target, as data2vec (arXiv:2202.03555).
        pyramid: how levels of the prediction inform one another: `none`, `add` or `concat`.
        target_norm: `layer` (each patch, as I-JEPA), `batch` (each dimension over the batch, for
            each level) or `none`.
        loss: `mse` or `smooth_l1`.
        vicreg_variance, vicreg_covariance, vicreg_invariance: weights of these terms on the
            projected mean code of the context (VICReg, arXiv:2105.04906); 0 leaves one out. The
            invariance is to the teacher's code of the same image.
        nt_xent, nt_xent_temperature: weight and temperature of a contrastive term between the
            context's code and the teacher's (SimCLR, arXiv:2002.05709).
        second_view: the teacher's code of the invariance and contrastive terms is of the batch's
            `view`, another augmentation of the same images.
        local_weight: of all these terms once more, between each of the batch's small `local` crops
            and the teacher's code, averaged over the crops (multi-crop, SwAV, arXiv:2006.09882).
        sigreg, n_slices: weight of SIGReg (LeJEPA, arXiv:2511.08544), and its directions.
        projector_width: of the codes that these terms act on.
        momentum, momentum_end: of the slow copy, linear in the step.
        momentum_warmup_share: part of all steps for which it stays at its start before.
        warmup_share: part of all steps spent warming up the learning rate.
        final_lr_share: part of the learning rate left at the last step, along a cosine.
        weight_decay_end: where a cosine takes the optimizer's weight decay; None keeps it.
        optimizer: builds the optimizer from parameter groups.
        representation: what `embed` returns: the `mean` of the patches' codes; those means after
            each of the `last4` blocks; for the `levels`, the mean and each coarser grid; or the
            codes of all `patches`, which say where in the image something is.
        compile: compile the transformers.

    Raises:
        ValueError: if a setting is out of its range, or does not fit the images.
    """

    predicts_target = False
    heap_share = 1.65  # measured: jepa/step_memory.py

    def __init__(
        self,
        *,
        spec: ImageSpec,
        seed: int,
        masking: Masking,
        patch: int,
        width: int,
        depth: int,
        n_heads: int,
        mlp_ratio: float,
        position: str,
        layer_scale: float | None,
        drop_path: float,
        attention: str,
        gradient_checkpointing: bool,
        predictor_width: int,
        predictor_depth: int,
        predictor_n_heads: int,
        predictor_mlp_ratio: float,
        predictor_mode: str,
        levels: int,
        level_weights: Sequence[float],
        level_source: str,
        last_k_targets: int,
        pyramid: str,
        target_norm: str,
        loss: str,
        vicreg_variance: float,
        vicreg_covariance: float,
        vicreg_invariance: float,
        nt_xent: float,
        nt_xent_temperature: float,
        second_view: bool,
        local_weight: float,
        sigreg: float,
        n_slices: int,
        projector_width: int,
        momentum: float,
        momentum_end: float,
        momentum_warmup_share: float,
        warmup_share: float,
        final_lr_share: float,
        weight_decay_end: float | None,
        optimizer: Callable[..., Optimizer],
        representation: str,
        compile: bool,
    ):
        super().__init__()
        check_spec(spec)
        for key, value in (
            ("drop_path", drop_path),
            ("momentum", momentum),
            ("momentum_end", momentum_end),
            ("momentum_warmup_share", momentum_warmup_share),
            ("warmup_share", warmup_share),
            ("final_lr_share", final_lr_share),
        ):
            check_range(f"model.{key}", value, low=0, high=1)
        check_range("model.predictor_depth", predictor_depth, low=1)
        check_choice("model.attention", attention, ATTENTIONS)
        check_choice("model.loss", loss, tuple(LOSSES))
        check_choice("model.representation", representation, REPRESENTATIONS)
        if layer_scale is not None:
            check_range("model.layer_scale", layer_scale, low=0)
        if representation == "last4" and depth < LAST:
            raise ValueError(
                f"model.representation=last4 needs {LAST} blocks, got model.depth={depth}: take "
                f"model.representation=mean, or model.depth={LAST}"
            )
        if gradient_checkpointing:  # little is live, and what is computed again leaves holes
            self.heap_share = 3.9
        self.levels = Levels(
            levels,
            weights=level_weights,
            source=level_source,
            depth=depth,
            last_k=last_k_targets,
            norm=target_norm,
        )
        self.spec, self.seed, self.masking, self.width = spec, seed, masking, width
        self.momentum, self.momentum_end = momentum, momentum_end
        self.momentum_warmup_share = momentum_warmup_share
        self.distance = LOSSES[loss]
        self.warmup_share, self.final_lr_share = warmup_share, final_lr_share
        self.weight_decay_end = weight_decay_end
        self.optimizer = optimizer
        self.representation = representation
        shared: dict[str, Any] = dict(
            position=position, attention=attention, gradient_checkpointing=gradient_checkpointing
        )
        self.encoder = ViT(
            spec.n_channels,
            (spec.height, spec.width),
            patch=patch,
            width=width,
            depth=depth,
            n_heads=n_heads,
            mlp_ratio=mlp_ratio,
            layer_scale=layer_scale,
            drop_path=drop_path,
            **shared,
        )
        masking.check(self.encoder.grid)
        self.levels.check(masking, self.encoder.grid)
        self.predictor = BlockPredictor(
            self.encoder.grid,
            width,
            width=predictor_width,
            depth=predictor_depth,
            n_heads=predictor_n_heads,
            mlp_ratio=predictor_mlp_ratio,
            mode=predictor_mode,
            **shared,
        )
        self.pyramid = Pyramid(predictor_width, width, levels=levels, kind=pyramid)
        init_weights(self.pyramid)
        self.terms = CodeTerms(
            width,
            projector_width=projector_width,
            weights={
                "vicreg_variance": vicreg_variance,
                "vicreg_covariance": vicreg_covariance,
                "vicreg_invariance": vicreg_invariance,
                "nt_xent": nt_xent,
                "sigreg": sigreg,
            },
            temperature=nt_xent_temperature,
            n_slices=n_slices,
        )
        check_views(spec, second_view=second_view, compares=self.terms.compares)
        check_local(spec, local_weight=local_weight, compares=self.terms.compares, patch=patch)
        self.second_view, self.local_weight = second_view, local_weight
        self.teacher = Teacher(self.encoder)
        self.val_loss = MeanMetric()
        self.total_steps = 0  # known when fitting starts
        if compile:
            for net in (self.encoder, self.predictor, self.teacher.net):
                net.get_submodule("trunk").compile(dynamic=True)

    @property
    def embed_dim(self) -> int:
        """Length of the code of an image."""
        return len(self.code_names())

    def code_names(self, name: str = OWN) -> list[str]:
        """Name each entry of a code: where it is from, `_`, the dimension."""
        parts = parts_of(self, name)
        return [f"{part}_{i}" for part in parts for i in range(self.width)]

    @torch.no_grad()
    def embed(self, x: Float[Tensor, "b c y x"]) -> Float[Tensor, "b e"]:
        """Code images with the teacher, from all patches; another image size is taken as well."""
        return embed_each(self, x, [OWN])[OWN]

    @torch.no_grad()
    def embed_each(
        self, x: Float[Tensor, "b c y x"], names: Sequence[str]
    ) -> dict[str, Float[Tensor, "b _"]]:
        """Code images in several ways at once: those of `representations`, or `own`."""
        return embed_each(self, x, names)

    def representations(self) -> list[str]:
        """Return the ways in which images can be coded."""
        return representations(self)

    def look(self, x: Float[Tensor, "b c y x"]) -> Looks:
        """Return what there is to see in images, under masks that no epoch and no seed changes."""
        return look(self, x, self.masks(x, "look"))

    def transfer(self, state: Mapping[str, object]) -> None:
        """Start from the encoders of another run, or from an official checkpoint of I-JEPA."""
        transfer(self, state)

    def masks(self, x: Float[Tensor, "b c y x"], *key: int | str) -> Blocks:
        """Draw masks for the images `x`; the same key gives the same masks.

        All ranks draw the same shapes, and each its own places.

        Raises:
            ValueError: if the images are of another size than the model was built for.
        """
        counts = Generator().manual_seed(stream("counts", *key))
        places = Generator("cpu" if self.masking.on_cpu else x.device)
        places.manual_seed(stream("places", self.global_rank, *key))
        grid = self.encoder.grid_of(*x.shape[2:])
        if grid != self.encoder.grid:
            raise ValueError(
                f"images of {x.shape[2]} x {x.shape[3]} pixels do not fit a model for "
                f"{self.spec.height} x {self.spec.width}: train on one size, data.image_size"
            )
        return self.masking.draw(len(x), grid, counts=counts, places=places).to(x.device)

    def loss(self, x: Float[Tensor, "b c y x"], blocks: Blocks | None = None) -> Float[Tensor, ""]:
        """Return the whole training loss; by default under the masks of the first step.

        Shrunk copies of the images stand in for their local views.
        """
        if blocks is None:
            blocks = self.masks(x, self.seed, 0, 0)
        local = None
        if self.local_weight:
            side, n = self.spec.local_size, self.spec.n_local_views
            local = F.interpolate(x, (side, side))[:, None].expand(-1, n, -1, -1, -1)
        return self.parts(x, blocks, key=(self.seed, 0, 0), local=local)["loss"]

    def parts(
        self,
        x: Float[Tensor, "b c y x"],
        blocks: Blocks,
        *,
        key: tuple[int, ...],
        view: Float[Tensor, "b c y x"] | None = None,
        local: Float[Tensor, "b v c s s"] | None = None,
    ) -> dict[str, Tensor]:
        """Return the loss, its parts by name, and what else is worth a record.

        Args:
            x: images.
            blocks: what is visible and what is predicted.
            key: decides the directions of SIGReg.
            view: what the teacher sees for the comparing terms; None for `x`.
            local: small crops of the images; None for none.
        """
        context = self.encoder(x, blocks.context)
        hidden = self._teach(x)
        errors = self._errors(context, hidden, blocks)
        parts = {f"loss_level_{level}": error for level, error in enumerate(errors)}
        loss = self.levels.weigh(errors)
        if self.terms.weights:
            other = (hidden[-1] if view is None else self.teacher(view)).mean(1)
            loss_of_codes, values = self.terms(context.mean(1), other, key)
            loss, parts = loss + loss_of_codes, parts | values
            if local is not None:
                parts["local"] = self._local(local, other, key)
                loss = loss + self.local_weight * parts["local"]
        return {"loss": loss, **parts}

    def _local(
        self, local: Float[Tensor, "b v c s s"], other: Float[Tensor, "b d"], key: tuple[int, ...]
    ) -> Float[Tensor, ""]:
        """Return the terms between the codes of small crops, all patches seen, and the teacher's.

        All crops go through the encoder at once, and each view through the terms on its own.
        """
        codes = self.encoder(local.flatten(0, 1)).mean(1).unflatten(0, local.shape[:2])
        return torch.stack([self.terms(one, other, key)[0] for one in codes.unbind(1)]).mean()

    def error(self, x: Float[Tensor, "b c y x"], blocks: Blocks) -> Float[Tensor, ""]:
        """Return the weighted error of prediction alone."""
        context = self.encoder(x, blocks.context)
        return self.levels.weigh(self._errors(context, self._teach(x), blocks))

    def _teach(self, x: Float[Tensor, "b c y x"]) -> list[Float[Tensor, "b n d"]]:
        """Return the teacher's features: of all blocks where they are needed, at the end always."""
        if not self.levels.reads_inside:
            return [self.teacher(x)]
        with torch.no_grad():
            return cast(ViT, self.teacher.net).hidden(x)

    def _errors(
        self,
        context: Float[Tensor, "b k d"],
        hidden: list[Float[Tensor, "b n d"]],
        blocks: Blocks,
    ) -> list[Float[Tensor, ""]]:
        """Return the error of each level."""
        features = self.predictor(context, blocks.context, blocks.targets).flatten(0, 1)
        predicted = self.pyramid(features, blocks.shape)
        targets = self.levels.targets(hidden, blocks, synchronise=self.training)
        # in float32 also under autocast: what is compared is small
        return [self.distance(p.float(), t) for p, t in zip(predicted, targets, strict=True)]

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Log every part and return the loss."""
        x, view = batch["x"], batch["view"] if self.second_view else None
        local = batch["local"] if self.local_weight else None
        key = (self.seed, self.current_epoch, batch_idx)
        parts = self.parts(x, self.masks(x, *key), key=key, view=view, local=local)
        for name, value in parts.items():
            self.log(f"train/{name}", value, prog_bar=name == "loss")
        return parts["loss"]

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Log the mean error of held-out images, under masks that no epoch and no seed changes."""
        x = batch["x"]
        self.val_loss.update(self.error(x, self.masks(x, "val", batch_idx)), weight=len(x))
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
        momentum = linear(
            step,
            total=self.total_steps,
            start=self.momentum,
            end=self.momentum_end,
            hold=round(self.momentum_warmup_share * self.total_steps),
        )
        self.teacher.update(self.encoder, momentum)
        self.terms.update(momentum)
        log_step(self, optimizer, step, momentum=momentum)

    def configure_optimizers(self):  # pyright: ignore[reportIncompatibleMethodOverride]
        """Build optimizer and schedule."""
        self.total_steps = bounded_steps(self.trainer)
        nets = [self.encoder, self.predictor, self.pyramid, *self.terms.trained()]
        optimizer, self.weight_decay_start = build_optimizer(self.optimizer, nets)
        factor = partial(
            warmup_cosine,
            warmup=round(self.warmup_share * self.total_steps),
            total=self.total_steps,
            final=self.final_lr_share,
        )
        return scheduled(optimizer, factor)
