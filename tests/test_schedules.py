import doctest
import itertools

import pytest

from jepa import schedules
from jepa.schedules import cosine, linear, warmup_cosine


def test_the_examples_in_the_docstrings_hold():
    result = doctest.testmod(schedules)
    assert result.attempted and not result.failed


def test_the_first_step_is_neither_wasted_nor_at_the_full_rate():
    assert warmup_cosine(0, warmup=9, total=100) == pytest.approx(0.1)
    assert warmup_cosine(0, warmup=0, total=100) == 1.0


def test_warmup_rises_evenly_and_the_rest_never_does():
    factors = [warmup_cosine(step, warmup=10, total=50, final=0.1) for step in range(60)]
    rises = [b - a for a, b in itertools.pairwise(factors[:11])]
    assert rises == pytest.approx([1 / 11] * 10)
    assert all(b <= a for a, b in itertools.pairwise(factors[10:]))
    assert max(factors) == 1.0 and factors[50:] == pytest.approx([0.1] * 10)


def test_a_warmup_as_long_as_the_run_is_no_error():
    assert [warmup_cosine(step, warmup=3, total=3) for step in range(3)] == [0.25, 0.5, 0.75]


@pytest.mark.parametrize("schedule", [linear, cosine])
def test_schedules_start_and_end_where_they_are_told_and_stay_there(schedule):
    assert schedule(0, total=7, start=0.3, end=0.9) == pytest.approx(0.3)
    assert schedule(7, total=7, start=0.3, end=0.9) == pytest.approx(0.9)
    assert schedule(99, total=7, start=0.3, end=0.9) == pytest.approx(0.9)
