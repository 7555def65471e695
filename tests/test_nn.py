import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from jepa.nn.checks import check_heads, check_shares
from jepa.nn.decay import decay_groups
from jepa.nn.dropout import Dropout
from jepa.nn.ema import Teacher
from jepa.nn.embed import ColumnTokenizer, LinearNumbers, PeriodicNumbers, PiecewiseNumbers
from jepa.nn.masking import draw_count, split_tokens, stream
from jepa.nn.transformer import SHORT, Attention, Block, CrossTransformer, Transformer, softmax


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


# ---- masks


@pytest.mark.parametrize("n_masks", [1, 2, 3, 4, 9])
@pytest.mark.parametrize(("n_context", "n_target"), [(4, 2), (1, 1), (5, 3), (2, 5), (1, 7)])
def test_context_and_targets_are_disjoint(n_context, n_target, n_masks):
    masks = split_tokens(16, 8, n_context=n_context, n_target=n_target, n_masks=n_masks)
    assert masks.context.shape == (16, n_context) and masks.targets.shape[2] == n_target
    for context, targets in zip(masks.context, masks.targets, strict=True):
        assert len(context.unique()) == n_context
        for target in targets:
            assert len(torch.cat([context, target]).unique()) == n_context + n_target


@pytest.mark.parametrize(("n_context", "n_target"), [(4, 2), (1, 1), (5, 2), (2, 5), (4, 3)])
def test_target_masks_of_a_row_all_differ(n_context, n_target):
    masks = split_tokens(32, 8, n_context=n_context, n_target=n_target, n_masks=4)
    for targets in masks.targets:
        sets = {frozenset(target.tolist()) for target in targets}
        assert len(sets) == min(4, 8 - n_context)


def test_one_mask_is_all_there_is_where_everything_hidden_is_a_target():
    assert len(split_tokens(2, 8, n_context=4, n_target=4, n_masks=4).slots) == 1


@pytest.mark.parametrize("n_masks", [1, 4])
def test_every_hidden_token_asked_for_is_in_a_target_mask_and_asked_for_once(n_masks):
    for n_context, n_target in [(1, 2), (2, 4), (3, 2), (6, 1), (1, 6)]:
        masks = split_tokens(4, 8, n_context=n_context, n_target=n_target, n_masks=n_masks)
        assert masks.slots.unique().tolist() == list(range(masks.hidden.shape[1]))
        assert all(len(row.unique()) == len(row) for row in masks.hidden)


def test_every_token_also_the_last_is_context_and_target_equally_often():
    masks = split_tokens(8000, 5, n_context=2, n_target=1, n_masks=2, generator=generator())
    context = masks.context.flatten().bincount(minlength=5) / 8000
    torch.testing.assert_close(context, torch.full((5,), 2 / 5), atol=0.03, rtol=0)
    for k in range(2):
        target = masks.targets[:, k].flatten().bincount(minlength=5) / 8000
        torch.testing.assert_close(target, torch.full((5,), 1 / 5), atol=0.03, rtol=0)


def test_split_follows_its_generator():
    def draw(seed):
        return split_tokens(4, 8, n_context=4, n_target=2, generator=generator(seed)).context

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))


def test_split_rejects_more_tokens_than_there_are():
    with pytest.raises(ValueError, match="n_context=6"):
        split_tokens(2, 8, n_context=6, n_target=3)


def test_counts_fill_the_range_of_shares():
    rng = generator()
    drawn = {draw_count(10, (0.2, 0.4), most=9, generator=rng) for _ in range(200)}
    assert drawn == {2, 3, 4, 5, 6}


@pytest.mark.parametrize("n", range(2, 12))
def test_counts_leave_at_least_one_and_at_most_the_bound(n):
    rng = generator()
    for share in [(0.001, 0.0), (0.01, 0.99), (1.0, 0.0)]:
        assert 1 <= draw_count(n, share, most=n - 1, generator=rng) <= n - 1


def test_levels_bound_the_number_of_counts():
    rng = generator()
    drawn = {draw_count(100, (0.2, 0.6), most=99, generator=rng, n_levels=4) for _ in range(99)}
    assert drawn == {20, 40, 60, 80}


def test_streams_differ_in_every_part_of_the_key_and_repeat():
    keys = [(seed, epoch, step) for seed in range(4) for epoch in range(4) for step in range(4)]
    assert len({stream(*key) for key in keys}) == len(keys)
    assert stream(1, 2, 3) == stream(1, 2, 3)
    assert all(0 <= stream(*key) < 2**63 for key in keys)


# ---- teacher


def test_teacher_takes_one_averaging_step():
    student = nn.Linear(3, 3, bias=False)
    teacher = Teacher(student)
    nn.init.zeros_(teacher.net.weight)
    nn.init.ones_(student.weight)
    teacher.update(student, momentum=0.9)
    torch.testing.assert_close(teacher.net.weight, torch.full((3, 3), 0.1))


def test_teacher_follows_a_closed_form_over_many_steps():
    student = nn.Linear(1, 1, bias=False)
    teacher = Teacher(student)
    nn.init.zeros_(teacher.net.weight)
    nn.init.ones_(student.weight)
    for _ in range(20):
        teacher.update(student, momentum=0.8)
    assert teacher.net.weight.item() == pytest.approx(1 - 0.8**20, rel=1e-5)


def test_teacher_copies_buffers():
    student = nn.BatchNorm1d(2)
    teacher = Teacher(student)
    student.running_mean.fill_(3.0)
    teacher.update(student, momentum=0.9)
    assert teacher.net.running_mean.tolist() == [3.0, 3.0]


def test_teacher_has_no_gradient_and_no_dropout():
    teacher = Teacher(nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5)))
    teacher.train()
    assert not any(module.training for module in teacher.modules())
    assert not any(p.requires_grad for p in teacher.parameters())
    assert not teacher(torch.randn(2, 3)).requires_grad


# ---- transformer


def reference_attention(attention, width, n_heads):
    reference = nn.MultiheadAttention(width, n_heads, batch_first=True).eval()
    reference.in_proj_weight = attention.to_qkv.weight
    reference.in_proj_bias = attention.to_qkv.bias
    reference.out_proj = attention.to_out
    return reference


@pytest.mark.parametrize("n_tokens", [1, 6, SHORT + 1])
def test_attention_equals_the_reference(n_tokens):
    attention, x = Attention(16, 4).eval(), torch.randn(2, n_tokens, 16)
    expected = reference_attention(attention, 16, 4)(x, x, x, need_weights=False)[0]
    torch.testing.assert_close(attention(x), expected)


@pytest.mark.parametrize("n_tokens", [5, SHORT + 1])
def test_cross_attention_equals_the_reference(n_tokens):
    attention, x, q = Attention(16, 4).eval(), torch.randn(2, n_tokens, 16), torch.randn(2, 3, 16)
    expected = reference_attention(attention, 16, 4)(q, x, x, need_weights=False)[0]
    torch.testing.assert_close(attention(x, q), expected)


def test_block_equals_the_torch_layer():
    block = Block(16, 4, mlp_ratio=2.0).eval()
    layer = nn.TransformerEncoderLayer(
        16, 4, dim_feedforward=32, activation="gelu", batch_first=True, norm_first=True
    ).eval()
    layer.self_attn = reference_attention(block.attn, 16, 4)
    layer.norm1, layer.norm2 = block.attn_norm, block.mlp_norm
    layer.linear1, layer.linear2 = block.mlp[0], block.mlp[3]
    x = torch.randn(2, 6, 16)
    torch.testing.assert_close(block(x), layer(x))


def test_attention_does_not_care_about_token_order():
    block, x, order = Block(16, 4).eval(), torch.randn(2, 6, 16), torch.randperm(6)
    torch.testing.assert_close(block(x[:, order]), block(x)[:, order])


def test_asking_for_some_tokens_gives_those_of_all():
    net, x = Transformer(16, 2, 4).eval(), torch.randn(3, 6, 16)
    only = torch.tensor([[5, 0], [1, 2], [3, 3]])
    expected = torch.stack([codes[i] for codes, i in zip(net(x), only, strict=True)])
    torch.testing.assert_close(net(x, only), expected)


def test_cross_queries_do_not_see_one_another():
    net, context, q = (
        CrossTransformer(16, 2, 4).eval(),
        torch.randn(2, 5, 16),
        torch.randn(2, 3, 16),
    )
    torch.testing.assert_close(net(q, context)[:, :1], net(q[:, :1], context))
    assert not torch.allclose(net(q, context), net(q, context.flip(2)))


def test_layers_are_initialized_independently():
    for net in (Transformer(8, 3, 2), CrossTransformer(8, 3, 2)):
        first, second, third = (block.attn.to_qkv.weight for block in net.blocks)
        assert not torch.equal(first, second) and not torch.equal(second, third)


def test_width_must_fit_the_heads():
    with pytest.raises(ValueError, match="n_heads=3"):
        Block(16, 3)


# ---- dropout


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_dropout_drops_its_share_and_keeps_the_mean(share):
    y = Dropout(share)(torch.ones(100_003))
    assert (y == 0).float().mean().item() == pytest.approx(share, abs=0.01)
    assert y.mean().item() == pytest.approx(1.0, abs=0.03)
    assert len(y.unique()) == 2


def test_dropout_draws_are_independent_within_a_word():
    kept = (Dropout(0.5)(torch.ones(1 << 18)) != 0).float().view(-1, 8) - 0.5
    correlation = 4 * kept.T @ kept / len(kept)
    torch.testing.assert_close(correlation, torch.eye(8), atol=0.03, rtol=0)


def test_dropout_passes_the_gradient_where_it_passed_the_value():
    x = torch.ones(64, requires_grad=True)
    y = Dropout(0.3)(x)
    y.sum().backward()
    torch.testing.assert_close(x.grad, y.detach())


def test_dropout_follows_the_seed_and_leaves_its_input_alone():
    x = torch.ones(3, 7)

    def draw(seed):
        torch.manual_seed(seed)
        return Dropout(0.5)(x)

    assert torch.equal(draw(1), draw(1)) and not torch.equal(draw(1), draw(2))
    assert torch.equal(x, torch.ones(3, 7))


@pytest.mark.parametrize(("share", "left"), [(0.0, 5), (1e-7, 5), (1.0, 0)])
def test_dropout_at_its_ends(share, left):
    assert (Dropout(share)(torch.ones(5)) == 1).sum() == left


def test_dropout_does_nothing_in_eval():
    x = torch.randn(8)
    assert Dropout(0.9).eval()(x) is x


def test_dropout_refuses_a_share_above_one():
    with pytest.raises(ValueError, match=r"1\.5"):
        Dropout(1.5)


# ---- columns


def test_linear_numbers_equal_the_formula():
    numbers = LinearNumbers(2, 3)
    out = numbers(torch.tensor([[2.0, -1.0]]), torch.tensor([[1, 0]]))
    torch.testing.assert_close(out[0, 0], 2 * numbers.slope[1])
    torch.testing.assert_close(out[0, 1], -numbers.slope[0])


def test_periodic_numbers_have_the_period_of_their_frequencies():
    numbers = PeriodicNumbers(2, 4, n_frequencies=3)
    nn.init.constant_(numbers.frequency, 0.25)
    x, column = torch.tensor([[0.3, 1.1]]), torch.tensor([[0, 1]])
    torch.testing.assert_close(numbers(x, column), numbers(x + 4, column), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(numbers(x, column), numbers(x + 1, column))


@pytest.mark.parametrize("x", [-3.0, 0.0, 0.5, 1.0, 2.5, 4.0, 9.0])
def test_piecewise_numbers_equal_the_encoding_times_the_layer(x):
    edges = [0.0, 1.0, 2.0, 4.0]
    numbers = PiecewiseNumbers([edges], 3, n_bins=3)
    code = []
    for t in range(3):  # arXiv:2203.05556, Eq. 1
        r = (x - edges[t]) / (edges[t + 1] - edges[t])
        code.append(0.0 if x < edges[t] and t > 0 else 1.0 if x >= edges[t + 1] and t < 2 else r)
    expected = torch.tensor(code) @ numbers.slope[0]
    torch.testing.assert_close(numbers(torch.tensor([[x]]), torch.tensor([[0]]))[0, 0], expected)


@pytest.mark.parametrize("values", [(1.0,) * 9, (0.0,) * 6 + (1.0, 2.0, 2.0)])
def test_piecewise_numbers_survive_equal_quantiles(values):
    numbers = PiecewiseNumbers([values], 3, n_bins=4)
    x = torch.tensor([[-1.0, 0.0, 1.0, 2.0, 5.0]])
    out = numbers(x, torch.zeros(1, 5, dtype=torch.long))
    assert out.isfinite().all()
    assert len(out[0].unique(dim=0)) > 2


def test_piecewise_numbers_refuse_more_bins_than_quantiles():
    with pytest.raises(ValueError, match=r"model\.n_bins must be in 1\.\.4"):
        PiecewiseNumbers([(0.0, 1.0, 2.0, 3.0, 4.0)], 3, n_bins=9)


def tokenizer():
    return ColumnTokenizer((0, 4, 0, 3), 5, LinearNumbers(2, 5))


def test_tokens_are_the_column_vector_plus_the_value():
    net, x = tokenizer(), torch.tensor([[2.0, 3.0, -1.0, 2.0]])
    out = net(x)[0] - net.column
    torch.testing.assert_close(out[0], 2 * net.numbers.slope[0])
    torch.testing.assert_close(out[2], -net.numbers.slope[1])
    # row 0 is empty; then one row for a number's missing token, and one for each code
    torch.testing.assert_close(out[1], net.value[1 + 1 + 3])
    torch.testing.assert_close(out[3], net.value[1 + 1 + 4 + 1 + 2])


def test_no_two_tokens_share_a_row_of_the_table():
    net = tokenizer()
    inputs = [
        (0, math.nan),
        (2, math.nan),
        *((1, c) for c in range(4)),
        *((3, c) for c in range(3)),
    ]
    seen = []
    for column, value in inputs:
        x = torch.zeros(1, 4)
        x[0, column] = value
        seen.append((net(x)[0, column] - net.column[column]).detach())
    assert len(torch.stack(seen).unique(dim=0)) == len(inputs)


def test_unseen_codes_are_code_one_and_missing_ones_code_zero():
    net = tokenizer()

    def code(value):
        return net(torch.tensor([[0.0, value, 0.0, 0.0]]))[0, 1]

    for unseen in (4.0, 1e30, -1.0, -7.0):
        torch.testing.assert_close(code(unseen), code(1.0))
    for missing in (math.nan, math.inf):
        torch.testing.assert_close(code(missing), code(0.0))


def test_tokens_of_some_columns_equal_those_of_all():
    net, x = tokenizer(), torch.tensor([[2.0, 3.0, math.nan, 2.0], [math.nan, 9.0, 1.0, 0.0]])
    only = torch.tensor([[3, 0], [2, 1]])
    every = net(x)
    expected = torch.stack([every[b, only[b]] for b in range(2)])
    torch.testing.assert_close(net(x, only), expected)


def test_a_table_of_categories_alone_needs_no_numbers():
    out = ColumnTokenizer((3, 4), 5, None)(torch.tensor([[2.0, 3.0]]))
    assert out.shape == (1, 2, 5) and out.isfinite().all()


def test_the_empty_row_takes_no_gradient():
    net = tokenizer()
    net(torch.tensor([[1.0, 3.0, 1.0, 2.0]])).sum().backward()
    assert not net.value[0].any() and not net.value.grad[0].any()


# ---- settings


def test_weight_decay_is_for_matrices_of_linear_layers_only():
    net = nn.Sequential(tokenizer(), Transformer(5, 1, 1))
    matrices, rest = decay_groups([net])
    assert {id(p) for p in matrices} == {
        id(module.weight) for module in net.modules() if isinstance(module, nn.Linear)
    }
    assert len(matrices) + len(rest) == len(list(net.parameters()))


def test_heads_are_refused_with_values_that_fit():
    with pytest.raises(ValueError, match=r"model\.width=30 .*model\.n_heads=4") as error:
        check_heads("model.", 30, 4)
    assert "28 or 32" in str(error.value) and "3 or 5" in str(error.value)


@pytest.mark.parametrize(
    ("low", "width"), [(0.0, 0.5), (-0.1, 0.2), (0.5, 0.6), (0.5, -0.1), (2.0, 0.0)]
)
def test_shares_outside_their_range_are_refused(low, width):
    with pytest.raises(ValueError, match=r"model\.target_share_low"):
        check_shares("model.target_share", low, width)


def test_gelu_is_the_exact_one():
    x = torch.linspace(-3, 3, 7)
    torch.testing.assert_close(Block(8, 2).mlp[1](x), F.gelu(x, approximate="none"))


@pytest.mark.parametrize("n", [1, 2, 15, 16, 17, 40])
def test_the_softmax_of_short_rows_equals_torchs_with_its_gradient(n):
    scores = torch.randn(3, 2, 5, n, generator=torch.Generator().manual_seed(n)).requires_grad_()
    weights = torch.randn(n, generator=torch.Generator().manual_seed(1))
    ours, theirs = softmax(scores), scores.softmax(-1)
    torch.testing.assert_close(ours, theirs)
    gradients = [torch.autograd.grad((y * weights).sum(), scores)[0] for y in (ours, theirs)]
    torch.testing.assert_close(*gradients)


def test_the_softmax_of_bfloat16_is_taken_in_float32():
    scores = torch.randn(4, 20).bfloat16()
    torch.testing.assert_close(softmax(scores), scores.float().softmax(-1))
