"""Every setting of a model changes the run. A setting that changes nothing is a defect."""

import inspect
from functools import partial
from pathlib import Path

import lightning as L
import pytest
import torch
import yaml
from torch.utils.data import DataLoader

from jepa.models.tjepa import TJEPA
from jepa.spec import TabularSpec

QUANTILES = tuple(torch.linspace(-2, 2, 65).tolist())
SPEC = TabularSpec(
    columns=tuple("abcdefgh"),
    cardinalities=(0,) * 6 + (4, 3),
    quantiles=(QUANTILES,) * 6 + ((),) * 2,
    task="none",
)
BASE = dict(
    seed=0,
    width=16,
    depth=1,
    n_heads=2,
    mlp_ratio=2.0,
    dropout=0.0,
    n_reg=1,
    context_share_low=0.25,
    context_share_width=0.25,
    target_share_low=0.125,
    target_share_width=0.25,
    n_target_masks=1,
    predictor="joint",
    predictor_width=8,
    predictor_depth=1,
    predictor_n_heads=2,
    predictor_mlp_ratio=2.0,
    momentum=0.9,
    momentum_end=1.0,
    loss="mse",
    target_norm="layer",
    warmup_share=0.25,
    final_lr_share=0.0,
    weight_decay_end=None,
    numeric_embedding="linear",
    n_frequencies=4,
    n_bins=4,
    representation="flatten",
    compile=False,
)
OTHER = dict(
    seed=1,
    width=8,
    depth=2,
    n_heads=4,
    mlp_ratio=1.0,
    dropout=0.2,
    n_reg=2,
    context_share_low=0.5,
    context_share_width=0.5,
    target_share_low=0.5,
    target_share_width=0.5,
    n_target_masks=3,
    predictor="cross",
    predictor_width=4,
    predictor_depth=2,
    predictor_n_heads=4,
    predictor_mlp_ratio=4.0,
    momentum=0.5,
    momentum_end=0.95,
    loss="smooth_l1",
    target_norm="none",
    warmup_share=0.75,
    final_lr_share=0.5,
    weight_decay_end=0.5,
    numeric_embedding="periodic",
    n_frequencies=8,
    n_bins=8,
)
# a size is read by its own embedding only; every choice of a word is one knob more
ALONGSIDE = {"n_frequencies": {"numeric_embedding": "periodic"}}
ALONGSIDE["n_bins"] = {"numeric_embedding": "piecewise"}
WORDS = [("target_norm", "batch"), ("numeric_embedding", "piecewise")]
OPTIMIZER = dict(lr=1e-2, betas=(0.9, 0.99), weight_decay=0.01)
OTHER_OPTIMIZER = dict(lr=1e-3, betas=(0.5, 0.99), weight_decay=0.2)


def train(optimizer=OPTIMIZER, **knobs):
    """Train for four steps on a table in memory."""
    torch.manual_seed(0)
    x = torch.randn(32, 8)
    x[:, 6:] = torch.randint(3, (32, 2)).float()
    model = TJEPA(spec=SPEC, optimizer=partial(torch.optim.AdamW, **optimizer), **BASE | knobs)
    L.Trainer(
        max_steps=4,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(model, DataLoader([{"x": part} for part in x.split(8)], batch_size=None))
    return model


def outcome(optimizer=OPTIMIZER, **knobs):
    """Sums over the trained weights, slow copy included."""
    return [p.sum().item() for p in train(optimizer, **knobs).parameters()]


@pytest.mark.parametrize("knob", OTHER)
def test_tjepa_knob_does_something(knob):
    others = ALONGSIDE.get(knob, {})
    assert outcome(**others | {knob: OTHER[knob]}) != outcome(**others)


@pytest.mark.parametrize(("knob", "word"), WORDS)
def test_tjepa_words_differ_from_one_another(knob, word):
    runs = [outcome(**{knob: choice}) for choice in (BASE[knob], OTHER[knob], word)]
    assert runs[0] != runs[1] != runs[2] != runs[0]


@pytest.mark.parametrize("knob", OPTIMIZER)
def test_tjepa_optimizer_knob_does_something(knob):
    assert outcome(OPTIMIZER | {knob: OTHER_OPTIMIZER[knob]}) != outcome()


def test_tjepa_representation_changes_the_code_and_not_the_weights():
    x, words = torch.zeros(2, 8), ("flatten", "mean", "reg", "concat")
    models = [train(representation=word) for word in words]
    flat, mean, reg, both = (model.embed(x) for model in models)
    assert flat.shape[1] == 8 * 16 and not torch.equal(mean, reg)
    assert torch.equal(both, torch.cat([mean, reg], dim=1))
    sums = [[p.sum().item() for p in model.parameters()] for model in models]
    assert all(s == sums[0] for s in sums)


def test_tjepa_compile_compiles_the_transformers_and_draws_from_few_counts(monkeypatch):
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **_: compiled.append(self))
    optimizer = partial(torch.optim.AdamW, **OPTIMIZER)
    wide = BASE | {"context_share_width": 0.75, "context_share_low": 0.125}
    models = [TJEPA(spec=SPEC, optimizer=optimizer, **wide | {"compile": c}) for c in (False, True)]
    nets = [models[1].encoder.trunk, models[1].predictor.trunk, models[1].teacher.net.trunk]
    assert compiled == nets
    x = torch.zeros(2, 8)
    n_shapes = [len({m.masks(x, step).context.shape for step in range(60)}) for m in models]
    assert n_shapes[0] > n_shapes[1]


def test_tjepa_knobs_are_all_listed():
    names = inspect.signature(TJEPA).parameters.keys() - {"spec", "optimizer"}
    assert BASE.keys() == names
    assert OTHER.keys() == names - {"representation", "compile"}  # these have a test of their own


def test_tjepa_yaml_sets_every_knob_and_python_sets_none():
    conf = Path(__file__).parents[1] / "conf/model/tjepa.yaml"
    keys = yaml.safe_load(conf.read_text()).keys() - {"_target_", "_partial_"}
    assert keys == BASE.keys() | {"optimizer"}
    parameters = inspect.signature(TJEPA).parameters.values()
    assert all(p.default is inspect.Parameter.empty for p in parameters)
