"""H-JEPA: what is hidden stays hidden, one level is I-JEPA, and bad settings are refused."""

import copy
import re
from dataclasses import replace

import pytest
import torch
import torch.multiprocessing as mp
import torch.nn.functional as F
from small_hjepa import MASKING, SPEC, build, fit, images

from jepa.models.hjepa_checks import check_spec
from jepa.nn import losses
from jepa.nn.blocks import MultiBlock, RandomPatches
from jepa.spec import ImageSpec, TabularSpec

THREE = dict(levels=3, level_weights=(1.0, 0.7, 0.5), depth=3)
LARGE = MultiBlock(**MASKING | dict(target_share_low=0.6, target_share_width=0.0, n_targets=1,
                                    context_share=0.2))  # fmt: skip
EVERY_TERM = dict(
    vicreg_variance=0.1, vicreg_covariance=0.1, vicreg_invariance=0.1, nt_xent=0.1, sigreg=0.1
)


def plain_norm(norm, tokens):
    centred = tokens - tokens.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    return scaled * norm.weight + norm.bias


def plain_trunk(trunk, tokens):
    """Blocks of one image, tokens [n, d], head by head."""
    for block in trunk.blocks:
        y = F.layer_norm(
            tokens, tokens.shape[1:], block.attn_norm.weight, block.attn_norm.bias, 1e-6
        )
        q, k, v = (y @ block.to_qkv.weight.T + block.to_qkv.bias).chunk(3, dim=1)
        size, heads = q.shape[1] // block.n_heads, []
        for h in range(block.n_heads):
            part = slice(h * size, (h + 1) * size)
            weights = torch.softmax(q[:, part] @ k[:, part].T / size**0.5, dim=1)
            heads.append(weights @ v[:, part])
        tokens = tokens + torch.cat(heads, 1) @ block.to_out.weight.T + block.to_out.bias
        y = plain_norm(block.mlp_norm, tokens)
        tokens = tokens + block.mlp(y)
    return plain_norm(trunk.norm, tokens)


def plain_tokens(net, image):
    """Patches of one image as tokens with positions, [n, d]."""
    p = net.patch
    rows, columns = image.shape[1] // p, image.shape[2] // p
    patches = [
        image[:, y * p : (y + 1) * p, x * p : (x + 1) * p].flatten()
        for y in range(rows)
        for x in range(columns)
    ]
    return net.to_token(torch.stack(patches)) + net.positions.table


def plain_ijepa(model, x, blocks):
    """Image by image, block by block: arXiv:2301.08243, Sec. 3, with the smooth L1 of its code."""
    total, count = torch.zeros(()), 0
    for image, context, targets in zip(x, blocks.context, blocks.targets, strict=True):
        seen = plain_trunk(model.encoder.trunk, plain_tokens(model.encoder, image)[context])
        whole = plain_trunk(model.teacher.net.trunk, plain_tokens(model.teacher.net, image))
        for target in targets:
            goal = F.layer_norm(whole[target], whole.shape[1:]).detach()
            tokens = model.predictor.narrow(seen) + model.predictor.positions.table[context]
            queries = model.predictor.query + model.predictor.positions.table[target]
            out = plain_trunk(model.predictor.trunk, torch.cat([tokens, queries]))[len(context) :]
            distance = (model.pyramid.heads[0](out) - goal).abs()
            total = total + torch.where(distance < 1, distance**2 / 2, distance - 0.5).sum()
            count += distance.numel()
    return total / count


@pytest.mark.parametrize("source", ["last", "depths"])
def test_one_level_is_the_loss_of_ijepa_and_has_its_gradients(source):
    model, x = build(target_norm="layer", level_source=source), images(3)
    with torch.no_grad():  # a teacher of its own
        for p in model.teacher.parameters():
            p.add_(0.05 * torch.randn_like(p))
    blocks = model.masks(x, 0)
    gradients = []
    for loss in (model.loss(x, blocks), plain_ijepa(model, x, blocks)):
        model.zero_grad()
        loss.backward()
        gradients.append([loss.detach(), *(p.grad for p in model.parameters() if p.requires_grad)])
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_teacher_starts_as_the_student_and_takes_no_gradient():
    model = build(**THREE, pyramid="add", masking=LARGE, **EVERY_TERM)
    for student, teacher in zip(
        model.encoder.parameters(), model.teacher.parameters(), strict=True
    ):
        assert torch.equal(student, teacher)
    model.loss(images(8)).backward()
    for name, parameter in model.named_parameters():
        slow = name.startswith(("teacher", "terms.slow"))
        assert (parameter.grad is None) == slow, name
        assert slow or parameter.grad.abs().sum() > 0, name


def test_hidden_pixels_reach_the_prediction_only_through_the_targets():
    model, x = build(), images(4).requires_grad_()
    blocks = model.masks(x, 0)
    codes = model.encoder(x, blocks.context)
    model.predictor(codes, blocks.context, blocks.targets).sum().backward()
    touched = x.grad.unfold(2, 2, 2).unfold(3, 2, 2).abs().sum((1, 4, 5)).flatten(1) > 0
    seen = torch.zeros(4, 16, dtype=torch.bool).scatter(1, blocks.context, True)
    assert torch.equal(touched, seen)


def test_targets_of_a_level_are_averages_of_squares_normalised_after():
    model, x = build(**THREE, target_norm="layer", masking=LARGE), images(2)
    blocks = model.masks(x, 0)
    hidden = [model.teacher(x)]
    coarse = model.levels.targets(hidden, blocks, synchronise=False)[1]
    height, width = blocks.shape
    for row, target in enumerate(blocks.targets.flatten(0, 1)):
        grid = hidden[0][row // blocks.targets.shape[1]][target].view(height, width, -1)
        corner = F.layer_norm(grid[:2, :2].mean((0, 1)), (16,))
        torch.testing.assert_close(coarse[row, 0], corner, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_every_level_of_the_targets_has_unit_scale(norm):
    model, x = build(**THREE, target_norm=norm, masking=LARGE), images(16)
    blocks = model.masks(x, 0)
    for part in model.levels.targets([model.teacher(x)], blocks, synchronise=False):
        assert part.square().mean() == pytest.approx(1, abs=0.05)


def test_depths_take_coarser_levels_from_earlier_blocks():
    model, x = build(**THREE, level_source="depths", target_norm="none", masking=LARGE), images(2)
    assert model.levels.depths == (3, 2, 1)
    blocks = model.masks(x, 0)
    inside = model.teacher.net.hidden(x)
    fine, coarse, _ = model.levels.targets(inside, blocks, synchronise=False)
    places = blocks.targets[0, 0]
    torch.testing.assert_close(fine[0], inside[-1][0, places])
    second = F.layer_norm(inside[1], (16,))[0, places].view(*blocks.shape, 16)
    torch.testing.assert_close(coarse[0, 0], second[:2, :2].mean((0, 1)))


def test_last_k_targets_are_the_mean_of_normalised_blocks():
    model, x = build(last_k_targets=2, target_norm="none"), images(2)
    blocks = model.masks(x, 0)
    inside = model.teacher.net.hidden(x)
    expected = (F.layer_norm(inside[0], (16,)) + F.layer_norm(inside[1], (16,)))[0] / 2
    (targets,) = model.levels.targets(inside, blocks, synchronise=False)
    torch.testing.assert_close(targets[0], expected[blocks.targets[0, 0]])


def test_constant_heads_cannot_make_the_loss_zero():
    for norm in ("batch", "layer"):
        model = build(**THREE, target_norm=norm, masking=LARGE)
        with torch.no_grad():
            for head in model.pyramid.heads:
                head.weight.zero_()
                head.bias.normal_()
        assert model.loss(images(8)) > 0.1


def test_the_loss_is_the_weighted_mean_of_its_levels_plus_its_terms():
    model, x = build(**THREE, masking=LARGE, sigreg=0.5), images(8)
    parts = model.parts(x, model.masks(x, 0), key=(0,))
    levels = sum(w * parts[f"loss_level_{i}"] for i, w in enumerate((1.0, 0.7, 0.5))) / 2.2
    torch.testing.assert_close(parts["loss"], levels + 0.5 * parts["sigreg"])


def test_every_part_of_the_loss_is_logged():
    model = build(**THREE, masking=LARGE, **EVERY_TERM)
    trainer = fit(model)
    names = {f"train/loss_level_{i}" for i in range(3)} | {f"train/{name}" for name in EVERY_TERM}
    assert names | {"train/loss", "train/nt_xent_accuracy"} <= set(trainer.callback_metrics)


def test_the_loss_halves_in_sixty_steps_on_one_batch():
    model, x = build(target_norm="layer"), images(8)
    blocks = model.masks(x, 0)
    nets = (model.encoder, model.predictor, model.pyramid)
    optimizer = torch.optim.AdamW([p for net in nets for p in net.parameters()], lr=1e-2)
    first = model.loss(x, blocks).item()
    for _ in range(60):
        optimizer.zero_grad()
        loss = model.loss(x, blocks)
        loss.backward()
        optimizer.step()
    assert loss < first / 2


def test_the_teacher_moves_once_for_each_optimizer_step(monkeypatch):
    model = build(momentum=0.5, momentum_end=0.5)
    moves = []
    update = model.teacher.update
    monkeypatch.setattr(model.teacher, "update", lambda *a: moves.append(a[1]) or update(*a))
    before = copy.deepcopy(model.teacher.net.to_token.weight)
    fit(model, n_steps=1, accumulate_grad_batches=4)
    assert moves == [0.5]
    middle = (before + model.encoder.to_token.weight) / 2
    torch.testing.assert_close(model.teacher.net.to_token.weight, middle)


def test_weight_decay_is_for_matrices_of_linear_layers_only():
    model = build(layer_scale=0.1, **EVERY_TERM)
    fit(model, n_steps=1)
    matrices, rest = model.optimizers().param_groups
    linear = [m.weight for m in model.modules() if isinstance(m, torch.nn.Linear)]
    trained = {id(w) for w in linear if w.requires_grad}
    assert {id(p) for p in matrices["params"]} == trained
    assert rest["weight_decay"] == 0.0
    every = {id(p) for p in model.parameters() if p.requires_grad}
    assert {id(p) for p in rest["params"]} == every - trained


def test_masks_depend_on_the_key_and_are_the_same_for_the_same():
    model, x = build(), images(4)
    first, again, other = (model.masks(x, 0, 0, step).context for step in (3, 3, 4))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_the_validation_loss_has_no_seed_and_no_terms():
    x = images(8)
    errors = []
    for model in (build(seed=0), build(seed=1, **EVERY_TERM)):
        model.eval()
        errors.append(model.error(x, model.masks(x, "val", 0)))
    torch.testing.assert_close(*errors)


def test_training_in_bfloat16_is_close_to_float32():
    model, x = build(**THREE, masking=LARGE, target_norm="layer"), images(8)
    with torch.autocast("cpu", torch.bfloat16):
        low = model.loss(x)
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, model.loss(x), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("representation", ["mean", "last4", "levels", "patches"])
def test_a_code_has_a_name_for_every_entry(representation):
    model = build(**THREE | dict(depth=5), masking=LARGE, representation=representation)
    code = model.embed(images(3))
    assert code.shape == (3, model.embed_dim) and code.dtype == torch.float32
    assert len(set(model.code_names())) == model.embed_dim and not code.requires_grad


def test_every_representation_holds_the_mean_of_the_last_block():
    x = images(3)
    settings = dict(**THREE | dict(depth=5), masking=LARGE)
    mean, last4, levels, patches = (
        build(**settings, representation=word).embed(x)
        for word in ("mean", "last4", "levels", "patches")
    )
    torch.testing.assert_close(patches.unflatten(1, (-1, 16)).mean(1), mean)
    torch.testing.assert_close(last4[:, -16:], mean)
    torch.testing.assert_close(levels[:, :16], mean)
    # the grid of the second level, its four patches averaged, is the mean again
    torch.testing.assert_close(levels[:, 16:80].unflatten(1, (4, 16)).mean(1), mean)


def test_embed_is_the_same_in_training_and_takes_other_sizes_and_shapes():
    model = build(drop_path=0.5)
    x = images(2)
    assert torch.equal(model.train().embed(x), model.eval().embed(x))
    assert model.embed(torch.randn(2, 1, 12, 6)).shape == (2, 16)


@pytest.mark.parametrize(("n_channels", "height", "width"), [(3, 8, 12), (4, 16, 4), (1, 4, 4)])
def test_images_of_any_shape_and_channels_train(n_channels, height, width):
    spec = ImageSpec(
        n_channels=n_channels,
        height=height,
        width=width,
        mean=(0.0,) * n_channels,
        std=(1.0,) * n_channels,
        task="none",
    )
    assert torch.isfinite(build(spec=spec).loss(images(4, spec=spec)))


def test_training_on_another_size_than_that_of_the_spec_is_refused():
    with pytest.raises(ValueError, match=r"16 x 16 .* 8 x 8.*data\.image_size"):
        build().loss(torch.randn(2, 1, 16, 16))


@pytest.mark.parametrize(
    ("message", "settings"),
    [
        ("model.patch=3 .*8 x 8", dict(patch=3)),
        ("no context on a grid of 1 x 1", dict(patch=8)),
        ("model.levels must be at least 1", dict(levels=0, level_weights=())),
        ("model.level_weights .*give model.level_weights=", dict(levels=2)),
        ("model.level_weights", dict(level_weights=(0.0,))),
        ("model.level_weights", dict(levels=2, level_weights=(1.0, -1.0))),
        (r"model.levels=4 is more .*model.levels=2", dict(levels=4, level_weights=(1.0,) * 4)),
        ("masking=random", dict(levels=2, level_weights=(1.0, 1.0),
                                masking=RandomPatches(target_share=0.2, context_share=0.2))),
        ("model.level_source", dict(level_source="first")),
        ("model.depth=2: take model.depth=3", 
         dict(THREE, depth=2, level_source="depths", masking=LARGE)),
        ("model.last_k_targets=3", dict(last_k_targets=3)),
        ("model.last_k_targets=2", 
         dict(THREE, level_source="depths", last_k_targets=2, masking=LARGE)),
        ("model.pyramid=add", dict(pyramid="add")),
        ("model.pyramid must", dict(pyramid="sum")),
        ("model.target_norm", dict(target_norm="instance")),
        ("model.loss", dict(loss="huber")),
        ("model.attention", dict(attention="flash")),
        ("model.representation=last4", dict(representation="last4")),
        ("model.representation must", dict(representation="cls")),
        ("model.width=18", dict(width=18, n_heads=4)),
        ("model.predictor_width=9", dict(predictor_width=9)),
        ("model.predictor_mode", dict(predictor_mode="all")),
        ("model.predictor_depth", dict(predictor_depth=0)),
        ("model.momentum", dict(momentum=1.5)),
        ("model.drop_path", dict(drop_path=-0.1)),
        ("model.layer_scale", dict(layer_scale=-1e-5)),
        ("model.warmup_share", dict(warmup_share=2.0)),
        ("model.second_view=true", dict(second_view=True)),
        ("model.sigreg", dict(sigreg=-1.0)),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_are_refused_by_their_key(message, settings):
    with pytest.raises(ValueError, match=message):
        build(**settings)


def test_a_table_is_refused_with_a_fitting_data_set():
    spec = TabularSpec(columns=("a", "b"), cardinalities=(0, 0), quantiles=((), ()), task="none")
    with pytest.raises(ValueError, match=r"takes images.*TabularSpec.*data=digits"):
        check_spec(spec)


def test_a_second_view_that_the_data_does_not_give_is_refused():
    with pytest.raises(ValueError, match=r"second_view=true.*set data\.two_views=true"):
        build(spec=SPEC, second_view=True, nt_xent=0.1)


@pytest.mark.parametrize(
    ("knobs", "views", "words"),
    [
        (dict(local_weight=1.0), (2, 4), "model.nt_xent"),
        (dict(local_weight=1.0, nt_xent=0.1), (0, 0), "data.n_local_views=0"),
        (dict(nt_xent=0.1), (2, 4), "model.local_weight=0.0"),
        (dict(local_weight=1.0, nt_xent=0.1), (2, 5), "data.local_size=5"),
        (dict(local_weight=-1.0, nt_xent=0.1), (2, 4), "model.local_weight"),
    ],
)
def test_local_views_that_do_not_fit_the_model_are_refused(knobs, views, words):
    spec = replace(SPEC, n_local_views=views[0], local_size=views[1])
    with pytest.raises(ValueError, match=re.escape(words)):
        build(spec=spec, **knobs)


def test_local_views_are_coded_apart_and_averaged():
    model = build(local_weight=0.5, nt_xent=0.1)
    x, local = images(4), images(8, seed=1)[:, :, :4, :4].unflatten(0, (4, 2))
    blocks = model.masks(x, 0)
    plain, more = (model.parts(x, blocks, key=(0,), local=one) for one in (None, local))
    other = model.teacher(x).mean(1)
    each = [model.terms(model.encoder(v).mean(1), other, (0,))[0] for v in local.unbind(1)]
    torch.testing.assert_close(more["local"], torch.stack(each).mean())
    torch.testing.assert_close(more["loss"], plain["loss"] + 0.5 * more["local"])


def test_a_second_view_that_the_model_does_not_read_is_refused():
    with pytest.raises(ValueError, match=r"two_views=true.*set model\.second_view=true"):
        build(spec=replace(SPEC, two_views=True), nt_xent=0.1)


def test_an_unbounded_run_is_refused():
    with pytest.raises(ValueError, match=r"trainer\.max_epochs or trainer\.max_steps"):
        fit(build(), n_steps=-1, max_epochs=-1)


def test_batch_norm_over_two_processes_is_that_of_the_joined_batch(monkeypatch):
    x = torch.randn(8, 3, 5) * 2 + 1
    mine, other = x.chunk(2)
    mean = x.mean((0, 1))
    answers = iter([other.mean((0, 1)), (other - mean).square().mean((0, 1))])
    monkeypatch.setattr(losses, "n_ranks", lambda: 2)
    monkeypatch.setattr(losses.dist, "all_reduce", lambda value: value.add_(next(answers)))
    synchronised = losses.batch_norm(mine, synchronise=True)
    torch.testing.assert_close(synchronised, losses.batch_norm(x, synchronise=False)[:4])


def _gradients(rank, world_size, path, results):
    """Write the gradients of one rank's half of the images, averaged over ranks as DDP does."""
    if world_size > 1:
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{path}", rank=rank, world_size=world_size
        )
    model = build(target_norm="batch", **EVERY_TERM)
    x = images(8)
    blocks = model.masks(x, 0)
    half = slice(rank * 8 // world_size, (rank + 1) * 8 // world_size)
    mine = blocks._replace(context=blocks.context[half], targets=blocks.targets[half])
    parts = model.train().parts(x[half], mine, key=(0,))
    parts["loss"].backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    if world_size > 1:
        for g in gradients:
            torch.distributed.all_reduce(g)
            g /= world_size
        torch.distributed.destroy_process_group()
    if rank == 0:
        torch.save(gradients, results)


@pytest.mark.ci
@pytest.mark.slow
def test_two_processes_train_as_one_with_the_joined_batch(tmp_path):
    _gradients(0, 1, None, tmp_path / "one.pt")
    mp.spawn(_gradients, (2, tmp_path / "store", tmp_path / "two.pt"), nprocs=2)
    one, two = (torch.load(tmp_path / f"{name}.pt") for name in ("one", "two"))
    for ours, theirs in zip(one, two, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_spec_and_images_of_the_tests_agree():
    assert images(2).shape == (2, SPEC.n_channels, SPEC.height, SPEC.width)
