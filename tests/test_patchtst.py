"""PatchTST: shapes, masks, missing values, freezing, learning, and an independent encoder."""

from functools import partial
from itertools import pairwise

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from patchtst_settings import ENCODER, JEPA, MASKED, SUPERVISED, spec_of
from torch import nn
from torch.utils.data import DataLoader

from jepa.models.patchtst import PatchTST, ordered, pinball, transfer
from jepa.models.patchtst_pretraining import PatchTSTJEPA, PatchTSTMasked
from jepa.models.patchtst_training import check_series, rate
from jepa.nn.masking import split_future
from jepa.nn.norm import normalize, restore
from jepa.nn.series_encoder import PatchBlock, PatchTSTEncoder, attend
from jepa.nn.slices import by_slices
from jepa.spec import TabularSpec

ADAM = partial(torch.optim.AdamW, lr=1e-2)


def forecaster(spec=None, **settings):
    return PatchTST(spec=spec or spec_of(), optimizer=ADAM, **SUPERVISED | settings)


def masked(spec=None, **settings):
    return PatchTSTMasked(spec=spec or spec_of(), optimizer=ADAM, **MASKED | settings)


def jepa(spec=None, **settings):
    return PatchTSTJEPA(spec=spec or spec_of(), optimizer=ADAM, **JEPA | settings)


def fit(model, batches, **trainer):
    L.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **trainer,
    ).fit(model, DataLoader(batches, batch_size=None))
    return model


# instance norm


def test_instance_norm_is_undone_by_restore():
    x = 5 + 3 * torch.randn(2, 3, 40)
    z, location, scale = normalize(x)
    torch.testing.assert_close(z.mean(-1), torch.zeros(2, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(z.std(-1, correction=0), torch.ones(2, 3), atol=1e-4, rtol=0)
    torch.testing.assert_close(restore(z, location, scale), x)


def test_instance_norm_does_not_read_what_is_missing():
    x = torch.randn(2, 3, 40)
    observed = torch.rand(2, 3, 40) > 0.3
    first = normalize(x, observed)
    second = normalize(torch.where(observed, x, 1e9), observed)
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)
    assert (first[0][~observed] == 0).all()


@pytest.mark.parametrize("observed", [None, torch.zeros(1, 1, 8, dtype=torch.bool)])
def test_instance_norm_of_a_flat_or_unknown_window_is_finite(observed):
    for part in normalize(torch.full((1, 1, 8), 3.0), observed):
        assert part.isfinite().all()


# slices


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_slices_have_the_gradients_of_the_whole(dropout):
    net = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Dropout(dropout), nn.Linear(8, 4))
    x = torch.randn(10, 4, requires_grad=True)
    branch = lambda rows: (rows + net(rows), rows * 2)  # noqa: E731
    outcomes = []
    for size in (3, 100):
        torch.manual_seed(1)
        if dropout:  # the draws of a slice differ from those of the whole, so compare in itself
            size = 100
        first, second = by_slices(branch, (x,), net=net, size=size)
        (first.square().sum() + second.sum()).backward()
        outcomes.append([x.grad, *(p.grad for p in net.parameters())])
        x.grad = None
        net.zero_grad()
    torch.manual_seed(1)
    first, second = branch(x)
    (first.square().sum() + second.sum()).backward()
    for found in outcomes:
        for a, b in zip(found, [x.grad, *(p.grad for p in net.parameters())], strict=True):
            torch.testing.assert_close(a, b)


def test_slices_compute_again_with_the_same_random_numbers():
    net = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))
    x = torch.randn(64, 4, requires_grad=True)
    (out,) = by_slices(lambda rows: (net(rows),), (x,), net=net, size=16)
    state = torch.get_rng_state()
    out.sum().backward()
    assert torch.equal(torch.get_rng_state(), state)  # and later numbers are not disturbed
    kept = (out != 0).float() * 2
    torch.testing.assert_close(x.grad, kept @ net[0].weight)


def test_slices_leave_unused_outputs_and_untrained_nets_alone():
    net = nn.Linear(4, 4).requires_grad_(False)
    x = torch.randn(6, 4, requires_grad=True)
    used, _ = by_slices(lambda rows: (net(rows), rows.exp()), (x,), net=net, size=4)
    used.sum().backward()
    torch.testing.assert_close(x.grad, torch.ones(6, 4) @ net.weight)
    assert all(p.grad is None for p in net.parameters())


# the encoder


@pytest.mark.parametrize("n_earlier", [0, 2])
def test_attention_equals_the_fused_kernel_and_its_gradients(n_earlier):
    qkv = torch.randn(3, 2, 4, 5, 7, requires_grad=True)
    earlier = [torch.randn(5, 2, 2, 4, 7, requires_grad=True) for _ in range(n_earlier)]
    ours = attend(qkv, earlier)
    q, k, v = rearrange(qkv, "three h e r n -> three r h n e")
    before = [rearrange(one, "r two h e n -> two r h n e") for one in earlier]
    scores = sum(q @ k.mT for q, k in [(q, k), *before])  # residual attention adds up scores
    theirs = F.scaled_dot_product_attention(0 * q, k, v, attn_mask=scores / 2)
    theirs = rearrange(theirs, "r h n e -> h e r n")
    torch.testing.assert_close(ours, theirs)
    weight = torch.randn_like(ours)
    mine = torch.autograd.grad((ours * weight).sum(), (qkv, *earlier))
    other = torch.autograd.grad((theirs * weight).sum(), (qkv, *earlier))
    for a, b in zip(mine, other, strict=True):
        torch.testing.assert_close(a, b)


def test_attention_off_the_cpu_is_the_same(monkeypatch):
    qkv, earlier = torch.randn(3, 2, 4, 5, 7), [torch.randn(5, 2, 2, 4, 7)]
    ours = attend(qkv, earlier)
    monkeypatch.setattr("torch.compiler.is_compiling", lambda: True)
    torch.testing.assert_close(attend(qkv, earlier), ours)


@pytest.mark.parametrize("pre_norm", [False, True])
@pytest.mark.parametrize("residual_attention", [False, True])
def test_recomputing_changes_no_gradient(pre_norm, residual_attention, monkeypatch):
    monkeypatch.setattr("jepa.nn.series_encoder.IN_CACHE", 200)  # several slices
    settings = dict(pre_norm=pre_norm, residual_attention=residual_attention)
    models = [forecaster(recompute=word, **settings) for word in (False, True)]
    models[1].load_state_dict(models[0].state_dict())
    x, y = torch.randn(5, 3, 24), torch.randn(5, 3, 4)
    for model in models:
        model.loss(x, y).backward()
    for a, b in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-5, rtol=1e-4)


def test_recomputing_keeps_less():
    def kept(recompute):
        sizes = {}
        model = forecaster(recompute=recompute, dropout=0.1)
        note = lambda t: sizes.setdefault(t.data_ptr(), t.numel()) and t  # noqa: E731
        with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
            model.loss(torch.randn(8, 3, 24))
        return sum(sizes.values())

    assert kept(True) < kept(False) / 2


def test_a_pre_norm_block_with_layer_norm_equals_torchs_own():
    block = PatchBlock(
        16, 4, mlp_ratio=2.0, dropout=0.0, norm="layer", pre_norm=True, residual_attention=False,
        double_dropout=False, activation="gelu", recompute=True,
    ).eval()  # fmt: skip
    theirs = nn.TransformerEncoderLayer(
        16, 4, 32, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    ).eval()
    names = {
        "self_attn.in_proj_": "to_qkv.", "self_attn.out_proj.": "to_out.", "linear1.": "mlp.0.",
        "linear2.": "mlp.3.", "norm1.": "attn_norm.", "norm2.": "mlp_norm.",
    }  # fmt: skip
    state = {a + kind: block.state_dict()[b + kind] for a, b in names.items() for kind in KINDS}
    theirs.load_state_dict(state)
    x = torch.randn(2, 5, 16)
    torch.testing.assert_close(block(x, [])[0], theirs(x), atol=1e-5, rtol=1e-5)


KINDS = ("weight", "bias")


@pytest.mark.parametrize(
    ("padding", "stride", "first", "last"),
    [
        (True, 8, 0, [16, *range(17, 24), *[23] * 8]),
        (False, 8, 0, [*range(8, 24)]),
        (False, 5, 3, [*range(8, 24)]),
    ],
)
def test_patches_are_cut_as_published(padding, stride, first, last):
    encoder = PatchTSTEncoder(2, 24, **ENCODER | dict(patch=16, stride=stride, end_padding=padding))
    patches = encoder.cut(torch.arange(48.0).reshape(1, 2, 24))
    assert patches.shape == (2, encoder.n_patches, 16)
    assert patches[0, 0, 0] == first and patches[0, -1].tolist() == last
    assert torch.equal(patches[1], patches[0] + 24)  # rows are channels, window by window


def test_the_paper_counts_42_and_64_patches():
    for look_back, n in ((336, 42), (512, 64)):
        encoder = PatchTSTEncoder(
            1, look_back, **ENCODER | dict(patch=16, stride=8, end_padding=True)
        )
        assert encoder.n_patches == n


def test_independent_channels_do_not_see_one_another_and_mixed_ones_do():
    x = torch.randn(2, 3, 24)
    other = x.clone()
    other[:, 2] += torch.randn(24)
    for channels, alone in (("independent", True), ("mixed", False)):
        model = forecaster(channels=channels).eval()
        assert torch.equal(model.predict(x)[:, :2], model.predict(other)[:, :2]) == alone


# what every model gives


@pytest.mark.parametrize("build", [forecaster, masked, jepa])
@pytest.mark.parametrize("channels", ["independent", "mixed"])
@pytest.mark.parametrize("pool", ["flatten", "mean", "last"])
def test_codes_end_with_location_and_scale(build, channels, pool):
    model, x = build(channels=channels, pool=pool).eval(), 2 + 3 * torch.randn(2, 3, 24)
    codes = model.embed(x)
    location, scale = x.mean(-1), (x.var(-1, correction=0) + 1e-5).sqrt()
    if channels == "mixed":
        assert len(codes) == 2
        torch.testing.assert_close(codes[:, -6:], torch.cat([location, scale], dim=1))
    else:
        assert len(codes) == 6
        torch.testing.assert_close(codes[:, -2], location.flatten())
        torch.testing.assert_close(codes[:, -1], scale.flatten())
    assert codes.shape[1] == model.embed_dim == len(set(model.code_names()))


@pytest.mark.parametrize("build", [forecaster, masked, jepa])
def test_the_loss_without_a_target_has_gradients(build):
    model = build()
    model.loss(torch.randn(2, 3, 24)).backward()
    assert all(p.grad is not None for p in model.encoder.parameters())


@pytest.mark.parametrize("build", [forecaster, masked, jepa])
def test_missing_values_are_never_read(build):
    model, x, y = build().eval(), torch.randn(4, 3, 24), torch.randn(4, 3, 4)
    mask = torch.rand(4, 3, 28) > 0.3
    losses = []
    for filler in (0.0, 1e6):
        holes = torch.where(mask, torch.cat([x, y], dim=-1), filler)
        extra = (holes[..., 24:],) if model.predicts_target else ()
        losses.append(model.loss(holes[..., :24], *extra, mask).item())
    assert losses[0] == losses[1]


def test_a_forecast_moves_and_scales_with_its_window():
    model, x = forecaster().eval(), torch.randn(2, 3, 24)
    torch.testing.assert_close(
        model.predict(10 + 4 * x), 10 + 4 * model.predict(x), atol=1e-3, rtol=1e-3
    )


def test_the_error_of_validation_does_not_depend_on_the_batches():
    x, y = torch.randn(11, 3, 24), torch.randn(11, 3, 4)
    mask = torch.rand(11, 3, 28) > 0.3
    model = forecaster()
    want = (model.eval().predict(x, mask) - y).square()[mask[..., 24:]].mean()
    for size in (1, 4, 11):
        parts = zip(x.split(size), y.split(size), mask.split(size), strict=True)
        batches = [dict(x=a, y=b, mask=m) for a, b, m in parts]
        trainer = L.Trainer(
            accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False
        )
        trainer.validate(model, DataLoader(batches, batch_size=None), verbose=False)
        torch.testing.assert_close(trainer.callback_metrics["val/error"], want)
        torch.testing.assert_close(trainer.callback_metrics["val/mse"], want)


def test_quantiles_do_not_cross_and_the_median_is_the_forecast():
    raw = torch.randn(50, 5)
    levels = ordered(raw, 2)
    assert (levels.diff(dim=-1) > 0).all() and torch.equal(levels[:, 2], raw[:, 2])
    model, x = forecaster(quantiles=[0.1, 0.5, 0.9]).eval(), torch.randn(2, 3, 24)
    fan = model.predict_quantiles(x)
    assert fan.shape == (2, 3, 4, 3) and torch.equal(fan[..., 1], model.predict(x))


def test_pinball_is_lowest_at_the_quantile():
    y = torch.arange(1.0, 101.0)
    guesses = torch.arange(0.0, 120.0)
    losses = [pinball(torch.full((100, 1), g.item()), y, [0.9]).mean() for g in guesses]
    assert guesses[torch.stack(losses).argmin()] in (90, 91)


def test_a_classifier_gives_one_logit_a_window_and_learns():
    spec = spec_of(task="binary", classes=("no", "yes"))
    for channels in ("independent", "mixed"):
        model = forecaster(spec, channels=channels)
        x = torch.randn(16, 3, 24)
        y = (x[:, 0, -1] > x[:, 0, 0]).long()
        assert model.predict(x).shape == (16, 1)
        assert learns(model, lambda model=model, x=x, y=y: model.loss(x, y))


def learns(model, loss, n_steps=40):
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 1e-2)
    first = loss().item()
    for _ in range(n_steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    return loss().item() < first / 2


@pytest.mark.parametrize("quantiles", [[], [0.1, 0.5, 0.9]])
def test_the_forecaster_learns_one_batch(quantiles):
    model = forecaster(quantiles=quantiles)
    x = torch.randn(8, 3, 24)
    y = x[..., :4] - x[..., -4:]
    assert learns(model, lambda: model.loss(x, y))


@pytest.mark.parametrize("build", [masked, jepa])
@pytest.mark.parametrize("mask", ["random", "future"])
def test_pretraining_learns_one_batch(build, mask):
    model = build(mask=mask, depth=1)
    steps = torch.arange(24)
    x = torch.sin(0.5 * steps + torch.rand(8, 3, 1) * 6)
    assert learns(model, lambda: model.loss(x), n_steps=60)


# pretraining


@pytest.mark.parametrize("build", [masked, jepa])
@pytest.mark.parametrize("channels", ["independent", "mixed"])
def test_pretraining_never_sees_what_it_hides(build, channels):
    model = build(channels=channels, mask="random", mask_share=0.5).eval()
    x = torch.randn(4, 3, 24)
    masks = model.masks(x, 0)
    steps = torch.zeros(len(masks.hidden), model.encoder.n_patches).scatter_(1, masks.hidden, 1)
    steps = steps.repeat_interleave(model.encoder.patch, dim=1).reshape(4, -1, 24).bool()
    other = torch.where(steps, 100 * torch.randn(4, 3, 24), x)
    seen = [model.encoder(model.patches(one, masks, None), masks.context) for one in (x, other)]
    torch.testing.assert_close(*seen)
    leaky = build(channels=channels, mask_share=0.5, leaky_revin=True).eval()
    leaks = [leaky.patches(one, masks, None) for one in (x, other)]
    assert not torch.allclose(*leaks)


def test_masked_pretraining_scores_the_hidden_patches_alone():
    model, x = masked().eval(), torch.randn(4, 3, 24)
    masks = model.masks(x, 0)
    patches = model.patches(x, masks, None)
    hidden = torch.zeros(12, model.encoder.n_patches, dtype=torch.bool)
    hidden[torch.arange(12)[:, None], masks.hidden] = True
    shown = torch.where(hidden[..., None], torch.zeros(()), patches)
    error = (model.head(model.encoder(shown)) - patches).square().mean(-1)
    torch.testing.assert_close(model.loss(x, masks=masks), error[hidden].mean())


def test_the_share_that_is_hidden_is_rounded_as_in_the_authors_code():
    spec = spec_of(look_back=504)
    model = masked(spec, patch=12, stride=12, mask_share=0.4)
    assert model.encoder.n_patches == 42 and model.n_hidden == 42 - int(42 * 0.6)


def test_future_masks_hide_the_end():
    masks = split_future(2, 5, n_target=2)
    assert masks.context.tolist() == [[0, 1, 2]] * 2 and masks.hidden.tolist() == [[3, 4]] * 2
    assert masks.targets.shape == (2, 1, 2)


def test_masks_differ_by_row_and_epoch_and_not_by_the_seed_in_validation():
    model, x = masked(), torch.randn(4, 3, 24)
    first, again, later = (model.masks(x, 0, epoch).hidden for epoch in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, later)
    assert len({tuple(row.sort().values.tolist()) for row in first}) > 1
    assert torch.equal(model.masks(x, "val", 0).hidden, masked(seed=5).masks(x, "val", 0).hidden)


def test_the_slow_encoder_takes_no_gradient_and_moves_once_a_step():
    model = jepa(momentum=0.5, momentum_end=0.5)
    before = model.teacher.net.to_token.weight.clone()
    start = model.encoder.to_token.weight.clone()
    assert torch.equal(before, start)
    batches = [dict(x=torch.randn(4, 3, 24), y=torch.zeros(4, 3, 4)) for _ in range(2)]
    fit(model, batches, max_steps=1, accumulate_grad_batches=2)
    after = model.encoder.to_token.weight
    assert not torch.equal(after, start)
    torch.testing.assert_close(model.teacher.net.to_token.weight, before.lerp(after, 0.5))
    assert all(not p.requires_grad for p in model.teacher.parameters())


# from one run to the next


@pytest.mark.parametrize("build", [masked, jepa, forecaster])
def test_transfer_brings_the_encoder_that_is_probed(build):
    source, target = build(), forecaster()
    if build is jepa:
        nn.init.normal_(source.teacher.net.to_token.weight)
    transfer(target, source.state_dict())
    x = torch.randn(2, 3, 24)
    torch.testing.assert_close(target.eval().embed(x), source.eval().embed(x))


def test_transfer_names_what_does_not_fit():
    before = forecaster()
    kept = {name: value.clone() for name, value in before.state_dict().items()}
    with pytest.raises(ValueError, match=r"to_token\.weight has shape \(4, 6\), not \(8, 6\)"):
        before.transfer(masked(width=4).state_dict())
    with pytest.raises(ValueError, match=r"blocks\.1\.to_qkv\.weight is unknown"):
        before.transfer(masked(depth=2).state_dict())
    with pytest.raises(ValueError, match="hold no encoder of patches, only other"):
        before.transfer({"other.weight": torch.zeros(1)})
    assert all(torch.equal(kept[name], value) for name, value in before.state_dict().items())


def test_a_frozen_encoder_does_not_change_and_its_head_does():
    model = forecaster(freeze_encoder=True, dropout=0.5)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    batches = [dict(x=torch.randn(4, 3, 24), y=torch.randn(4, 3, 4)) for _ in range(3)]
    fit(model, batches, max_epochs=2)
    model.train()
    assert not model.encoder.training and model.head.training
    for name, value in model.state_dict().items():  # running statistics of batch norm included
        assert torch.equal(value, before[name]) == name.startswith("encoder."), name


def test_the_head_is_trained_first_and_then_all():
    batches = [dict(x=torch.randn(4, 3, 24), y=torch.randn(4, 3, 4)) for _ in range(3)]
    for n_epochs, same in ((1, True), (2, False)):
        model = forecaster(head_only_epochs=1)
        before = {name: value.clone() for name, value in model.encoder.state_dict().items()}
        fit(model, batches, max_epochs=n_epochs)
        after = model.encoder.state_dict()
        moved = [not torch.equal(before[name], after[name]) for name in before]
        assert not any(moved) if same else all(moved)


# schedules


def test_schedules_rise_and_fall_as_they_say():
    settings = dict(warmup=10, total=110, final=0.1, epoch_steps=20, first_epoch=1.0)
    at = {
        s: [rate(i, schedule=s, **settings) for i in range(111)]
        for s in ("cosine", "onecycle", "type3", "constant")
    }
    for name, values in at.items():
        assert values[0] < 0.2 and values[10] == 1.0, name
        assert all(a <= b for a, b in pairwise(values[:11])), name
    assert at["cosine"][-1] == at["onecycle"][-1] == pytest.approx(0.1)
    assert at["onecycle"][0] == pytest.approx(0.04)
    assert at["constant"][10:] == [1.0] * 101
    assert at["type3"][79:81] == [1.0, 0.9] and at["type3"][100] == pytest.approx(0.81)
    low = rate(19, schedule="type3", **settings | {"first_epoch": 0.04})
    assert (
        low == pytest.approx(0.04)
        and rate(20, schedule="type3", **settings | {"first_epoch": 0.04}) == 1.0
    )


def test_weight_decay_is_for_the_matrices_alone():
    model = jepa()
    fit(model, [dict(x=torch.randn(4, 3, 24))], max_steps=1)
    decayed, rest = model.trainer.optimizers[0].param_groups
    names = {id(p): name for name, p in model.named_parameters()}
    assert {names[id(p)].rpartition(".")[2] for p in decayed["params"]} == {"weight"}
    assert not any("norm" in names[id(p)] for p in decayed["params"])
    assert rest["weight_decay"] == 0 and "encoder.position" in {
        names[id(p)] for p in rest["params"]
    }


# bad input


@pytest.mark.parametrize(
    ("build", "settings", "message"),
    [
        (forecaster, dict(patch=25), "model.patch=25 is longer than the window, data.look_back=24"),
        (forecaster, dict(stride=0), "model.stride must be at least 1, got 0"),
        (forecaster, dict(width=9), "model.width=9 must be a multiple of model.n_heads=2"),
        (forecaster, dict(norm="group"), "model.norm must be one of batch, layer, rms"),
        (forecaster, dict(warmup_share=0.1, warmup_steps=5), "set one of them, and the other to 0"),
        (forecaster, dict(quantiles=[0.1, 0.9]), "model.quantiles must rise"),
        (forecaster, dict(quantiles=[0.5], loss="mse"), "model.loss must be one of auto, pinball"),
        (forecaster, dict(loss="pinball"), "set model.quantiles"),
        (forecaster, dict(freeze_encoder=True, head_only_epochs=1), "head_only_epochs=1 has no"),
        (masked, dict(stride=4), "hidden patch shares steps with visible ones"),
        (masked, dict(end_padding=True), "set model.end_padding=false"),
        (masked, dict(mask_share=1.0), "hides 4 of 4 patches"),
        (jepa, dict(mask_share=0.0), "hides 0 of 4 patches"),
        (jepa, dict(mask="past"), "model.mask must be one of random, future"),
    ],
)
def test_bad_settings_are_refused(build, settings, message):
    with pytest.raises(ValueError, match=message.replace("[", r"\[")):
        build(**settings)


def test_a_table_is_refused():
    table = TabularSpec(columns=("a",), cardinalities=(0,), quantiles=((),), task="none")
    with pytest.raises(ValueError, match="takes series, but this data describes itself by Tabular"):
        check_series(table)


def test_a_model_without_quantiles_says_how_to_get_them():
    with pytest.raises(ValueError, match="train it with"):
        forecaster().predict_quantiles(torch.randn(1, 3, 24))


# other devices and precisions


def test_a_planner_can_run_the_model_without_memory():
    with torch.device("meta"):
        model = forecaster(dropout=0.1)
    model.loss(torch.empty(4, 3, 24, device="meta")).backward()
    assert model.encoder.position.grad.shape == (4, 8)


def test_recomputing_keeps_the_precision_of_the_first_time():
    models = [forecaster(recompute=word) for word in (False, True)]
    models[1].load_state_dict(models[0].state_dict())
    x, y = torch.randn(5, 3, 24), torch.randn(5, 3, 4)
    for model in models:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model.loss(x, y)
        loss.backward()
    for a, b in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-3, rtol=0.05)
