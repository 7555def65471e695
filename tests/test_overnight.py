"""Every flag of the overnight experiments does something: turned off, the run is another one."""

from functools import cache

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from hydra.utils import instantiate
from resume_cases import Kill, assert_same_run, run_until, settings_of
from support import settings
from test_bad_images import encoded, write_folder

from jepa.config import CONF, check_command_line
from jepa.run import FROM_THE_USER, build_model

# the experiments' own values but for sizes: a grid of 12 x 12 patches, six optimizer steps
SIZES = (
    "data.image_size=48", "data.batch_size=4", "data.n_workers=null", "model.patch=4",
    "model.width=24", "model.depth=2", "model.n_heads=2", "model.predictor_width=12",
    "model.predictor_depth=1", "model.predictor_n_heads=2", "model.projector_width=8",
    "trainer.max_steps=6", "trainer.max_epochs=-1", "trainer.precision=32-true",
)  # fmt: skip
TOY = ("data=toy_images", "data.n_images=160", "data.n_channels=3")
COMMON = {
    "layer scale": ["model.layer_scale=null"],
    "level weights": ["model.level_weights=[1.0,1.0,1.0]"],
    "levels": ["model.levels=2", "model.level_weights=[1.0,0.8]"],
    "variance": ["model.vicreg_variance=0.0"],
    "covariance": ["model.vicreg_covariance=0.0"],
    "invariance": ["model.vicreg_invariance=0.0"],
    "momentum": ["model.momentum=0.99"],
    "momentum's warm-up": ["model.momentum_warmup_share=0.0"],
    "warm-up": ["model.warmup_share=0.0"],
    "least learning rate": ["model.final_lr_share=0.0"],
    "betas": ["model.optimizer.betas=[0.9,0.999]"],
    "weight decay": ["model.optimizer.weight_decay=0.0"],
    "masks": ["masking.n_targets=3"],
    "size of blocks": ["masking.target_share_low=0.1"],
    "target norm": ["model.target_norm=none"],
    "crops": ["augment.crop_area_low=1.0", "augment.crop_aspect=1.0"],
    "flips": ["augment.flip_share=0.0"],
    "jitter": ["augment.brightness=0.0", "augment.contrast=0.0", "augment.saturation=0.0"],
    "clipping": ["trainer.gradient_clip_val=1.0e-3"],
    "seed": ["seed=0"],
}
FLAGS = {
    "overnight_conservative": COMMON | {"learning rate": ["model.optimizer.lr=3.0e-4"]},
    "overnight_aggressive": COMMON | {
        "learning rate": ["model.optimizer.lr=1.5e-4"],
        "pyramid": ["model.pyramid=none"],
        "contrastive": ["model.nt_xent=0.0"],
        "temperature": ["model.nt_xent_temperature=0.5"],
        "second view": ["model.second_view=false", "data.two_views=false"],
        "RandAugment": ["augment.rand_ops=0"],
        "its magnitude": ["augment.rand_magnitude=1"],
        "erasing": ["augment.erase_share=0.0"],
        "aspect of blocks": ["masking.aspect_ratio_low=0.75"],
        "accumulation": ["trainer.accumulate_grad_batches=1"],
    },
}  # fmt: skip
IMAGES = sorted(
    path.stem
    for path in (CONF / "experiment").glob("*.yaml")
    if path.stem.startswith(("hjepa", "ijepa", "m1_max", "overnight"))
)
# what the documents left for later, or chose between the two experiments, turned on
MORE = {
    "local crops": ["model.local_weight=0.5", "data.n_local_views=2", "data.local_size=16"],
    "RoPE": ["model.position=rope", "model.predictor_n_heads=1"],
    "3-Augment": ["augment.three_share=1.0"],
    "concatenating pyramid": ["model.pyramid=concat"],
}


def build(experiment, *changes):
    """Return data, model and trainer of an experiment on small images."""
    own = [f"+experiment={experiment}", *TOY, *SIZES, *changes]
    cfg = settings("unused", *own)
    with FROM_THE_USER:
        data = instantiate(cfg.data)
        data.prepare()
        model = build_model(cfg, data.spec)
        quiet = dict(enable_checkpointing=False, limit_val_batches=0, logger=False)
        return data, model, instantiate(cfg.trainer)(**quiet)


@cache
def outcome(experiment, *changes):
    """Sums over the trained weights, slow copies included."""
    data, model, trainer = build(experiment, *changes)
    trainer.fit(model, datamodule=data)
    assert trainer.global_step == 6
    return [p.double().sum().item() for p in model.parameters()]


CASES = [(experiment, flag) for experiment, flags in FLAGS.items() for flag in flags]


@pytest.mark.parametrize(("experiment", "flag"), CASES)
def test_a_flag_turned_off_makes_another_run(experiment, flag):
    assert outcome(experiment, *FLAGS[experiment][flag]) != outcome(experiment)


@pytest.mark.parametrize("flag", MORE)
def test_what_the_documents_left_for_later_makes_another_run(flag):
    assert outcome("overnight_aggressive", *MORE[flag]) != outcome("overnight_aggressive")


def test_every_term_of_the_aggressive_run_is_finite_and_logged():
    data, model, trainer = build("overnight_aggressive", "model.local_weight=0.5", "data.n_local_views=2", "data.local_size=16")  # fmt: skip  # noqa: E501
    trainer.fit(model, datamodule=data)
    names = {f"train/loss_level_{level}" for level in range(3)} | {
        *("train/loss", "train/vicreg_variance", "train/vicreg_covariance", "train/local"),
        *("train/vicreg_invariance", "train/nt_xent", "train/nt_xent_accuracy"),
    }
    logged = {key: value for key, value in trainer.callback_metrics.items() if key in names}
    assert logged.keys() == names and all(torch.isfinite(v) for v in logged.values())


@pytest.mark.parametrize("experiment", FLAGS)
@pytest.mark.parametrize(("attention", "fused"), [("sdpa", True), ("plain", False)])
def test_attention_is_fused_unless_turned_off(monkeypatch, experiment, attention, fused):
    calls = []
    kernel = F.scaled_dot_product_attention
    monkeypatch.setattr(
        F, "scaled_dot_product_attention", lambda *a, **k: calls.append(1) or kernel(*a, **k)
    )
    change = [] if fused else [f"model.attention={attention}"]
    data, model, _ = build(experiment, *change)
    model.loss(data.splits["val"].take(torch.arange(2))["x"])
    assert bool(calls) == fused


@pytest.mark.parametrize(("change", "again"), [([], True), (["model.gradient_checkpointing=false"], False)])  # fmt: skip  # noqa: E501
def test_the_aggressive_run_computes_its_blocks_again(change, again):
    data, model, _ = build("overnight_aggressive", *change)
    calls = []
    model.encoder.trunk.blocks[0].register_forward_pre_hook(lambda *_: calls.append(1))
    model.loss(data.splits["val"].take(torch.arange(2))["x"]).backward()
    assert len(calls) == (2 if again else 1)


def test_the_conservative_run_has_one_view_and_no_pyramid():
    _, model, _ = build("overnight_conservative")
    assert not model.second_view and "nt_xent" not in model.terms.weights
    assert isinstance(model, L.LightningModule) and not model.encoder.trunk.gradient_checkpointing


@pytest.mark.parametrize("experiment", IMAGES)
@pytest.mark.parametrize("data", [["data=image_folder", "data.path=somewhere"], ["data=mixture"]])
def test_every_image_experiment_takes_other_images(experiment, data):
    check_command_line([f"+experiment={experiment}", *data], "config")


VIEWS = (
    "augment=randaugment", "augment.erase_share=0.5", "augment.three_share=0.5",
    "data.two_views=true", "model.second_view=true", "model.nt_xent=0.1", "data.n_local_views=2",
    "data.local_size=8", "model.local_weight=0.5", "model.momentum_warmup_share=0.5",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize("storage", ["files", "packed"])
def test_a_run_with_every_view_from_the_disk_goes_on_exactly(tmp_path, storage):
    names = [f"{kind}/{i}.png" for kind in ("cat", "dog") for i in range(60)]
    write_folder(tmp_path / "images", {n: encoded((20, 18), seed=i) for i, n in enumerate(names)})
    place = [f"data.path={tmp_path / 'images'}", f"data.cache_dir={tmp_path / 'cache'}"]
    more = ["data=image_folder", *place, f"data.storage={storage}", "data.image_size=16", *VIEWS]
    arguments = [one for one in settings_of("hjepa", tmp_path, *more) if "n_images" not in one]
    run_until(None, tmp_path / "whole", arguments)
    run_until(Kill(1, 4), tmp_path / "cut", [*arguments, "data.n_workers=1"])
    run_until(None, tmp_path / "cut", [*arguments, "data.n_workers=3", "resume=auto"])
    assert_same_run(tmp_path / "whole", tmp_path / "cut")
