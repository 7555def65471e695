"""The batch planner: what a step holds, which divisor fits, the device, and its ancestor."""

import os
import pickle
from contextlib import nullcontext
from functools import partial
from itertools import accumulate

import pytest
import torch
import yaml
from torch import nn

from jepa.budget import grid
from jepa.config import CONF
from jepa.models.hjepa import HJEPA
from jepa.models.patchtst import PatchTST
from jepa.models.tjepa import TJEPA
from jepa.nn.blocks import MultiBlock
from jepa.plan import (
    PlanError,
    cgroup_limits,
    count_parameters,
    device_bytes,
    get_memory_safe_batch_config,
    plan_batch,
    slurm_limits,
)
from jepa.spec import ImageSpec, SeriesSpec, TabularSpec
from jepa.step_memory import (
    HEAP_PIECE,
    N_DRAWS,
    StepMemory,
    Trace,
    build_unallocated,
    example_batch,
    loss_arguments,
    trace_once,
    trace_step,
)

CPU = torch.device("cpu")
PLENTY = 2**50
TABLE = TabularSpec(
    columns=tuple("abcdefgh"),
    cardinalities=(0,) * 6 + (4, 3),
    quantiles=((0.0, 1.0),) * 6 + ((),) * 2,
    task="binary",
    classes=("no", "yes"),
)
SERIES = SeriesSpec(
    channels=("a", "b"), look_back=32, horizon=8, location=(0.0, 0.0), scale=(1.0, 1.0)
)
IMAGES = ImageSpec(n_channels=3, height=16, width=16, mean=(0.5,) * 3, std=(0.5,) * 3, task="none")


class Small(nn.Module):
    """A few blocks over the columns of a table."""

    def __init__(self, *, depth=3, norm=nn.LayerNorm):
        super().__init__()
        self.spec = TABLE
        self.optimizer = partial(torch.optim.AdamW, lr=1e-3)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Dropout(0.1), nn.Linear(32, 8), norm(8))
            for _ in range(depth)
        )
        self.slow = nn.Linear(8, 8).requires_grad_(False)

    def loss(self, x):
        for block in self.blocks:
            x = x + block(x)
        return x.square().mean()


def preset(name, **settings):
    """The values of a yaml, with a plain optimizer."""
    values = yaml.safe_load((CONF / "model" / f"{name}.yaml").read_text())
    values = {k: v for k, v in values.items() if not k.startswith("_") and k != "defaults"}
    return values | {"optimizer": partial(torch.optim.AdamW, lr=1e-3)} | settings


def tjepa(**settings):
    return TJEPA(spec=TABLE, **preset("tjepa", seed=0, width=16, depth=1) | settings)


def patchtst(**settings):
    sizes = dict(patch=8, stride=8, width=16, depth=1, n_heads=2)
    return PatchTST(spec=SERIES, **preset("patchtst", **sizes) | settings)


def hjepa(**settings):
    masking = yaml.safe_load((CONF / "masking" / "multiblock.yaml").read_text())
    masking = MultiBlock(**{k: v for k, v in masking.items() if k != "_target_"})
    sizes = dict(seed=0, masking=masking, width=16, depth=1, n_heads=2, predictor_depth=1)
    return HJEPA(spec=IMAGES, **preset("hjepa", **sizes) | settings)


FAMILIES = {"tjepa": tjepa, "patchtst": patchtst, "hjepa": hjepa}


def traced(model, *, checkpointing=False, most=4):
    settings = dict(device=CPU, dtype=torch.float32, autocast=None)
    return trace_step(model, **settings, checkpointing=checkpointing, most=most)


def planned(model, *, effective_batch=4, device_bytes=PLENTY, **settings):
    return plan_batch(model, effective_batch=effective_batch, device_bytes=device_bytes, **settings)


def saved_by_hooks(model, n):
    """Bytes that saved-tensor hooks see in a real forward pass, parameters left out."""
    own = {t.untyped_storage()._cdata for t in [*model.parameters(), *model.buffers()]}
    kept = {}

    def pack(t):
        storage = t.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage.nbytes()
        return t

    arguments = loss_arguments(model, n, device=CPU, dtype=torch.float32)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        loss = model.train().loss(**arguments)
    del loss
    return sum(kept.values())


# reference: what really happens


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_without_memory_shows_what_a_real_step_holds(family):
    model = FAMILIES[family]().train()
    fake = traced(build_unallocated(FAMILIES[family]))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    arguments = loss_arguments(model, 4, device=CPU, dtype=torch.float32)
    real = trace_once(model, arguments, 4, nullcontext)
    assert fake.traces[1].n == 4 and fake.per_sample > 0
    assert max(accumulate(fake.traces[1].changes)) == pytest.approx(
        max(accumulate(real.changes)), rel=0.02
    )


def test_a_sample_keeps_what_saved_tensor_hooks_count():
    model = Small()
    counted = (saved_by_hooks(model, 4) - saved_by_hooks(model, 2)) / 2
    assert traced(model).per_sample == pytest.approx(counted, rel=0.02)


def test_static_bytes_are_those_of_a_real_step_of_adamw():
    model = Small()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = model.optimizer(trained)
    model.loss(example_batch(TABLE, 4)["x"]).backward()
    optimizer.step()
    held = [*model.parameters(), *model.buffers(), *(p.grad for p in trained)]
    held += [t for p in trained for t in optimizer.state[p].values() if t.numel() > 1]
    assert planned(model).static_bytes == sum(t.nbytes for t in held)


# properties


def test_the_micro_batch_is_the_largest_divisor_that_fits():
    plan = partial(planned, Small(), effective_batch=12, safety=1.0)
    peaks = {n: plan(max_batch=n).peak_bytes for n in (1, 2, 3, 4, 6, 12)}
    assert sorted(peaks.values()) == list(peaks.values())
    for micro, there in [(12, peaks[12]), (6, peaks[12] - 1), (4, peaks[6] - 1), (1, peaks[1])]:
        found = plan(device_bytes=there)
        assert found.fits and (found.micro_batch, found.peak_bytes) == (micro, peaks[micro])
        assert found.micro_batch * found.accumulate == found.effective == 12
    none = plan(device_bytes=peaks[1] - 1)
    assert not none.fits and none.micro_batch * none.accumulate == 12 and none.advice


def test_a_plan_changes_neither_the_model_nor_the_random_numbers():
    model = Small().eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    planned(model)
    assert torch.equal(state, torch.get_rng_state())
    assert not model.training and all(p.grad is None for p in model.parameters())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_building_without_memory_draws_no_random_numbers():
    state = torch.get_rng_state()
    model = build_unallocated(tjepa)
    assert torch.equal(state, torch.get_rng_state())
    assert all(p.device.type == "meta" for p in model.parameters())
    assert count_parameters(model) == count_parameters(tjepa())


def test_static_bytes_follow_the_type_of_the_weights():
    single, half, double = (
        planned(Small(), precision=f"{kind}-true").static_bytes for kind in ("32", "bf16", "64")
    )
    assert (half, double) == (single / 2, single * 2)


def test_mixed_precision_keeps_less_of_a_sample_and_the_same_weights():
    plain, mixed = (planned(Small(), precision=kind) for kind in ("32-true", "bf16-mixed"))
    assert mixed.static_bytes == plain.static_bytes
    assert mixed.per_sample_bytes < plain.per_sample_bytes


@pytest.mark.parametrize(
    ("optimizer", "states"),
    [
        (partial(torch.optim.SGD, lr=0.1), 0),
        (partial(torch.optim.SGD, lr=0.1, momentum=0.9), 1),
        (partial(torch.optim.AdamW, lr=0.1), 2),
        (partial(torch.optim.AdamW, lr=0.1, amsgrad=True), 3),
    ],
)
def test_the_state_of_any_optimizer_is_counted(optimizer, states):
    model = Small()
    held = sum(t.nbytes for t in [*model.parameters(), *model.buffers()])
    wanted = held + 4 * (1 + states) * count_parameters(model)
    assert planned(model, optimizer=optimizer).static_bytes == wanted


def test_checkpointing_keeps_less_of_a_sample():
    plain, less = (traced(Small(depth=6), checkpointing=c).per_sample for c in (False, True))
    assert less < 0.3 * plain


def test_computing_again_keeps_less_of_a_sample():
    plain, less = (traced(patchtst(recompute=again)).per_sample for again in (False, True))
    assert less < 0.8 * plain


def test_masks_are_the_most_crowded_of_many_draws():
    model = tjepa(context_share_width=0.5, target_share_width=0.3)
    x = example_batch(TABLE, 2)["x"]
    drawn = loss_arguments(model, 2, device=CPU, dtype=torch.float32)["masks"]
    size = sum(t.numel() for t in drawn)
    assert size == max(sum(t.numel() for t in model.masks(x, draw)) for draw in range(N_DRAWS))


def test_a_peak_is_read_off_the_line_through_the_nearest_traces():
    traces = [Trace(2, [20, -20], 1), Trace(8, [80, -80], 1), Trace(32, [200, -200], 1)]
    memory = StepMemory(traces, heap=1.0)
    assert [memory.peak(n) for n in (1, 2, 4, 8, 20, 32, 64)] == [10, 20, 40, 80, 140, 200, 360]


def test_only_small_pieces_lie_in_the_heap():
    size = HEAP_PIECE // 32
    trace = Trace(1, [size, -size], 1)
    assert trace.peak(1, heap=1.5) == 1.5 * size == 1.5 * trace.peak(1, heap=1.0)
    assert trace.peak(64, heap=1.5) == size  # of a piece that is mapped on its own at 64 samples


@pytest.mark.parametrize(
    ("spec", "x", "y"),
    [
        (TABLE, (3, 8), torch.int64),
        (SERIES, (3, 2, 32), torch.float32),
        (IMAGES, (3, 3, 16, 16), None),
    ],
)
def test_samples_are_made_up_in_the_shapes_of_the_data(spec, x, y):
    batch = example_batch(spec, 3)
    assert batch["x"].shape == x and batch["x"].dtype == torch.float32
    assert y == (batch["y"].dtype if "y" in batch else None)


# refusals


class Huge(nn.Module):
    """Billions of parameters that nobody allocates, and no loss: nobody must call it."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4096, 4096) for _ in range(120))
        self.optimizer = partial(torch.optim.AdamW, lr=1e-3)


def test_a_model_that_cannot_fit_is_refused_before_its_loss_is_taken():
    model = build_unallocated(Huge)
    plan = planned(model, effective_batch=256, device_bytes=16 * 2**30)
    assert not plan.fits and plan.per_sample_bytes == 0
    assert plan.micro_batch * plan.accumulate == 256
    assert plan.static_bytes == 16 * count_parameters(model) > 30 * 2**30
    for words in ("2,013,757,440", "30.0 GiB", "16.0 GiB", "13.6 GiB", "bf16-true", "size="):
        assert words in plan.advice


@pytest.mark.parametrize(("norm", "told"), [(nn.BatchNorm1d, True), (nn.LayerNorm, False)])
def test_batch_norm_is_told_of_accumulation_and_layer_norm_is_not(norm, told):
    plan = planned(Small(norm=norm), effective_batch=8, max_batch=4)
    assert (plan.micro_batch, plan.accumulate) == (4, 2)
    assert ("BatchNorm" in plan.advice) == told


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"effective_batch": 0}, "effective_batch=0"),
        ({"safety": 1.5}, "safety=1.5"),
        ({"max_batch": 0}, "max_batch=0"),
        ({"precision": "8-true"}, "'8-true'"),
    ],
)
def test_settings_out_of_range_are_named(settings, words):
    with pytest.raises(ValueError, match=words):
        planned(Small(), **settings)


def test_an_error_of_the_planner_survives_another_process():
    assert str(pickle.loads(pickle.dumps(PlanError("too small")))) == "too small"


# the device's memory


def test_the_cpu_has_memory_left_and_less_than_the_machine():
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < device_bytes("cpu") < machine


def test_control_groups_of_both_versions_limit_the_memory(tmp_path):
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("4:memory:/job/7\n1:cpu:/\n0::/slice/unit\n")
    for path, text in {
        "memory/job/7/memory.limit_in_bytes": "300",
        "memory/memory.limit_in_bytes": "900",
        "slice/memory.max": "200\n",
        "slice/unit/memory.max": "max\n",
    }.items():
        file = tmp_path / "sys/fs/cgroup" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    assert sorted(cgroup_limits(tmp_path)) == [200, 300, 900]
    assert list(cgroup_limits(tmp_path / "nowhere")) == []


@pytest.mark.parametrize(
    ("variables", "limits"),
    [
        ({}, []),
        ({"SLURM_MEM_PER_NODE": "4000"}, [4000]),
        ({"SLURM_MEM_PER_CPU": "500", "SLURM_CPUS_ON_NODE": "4"}, [2000]),
        ({"SLURM_MEM_PER_NODE": "0"}, []),
    ],
)
def test_slurm_grants_are_read(variables, limits):
    assert [limit // 2**20 for limit in slurm_limits(variables)] == limits


# the design document's function, and where its text contradicts it


def batch(width, depth, target=256):
    return get_memory_safe_batch_config(width, depth, target)


@pytest.mark.parametrize(
    ("width", "depth", "micro", "steps"),
    [
        (256, 192, 256, 1), (768, 32, 256, 1), (768, 256, 128, 2),
        (1024, 256, 128, 2), (1536, 64, 128, 2), (2048, 32, 128, 2),
    ],
)  # fmt: skip
def test_the_documents_table_is_met(width, depth, micro, steps):
    assert batch(width, depth) == {
        "micro_batch": micro,
        "accumulation_steps": steps,
        "effective_batch": 256,
    }


@pytest.mark.parametrize(
    ("width", "deepest"),
    [
        (512, (381, 1907, 5722, 11444)), (768, (169, 847, 2543, 5086)),
        (1024, (95, 476, 1430, 2861)), (1536, (42, 211, 635, 1271)), (2048, (23, 119, 357, 715)),
    ],
)  # fmt: skip
def test_the_tiers_end_where_they_do(width, deepest):
    for micro, depth in zip((256, 128, 64, 32), deepest, strict=True):
        assert batch(width, depth)["micro_batch"] == micro
        assert batch(width, depth + 1)["micro_batch"] == micro // 2


def test_contradiction_1_the_failing_configuration_is_what_it_gives():
    assert batch(1024, 256)["micro_batch"] == 128  # "d=1024, L=256, batch=128 consumed 115GB"


def test_contradiction_2_its_own_test_of_a_large_model_fails():
    assert batch(1024, 256)["micro_batch"] != 64


def test_contradiction_3_its_own_test_of_an_xlarge_model_fails():
    assert batch(2048, 64)["micro_batch"] == 128 != 32


def test_contradiction_4_the_score_is_not_one_where_the_comment_says():
    score = 1024**2 * 256 / 1e9
    assert score == pytest.approx(0.268, abs=1e-3)


def test_contradiction_5_no_model_of_two_billion_gets_16():
    points = grid("2b", **LISTED)
    sizes = {batch(p["model.width"], p["model.depth"])["micro_batch"] for p in points}
    assert sizes == {128}


LISTED = dict(
    width=[64, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048],
    depth=[2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 160, 180, 192, 256],
    n_heads=[2, 4, 8, 16, 32],
    mlp_ratio=[2.0, 4.0],
)


def test_contradiction_6_the_first_tier_ends_beyond_the_grid_at_512():
    assert batch(512, max(LISTED["depth"]))["micro_batch"] == 256


def test_contradiction_7_its_assumption_of_64_is_not_what_it_gives():
    assert batch(2048, 32)["micro_batch"] == 128


def test_contradiction_8_a_test_that_cannot_fail_hides_256():
    assert batch(768, 32)["micro_batch"] == 256  # "128 or 256"


@pytest.mark.parametrize(
    ("width", "depth", "target", "effective"),
    [(64, 2, 300, 256), (1024, 256, 200, 128), (1024, 256, 64, 128), (64, 2, 100, 256)],
)
def test_contradiction_9_the_effective_batch_is_not_maintained(width, depth, target, effective):
    assert batch(width, depth, target)["effective_batch"] == effective != target


def test_contradiction_10_the_effective_batch_is_always_the_default():
    every = {batch(w, d)["effective_batch"] for w in LISTED["width"] for d in LISTED["depth"]}
    assert every == {256}  # "maintained at 128-256"


def test_contradiction_11_its_list_of_six_tests_has_five_and_all_its_tiers_below_64_are_idle():
    every = {batch(w, d)["micro_batch"] for w in LISTED["width"] for d in LISTED["depth"]}
    assert every == {64, 128, 256}


def test_contradiction_12_the_score_follows_the_weights_and_not_the_activations():
    """More tokens keep more, of which width and depth, and so the score, know nothing."""
    few, many = (traced(patchtst(end_padding=False, stride=s)).per_sample for s in (8, 4))
    assert many > 1.5 * few
