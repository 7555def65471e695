"""Every setting of H-JEPA changes the run. A setting that changes nothing is a defect."""

import inspect

import pytest
import torch
import yaml
from small_hjepa import BASE, MASKING, OPTIMIZER, SPEC, build, fit, images

from jepa.config import CONF
from jepa.models.hjepa import HJEPA
from jepa.nn.blocks import MultiBlock
from jepa.signatures import parameters

# blocks of 3 x 3 patches or so, that two levels fit
WIDE = MultiBlock(**MASKING | dict(target_share_low=0.5, context_share=0.25, n_targets=2))
TWO = dict(levels=2, level_weights=(1.0, 0.7))
OTHER = dict(
    seed=1,
    masking=MultiBlock(**MASKING | dict(n_targets=3)),
    patch=4,
    width=8,
    depth=3,
    n_heads=4,
    mlp_ratio=1.0,
    position="rope",
    layer_scale=0.1,
    drop_path=0.5,
    predictor_width=4,
    predictor_depth=2,
    predictor_n_heads=1,
    predictor_mlp_ratio=4.0,
    predictor_mode="joint",
    levels=3,
    level_weights=(1.0, 0.2),
    level_source="depths",
    last_k_targets=2,
    pyramid="add",
    target_norm="layer",
    loss="mse",
    vicreg_variance=0.5,
    vicreg_covariance=0.5,
    vicreg_invariance=0.5,
    nt_xent=0.5,
    nt_xent_temperature=0.5,
    second_view=True,
    local_weight=0.5,
    sigreg=0.5,
    n_slices=4,
    projector_width=4,
    momentum=0.5,
    momentum_end=0.95,
    momentum_warmup_share=0.5,
    warmup_share=0.75,
    final_lr_share=0.5,
    weight_decay_end=0.5,
)
WORDS = [("target_norm", "none"), ("pyramid", "concat")]
# some settings are read only where another is set
ALONGSIDE = {
    "patch": dict(masking=MultiBlock(**MASKING | dict(n_targets=1, context_share=0.5))),
    "levels": dict(masking=WIDE, level_weights=(1.0, 0.7, 0.5), depth=3),
    "level_weights": TWO | dict(masking=WIDE),
    "level_source": TWO | dict(masking=WIDE),
    "pyramid": TWO | dict(masking=WIDE),
    "nt_xent_temperature": dict(nt_xent=0.5),
    "second_view": dict(nt_xent=0.5),
    "local_weight": dict(nt_xent=0.5),
    "n_slices": dict(sigreg=0.5),
    "projector_width": dict(nt_xent=0.5),
}
SAME_NUMBERS = {"attention", "gradient_checkpointing", "compile", "representation"}
OTHER_OPTIMIZER = dict(lr=1e-3, betas=(0.5, 0.99), weight_decay=0.2)


def outcome(optimizer=OPTIMIZER, **knobs):
    """Sums over the trained weights, slow copy included."""
    model = build(optimizer=optimizer, **knobs)
    fit(model, view=images(seed=1), local=images(seed=2)[:, None, :, :4, :4].repeat(1, 2, 1, 1, 1))
    return [p.sum().item() for p in model.parameters()]


@pytest.mark.parametrize("knob", OTHER)
def test_hjepa_knob_does_something(knob):
    others = ALONGSIDE.get(knob, {})
    before = others
    if knob == "levels":  # as many weights as levels
        before = others | dict(levels=2, level_weights=(1.0, 0.7))
    assert outcome(**others | {knob: OTHER[knob]}) != outcome(**before)


@pytest.mark.parametrize(("knob", "word"), WORDS)
def test_hjepa_words_differ_from_one_another(knob, word):
    others = ALONGSIDE.get(knob, {})
    runs = [outcome(**others | {knob: choice}) for choice in (BASE[knob], OTHER[knob], word)]
    assert runs[0] != runs[1] != runs[2] != runs[0]


@pytest.mark.parametrize("knob", OPTIMIZER)
def test_hjepa_optimizer_knob_does_something(knob):
    assert outcome(OPTIMIZER | {knob: OTHER_OPTIMIZER[knob]}) != outcome()


def test_settings_of_memory_and_speed_reach_the_networks():
    plain, other = build(), build(attention="plain", gradient_checkpointing=True)
    for model, attention, checkpointing in ((plain, "auto", False), (other, "plain", True)):
        for trunk in (model.encoder.trunk, model.predictor.trunk):
            assert trunk.gradient_checkpointing == checkpointing
            assert all(block.attention == attention for block in trunk.blocks)


def test_settings_of_memory_and_speed_change_no_result():
    expected = outcome()
    for changes in (dict(attention="sdpa"), dict(gradient_checkpointing=True)):
        assert outcome(**changes) == pytest.approx(expected, rel=1e-3, abs=1e-3)


def test_representation_changes_the_code_and_not_the_weights():
    settings = TWO | dict(masking=WIDE, depth=4)
    models = [build(**settings, representation=w) for w in ("mean", "last4", "levels", "patches")]
    codes = [model.embed(images(2)) for model in models]
    assert len({code.shape[1] for code in codes}) == 4
    for model in models[1:]:
        for a, b in zip(model.parameters(), models[0].parameters(), strict=True):
            assert torch.equal(a, b)


def test_compile_compiles_the_transformers(monkeypatch):
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **_: compiled.append(self))
    model = build(compile=True)
    assert compiled == [model.encoder.trunk, model.predictor.trunk, model.teacher.net.trunk]


def test_hjepa_knobs_are_all_listed():
    names = inspect.signature(HJEPA).parameters.keys() - {"spec", "optimizer"}
    assert BASE.keys() == names - {"masking"}
    assert OTHER.keys() == names - SAME_NUMBERS  # those have tests of their own


def settings_of(model):
    """The settings of a yaml, with those of the yaml it begins from."""
    keys = yaml.safe_load((CONF / "model" / f"{model}.yaml").read_text())
    bases = [one for one in keys.pop("defaults") if isinstance(one, str) and one != "_self_"]
    return settings_of(bases[0]) | keys if bases else keys


@pytest.mark.parametrize("model", ["hjepa", "hjepa_small", "ijepa", "ijepa_vith14"])
def test_hjepa_yaml_sets_every_knob_and_python_sets_none(model):
    keys = settings_of(model)
    assert keys.keys() - {"_target_", "_partial_"} == BASE.keys() | {"masking", "optimizer"}
    assert len(keys["level_weights"]) == keys["levels"]
    signature = inspect.signature(HJEPA).parameters.values()
    assert all(p.default is inspect.Parameter.empty for p in signature)


@pytest.mark.parametrize("option", ["multiblock", "multiblock_official", "random", "single_block"])
def test_masking_yaml_sets_every_knob_and_python_sets_none(option):
    keys = yaml.safe_load((CONF / "masking" / f"{option}.yaml").read_text())
    assert parameters(keys.pop("_target_")) == keys.keys()


def test_ijepa_is_one_level_with_a_norm_for_each_patch():
    keys = settings_of("ijepa")
    assert keys["levels"] == 1 and keys["target_norm"] == "layer" and keys["pyramid"] == "none"
    assert keys["predictor_mode"] == "blocks" and keys["loss"] == "smooth_l1"


def test_old_names_of_keys_lead_to_keys_that_exist():
    renamed = yaml.safe_load((CONF.parent / "jepa" / "renamed.yaml").read_text())
    masking = yaml.safe_load((CONF / "masking" / "multiblock.yaml").read_text())
    for old, new in renamed.items():
        for key in new.split(" ")[0].split(","):
            group, _, name = key.partition("=")[0].partition(".")
            if group == "model":
                assert name.split(".")[0] in settings_of("hjepa"), (old, key)
            elif group == "masking" and name:
                assert name in masking, (old, key)


def test_the_spec_of_these_tests_has_a_grid_for_every_patch():
    assert SPEC.height % OTHER["patch"] == 0
