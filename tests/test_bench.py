"""The bench of H-JEPA: its clock stops where the parts end, and its work is I-JEPA's."""

from itertools import count

import pytest
import torch

from tests.bench import hjepa

# of a step in the authors' code of I-JEPA, from its sizes: 2 a multiplication and addition
OFFICIAL_GFLOP = {"ViT-T/4 at 32": 305.4, "ViT-S/16 at 224": 1323.4}


def test_the_clock_stops_at_every_part_forward_and_back():
    step = hjepa.Step("ViT-T/4 at 32", hjepa.OURS, bf16=False, batch=2)
    step.laps.clock = count().__next__
    stops = dict(data=1, masks=1, context=2, teacher=1, predictor=2, optimizer=1, EMA=1)
    assert step() == stops


@pytest.mark.parametrize("shape", hjepa.SHAPES)
def test_a_step_on_identical_work_has_the_products_of_the_official_one(shape):
    step = hjepa.Step(shape, hjepa.SAME, bf16=False, batch=hjepa.SHAPES[shape]["batch"])
    # the predictor's last block computes only what is asked for
    assert 0.94 < step.flops() / 1e9 / OFFICIAL_GFLOP[shape] < 1.0


def test_a_step_of_the_bench_trains_student_and_teacher():
    step = hjepa.Step("ViT-T/4 at 32", hjepa.SAME, bf16=True, batch=2)
    nets = (step.model.encoder, step.model.predictor, step.model.teacher)
    before = [p.clone() for net in nets for p in list(net.parameters())[-1:]]
    step()
    after = [p for net in nets for p in list(net.parameters())[-1:]]
    assert not any(torch.equal(a, b) for a, b in zip(before, after, strict=True))
