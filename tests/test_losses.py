"""Norms of targets and terms on codes: what each must see, and what it must not."""

import math

import pytest
import torch
import torch.nn.functional as F

from jepa.nn.losses import (
    CodeTerms,
    batch_norm,
    covariance_loss,
    normalize,
    nt_xent,
    sigreg,
    slices,
    variance_loss,
)
from jepa.nn.pyramid import Pyramid, enlarge, pool, pooled_shape


def normal(n, width, *, seed=0):
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed))


def test_batch_norm_standardises_each_dimension_over_images_and_patches():
    x = 5 + torch.arange(1, 9) * torch.randn(6, 4, 8)
    out = batch_norm(x, synchronise=False)
    torch.testing.assert_close(out.mean((0, 1)), torch.zeros(8), atol=1e-5, rtol=0)
    torch.testing.assert_close(out.std((0, 1), correction=0), torch.ones(8), atol=1e-4, rtol=0)


def test_layer_norm_standardises_each_patch_and_none_leaves_it():
    x = 5 + 3 * torch.randn(6, 4, 8)
    out = normalize(x, "layer")
    torch.testing.assert_close(out.std(-1, correction=0), torch.ones(6, 4), atol=1e-4, rtol=0)
    assert torch.equal(normalize(x, "none"), x)


def test_variance_term_sees_the_scale_and_is_zero_from_one_on():
    x = normal(500, 8)
    standard = (x - x.mean(0)) / x.std(0)
    assert variance_loss(1.01 * standard) == 0
    assert variance_loss(0.5 * standard) == pytest.approx(0.5, abs=1e-3)
    assert variance_loss(torch.ones(5, 3)) == pytest.approx(0.99, abs=1e-6)
    torch.testing.assert_close(variance_loss(0.1 * x + 7), variance_loss(0.1 * x))


def test_covariance_term_is_what_is_written_out_for_two_dimensions():
    x = torch.tensor([[1.0, 2.0], [3.0, 1.0], [5.0, 9.0]])
    a, b = x.unbind(1)
    covariance = float(((a - 3) * (b - 4)).sum() / 2)
    assert covariance_loss(x) == pytest.approx(2 * covariance**2 / 2)


def test_covariance_term_ignores_shifts_and_scales_of_independent_dimensions():
    grid = torch.cartesian_prod(torch.tensor([-1.0, 1.0]), torch.tensor([-3.0, 3.0]))
    assert covariance_loss(grid + 5) == pytest.approx(0, abs=1e-6)
    assert covariance_loss(torch.stack([grid[:, 0], grid[:, 0]], 1)) > 1


def test_nt_xent_is_what_is_written_out_for_two_images():
    x, y = normal(2, 3), normal(2, 3, seed=1)
    codes = [row / row.norm() for row in (*x, *y)]
    total = 0.0
    for anchor, partner in enumerate((2, 3, 0, 1)):
        scores = [math.exp(float(codes[anchor] @ other) / 0.5) for other in codes]
        total += -math.log(scores[partner] / (sum(scores) - scores[anchor]))
    assert nt_xent(x, y, 0.5)[0] == pytest.approx(total / 4, abs=1e-5)


def test_nt_xent_ignores_lengths_and_rotations():
    x, y = normal(16, 4), normal(16, 4, seed=1)
    rotation = torch.linalg.qr(normal(4, 4, seed=2)).Q
    lengths = torch.linspace(0.1, 9, 16)[:, None]
    plain = nt_xent(x, y, 0.1)[0]
    torch.testing.assert_close(nt_xent(lengths * x, y, 0.1)[0], plain)
    torch.testing.assert_close(nt_xent(x @ rotation, y @ rotation, 0.1)[0], plain)


def test_nt_xent_finds_partners_and_only_partners():
    x = normal(16, 8)
    assert nt_xent(x, x + 0.01 * normal(16, 8, seed=1), 0.1)[1] == 1
    assert nt_xent(x, x.roll(1, 0), 0.1)[1] == 0
    assert nt_xent(x, x, 0.1)[0] < nt_xent(x, x.roll(1, 0), 0.1)[0]


def test_directions_are_of_length_one_and_repeatable():
    first, again = (slices(8, 32, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    torch.testing.assert_close(first.norm(dim=0), torch.ones(32))
    assert torch.equal(first, again)


def test_sigreg_sees_scale_shift_and_collapse():
    x, directions = normal(2000, 8), slices(8, 64)
    good = sigreg(x, directions)
    assert sigreg(0.1 * x, directions) > 20 * good
    assert sigreg(3 * x, directions) > 20 * good
    assert sigreg(x + 1, directions) > 20 * good
    assert sigreg(x * (torch.arange(8) < 4), directions) > 5 * good
    assert sigreg(torch.zeros(2000, 8), directions) > 20 * good


def test_sigreg_is_invariant_to_rotation_over_all_directions():
    x = normal(500, 6) ** 3
    rotation = torch.linalg.qr(normal(6, 6, seed=2)).Q
    directions = slices(6, 32)
    torch.testing.assert_close(
        sigreg(x @ rotation, rotation.T @ directions), sigreg(x, directions), rtol=1e-4, atol=1e-4
    )


def test_sigreg_of_a_point_mass_is_the_integral_written_out():
    # the characteristic function of a mass at zero is 1 everywhere
    def integrand(t):
        return (1 - math.exp(-t * t / 2)) ** 2 * math.exp(-t * t / 2)

    fine = [3 * i / 3000 for i in range(3001)]
    integral = 2 * sum(map(integrand, fine)) * 3 / 3000
    assert sigreg(torch.zeros(5, 2), slices(2, 4)) == pytest.approx(5 * integral, rel=5e-3)


def test_sigreg_pulls_codes_to_a_standard_normal():
    x = (0.2 * normal(256, 2)).requires_grad_()
    optimizer = torch.optim.Adam([x], lr=0.05)
    for step in range(150):
        optimizer.zero_grad()
        sigreg(x, slices(2, 16, generator=torch.Generator().manual_seed(step))).backward()
        optimizer.step()
    assert x.std(0).tolist() == pytest.approx([1, 1], abs=0.15)


WEIGHTS = dict.fromkeys(
    ("vicreg_variance", "vicreg_covariance", "vicreg_invariance", "nt_xent", "sigreg"), 0.0
)


def terms(**weights):
    torch.manual_seed(0)
    return CodeTerms(6, projector_width=4, weights=WEIGHTS | weights, temperature=0.1, n_slices=8)


def test_without_a_weight_there_is_no_projector():
    assert not list(terms().parameters()) and not terms().trained() and not terms().compares


@pytest.mark.parametrize("name", WEIGHTS)
def test_each_term_stands_alone_and_counts_by_its_weight(name):
    x, y = normal(8, 6), normal(8, 6, seed=1)
    single, values = terms(**{name: 1.0})(x, y, (0,))
    assert set(values) == {name} | ({"nt_xent_accuracy"} if name == "nt_xent" else set())
    double, _ = terms(**{name: 2.0})(x, y, (0,))
    torch.testing.assert_close(double, 2 * single)
    torch.testing.assert_close(single, values[name])


def test_invariance_is_between_codes_of_one_image_and_not_of_another():
    x = normal(8, 6)
    same, _ = terms(vicreg_invariance=1.0)(x, x, (0,))
    other, _ = terms(vicreg_invariance=1.0)(x, x.roll(1, 0), (0,))
    assert same == 0 and other > 0


def test_the_slow_side_takes_no_gradient_and_follows():
    part = terms(nt_xent=1.0)
    loss, _ = part(normal(8, 6), normal(8, 6, seed=1), (0,))
    loss.backward()
    assert all(p.grad is not None for p in part.projector.parameters())
    assert all(p.grad is None for p in part.slow_projector.parameters())
    with torch.no_grad():
        part.projector[0].weight.zero_()
    before = part.slow_projector.net[0].weight.clone()
    part.update(0.9)
    torch.testing.assert_close(part.slow_projector.net[0].weight, 0.9 * before)


@pytest.mark.parametrize("shape", [(4, 4), (3, 5), (1, 3), (2, 7)])
@pytest.mark.parametrize("level", [0, 1, 2])
def test_pool_is_the_mean_over_squares_written_out(shape, level):
    x = torch.randn(2, shape[0] * shape[1], 3)
    grid, side = x.view(2, *shape, 3), 2**level
    rows, columns = pooled_shape(shape, level)
    expected = [
        grid[:, y * side : (y + 1) * side, x * side : (x + 1) * side].mean((1, 2))
        for y in range(rows)
        for x in range(columns)
    ]
    torch.testing.assert_close(pool(x, shape, level), torch.stack(expected, dim=1))


def test_enlarge_puts_each_coarse_patch_over_its_square():
    fine = enlarge(torch.arange(4.0).view(1, 4, 1), (2, 2), (3, 4)).view(3, 4)
    assert fine.tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3]]


@pytest.mark.parametrize("kind", ["none", "add", "concat"])
def test_every_pyramid_predicts_every_level_and_trains_all_of_it(kind):
    net = Pyramid(8, 16, levels=3, kind=kind)
    out = net(torch.randn(2, 15, 8), (3, 5))
    assert [tuple(part.shape) for part in out] == [(2, 15, 16), (2, 6, 16), (2, 2, 16)]
    sum(part.square().sum() for part in out).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


@pytest.mark.parametrize("kind", ["none", "add", "concat"])
def test_coarse_levels_inform_finer_ones_in_a_pyramid_only(kind):
    torch.manual_seed(0)
    net, x = Pyramid(8, 16, levels=2, kind=kind), torch.randn(1, 16, 8)
    moved = x.clone()
    moved[:, 5] += 1  # within the first square of 2 x 2
    changed = (net(moved, (4, 4))[0] - net(x, (4, 4))[0]).abs().sum(-1)[0] > 1e-6
    others = {0, 1, 4} if kind != "none" else set()
    assert set(changed.nonzero().flatten().tolist()) == {5} | others


def test_a_pyramid_needs_a_second_level():
    with pytest.raises(ValueError, match=r"model\.pyramid=add .*model\.levels=1"):
        Pyramid(8, 16, levels=1, kind="add")


@pytest.mark.parametrize(
    ("message", "settings"),
    [
        ("model.nt_xent must", dict(weights=WEIGHTS | {"nt_xent": -1.0})),
        ("model.nt_xent_temperature", dict(temperature=0.0)),
        ("model.n_slices", dict(n_slices=0)),
        ("model.projector_width", dict(projector_width=0)),
    ],
)
def test_terms_that_cannot_be_are_refused(message, settings):
    base = dict(projector_width=4, weights=WEIGHTS, temperature=0.1, n_slices=8)
    with pytest.raises(ValueError, match=message):
        CodeTerms(6, **base | settings)


def test_terms_are_computed_in_float32_under_autocast():
    part, x = terms(nt_xent=1.0, sigreg=1.0, vicreg_covariance=1.0), normal(8, 6)
    plain = part(x, F.relu(x), (0,))[0]
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(part(x, F.relu(x), (0,))[0], plain)
