"""What jepa.evaluate measures beside its probes: quality, hierarchy, fine-tuning, transfer."""

import inspect
import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from small_hjepa import SPEC, build, images
from test_pictures import Data

from jepa import protocols
from jepa.config import CONF
from jepa.data.augment import Augment
from jepa.data.pixels import Images, Inputs
from jepa.encoding import OWN, Encoding
from jepa.finetune import Classifier, finetune, groups
from jepa.metrics import Measured
from jepa.probes.label_free import label_free
from jepa.probes.quality import N_GROUPS, T95, cka, describe, effective_rank, jackknife, quality
from jepa.spec import TabularSpec
from jepa.transfer import as_trained, recolour

# ---- which protocols


def test_all_is_every_protocol_and_a_list_is_put_in_order():
    assert protocols.chosen("all") == protocols.PROTOCOLS
    assert protocols.chosen(["finetune", "linear"]) == ("linear", "finetune")


@pytest.mark.parametrize("bad", [None, "linear", ["lineer"], []])
def test_what_is_no_list_of_protocols_is_refused(bad):
    with pytest.raises(ValueError, match=r"protocol=\[linear,knn\]"):
        protocols.chosen(bad)


LABELLED = replace(SPEC, task="binary", classes=("a", "b"))
TABLE = TabularSpec(columns=("a",), cardinalities=(0,), quantiles=((),), task="regression")


@pytest.mark.parametrize(
    ("spec", "elsewhere", "lost"),
    [
        (LABELLED, True, set()),
        (LABELLED, False, {"transfer"}),
        (SPEC, False, {"knn", "few_shot", "finetune", "transfer"}),
        (TABLE, False, {"finetune", "transfer"}),
    ],
)
def test_all_leaves_out_what_does_not_fit_and_says_so(spec, elsewhere, lost):
    fitting = partial(protocols.fitting, spec=spec, elsewhere=elsewhere)
    kept, said = fitting(protocols.PROTOCOLS, everything=True)
    assert set(protocols.PROTOCOLS) - set(kept) == lost == {line.split()[0] for line in said}
    for name in lost:
        with pytest.raises(ValueError, match=rf"protocol=\[{name}\]"):
            fitting([name], everything=False)


def test_another_data_set_that_nothing_probes_is_refused():
    with pytest.raises(ValueError, match="add transfer to protocol"):
        protocols.fitting(["linear"], LABELLED, everything=False, elsewhere=True)


# ---- representations

DEEP = dict(depth=4, levels=2, level_weights=(1.0, 1.0))


@pytest.mark.parametrize("own", ["mean", "last4", "levels", "patches"])
@pytest.mark.parametrize("source", ["last", "depths"])
def test_each_representation_is_what_a_model_set_to_it_embeds(own, source):
    x, model = images(3), build(**DEEP, level_source=source).eval()
    assert model.representations() == ["mean", "last4", "level1", "patches"]
    found = model.embed_each(x, ["mean", "last4", "level1", "patches", "levels", OWN])
    other = build(**DEEP, level_source=source, representation=own).eval()
    torch.testing.assert_close(found[own], other.embed(x))
    assert found[own].shape[1] == len(other.code_names()) == len(model.code_names(own))
    torch.testing.assert_close(found["levels"][:, 16:], found["level1"])


def test_auto_is_the_models_own_and_everything_with_all():
    model = build(**DEEP)
    choose = partial(protocols.representations_of, model, max_codes=256)
    assert choose("auto", everything=False) == ([OWN], [])
    assert choose("auto", everything=True) == ([OWN, "last4", "level1", "patches"], [])
    names, said = protocols.representations_of(model, "auto", everything=True, max_codes=60)
    assert names == [OWN] and len(said) == 3 and "max_codes=60" in said[0]
    assert choose(["level1", "mean"], everything=False) == (["level1", OWN], [])
    with pytest.raises(ValueError, match="own, mean, last4, level1"):
        choose(["level2"], everything=False)


def test_codes_of_all_representations_come_from_one_pass(tmp_path):
    model = build(**DEEP).eval()
    seen = []
    hidden = model.teacher.net.hidden
    model.teacher.net.hidden = lambda x: seen.append(len(x)) or hidden(x)
    encoding = Encoding(
        model, model, Data(), sizes={"val": None, "train": None}, seed=0, folder=tmp_path,
        origin="x", names=[OWN, "last4", "level1"],
    )  # fmt: skip
    codes = {name: encoding.codes("trained", "val", name)[0] for name in encoding.names}
    assert seen == [24]
    model.teacher.net.hidden = hidden
    x = Data().splits["val"].take(torch.arange(24))["x"]
    for name, expected in model.embed_each(x, encoding.names).items():
        torch.testing.assert_close(codes[name], expected)


# ---- quality without labels


def test_effective_rank_counts_directions():
    x = torch.randn(2000, 8) @ torch.eye(8, 20)
    assert effective_rank(x.double()) == pytest.approx(8, rel=0.02)
    assert effective_rank(x[:4].double()) <= 3.001  # centred: one less than the rows
    assert effective_rank(torch.ones(5, 3, dtype=torch.float64)) == 0


def test_quality_has_every_value_of_label_free_and_an_interval():
    x = torch.randn(200, 6) * torch.arange(1, 7)
    found = quality(x[:, None])
    assert {key: float(found[key]) for key in label_free(x)} == pytest.approx(label_free(x))
    assert all(one.low <= one <= one.high for one in found.values())
    assert found["std_p05"] < found["std_p50"] < found["std_p95"] < found["std_max"]
    assert found["std_max"] == pytest.approx(x.std(0, correction=0).max().item())


def test_patches_are_rows():
    x = torch.randn(30, 4, 5)
    assert dict(quality(x)) == pytest.approx(describe(x.flatten(0, 1)))


def test_the_jackknife_of_a_mean_is_the_spread_of_the_groups_means():
    x = torch.randn(100, dtype=torch.float64)
    found = jackknife(100, lambda rows: {"mean": x[rows].mean().item()}, seed=3)["mean"]
    order = torch.randperm(100, generator=torch.Generator().manual_seed(3))
    means = x[order].view(N_GROUPS, -1).mean(1)
    half = T95 * means.std().item() / math.sqrt(N_GROUPS)
    assert found == pytest.approx(x.mean().item())
    assert found.high - found == pytest.approx(half) == found - found.low
    assert jackknife(19, lambda rows: {"n": float(len(rows))}, seed=0)["n"].low is None


def test_cka_is_one_for_a_rotation_and_equals_its_definition():
    x, y = torch.randn(60, 5), torch.randn(60, 9)
    turned = 3 * x @ torch.linalg.qr(torch.randn(5, 5)).Q + 7
    assert cka(x, turned) == pytest.approx(1)
    centre = torch.eye(60, dtype=torch.float64) - 1 / 60
    k, m = (centre @ (z.double() @ z.double().T) @ centre for z in (x, y))
    expected = (k * m).sum() / (k.norm() * m.norm())
    assert cka(x, y) == pytest.approx(expected.item()) == cka(y, x)
    assert cka(x, y) < 0.5 and math.isnan(cka(x, torch.ones(60, 2)))


def test_levels_are_compared_in_pairs(tmp_path):
    model, other = build(**DEEP).eval(), build(**DEEP | {"seed": 1}).eval()
    encoding = Encoding(model, other, Data(), sizes={"val": None, "train": None}, seed=0)
    names = protocols.levels_of(model, 4096)
    assert names == [OWN, "level1"]
    content = protocols.level_content(encoding, "val", names)
    value = content["metrics"]["val/label_free/cka_mean_level1"]["value"]
    x = Data().splits["val"].take(torch.arange(24))["x"]
    codes = model.embed_each(x, ["mean", "level1"])
    assert value == pytest.approx(cka(codes["mean"], codes["level1"]))
    assert content["controls"]["untrained"].keys() == content["metrics"].keys()


# ---- fine-tuning


class Bright(Data):
    """Images whose class is which half is bright."""

    augment = None

    def __init__(self, n=48):
        super().__init__(n)
        y = torch.arange(n) % 2
        x = torch.randint(60, (n, 1, 8, 8), generator=torch.Generator().manual_seed(0))
        x[y == 1, :, :4] += 150
        x[y == 0, :, 4:] += 150
        rows = Inputs(Images(x.to(torch.uint8), y), self.to_input)
        self.splits = {"train": rows, "val": rows}
        self.spec = LABELLED


FINETUNE = dict(
    n_steps=30, batch_size=16, lr=3e-3, layer_decay=0.75, weight_decay=0.05, warmup_share=0.1,
    smoothing=0.1, seed=0,
)  # fmt: skip


def tune(data=None, encoder=None, **settings):
    encoder = build().teacher.net if encoder is None else encoder
    rows = dict(split="val", max_rows=None, max_split_rows=None)
    return finetune(encoder, data or Bright(), **rows | FINETUNE | settings)


def test_finetuning_learns_and_leaves_the_encoder_alone():
    encoder = build().teacher.net
    before = [p.clone() for p in encoder.parameters()]
    after = torch.rand(2)
    torch.manual_seed(0)
    build()
    found = tune(encoder=encoder)
    assert torch.equal(after, torch.rand(2))  # no global random number was taken
    assert found["accuracy"] > 0.9 and isinstance(found["error"], Measured)
    assert found["accuracy"].low < found["accuracy"] and found["accuracy"].n == 48
    assert all(torch.equal(p, q) for p, q in zip(before, encoder.parameters(), strict=True))
    assert not any(p.requires_grad for p in encoder.parameters())


OTHER = dict(
    n_steps=20, batch_size=8, lr=1e-3, layer_decay=0.3, weight_decay=5.0, warmup_share=0.9,
    smoothing=0.5, seed=1, max_rows=20, max_split_rows=20,
)  # fmt: skip


@pytest.mark.parametrize("knob", OTHER)
def test_every_setting_of_finetuning_does_something(knob):
    settings = {"n_steps": 8, "n_bootstrap": 0}
    plain, changed = tune(**settings), tune(**settings | {knob: OTHER[knob]})
    assert plain["log_loss"] != changed["log_loss"] and plain["log_loss"] == tune(**settings)["log_loss"]  # fmt: skip  # noqa: E501


def test_finetunings_settings_are_those_of_the_yaml():
    names = inspect.signature(finetune).parameters.keys()
    written = yaml.safe_load((CONF / "evaluate.yaml").read_text())["finetune"].keys()
    given = {"encoder", "data", "split", "max_rows", "max_split_rows", "n_bootstrap"}
    assert written - {"_target_", "_partial_"} == names - given


def test_each_layer_learns_at_a_share_of_the_one_above():
    net = Classifier(build(depth=3).teacher.net, 16, 2)
    found = groups(net, 1.0, 0.5, 0.1)
    rates = {id(p): group["lr"] for group in found for p in group["params"]}
    assert rates[id(net.head.weight)] == rates[id(net.encoder.trunk.norm.weight)] == 1.0
    blocks = [rates[id(block.to_qkv.weight)] for block in net.encoder.trunk.blocks]
    assert blocks == [0.125, 0.25, 0.5] and rates[id(net.encoder.to_token.weight)] == 0.0625
    assert set(rates) == {id(p) for p in net.parameters() if p.requires_grad}
    decayed = {id(p) for group in found if group["weight_decay"] for p in group["params"]}
    assert id(net.head.weight) in decayed and id(net.head.bias) not in decayed


def test_finetuning_sees_augmented_images():
    data = Bright()
    data.augment = Augment(
        crop_area_low=0.3, crop_area_high=0.6, crop_aspect=1.0, flip_share=0.5, brightness=0.0,
        contrast=0.0, saturation=0.0, rand_ops=0, rand_magnitude=9, three_share=0.0,
        erase_share=0.0,
    )  # fmt: skip
    assert tune(data, n_steps=4)["log_loss"] != tune(n_steps=4)["log_loss"]


@pytest.mark.parametrize(
    "bad", [{"n_steps": 0}, {"lr": 0.0}, {"layer_decay": 1.5}, {"smoothing": -0.1}]
)
def test_settings_of_finetuning_out_of_range_are_refused(bad):
    (name,) = bad
    with pytest.raises(ValueError, match=f"finetune.{name}"):
        tune(**bad)


def test_finetuning_that_diverges_says_what_to_change():
    with pytest.raises(ValueError, match=r"finetune\.lr=1e\+30"):
        tune(lr=1e30)


# ---- transfer


def test_gray_images_are_repeated_and_colours_become_gray_as_pillow_has_it():
    x = torch.randint(256, (2, 3, 4, 4), dtype=torch.uint8)
    gray = recolour(x, 1)
    for one, expected in zip(x, gray, strict=True):
        pillow = np.asarray(Image.fromarray(one.permute(1, 2, 0).numpy()).convert("L"))
        assert (torch.tensor(pillow) - expected[0]).abs().max() <= 1
    assert torch.equal(recolour(gray, 3)[:, 2], gray[:, 0]) and recolour(x, 3) is x


def test_other_images_are_scaled_as_those_a_model_was_trained_on():
    data = Bright()
    pixels = data.splits["val"].pixels.x
    fitted = {"image_size": 16, "mean": torch.tensor([0.1]), "std": torch.tensor([0.2])}
    as_trained(data, n_channels=1, preprocessing=fitted)
    x = data.splits["val"].take(torch.arange(3))["x"]
    assert x.shape == (3, 1, 16, 16)
    torch.testing.assert_close(x.mean(), (pixels[:3] / 255 - 0.1).mean() / 0.2)


def test_data_without_labels_or_images_is_no_place_to_transfer_to():
    fitted = {"image_size": 8, "mean": torch.zeros(1), "std": torch.ones(1)}
    data = Bright()
    data.spec = SPEC
    with pytest.raises(ValueError, match="no labels"):
        as_trained(data, n_channels=1, preprocessing=fitted)
    data.splits = {"val": data.splits["val"].pixels}
    with pytest.raises(ValueError, match="set of images"):
        as_trained(data, n_channels=1, preprocessing=fitted)
