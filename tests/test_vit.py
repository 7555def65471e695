"""The vision transformer: what is hidden changes nothing, and it equals independent references."""

import math

import pytest
import torch
from torch import nn

from jepa.nn.positions import Positions, coordinates, rope, rotate, sincos
from jepa.nn.vit import Block, BlockPredictor, DropPath, Trunk, ViT, attend

SIZES = dict(patch=2, width=16, depth=3, n_heads=2, mlp_ratio=2.0, position="sincos")


def vit(*, n_channels=3, image_size=(8, 8), **changes):
    torch.manual_seed(0)
    return ViT(n_channels, image_size, **SIZES | changes)


def keep(n, *, batch=2, n_patches=16):
    return torch.stack([torch.randperm(n_patches)[:n].sort().values for _ in range(batch)])


def test_block_equals_torch_attention_and_mlp():
    block, x = Block(16, 4, mlp_ratio=2.0), torch.randn(2, 6, 16)
    reference = nn.MultiheadAttention(16, 4, batch_first=True).eval()
    reference.in_proj_weight, reference.in_proj_bias = block.to_qkv.weight, block.to_qkv.bias
    reference.out_proj = block.to_out
    y = block.attn_norm(x)
    middle = x + reference(y, y, y, need_weights=False)[0]
    torch.testing.assert_close(block(x), middle + block.mlp(block.mlp_norm(middle)))


def test_linear_patches_equal_a_convolution():
    net, x = vit(position="rope"), torch.randn(2, 3, 8, 8)
    convolution = nn.Conv2d(3, 16, 2, stride=2)
    convolution.weight = nn.Parameter(net.to_token.weight.view(16, 3, 2, 2))
    convolution.bias = net.to_token.bias
    torch.testing.assert_close(net.tokens(x)[0], convolution(x).flatten(2).transpose(1, 2))


@pytest.mark.parametrize("position", ["sincos", "rope"])
def test_patches_that_are_not_kept_change_nothing(position):
    net, index = vit(position=position), keep(5)
    x = torch.randn(2, 3, 8, 8)
    hidden = torch.ones(2, 16, dtype=torch.bool).scatter(1, index, False)
    noise = hidden.view(2, 1, 4, 4).repeat_interleave(2, 2).repeat_interleave(2, 3) * 10
    torch.testing.assert_close(net(x + noise * torch.randn(2, 3, 8, 8), index), net(x, index))


@pytest.mark.parametrize("position", ["sincos", "rope"])
def test_keeping_every_patch_is_keeping_none_out_and_order_does_not_matter(position):
    net, x = vit(position=position), torch.randn(2, 3, 8, 8)
    order = torch.stack([torch.randperm(16) for _ in range(2)])
    everything = net(x)
    torch.testing.assert_close(
        net(x, order), everything.gather(1, order[..., None].expand(-1, -1, 16))
    )


@pytest.mark.parametrize("position", ["sincos", "rope"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_attention_gives_the_same_numbers(position, dtype):
    x, index = torch.randn(2, 3, 8, 8), keep(7)
    outputs = []
    for attention in ("sdpa", "plain", "auto"):
        with torch.autocast("cpu", dtype, enabled=dtype == torch.bfloat16):
            outputs.append(vit(attention=attention, position=position)(x, index))
    tolerance = 1e-5 if dtype == torch.float32 else 0.05
    for other in outputs[1:]:
        torch.testing.assert_close(other, outputs[0], rtol=tolerance, atol=tolerance)


def test_automatic_attention_takes_the_fused_kernel_for_many_tokens_only(monkeypatch):
    called = []
    fused = nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        nn.functional, "scaled_dot_product_attention", lambda *a: called.append(1) or fused(*a)
    )
    for n, expected in ((16, 0), (300, 1)):
        attend(*torch.randn(3, 1, 1, n, 4).unbind(), "auto")
        assert len(called) == expected


def test_the_last_block_computes_only_what_is_asked_for_and_gets_it_right():
    for position in ("sincos", "rope"):
        torch.manual_seed(0)
        trunk, x = Trunk(16, 2, 2, mlp_ratio=2.0), torch.randn(2, 7, 16)
        rotation = Positions(position, (1, 7), 16, 2).rotation(keep(7, n_patches=7))
        torch.testing.assert_close(trunk(x, rotation, 3), trunk(x, rotation)[:, -3:])


def test_hidden_ends_with_what_forward_returns():
    net, x = vit(), torch.randn(2, 3, 8, 8)
    *inside, last = net.hidden(x)
    assert len(inside) == 3
    torch.testing.assert_close(last, net(x))
    torch.testing.assert_close(net.trunk.norm(inside[-1]), last)


def test_sines_are_those_of_the_formula_column_first():
    code = sincos(coordinates((3, 5), (3, 5)), 16)
    for row in range(3):
        for column in range(5):
            expected = [
                part(place / 10_000 ** (i / 4))
                for place in (column, row)
                for part in (math.sin, math.cos)
                for i in range(4)
            ]
            assert code[row * 5 + column].tolist() == pytest.approx(expected, abs=1e-6)


def test_another_grid_lies_between_the_positions_of_training():
    assert coordinates((4, 4), (4, 4))[:5].tolist() == [[0, 0], [0, 1], [0, 2], [0, 3], [1, 0]]
    fine = coordinates((8, 8), (4, 4)).view(4, 2, 4, 2, 2).mean((1, 3)).flatten(0, 1)
    torch.testing.assert_close(fine, coordinates((4, 4), (4, 4)))


@pytest.mark.parametrize("position", ["sincos", "rope"])
def test_an_enlarged_image_has_nearly_the_same_code(position):
    torch.manual_seed(0)
    x = torch.randn(4, 1, 1, 1) + 0.1 * torch.randn(4, 1, 4, 4)
    net = vit(n_channels=1, position=position, patch=4)
    small, large = (x.repeat_interleave(n, 2).repeat_interleave(n, 3) for n in (2, 4))
    alike = nn.functional.cosine_similarity(net(small).mean(1), net(large).mean(1))
    assert alike.min() > 0.9


def test_rotary_scores_depend_on_the_distance_only():
    cos, sin = rope(coordinates((6, 6), (6, 6)), 8)
    q, k = torch.randn(2, 1, 1, 1, 8).expand(-1, -1, -1, 36, -1)
    rotation = (cos[None], sin[None])
    scores = (rotate(q, rotation) @ rotate(k, rotation).transpose(-1, -2))[0, 0]
    torch.testing.assert_close(scores[0, 7], scores[14, 21])  # one down, one right
    assert not torch.isclose(scores[0, 1], scores[0, 6])


def test_rows_and_columns_turn_different_halves():
    table = rope(coordinates((2, 2), (2, 2)), 8)
    assert torch.equal(table[:, 0, :2], table[:, 1, :2])  # a step to the right
    assert torch.equal(table[:, 0, 2:], table[:, 2, 2:])  # a step down


def test_drop_path_leaves_out_whole_images_and_keeps_the_mean():
    torch.manual_seed(0)
    drop, x = DropPath(0.25), torch.ones(4000, 2, 3)
    out = drop(x)
    assert out.unique().tolist() == pytest.approx([0, 4 / 3])
    assert (out.flatten(1).std(1) == 0).all() and out.mean() == pytest.approx(1, abs=0.03)
    assert torch.equal(drop.eval()(x), x)


def test_drop_path_rises_from_the_first_block_to_the_last():
    assert [b.drop_path.share for b in vit(drop_path=0.2).trunk.blocks] == [0.0, 0.1, 0.2]


def test_layer_scale_starts_every_branch_small():
    net, x = vit(layer_scale=1e-5), torch.randn(2, 3, 8, 8)
    tokens, _ = net.tokens(x)
    torch.testing.assert_close(net(x), net.trunk.norm(tokens), rtol=1e-3, atol=1e-3)
    assert sum(p.numel() for n, p in net.named_parameters() if "scale" in n) == 3 * 2 * 16


def test_gradient_checkpointing_computes_blocks_twice_and_changes_no_gradient():
    x, gradients, calls = torch.randn(2, 3, 8, 8), [], []
    for checkpointing in (False, True):
        net = vit(gradient_checkpointing=checkpointing)
        count = []
        net.trunk.blocks[0].mlp.register_forward_pre_hook(lambda *_, n=count: n.append(1))
        net(x).square().sum().backward()
        calls.append(len(count))
        gradients.append([p.grad for p in net.parameters()])
    assert calls == [1, 2]
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, again)


def test_patches_of_any_size_start_as_loud_as_the_positions():
    for n_channels, patch in ((1, 2), (3, 4), (3, 16)):
        net = vit(n_channels=n_channels, patch=patch, image_size=(32, 32), width=128)
        x = torch.randn(4, n_channels, 32, 32)
        loudness = (net.tokens(x)[0] - net.positions.table).std() / net.positions.table.std()
        assert 0.2 < loudness < 3


def test_weights_start_as_published_and_biases_at_zero():
    net = vit(width=64, n_heads=4, depth=2)
    for module in net.trunk.modules():
        if isinstance(module, nn.Linear):
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.2)
            assert not module.bias.any()


def predictor(**changes):
    torch.manual_seed(0)
    settings = dict(width=8, depth=2, n_heads=2, mlp_ratio=2.0, mode="blocks", position="sincos")
    return BlockPredictor((4, 4), 16, **settings | changes)


@pytest.mark.parametrize("position", ["sincos", "rope"])
def test_one_call_predicts_each_block_as_a_call_for_it_would(position):
    net, index = predictor(position=position), keep(5)
    context, targets = torch.randn(2, 5, 16), torch.stack([keep(4), keep(4), keep(4)], dim=1)
    together = net(context, index, targets)
    for m in range(3):
        torch.testing.assert_close(together[:, m], net(context, index, targets[:, m : m + 1])[:, 0])


def test_joint_blocks_see_one_another_and_single_ones_do_not_care():
    index, context = keep(5), torch.randn(2, 5, 16)
    targets = torch.stack([keep(4), keep(4)], dim=1)
    moved = torch.stack([targets[:, 0], keep(4)], dim=1)
    single, joint = predictor(), predictor(mode="joint")
    torch.testing.assert_close(
        single(context, index, targets)[:, 0], single(context, index, moved)[:, 0]
    )
    first, second = joint(context, index, targets), joint(context, index, moved)
    assert not torch.allclose(first[:, 0], second[:, 0])
    torch.testing.assert_close(
        joint(context, index, targets[:, :1]), single(context, index, targets[:, :1])
    )


@pytest.mark.parametrize(
    ("message", "settings"),
    [
        ("model.patch=3 .*8 x 8.*model.patch=2 or 4", dict(patch=3)),
        ("model.patch", dict(patch=0)),
        ("model.width", dict(width=15)),
        ("multiple of 4", dict(width=18, n_heads=2)),
        ("multiple of 4", dict(width=12, n_heads=2, position="rope")),
        ("model.position", dict(position="learned")),
    ],
)
def test_a_vit_that_cannot_be_is_refused(message, settings):
    with pytest.raises(ValueError, match=message):
        vit(**settings)


def test_an_image_that_patches_do_not_cover_is_refused():
    with pytest.raises(ValueError, match=r"model\.patch=2 .*9 x 8"):
        vit()(torch.randn(1, 3, 9, 8))
