"""Every setting of the PatchTST family changes the run; one that does not is a defect."""

from functools import partial
from pathlib import Path

import lightning as L
import pytest
import torch
import yaml
from patchtst_settings import JEPA, MASKED, SUPERVISED, spec_of
from torch.utils.data import DataLoader

from jepa.models.patchtst import PatchTST
from jepa.models.patchtst_pretraining import PatchTSTJEPA, PatchTSTMasked
from jepa.signatures import parameters

OPTIMIZER = dict(lr=1e-2, betas=(0.9, 0.99), weight_decay=0.01)
OTHER_OPTIMIZER = dict(lr=1e-3, betas=(0.5, 0.99), weight_decay=0.2)
CONF = Path(__file__).parents[1] / "conf/model"
BASE = {PatchTST: SUPERVISED, PatchTSTMasked: MASKED, PatchTSTJEPA: JEPA}
YAML = {PatchTST: "patchtst", PatchTSTMasked: "patchtst_ssl", PatchTSTJEPA: "patchtst_jepa"}
SHARED = dict(
    patch=4,
    stride=8,
    width=12,
    depth=3,
    n_heads=4,
    mlp_ratio=1.0,
    dropout=0.2,
    norm="layer",
    pre_norm=True,
    residual_attention=True,
    double_dropout=True,
    activation="relu",
    channels="mixed",
    instance_norm=False,
    schedule="constant",
    warmup_share=0.75,
    warmup_steps=2,
    final_lr_share=0.5,
    first_epoch_lr_share=0.1,
    weight_decay_end=0.5,
)
HIDING = SHARED | dict(seed=1, mask="future", mask_share=0.7, leaky_revin=True, loss="mae")
OTHER = {
    PatchTST: SHARED
    | dict(
        end_padding=True,
        pool="mean",
        loss="mae",
        quantiles=[0.1, 0.5, 0.9],
        head_dropout=0.3,
        head_dropout_place="before",
        freeze_encoder=True,
        head_only_epochs=1,
    ),
    PatchTSTMasked: HIDING | dict(head_dropout=0.3),
    PatchTSTJEPA: HIDING
    | dict(
        predictor_width=4,
        predictor_depth=2,
        predictor_n_heads=4,
        predictor_mlp_ratio=4.0,
        momentum=0.5,
        momentum_end=0.9,
    ),
}
# some are read only beside another; every choice of a word is one knob more
OUTCOMES = {}
ALONGSIDE = {
    "residual_attention": {"depth": 2},
    "double_dropout": {"dropout": 0.2},
    "head_dropout_place": {"head_dropout": 0.3},
    "schedule": {"warmup_share": 0.5},
}
WORDS = [
    (PatchTST, "norm", "rms"),
    (PatchTST, "pool", "last"),
    (PatchTST, "loss", "smooth_l1"),
    (PatchTST, "schedule", "onecycle"),
    (PatchTST, "schedule", "type3"),
    (PatchTSTMasked, "loss", "smooth_l1"),
]
# these have a test of their own
ELSEWHERE = {"compile", "recompute"}
REFUSED = {"end_padding", "pool"}  # in pretraining: refused, and read by `embed` alone
KNOBS = [(family, knob) for family, knobs in OTHER.items() for knob in knobs]


def train(family, optimizer=OPTIMIZER, **knobs):
    """Train for five epochs of one step on windows in memory."""
    torch.manual_seed(0)
    settings = BASE[family] | knobs
    model = family(spec=spec_of(), optimizer=partial(torch.optim.AdamW, **optimizer), **settings)
    x = torch.randn(4, 3, 24).cumsum(-1)
    L.Trainer(
        max_epochs=5,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(model, DataLoader([{"x": x, "y": x[..., :4]}], batch_size=None))
    return model


def outcome(family, optimizer=OPTIMIZER, **knobs):
    """Sums over the trained weights, slow copy included; each run is made once."""
    key = repr((family, optimizer, knobs))
    if key not in OUTCOMES:
        weights = train(family, optimizer, **knobs).parameters()
        OUTCOMES[key] = [p.sum().item() for p in weights]
    return OUTCOMES[key]


@pytest.mark.parametrize(("family", "knob"), KNOBS)
def test_patchtst_knob_does_something(family, knob):
    others = ALONGSIDE.get(knob, {})
    assert outcome(family, **others | {knob: OTHER[family][knob]}) != outcome(family, **others)


@pytest.mark.parametrize(("family", "knob", "word"), WORDS)
def test_patchtst_words_differ_from_one_another(family, knob, word):
    others, words = ALONGSIDE.get(knob, {}), (BASE[family][knob], OTHER[family][knob], word)
    runs = [outcome(family, **others | {knob: w}) for w in words]
    assert runs[0] != runs[1] != runs[2] != runs[0]


@pytest.mark.parametrize("family", BASE)
@pytest.mark.parametrize("knob", OPTIMIZER)
def test_patchtst_optimizer_knob_does_something(family, knob):
    optimizer = OPTIMIZER | {knob: OTHER_OPTIMIZER[knob]}
    assert outcome(family, optimizer) != outcome(family)


@pytest.mark.parametrize("family", [PatchTSTMasked, PatchTSTJEPA])
def test_pool_changes_the_code_and_not_the_weights_of_pretraining(family):
    models = [train(family, pool=word) for word in ("flatten", "mean", "last")]
    codes = [model.embed(torch.randn(2, 3, 24)) for model in models]
    assert codes[0].shape[1] > codes[1].shape[1] and not torch.equal(codes[1], codes[2])
    for other in models[1:]:
        for a, b in zip(models[0].parameters(), other.parameters(), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("family", BASE)
def test_compile_compiles_the_encoder(family, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **_: compiled.append(self))
    optimizer = partial(torch.optim.AdamW, **OPTIMIZER)
    for word in (False, True):
        settings = BASE[family] | {"compile": word}
        model = family(spec=spec_of(), optimizer=optimizer, **settings)
    assert compiled[0] is model.encoder


@pytest.mark.parametrize("family", BASE)
def test_patchtst_knobs_are_all_listed(family):
    target = f"{family.__module__}.{family.__name__}"
    names = parameters(target) - {"spec", "optimizer"}
    assert BASE[family].keys() == names
    assert OTHER[family].keys() == names - ELSEWHERE - (set() if family is PatchTST else REFUSED)


@pytest.mark.parametrize("family", BASE)
def test_patchtst_yaml_sets_every_knob(family):
    keys = yaml.safe_load((CONF / f"{YAML[family]}.yaml").read_text()).keys()
    assert keys - {"_target_", "_partial_"} == BASE[family].keys() | {"optimizer"}
