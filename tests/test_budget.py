"""Parameter budgets: the width of a size over the whole search space, and the listed grid."""

from functools import cache, partial
from itertools import product

import pytest
import torch
import yaml
from support import BARS
from torch import nn

from jepa.budget import (
    SIZES,
    TOLERANCE,
    choose,
    document_parameters,
    grid,
    parameters_of,
    solve_width,
)
from jepa.config import CONF
from jepa.models.patchtst import PatchTST
from jepa.plan import PlanError, count_parameters
from jepa.step_memory import build_unallocated

SEARCH = yaml.safe_load((CONF / "search" / "patchtst.yaml").read_text())
LISTED = yaml.safe_load((CONF / "search" / "patchtst_grid.yaml").read_text())["model"]
LISTED = {key: value for key, value in LISTED.items() if key not in ("_target_", "size")}
EXPERIMENT = yaml.safe_load((CONF / "experiment" / "patchtst_hpo.yaml").read_text())["model"]


def classifier(width, *, depth, mlp_ratio, n_heads):
    """The model that the twelve studies search."""
    values = yaml.safe_load((CONF / "model" / "patchtst.yaml").read_text()) | EXPERIMENT
    values = {key: value for key, value in values.items() if not key.startswith("_")}
    values |= dict(width=width, depth=depth, mlp_ratio=mlp_ratio, n_heads=n_heads)
    return PatchTST(spec=BARS, **values | {"optimizer": partial(torch.optim.AdamW, lr=1e-3)})


def choices(key, size):
    node = {name: value for name, value in SEARCH[key].items() if name != "_target_"}
    return choose(**node | {"size": size})


def points(size):
    """Every combination that a study of this size can sample."""
    return product(choices("model.depth", size), (2.0, 4.0), choices("model.n_heads", size))


@cache
def counts_of_a_block(mlp_ratio):
    """Coefficients of the exact count, quadratic in the width: for no block, and for one more.

    Found from models of three widths and two depths; heads change nothing.
    """

    def coefficients(depth):
        widths = (64, 128, 192)
        build = partial(classifier, depth=depth, mlp_ratio=mlp_ratio, n_heads=2)
        counts = [count_parameters(build_unallocated(partial(build, w))) for w in widths]
        matrix = torch.tensor([[w * w, w, 1] for w in widths], dtype=torch.float64)
        return torch.linalg.solve(matrix, torch.tensor(counts, dtype=torch.float64)).round()

    one, two = coefficients(1), coefficients(2)
    return one - (two - one), two - one


def count(width, depth, mlp_ratio):
    """The exact count in closed form."""
    rest, block = counts_of_a_block(mlp_ratio)
    return int((rest + depth * block) @ torch.tensor([width * width, width, 1]).double())


class Weights(nn.Module):
    """A model that has nothing but its count."""

    def __init__(self, n):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n))


@pytest.mark.parametrize(("size", "depth", "heads"), [("2m", 6, 4), ("20m", 24, 8), ("2b", 32, 32)])
@pytest.mark.parametrize("mlp_ratio", [2.0, 4.0])
def test_the_closed_form_is_the_exact_count(size, depth, heads, mlp_ratio):
    build = partial(classifier, depth=depth, mlp_ratio=mlp_ratio, n_heads=heads)
    width = solve_width(build, size=SIZES[size], multiple=heads)
    exact = count_parameters(build_unallocated(lambda: build(width)))
    assert exact == count(width, depth, mlp_ratio)
    assert abs(exact - SIZES[size]) <= TOLERANCE * SIZES[size]


@pytest.mark.parametrize("size", SIZES)
def test_every_point_of_the_search_space_is_within_five_percent_of_its_size(size):
    space = list(points(size))
    assert len(space) >= 36
    for depth, mlp_ratio, heads in space:
        width = solve_width(
            lambda w, d=depth, r=mlp_ratio: Weights(count(w, d, r)),
            size=SIZES[size],
            multiple=heads,
        )
        assert width % heads == 0
        off = abs(count(width, depth, mlp_ratio) / SIZES[size] - 1)
        assert off <= TOLERANCE, (depth, mlp_ratio, heads, width, off)


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
def test_every_point_is_within_five_percent_by_counting_the_model_itself(size):
    for depth, mlp_ratio, heads in points(size):
        build = partial(classifier, depth=depth, mlp_ratio=mlp_ratio, n_heads=heads)
        width = solve_width(build, size=SIZES[size], multiple=heads)
        exact = count_parameters(build_unallocated(lambda: build(width)))  # noqa: B023
        assert abs(exact - SIZES[size]) <= TOLERANCE * SIZES[size], (depth, mlp_ratio, heads)


@pytest.mark.parametrize("size", SIZES)
def test_the_space_of_a_size_holds_values_of_the_document_only(size):
    assert set(choices("model.depth", size)) <= set(LISTED["depth"])
    assert set(choices("model.n_heads", size)) <= set(LISTED["n_heads"])


def test_the_nearest_width_is_found_from_below_and_above():
    for multiple in (1, 3, 8):
        for size in (100_000, 777_777, 10_000_000):
            width = solve_width(lambda w: Weights(w * w), size=size, multiple=multiple)
            others = (width - multiple, width + multiple)
            assert abs(width**2 - size) <= min(abs(w**2 - size) for w in others)


def test_a_size_that_no_width_meets_is_refused_with_the_nearest():
    with pytest.raises(PlanError, match=r"multiple of 40, 80, gives 6,400.*n_heads"):
        solve_width(lambda width: Weights(width * width), size=5_000, multiple=40)


def test_an_unknown_size_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"2m, 20m, 200m, 2b.*'3m'"):
        parameters_of("3m")


def test_a_slow_copy_counts_for_nothing():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4).requires_grad_(False))
    assert count_parameters(model) == 20


def test_a_search_without_a_size_has_choices_of_its_own():
    assert choose(None, otherwise=[1], **{"2m": [2]}) == [1]
    assert choose("2m", otherwise=[1], **{"2m": [2]}) == [2]


@pytest.mark.parametrize(
    ("size", "n_points", "n_shapes", "widths", "depths"),
    [
        ("2m", 80, 16, (64, 384), (2, 64)),
        ("20m", 75, 15, (128, 1024), (2, 180)),
        ("200m", 125, 25, (256, 2048), (3, 256)),
        ("2b", 75, 15, (768, 2048), (32, 256)),
    ],
)
def test_the_listed_grid_has_the_points_of_the_documents_code(
    size, n_points, n_shapes, widths, depths
):
    found = grid(size, **LISTED)
    assert len(found) == n_points
    shapes = {(p["model.width"], p["model.depth"], p["model.mlp_ratio"]) for p in found}
    assert len(shapes) == n_shapes
    for key, ends in (("model.width", widths), ("model.depth", depths)):
        assert (min(p[key] for p in found), max(p[key] for p in found)) == ends
    assert all(point["size"] == "null" for point in found)  # the width is given, not solved


def test_the_whole_grid_has_1700_points():
    assert len(grid(None, **LISTED)) == 1700


@pytest.mark.parametrize(("width", "depth"), [(1024, 256), (2048, 64)])
def test_two_points_that_the_document_calls_two_billion_are_not(width, depth):
    assert document_parameters(width, depth, 4.0) / 1e9 == pytest.approx(3.22, abs=0.01)
