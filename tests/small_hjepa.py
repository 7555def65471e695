"""A model of a few thousand weights on 8 x 8 images, for the tests of H-JEPA."""

from dataclasses import replace
from functools import partial

import lightning as L
import torch
from torch.utils.data import DataLoader

from jepa.models.hjepa import HJEPA
from jepa.nn.blocks import MultiBlock
from jepa.spec import ImageSpec

SPEC = ImageSpec(n_channels=1, height=8, width=8, mean=(0.0,), std=(1.0,), task="none")
MASKING = dict(
    n_targets=2,
    target_share_low=0.15,
    target_share_width=0.1,
    aspect_ratio_low=0.75,
    aspect_ratio_high=1.5,
    window_share_low=0.85,
    window_share_width=0.15,
    context_share=0.4,
)
BASE = dict(
    seed=0,
    patch=2,
    width=16,
    depth=2,
    n_heads=2,
    mlp_ratio=2.0,
    position="sincos",
    layer_scale=None,
    drop_path=0.0,
    attention="auto",
    gradient_checkpointing=False,
    predictor_width=8,
    predictor_depth=1,
    predictor_n_heads=2,
    predictor_mlp_ratio=2.0,
    predictor_mode="blocks",
    levels=1,
    level_weights=(1.0,),
    level_source="last",
    last_k_targets=1,
    pyramid="none",
    target_norm="batch",
    loss="smooth_l1",
    vicreg_variance=0.0,
    vicreg_covariance=0.0,
    vicreg_invariance=0.0,
    nt_xent=0.0,
    nt_xent_temperature=0.1,
    second_view=False,
    local_weight=0.0,
    sigreg=0.0,
    n_slices=16,
    projector_width=8,
    momentum=0.9,
    momentum_end=1.0,
    momentum_warmup_share=0.0,
    warmup_share=0.25,
    final_lr_share=0.0,
    weight_decay_end=None,
    representation="mean",
    compile=False,
)
OPTIMIZER = dict(lr=1e-2, betas=(0.9, 0.99), weight_decay=0.01)


def spec_for(knobs):
    """The spec of data that gives what these settings read."""
    n_local = 2 if knobs.get("local_weight") else 0
    views = dict(n_local_views=n_local, local_size=4 if n_local else 0)
    return replace(SPEC, two_views=knobs.get("second_view", False), **views)


def build(*, spec=None, masking=None, optimizer=OPTIMIZER, **knobs):
    """Build a model from the same random numbers every time."""
    torch.manual_seed(0)
    return HJEPA(
        spec=spec_for(knobs) if spec is None else spec,
        masking=MultiBlock(**MASKING) if masking is None else masking,
        optimizer=partial(torch.optim.AdamW, **optimizer),
        **BASE | knobs,
    )


def images(n=32, *, spec=SPEC, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, spec.n_channels, spec.height, spec.width, generator=generator)


def fit(model, *, x=None, view=None, local=None, callbacks=(), n_steps=4, **trainer):
    """Train for four steps on images in memory, in batches of 8."""
    x = images() if x is None else x
    batches = [{"x": part} for part in x.split(8)]
    if view is not None:
        batches = [one | {"view": part} for one, part in zip(batches, view.split(8), strict=True)]
    if local is not None:
        pairs = zip(batches, local.split(8), strict=True)
        batches = [one | {"local": part} for one, part in pairs]
    runner = L.Trainer(
        max_steps=n_steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
        **trainer,
    )
    runner.fit(model, DataLoader(batches, batch_size=None))
    return runner
