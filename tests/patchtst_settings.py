"""Settings of tiny models of the PatchTST family, and a series for them."""

from jepa.spec import SeriesSpec

ENCODER = dict(
    patch=6,
    stride=6,
    end_padding=False,
    width=8,
    depth=1,
    n_heads=2,
    mlp_ratio=2.0,
    dropout=0.0,
    norm="batch",
    pre_norm=False,
    residual_attention=False,
    double_dropout=False,
    activation="gelu",
    channels="independent",
    recompute=True,
)
SHARED = ENCODER | dict(
    instance_norm=True,
    pool="flatten",
    compile=False,
    schedule="cosine",
    warmup_share=0.0,
    warmup_steps=0,
    final_lr_share=0.0,
    first_epoch_lr_share=1.0,
    weight_decay_end=None,
)
SUPERVISED = SHARED | dict(
    loss="auto",
    quantiles=[],
    head_dropout=0.0,
    head_dropout_place="after",
    freeze_encoder=False,
    head_only_epochs=0,
)
PRETRAINING = SHARED | dict(seed=0, mask="random", mask_share=0.4, leaky_revin=False, loss="mse")
MASKED = PRETRAINING | dict(head_dropout=0.0)
JEPA = PRETRAINING | dict(
    predictor_width=8,
    predictor_depth=1,
    predictor_n_heads=2,
    predictor_mlp_ratio=2.0,
    momentum=0.9,
    momentum_end=1.0,
)


def spec_of(**fields) -> SeriesSpec:
    """Describe a series of three channels."""
    known = dict(channels=("a", "b", "c"), look_back=24, horizon=4)
    return SeriesSpec(**known | dict(location=(0.0,) * 3, scale=(1.0,) * 3) | fields)
