"""Pictures show what the model does, follow their cadence, and change no weight."""

from dataclasses import replace

import lightning as L
import numpy as np
import pytest
import torch
from small_hjepa import SPEC, build, images

from jepa import gallery, pictures
from jepa.callbacks.pictures import Pictures
from jepa.data.base import DataModule
from jepa.data.pixels import Images, Inputs, ToInput
from jepa.gallery import DRAW, Gallery
from jepa.models.hjepa_looks import rollout
from jepa.nn.blocks import RandomPatches
from jepa.nn.vit import Block

EVERY = dict.fromkeys(DRAW, 1)


class Data(DataModule):
    """Images of 8 x 8 pixels in three classes, in memory."""

    def __init__(self, n=24):
        super().__init__(batch_size=8)
        self.spec = replace(SPEC, task="multiclass", classes=("a", "b", "c"))
        self.to_input = ToInput(8, torch.full((1,), 0.5), torch.full((1,), 0.25))
        pixels = (images(n) * 50 + 128).clamp(0, 255).to(torch.uint8)
        rows = Inputs(Images(pixels, torch.arange(n) % 3), self.to_input)
        self.splits, self.preprocessing = {"train": rows, "val": rows}, {}

    def prepare(self):
        pass


def shown(**settings):
    return Gallery(build(**settings).eval(), Data(), n_images=4, n_bank=8, seed=0)


def test_weights_average_the_values_as_attention_does():
    block, x = Block(16, 4, mlp_ratio=2.0).eval(), torch.randn(2, 6, 16)
    weights = block.weights(x)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, 6))
    values = block.to_qkv(block.attn_norm(x))[..., 32:].unflatten(-1, (4, 4)).transpose(1, 2)
    mixed = (weights @ values).transpose(1, 2).flatten(2)
    torch.testing.assert_close(block.to_out(mixed), block.attn(block.attn_norm(x), None, None))


def test_rollout_of_two_blocks_is_the_product_written_out():
    net, x = build(depth=2, position="rope").teacher.net, images(3)
    tokens, rotation = net.tokens(x)
    own, flow = torch.eye(16), []
    for block in net.trunk.blocks:
        flow.append(0.5 * block.weights(tokens, rotation).mean(1) + 0.5 * own)
        tokens = block(tokens, rotation)
    torch.testing.assert_close(rollout(net, x), flow[1] @ flow[0])


def test_looks_are_the_teachers_features_and_the_students_predictions():
    model = build(levels=2, level_weights=(1.0, 1.0)).eval()
    x = images(5)
    looks = model.look(x)
    torch.testing.assert_close(looks.levels[0].flatten(1, 2), model.teacher(x))
    torch.testing.assert_close(looks.levels[1][:, 0, 0], looks.levels[0][:, :2, :2].mean((1, 2)))
    losses = [
        torch.nn.functional.smooth_l1_loss(p, t)
        for p, t in zip(looks.predicted, looks.targets, strict=True)
    ]
    error = model.error(x, model.masks(x, "look"))
    torch.testing.assert_close(torch.stack(losses).mean(), error.detach())


def test_equal_features_have_equal_colours_and_others_do_not():
    rows = torch.randn(2, 3, 3, 8)
    rows[1, 0, 0] = rows[0, 2, 1]
    colours = pictures.to_rgb(rows)
    assert colours.min() >= 0 and colours.max() <= 1
    torch.testing.assert_close(colours[1, 0, 0], colours[0, 2, 1])
    assert not torch.allclose(colours[0, 0, 0], colours[0, 0, 1], atol=1e-3)
    assert not pictures.to_rgb(torch.ones(4, 4, 8)).isnan().any()


def test_the_frames_and_the_visible_patches_are_those_of_the_masks():
    one = shown()
    looks = one.look()
    boxes = gallery.target_boxes(looks)
    left, top, width, height = boxes[0][0].place
    inside = {
        int(y // looks.patch * 4 + x // looks.patch)
        for y in np.arange(top, top + height, looks.patch)
        for x in np.arange(left, left + width, looks.patch)
    }
    assert inside == set(looks.blocks.targets[0, 0].tolist())
    painted = gallery.paint(
        torch.zeros(4, 8, 8, 3), looks, torch.ones(*looks.targets[0].shape[:3], 3), 0
    )
    patches = painted[0, :: looks.patch, :: looks.patch, 0].flatten().nonzero().flatten()
    assert set(patches.tolist()) == set(looks.blocks.targets[0].flatten().tolist())


@pytest.mark.parametrize(
    "settings",
    [
        dict(levels=2, level_weights=(1.0, 0.5), pyramid="add"),
        dict(masking=RandomPatches(target_share=0.3, context_share=0.4)),
    ],
)
def test_every_picture_is_drawn(settings, tmp_path):
    (tmp_path / "metrics.csv").write_text(
        "epoch,step,train/loss_level_0\n0,0,1.0\n0,1,nan\n0,2,0.5\n0,3,0.25\n"
    )
    one = shown(**settings)
    one.metrics, one.reference = tmp_path / "metrics.csv", torch.rand(8)
    drawn = {name: pictures.pixels(figure) for name, figure in one.draw(list(DRAW))}
    assert set(drawn) == set(DRAW) - ({"pyramid"} if "masking" in settings else set())
    assert all(image.dtype == np.uint8 and image.std() > 5 for image in drawn.values())


def test_inputs_are_shown_as_the_pixels_they_came_from():
    one = shown()
    stored = one.rows("val").pixels.x[one.choose("val", 4)] / 255
    torch.testing.assert_close(one.images[..., 0], stored[:, 0], atol=1e-6, rtol=0)


def test_losses_that_are_no_number_are_left_out(tmp_path):
    path = tmp_path / "metrics.csv"
    assert pictures.draw_losses(path) is None
    path.write_text("epoch,step,train/loss_level_0\n0,0,1.0\n0,1,nan\n0,2,inf\n0,3,0.25\n")
    steps, values = pictures.read_losses(path)["train/loss_level_0"]
    assert steps.tolist() == [0, 3] and values.tolist() == [1.0, 0.25]


def test_the_spectrum_is_that_of_the_covariance():
    one = shown()
    codes = one.codes("val", one.choose("val", 8)).double()
    expected = torch.linalg.eigvalsh(torch.cov(codes.T, correction=0)).flip(0)[:8]
    torch.testing.assert_close(gallery.spectrum(one).double(), expected, atol=1e-6, rtol=1e-3)


def fit(folder, *, n_steps=6, **every):
    model, data = build(), Data()
    watch = Pictures(run_dir=str(folder), n_images=3, n_bank=8, seed=0, **EVERY | every)
    trainer = L.Trainer(
        max_steps=n_steps, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
        callbacks=[watch],
    )  # fmt: skip
    trainer.fit(model, datamodule=data)
    return model, watch


OFF = dict.fromkeys(DRAW, 0)


def test_pictures_change_no_weight_and_no_random_number(tmp_path):
    plain, _ = fit(tmp_path / "off", **OFF)
    after = torch.rand(3)
    torch.manual_seed(0)
    watched, watch = fit(tmp_path / "on")
    assert torch.equal(after, torch.rand(3)) and not watch.failed
    drawn = {path.stem for path in (tmp_path / "on" / "plots").iterdir()}
    assert drawn == set(DRAW) - {"losses"}  # there is no metrics.csv
    assert not (tmp_path / "off").exists()
    for a, b in zip(plain.state_dict().values(), watched.state_dict().values(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", [name for name in DRAW if name != "losses"])
def test_each_picture_has_a_switch_and_a_cadence(tmp_path, name, monkeypatch):
    drawn = []
    monkeypatch.setitem(DRAW, name, lambda one: drawn.append(one.model.global_step))
    fit(tmp_path, **OFF | {name: 2})  # three batches an epoch, two epochs
    assert drawn == [6]


def test_a_picture_that_fails_costs_itself_alone(tmp_path, monkeypatch):
    def fail(_):
        raise RuntimeError("no room")

    monkeypatch.setitem(DRAW, "features", fail)
    with pytest.warns(UserWarning, match="features is left out.*no room"):
        _, watch = fit(tmp_path, **OFF | {"features": 1, "masks": 1})
    assert watch.failed == {"features"} and (tmp_path / "plots" / "masks.png").exists()


def test_a_resumed_run_draws_when_and_beside_what_it_would_have(tmp_path):
    _, watch = fit(tmp_path, **OFF | {"spectrum": 2})
    other = Pictures(run_dir=str(tmp_path), n_images=3, n_bank=8, seed=0, **EVERY)
    other.load_state_dict(watch.state_dict())
    assert other.n_validations == 2 and torch.equal(other.reference, watch.reference)


@pytest.mark.parametrize("bad", [{"n_images": 1}, {"n_bank": 1}, {"masks": -1}])
def test_settings_out_of_range_are_refused(bad):
    with pytest.raises(ValueError, match=r"callbacks\.pictures"):
        Pictures(**dict(run_dir=".", n_images=3, n_bank=8, seed=0, **EVERY) | bad)
