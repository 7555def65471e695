"""Official checkpoints of I-JEPA: true names and shapes load, and differences are told."""

import pytest
import torch
import torch.nn.functional as F
from small_hjepa import build, images

from jepa.models.hjepa_weights import load_ijepa, load_ijepa_state_dict
from jepa.spec import ImageSpec

SPEC = ImageSpec(n_channels=3, height=8, width=8, mean=(0.0,) * 3, std=(1.0,) * 3, task="none")
SIZES = dict(width=16, depth=2, patch=2, side=4, predictor_width=8, predictor_depth=3)


def sines(side, width):
    """Fixed positions of the original: columns first, sines before cosines."""
    steps = torch.arange(width // 4, dtype=torch.float64) / (width // 4)
    place = torch.arange(side, dtype=torch.float64)[:, None] / 10_000**steps
    axis = torch.cat([place.sin(), place.cos()], dim=1)
    column, row = axis.repeat(side, 1), axis.repeat_interleave(side, dim=0)
    return torch.cat([column, row], dim=1)[None].float()


def blocks(prefix, depth, width):
    shapes = {}
    for i in range(depth):
        for norm in ("norm1", "norm2"):
            shapes |= {f"{prefix}.{i}.{norm}.{kind}": (width,) for kind in ("weight", "bias")}
        for name, rows, columns in (
            ("attn.qkv", 3 * width, width),
            ("attn.proj", width, width),
            ("mlp.fc1", 4 * width, width),
            ("mlp.fc2", width, 4 * width),
        ):
            shapes[f"{prefix}.{i}.{name}.weight"] = (rows, columns)
            shapes[f"{prefix}.{i}.{name}.bias"] = (rows,)
    return shapes


def checkpoint(*, width, depth, patch, side, predictor_width, predictor_depth, device="cpu"):
    """A file's content with the names and shapes of the authors' code, behind `module.`."""
    generator = torch.Generator().manual_seed(0)

    def fill(shapes):
        if device == "meta":
            return {f"module.{n}": torch.empty(s, device="meta") for n, s in shapes.items()}
        return {f"module.{n}": 0.2 * torch.randn(s, generator=generator) for n, s in shapes.items()}

    encoder = {
        "patch_embed.proj.weight": (width, 3, patch, patch),
        "patch_embed.proj.bias": (width,),
        **blocks("blocks", depth, width),
        "norm.weight": (width,),
        "norm.bias": (width,),
    }
    predictor = {
        "mask_token": (1, 1, predictor_width),
        "predictor_embed.weight": (predictor_width, width),
        "predictor_embed.bias": (predictor_width,),
        **blocks("predictor_blocks", predictor_depth, predictor_width),
        "predictor_norm.weight": (predictor_width,),
        "predictor_norm.bias": (predictor_width,),
        "predictor_proj.weight": (width, predictor_width),
        "predictor_proj.bias": (width,),
    }
    positions = {"module.pos_embed": sines(side, width)}
    return {
        "encoder": fill(encoder) | positions,
        "predictor": fill(predictor) | {"module.predictor_pos_embed": sines(side, predictor_width)},
        "target_encoder": fill(encoder) | positions,
        "opt": {},
        "epoch": 300,
        "loss": 0.1,
        "batch_size": 128,
        "world_size": 16,
        "lr": 1e-3,
    }


def model(**changes):
    return build(spec=SPEC, **dict(mlp_ratio=4.0, predictor_mlp_ratio=4.0, predictor_depth=3,
                                   target_norm="layer") | changes)  # fmt: skip


def official_encoder(weights, x, n_heads):
    """The forward pass of the authors' encoder, from the weights under their names."""
    w = {name.removeprefix("module."): value for name, value in weights.items()}
    patches = F.conv2d(x, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=2)
    tokens = patches.flatten(2).transpose(1, 2) + w["pos_embed"]

    def norm(name, value):
        return F.layer_norm(value, value.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], 1e-6)

    def linear(name, value):
        return F.linear(value, w[f"{name}.weight"], w[f"{name}.bias"])

    for i in range(SIZES["depth"]):
        b, n, d = tokens.shape
        qkv = linear(f"blocks.{i}.attn.qkv", norm(f"blocks.{i}.norm1", tokens))
        q, k, v = qkv.reshape(b, n, 3, n_heads, d // n_heads).permute(2, 0, 3, 1, 4)
        shares = (q @ k.transpose(-2, -1) * (d // n_heads) ** -0.5).softmax(dim=-1)
        mixed = (shares @ v).transpose(1, 2).reshape(b, n, d)
        tokens = tokens + linear(f"blocks.{i}.attn.proj", mixed)
        hidden = F.gelu(linear(f"blocks.{i}.mlp.fc1", norm(f"blocks.{i}.norm2", tokens)))
        tokens = tokens + linear(f"blocks.{i}.mlp.fc2", hidden)
    return norm("norm", tokens)


def test_a_loaded_teacher_computes_what_the_original_does():
    ours, state, x = model(), checkpoint(**SIZES), images(2, spec=SPEC)
    load_ijepa_state_dict(state, ours)
    for net, part in ((ours.teacher.net, "target_encoder"), (ours.encoder, "encoder")):
        expected = official_encoder(state[part], x, n_heads=2)
        torch.testing.assert_close(net(x), expected, rtol=1e-4, atol=1e-4)


def test_every_weight_of_the_checkpoint_lands_in_the_model():
    ours, state = model(), checkpoint(**SIZES)
    load_ijepa_state_dict(state, ours)
    held = {tuple(p.flatten().tolist()) for p in ours.parameters()}
    for part in ("encoder", "predictor", "target_encoder"):
        for name, weight in state[part].items():
            assert "pos_embed" in name or tuple(weight.flatten().tolist()) in held, name


@pytest.mark.parametrize("which", ["encoder", "target_encoder"])
def test_one_encoder_can_be_both_of_ours(which):
    ours, state = model(), checkpoint(**SIZES)
    before = ours.predictor.query.clone()
    load_ijepa_state_dict(state, ours, which=which)
    expected = state[which]["module.norm.weight"]
    for net in (ours.encoder, ours.teacher.net):
        assert torch.equal(net.trunk.norm.weight, expected)
    assert torch.equal(ours.predictor.query, before)


def test_names_without_module_load_as_well():
    ours, state = model(), checkpoint(**SIZES)
    for part in ("encoder", "predictor", "target_encoder"):
        state[part] = {name.removeprefix("module."): w for name, w in state[part].items()}
    load_ijepa_state_dict(state, ours)


def test_a_file_loads_and_the_model_trains_on(tmp_path):
    ours = model()
    torch.save(checkpoint(**SIZES), tmp_path / "official.pth.tar")
    load_ijepa(tmp_path / "official.pth.tar", ours)
    ours.loss(images(4, spec=SPEC)).backward()
    assert all(p.grad is not None for p in ours.encoder.parameters())


@pytest.mark.parametrize(
    ("message", "changes"),
    [
        (r"of another shape: .*\(32,\), here \(16,\)[\s\S]*model.width=32", dict(width=32)),
        (r"only in the checkpoint: encoder\.trunk\.blocks\.2[\s\S]*model.depth=3", dict(depth=3)),
        (r"only in the model: .*blocks\.1[\s\S]*model.depth=1", dict(depth=1)),
        (r"to_token\.weight \(16, 48\), here \(16, 12\)[\s\S]*model.patch=4", dict(patch=4)),
        (r"positions\.table \(25, 16\)[\s\S]*data.image_size=10", dict(side=5)),
        (r"predictor\.trunk[\s\S]*model.predictor_depth=2", dict(predictor_depth=2)),
        (r"predictor\.narrow[\s\S]*model.predictor_width=12", dict(predictor_width=12)),
    ],
)
def test_a_checkpoint_of_another_architecture_is_refused_with_the_difference(message, changes):
    ours = model()
    before = [p.clone() for p in ours.parameters()]
    with pytest.raises(ValueError, match=message):
        load_ijepa_state_dict(checkpoint(**SIZES | changes), ours)
    assert all(torch.equal(a, b) for a, b in zip(before, ours.parameters(), strict=True))


@pytest.mark.parametrize(
    ("message", "changes"),
    [
        ("only in the model: .*scale.factor", dict(layer_scale=0.1)),
        ("only in the model: pyramid.heads.1", dict(levels=2, level_weights=(1.0, 1.0))),
        ("of another shape: encoder.positions.table", dict(position="rope")),
    ],
)
def test_a_model_with_more_than_ijepa_is_refused_with_the_difference(message, changes):
    with pytest.raises(ValueError, match=message):
        load_ijepa_state_dict(checkpoint(**SIZES), model(**changes))


def test_positions_that_are_not_fixed_sines_are_refused():
    state = checkpoint(**SIZES)
    state["encoder"]["module.pos_embed"] = torch.randn(1, 16, 16)
    with pytest.raises(ValueError, match=r"not fixed sines: encoder\.positions"):
        load_ijepa_state_dict(state, model())


@pytest.mark.parametrize("state", [{}, {"state_dict": {}}, {"encoder": {}, "target_encoder": {}}])
def test_what_is_no_official_checkpoint_is_refused(state):
    with pytest.raises(ValueError, match="no official checkpoint of I-JEPA: it has no"):
        load_ijepa_state_dict(state, model())


def test_an_unknown_part_and_an_unreadable_file_are_refused(tmp_path):
    with pytest.raises(ValueError, match="which must be one of"):
        load_ijepa_state_dict(checkpoint(**SIZES), model(), which="teacher")
    (tmp_path / "text.pth").write_text("no checkpoint")
    with pytest.raises(ValueError, match=r"text\.pth is not a checkpoint"):
        load_ijepa(tmp_path / "text.pth", model())


def test_names_and_shapes_of_the_published_vit_h14_fit_its_preset():
    from test_hjepa_knobs import settings_of

    preset = settings_of("ijepa_vith14")
    for key in ("_target_", "_partial_", "seed", "masking", "optimizer"):
        preset.pop(key)
    spec = ImageSpec(n_channels=3, height=224, width=224, mean=(0.0,) * 3, std=(1.0,) * 3,
                     task="none")  # fmt: skip
    state = checkpoint(width=1280, depth=32, patch=14, side=16, predictor_width=384,
                       predictor_depth=12, device="meta")  # fmt: skip
    with torch.device("meta"):
        ours = build(spec=spec, **preset)
    load_ijepa_state_dict(state, ours)
    # ViT-H has 632 million weights in arXiv:2010.11929, Table 1
    n_weights = sum(p.numel() for p in ours.encoder.parameters())
    assert n_weights == pytest.approx(632e6, rel=3e-3)


def test_a_model_starts_from_an_official_checkpoint_or_from_another_run():
    official, ours, other = checkpoint(**SIZES), model(), model(predictor_depth=1)
    ours.transfer(official)
    other.transfer(ours.state_dict())
    for a, b in ((ours.encoder, other.encoder), (ours.teacher, other.teacher)):
        for mine, theirs in zip(a.parameters(), b.parameters(), strict=True):
            assert torch.equal(mine, theirs)


def test_a_model_starts_from_images_of_another_size():
    large = ImageSpec(n_channels=3, height=12, width=8, mean=(0.0,) * 3, std=(1.0,) * 3,
                      task="none")  # fmt: skip
    small, other = model(), build(spec=large, mlp_ratio=4.0)
    other.transfer(small.state_dict())
    assert torch.equal(other.encoder.to_token.weight, small.encoder.to_token.weight)


@pytest.mark.parametrize(
    ("message", "state"),
    [
        ("no image encoder", {"tokenizer.weight": torch.zeros(2)}),
        ("does not fit the model:[\\s\\S]*config.yaml", model(width=8).state_dict()),
    ],
)
def test_a_run_of_another_kind_or_size_is_refused(message, state):
    with pytest.raises(ValueError, match=message):
        model().transfer(state)
