import itertools
from functools import partial
from pathlib import Path

import lightning as L
import pytest
import torch
import yaml
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from jepa.models.tjepa import TJEPA
from jepa.nn.masking import Masks
from jepa.spec import TabularSpec

QUANTILES = tuple(torch.linspace(-2, 2, 65).tolist())
DEFAULTS = yaml.safe_load((Path(__file__).parents[1] / "conf/model/tjepa.yaml").read_text())
SETTINGS = {k: v for k, v in DEFAULTS.items() if k not in ("_target_", "_partial_")}


def spec(*cardinalities):
    return TabularSpec(
        columns=tuple(f"c{i}" for i in range(len(cardinalities))),
        cardinalities=cardinalities,
        quantiles=tuple(() if n else QUANTILES for n in cardinalities),
        task="none",
    )


SPEC = spec(0, 0, 5, 0, 3, 0, 0, 4)


def build(columns=SPEC, *, lr=1e-2, weight_decay=0.0, **settings):
    optimizer = partial(torch.optim.AdamW, lr=lr, weight_decay=weight_decay)
    small = {"seed": 0, "width": 16, "depth": 2, "n_heads": 2, "predictor_width": 8}
    small |= {"predictor_n_heads": 2, "optimizer": optimizer}
    return TJEPA(spec=columns, **SETTINGS | small | settings)


def rows(n=32, columns=SPEC):
    x = torch.randn(n, columns.n_features)
    for column, n_codes in enumerate(columns.cardinalities):
        if n_codes:
            x[:, column] = torch.randint(n_codes, (n,)).float()
    return x


class Table:
    """Whole batches of rows in order, as a loader."""

    def __init__(self, *sizes):
        generator = torch.Generator().manual_seed(7)
        self.batches = [{"x": torch.randn(n, 8, generator=generator)} for n in sizes]

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        return iter(self.batches)


def fit(model, *callbacks, val=None, **trainer):
    quiet = dict.fromkeys(
        ["logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"], False
    )
    settings = quiet | {"accelerator": "cpu", "max_epochs": 1} | trainer
    trainer = L.Trainer(callbacks=list(callbacks), **settings)
    trainer.fit(model, Table(*[8] * 8), val)
    return trainer


# ---- what is visible to whom


@pytest.mark.parametrize("predictor", ["joint", "cross"])
@pytest.mark.parametrize("n_target_masks", [1, 4])
def test_loss_reaches_encoder_and_predictor_only(predictor, n_target_masks):
    model = build(predictor=predictor, n_target_masks=n_target_masks)
    model.loss(rows()).backward()
    for name, p in model.named_parameters():
        assert (p.grad is None) == name.startswith("teacher."), name


def test_teacher_stays_in_eval_and_without_gradient_in_training():
    model = build(dropout=0.5).train()
    assert not any(module.training for module in model.teacher.modules())
    assert not any(p.requires_grad for p in model.teacher.parameters())
    x = rows()
    torch.testing.assert_close(model.embed(x), model.embed(x), rtol=0, atol=0)


def test_targets_carry_no_dropout():
    model, x = build(dropout=0.5).train(), rows()
    masks = model.masks(x, 1)
    torch.testing.assert_close(model._targets(x, masks), model._targets(x, masks), rtol=0, atol=0)


@pytest.mark.parametrize("column", range(8))
def test_hidden_columns_do_not_reach_the_context_and_visible_ones_do(column):
    model, x = build().eval(), rows(1)
    changed = x.clone()
    changed[:, column] = (x[:, column] + 1) % 3
    hidden = torch.tensor([[c for c in range(8) if c != column]])
    alone = torch.tensor([[column]])
    assert torch.equal(model.encoder(x, visible=hidden), model.encoder(changed, visible=hidden))
    assert not torch.equal(model.encoder(x, visible=alone), model.encoder(changed, visible=alone))


@pytest.mark.parametrize("column", range(8))
def test_every_column_also_the_last_is_what_the_target_of_its_index_depends_on_most(column):
    model, x = build(target_norm="none").eval(), rows(1)
    # with its blocks silenced, an encoder passes each token on: the code is the token's alone
    for block in model.teacher.net.trunk.blocks:
        nn.init.zeros_(block.attn.to_out.weight)
        nn.init.zeros_(block.attn.to_out.bias)
    changed = x.clone()
    changed[:, column] = (x[:, column] + 1) % 3
    every = torch.arange(8)[None]
    masks = Masks(every[:, :1], every, torch.arange(8)[None])
    moved = (model._targets(x, masks) != model._targets(changed, masks)).any(-1)[0, 0]
    assert moved.nonzero().flatten().tolist() == [column]


def test_reg_is_never_hidden_and_never_predicted():
    model, x = build(n_reg=3, n_target_masks=2), rows()
    for step in range(20):
        masks = model.masks(x, 0, 0, step)
        for index in (masks.context, masks.hidden):
            assert index.min() >= 0 and index.max() < 8
        context = model.encoder(x, visible=masks.context)
        assert context.shape[1] == 3 + masks.context.shape[1]
        assert model._targets(x, masks).shape[:3] == masks.targets.shape
        assert model.predictor(context, masks).shape[:3] == masks.targets.shape


def test_reg_enters_the_context_as_it_is():
    model, x = build(n_reg=2).eval(), rows()
    model.encoder.trunk = nn.Identity()
    model.encoder.trunk.forward = lambda tokens, only: tokens
    codes = model.encoder(x, visible=model.masks(x, 0).context)
    torch.testing.assert_close(codes[:, :2], model.encoder.reg.expand(len(x), -1, -1))


@pytest.mark.parametrize("n_features", [2, 3, 5])
def test_every_column_serves_as_context_and_as_target_over_many_steps(n_features):
    model = build(spec(*[0] * n_features))
    x, context, target = rows(16, model.spec), set(), set()
    for step in range(200):
        masks = model.masks(x, 0, 0, step)
        context |= set(masks.context.unique().tolist())
        target |= set(masks.targets.unique().tolist())
    assert context == target == set(range(n_features))


# ---- masks: whose, when


def test_the_same_step_draws_the_same_masks_and_another_does_not():
    model, x = build(), rows(64)
    keys = list(itertools.product(range(2), range(2), range(2)))
    drawn = [model.masks(x, *key).context for key in keys]
    again = [model.masks(x, *key).context for key in keys]
    assert all(torch.equal(a, b) for a, b in zip(drawn, again, strict=True))
    assert not any(
        a.shape == b.shape and torch.equal(a, b) for a, b in itertools.combinations(drawn, 2)
    )


def test_ranks_share_counts_and_not_indices(monkeypatch):
    x, drawn = rows(64), []
    for rank in range(2):
        monkeypatch.setattr(TJEPA, "global_rank", rank)
        drawn.append([build(n_target_masks=2).masks(x, 0, 0, step) for step in range(10)])
    for a, b in zip(*drawn, strict=True):
        assert a.context.shape == b.context.shape and a.hidden.shape == b.hidden.shape
        assert not torch.equal(a.context, b.context)


def test_drawing_masks_leaves_the_global_generator_alone():
    model, x = build(), rows()
    before = torch.get_rng_state()
    model.masks(x, 0, 0, 0)
    assert torch.equal(before, torch.get_rng_state())


def test_training_draws_from_seed_epoch_and_step(monkeypatch):
    keys = []
    draw = TJEPA.masks
    monkeypatch.setattr(
        TJEPA, "masks", lambda self, x, *key: keys.append(key) or draw(self, x, *key)
    )
    fit(build(seed=5), max_epochs=2, val=Table(8, 8), num_sanity_val_steps=0)
    train = [key for key in keys if key[0] == 5]
    assert train == [(5, epoch, step) for epoch in range(2) for step in range(8)]
    assert [key for key in keys if key[0] == "val"] == [("val", 0), ("val", 1)] * 2


def test_shares_decide_how_many_columns_are_seen():
    model = build(spec(*[0] * 20), context_share_low=0.5, context_share_width=0.0)
    x = rows(4, model.spec)
    assert {model.masks(x, step).context.shape[1] for step in range(20)} == {10}


def test_compiled_models_meet_few_shapes(monkeypatch):
    monkeypatch.setattr(nn.Module, "compile", lambda self, **_: None)
    model = build(spec(*[0] * 40), compile=True, context_share_width=0.5)
    x = rows(2, model.spec)
    shapes = {model.masks(x, step).context.shape[1] for step in range(100)}
    assert len(shapes) == 4


# ---- the loss


def by_hand(model, x, masks):
    """The mean squared error, one target code after the other."""
    context = model.encoder(x, visible=masks.context)
    predicted = model.predictor(context, masks)
    codes = model.teacher(x)[:, model.n_reg :]
    total, n = 0.0, 0
    for b, k, m in itertools.product(*map(range, masks.targets.shape)):
        code = codes[b, masks.targets[b, k, m]]
        code = (code - code.mean()) / (code.var(correction=0) + 1e-5).sqrt()
        total += ((predicted[b, k, m] - code) ** 2).sum().item()
        n += len(code)
    return total / n


@pytest.mark.parametrize("predictor", ["joint", "cross"])
def test_loss_equals_the_sum_written_out_for_two_rows_and_two_targets(predictor):
    model, x = build(spec(0, 3, 0, 0), predictor=predictor).eval(), rows(2, spec(0, 3, 0, 0))
    masks = Masks(torch.tensor([[0], [3]]), torch.tensor([[3, 1], [0, 2]]), torch.tensor([[0, 1]]))
    assert model.loss(x, masks).item() == pytest.approx(by_hand(model, x, masks), rel=1e-5)


@pytest.mark.parametrize("predictor", ["joint", "cross"])
def test_loss_of_overlapping_masks_equals_the_sum_written_out(predictor):
    settings = {"n_target_masks": 4, "target_share_low": 0.4, "target_share_width": 0.0}
    model, x = build(predictor=predictor, **settings).eval(), rows(2)
    masks = model.masks(x, 3)
    assert masks.slots.numel() > masks.hidden.shape[1]
    assert model.loss(x, masks).item() == pytest.approx(by_hand(model, x, masks), rel=1e-5)


@pytest.mark.parametrize("predictor", ["joint", "cross"])
def test_masks_in_one_call_equal_masks_one_by_one(predictor):
    model, x = build(predictor=predictor, n_target_masks=3).eval(), rows()
    masks = model.masks(x, 1)
    context = model.encoder(x, visible=masks.context)
    together = model.predictor(context, masks)
    for k, slots in enumerate(masks.slots):
        alone = Masks(masks.context, masks.hidden[:, slots], torch.arange(len(slots))[None])
        torch.testing.assert_close(together[:, k], model.predictor(context, alone)[:, 0])


def test_all_target_masks_take_one_call_of_the_predictor(monkeypatch):
    model, x = build(n_target_masks=4), rows()
    calls = []
    forward = model.predictor.trunk.forward
    monkeypatch.setattr(
        model.predictor.trunk, "forward", lambda *args: calls.append(1) or forward(*args)
    )
    model.loss(x)
    assert calls == [1]


@pytest.mark.parametrize("numeric_embedding", ["linear", "periodic", "piecewise"])
@pytest.mark.parametrize("predictor", ["joint", "cross"])
def test_columns_permuted_with_their_parameters_give_the_same_loss(numeric_embedding, predictor):
    settings = {"numeric_embedding": numeric_embedding, "predictor": predictor}
    order = torch.tensor([5, 2, 7, 0, 4, 1, 6, 3])
    place = order.argsort()  # where each column has gone
    columns = spec(*(SPEC.cardinalities[i] for i in order))
    one, other, x = build(**settings).eval(), build(columns, **settings).eval(), rows()
    weights = one.state_dict()
    for net in ("encoder.", "teacher.net."):
        token, new = one.get_submodule(net + "tokenizer"), other.get_submodule(net + "tokenizer")
        name = net + "tokenizer."
        weights[name + "column"] = token.column[order]
        value = token.value.clone()
        for i, j in enumerate(place.tolist()):
            n, old_row, new_row = (
                max(SPEC.cardinalities[i], 1),
                token.first_row[i],
                new.first_row[j],
            )
            value[new_row : new_row + n] = token.value[old_row : old_row + n]
        weights[name + "value"] = value
        numbers = token.rank[order][torch.tensor(columns.cardinalities) == 0]
        for key in [k for k in weights if k.startswith(name + "numbers.") and "mix" not in k]:
            weights[key] = weights[key][numbers]
        weights |= {name + k: getattr(new, k) for k in ("cardinality", "first_row", "rank")}
    weights["predictor.column"] = one.predictor.column[order]
    other.load_state_dict(weights)
    masks = one.masks(x, 2)
    moved = Masks(place[masks.context], place[masks.hidden], masks.slots)
    torch.testing.assert_close(other.loss(x[:, order], moved), one.loss(x, masks))


@pytest.mark.parametrize("numeric_embedding", ["linear", "periodic", "piecewise"])
def test_missing_values_and_unseen_categories_give_finite_codes_and_loss(numeric_embedding):
    model, x = build(numeric_embedding=numeric_embedding), rows()
    x[0], x[1], x[2] = torch.nan, 1e6, -5.0
    x[3] = torch.inf
    loss = model.loss(x)
    loss.backward()
    assert loss.isfinite() and model.embed(x).isfinite().all()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    "settings",
    [{}, {"predictor": "cross"}, {"numeric_embedding": "periodic"}, {"dropout": 0.05}],
    ids=str,
)
def test_one_batch_can_be_fitted(settings):
    model, x = build(**settings), rows()
    masks = model.masks(x, 0)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-2)
    start = model.loss(x, masks).item()
    for _ in range(30):
        optimizer.zero_grad()
        model.loss(x, masks).backward()
        optimizer.step()
    assert model.loss(x, masks).item() < start / 2


# ---- codes


@pytest.mark.parametrize("n_reg", [1, 2])
@pytest.mark.parametrize("representation", ["flatten", "mean", "reg", "concat"])
def test_codes_have_their_length_and_names(representation, n_reg):
    model, x = build(representation=representation, n_reg=n_reg), rows(4)
    names = model.code_names()
    assert model.embed(x).shape == (4, model.embed_dim)
    assert len(set(names)) == len(names) == model.embed_dim
    every = model.teacher(x)
    first = every[:, n_reg:] if representation == "flatten" else every[:, n_reg:].mean(1)
    if representation == "reg":
        first = every[:, 0]
    torch.testing.assert_close(model.embed(x)[:, 0], first.flatten(1)[:, 0])


def test_flat_code_names_name_the_column_that_the_entry_belongs_to():
    model = build()
    assert model.code_names()[:2] == ["c0_0", "c0_1"] and model.code_names()[-1] == "c7_15"


def test_codes_depend_neither_on_the_batch_nor_on_the_mode():
    model, x = build(dropout=0.5), rows(4)
    torch.testing.assert_close(model.train().embed(x)[:1], model.eval().embed(x[:1]))


def test_codes_build_no_graph():
    assert not build().embed(rows()).requires_grad


# ---- training


class Watch(L.Callback):
    """Record the learning rate used, and count the teacher's moves, at every optimizer step."""

    def __init__(self):
        self.lrs, self.decays = [], []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.lrs.append(optimizer.param_groups[0]["lr"])
        self.decays.append([group["weight_decay"] for group in optimizer.param_groups])


def test_the_first_step_is_taken_at_the_right_rate():
    watch = Watch()
    fit(build(lr=1e-2, warmup_share=0.5), watch)
    assert watch.lrs[:5] == pytest.approx([1e-2 * k / 5 for k in (1, 2, 3, 4, 5)])
    assert all(b < a for a, b in itertools.pairwise(watch.lrs[4:]))


def test_weight_decay_moves_along_a_cosine_and_spares_vectors_and_tables():
    watch, model = Watch(), build(weight_decay=0.1, weight_decay_end=0.5)
    trainer = fit(model, watch)
    assert watch.decays[0] == pytest.approx([0.1, 0.0]) and watch.decays[4] == pytest.approx(
        [0.3, 0.0]
    )
    matrices, rest = (group["params"] for group in trainer.optimizers[0].param_groups)
    assert min(p.ndim for p in matrices) == 2
    spared = [*model.encoder.tokenizer.parameters(), model.encoder.reg, model.predictor.query]
    spared += [p for p in model.parameters() if p.requires_grad and p.ndim == 1]
    assert {id(p) for p in spared} <= {id(p) for p in rest}


def test_every_trainable_parameter_is_optimized_once():
    model = build()
    groups = fit(model).optimizers[0].param_groups
    ids = [id(p) for group in groups for p in group["params"]]
    assert sorted(ids) == sorted(id(p) for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("accumulate", [1, 4])
def test_teacher_moves_once_per_optimizer_step_after_it(accumulate, monkeypatch):
    model, moves = build(momentum=0.5, momentum_end=1.0), []
    update = model.teacher.update

    def record(student, momentum):
        before = next(model.teacher.parameters()).clone()
        update(student, momentum)
        fast = next(student.parameters())
        expected = momentum * before + (1 - momentum) * fast
        torch.testing.assert_close(next(model.teacher.parameters()), expected)
        moves.append(momentum)

    monkeypatch.setattr(model.teacher, "update", record)
    trainer = fit(model, accumulate_grad_batches=accumulate)
    n_steps = 8 // accumulate
    assert trainer.global_step == n_steps
    assert moves == pytest.approx([0.5 + 0.5 * step / n_steps for step in range(n_steps)])


def test_teacher_after_training_equals_the_recurrence_over_the_students():
    students = []

    class Keep(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            students.append([p.detach().clone() for p in pl_module.encoder.parameters()])

    model = build(momentum=0.6, momentum_end=1.0)
    expected = [p.detach().clone() for p in model.encoder.parameters()]
    fit(model, Keep())
    for step, student in enumerate(students):
        momentum = 0.6 + 0.4 * step / 8
        expected = [
            momentum * s + (1 - momentum) * p for s, p in zip(expected, student, strict=True)
        ]
    for mine, slow in zip(expected, model.teacher.parameters(), strict=True):
        torch.testing.assert_close(slow, mine)


def test_a_run_without_an_end_is_refused():
    with pytest.raises(ValueError, match=r"trainer\.max_epochs"):
        fit(build(), max_epochs=-1)


def test_validation_loss_weighs_rows_and_not_batches():
    model, table = build(), Table(30, 2)
    fit(model, val=table, num_sanity_val_steps=0)
    with torch.no_grad():
        model.eval()
        losses = [model.loss(b["x"], model.masks(b["x"], "val", i)) for i, b in enumerate(table)]
    expected = (30 * losses[0] + 2 * losses[1]) / 32
    torch.testing.assert_close(model.trainer.callback_metrics["val/loss"], expected)


def test_runs_from_one_seed_are_identical_and_from_two_are_not():
    def outcome(seed):
        torch.manual_seed(0)
        model = build(seed=seed, dropout=0.1)
        fit(model)
        return nn.utils.parameters_to_vector(model.parameters())

    assert torch.equal(outcome(1), outcome(1))
    assert not torch.equal(outcome(1), outcome(2))


def test_schedules_are_logged():
    metrics = fit(build(weight_decay=0.3), log_every_n_steps=4).callback_metrics
    assert metrics["train/loss"].isfinite() and 0 < metrics["train/lr"] < 1e-2
    assert metrics["train/weight_decay"] == pytest.approx(0.3)
    assert metrics["train/momentum"] == pytest.approx(0.99 + 0.01 * 7 / 8)


class NoDoubles(TorchDispatchMode):
    """Refuse any operation that makes a float64 tensor: Apple's GPU has none."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **kwargs or {})
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor) and leaf.dtype in (torch.float64, torch.complex128):
                raise TypeError(f"{func} made a {leaf.dtype} tensor")
        return out


def test_the_guard_against_doubles_works():
    with NoDoubles(), pytest.raises(TypeError, match="float64"):
        torch.ones(2).double()


@pytest.mark.parametrize("numeric_embedding", ["linear", "periodic", "piecewise"])
@pytest.mark.parametrize("settings", [{}, {"predictor": "cross", "target_norm": "batch"}], ids=str)
def test_no_double_is_made_in_training_the_teacher_or_embedding(numeric_embedding, settings):
    with NoDoubles():
        model = build(
            numeric_embedding=numeric_embedding,
            n_target_masks=2,
            dropout=0.1,
            weight_decay_end=0.1,
            **settings,
        )
        fit(model, val=Table(8), gradient_clip_val=1.0, max_steps=3)
        model.embed(rows())


# ---- settings that make no sense


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": 30, "n_heads": 4}, r"model\.width=30.*model\.n_heads=4.*28 or 32.*3 or 5"),
        ({"predictor_width": 9}, r"model\.predictor_width=9.*model\.predictor_n_heads=2"),
        ({"context_share_low": 0.0}, r"model\.context_share_low=0\.0"),
        (
            {"context_share_low": 0.9, "context_share_width": 0.2},
            r"model\.context_share_width=0\.2",
        ),
        ({"context_share_low": 1.0, "context_share_width": 0.0}, r"model\.context_share_low=1\.0"),
        ({"target_share_low": 1.2}, r"model\.target_share_low=1\.2"),
        ({"n_target_masks": 0}, r"model\.n_target_masks.*0"),
        ({"n_reg": -1}, r"model\.n_reg.*-1"),
        ({"n_reg": 0, "representation": "reg"}, r"model\.representation=reg.*model\.n_reg=0"),
        ({"predictor": "mlp"}, r"model\.predictor.*joint, cross.*mlp"),
        ({"loss": "l1"}, r"model\.loss.*l1"),
        ({"target_norm": "l2"}, r"model\.target_norm.*l2"),
        ({"representation": "cls"}, r"model\.representation.*cls"),
        ({"numeric_embedding": "ple"}, r"model\.numeric_embedding.*ple"),
        ({"numeric_embedding": "piecewise", "n_bins": 65}, r"model\.n_bins.*1\.\.64.*65"),
        ({"numeric_embedding": "periodic", "n_frequencies": 0}, r"model\.n_frequencies.*0"),
        ({"momentum": 1.5}, r"model\.momentum.*1\.5"),
        ({"warmup_share": -0.1}, r"model\.warmup_share.*-0\.1"),
        ({"final_lr_share": 2.0}, r"model\.final_lr_share.*2\.0"),
        ({"dropout": 1.1}, r"model\.dropout.*1\.1"),
        ({"depth": 0}, r"model\.depth.*0"),
        ({"columns": spec(0)}, "two"),
    ],
    ids=str,
)
def test_senseless_settings_are_refused_by_name(settings, message):
    with pytest.raises(ValueError, match=message):
        build(**settings)


@pytest.mark.parametrize("n_features", [2, 3])
def test_the_smallest_tables_train(n_features):
    model = build(spec(*[0] * n_features), n_target_masks=4)
    for step in range(10):
        x = rows(4, model.spec)
        assert model.loss(x, model.masks(x, step)).isfinite()
