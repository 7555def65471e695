"""A run that goes on from a checkpoint is the run that was never stopped, bit for bit."""

import random

import numpy as np
import pytest
import torch
from resume_cases import (
    FAMILIES,
    Kill,
    assert_same_run,
    differences,
    last,
    run_until,
    settings_of,
    trace,
)
from test_large_images import folder as small_folder

from jepa.callbacks.random_state import random_state, set_random_state

PLACES = {
    "inside an epoch": Kill(1, 4),
    "inside an accumulation group": Kill(1, 5),
    "after an epoch": Kill(0),
    "after a validation": Kill(1),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Uninterrupted runs by family and settings, each trained once."""
    runs = {}

    def run(family, *more):
        if (family, *more) not in runs:
            folder = tmp_path_factory.mktemp("whole")
            run_until(None, folder / "run", settings_of(family, folder, *more))
            runs[family, *more] = folder
        return runs[family, *more]

    return run


def go_on(family, folder, run_dir, kill, *more):
    """Kill a run and go on with it; return where it went on."""
    arguments = settings_of(family, folder, *more)
    run_until(kill, run_dir, arguments)
    place = last(run_dir)["place"]
    run_until(None, run_dir, [*arguments, "resume=auto"])
    return place


@pytest.mark.parametrize(
    ("place", "accumulate", "at"),
    [
        ("inside an epoch", 1, (1, 4)),
        ("inside an accumulation group", 4, (1, 4)),
        ("after an epoch", 1, (1, 0)),
        ("after a validation", 4, (2, 0)),
    ],
)
def test_a_killed_run_goes_on_exactly(whole, tmp_path, place, accumulate, at):
    more = [f"trainer.accumulate_grad_batches={accumulate}"]
    folder = whole("tjepa", *more)
    found = go_on("tjepa", folder, tmp_path / "run", PLACES[place], *more)
    assert (found["epoch"], found["batch"]) == at
    assert_same_run(folder / "run", tmp_path / "run")


def test_the_comparison_sees_a_difference(whole):
    one, other = last(whole("tjepa") / "run"), last(whole("tjepa") / "run")
    assert not list(differences(one, other))
    next(iter(other["state_dict"].values())).view(-1)[0] += 1e-6
    other["random"][0]["torch"][20] += 1
    found = list(differences(one, other))
    assert len(found) == 2 and found[1] == "/random/0/torch"


def test_dropout_draws_go_on_where_they_were(whole, tmp_path):
    """The promise would be empty if these runs drew nothing from the global generator."""
    folder = whole("tjepa")
    states = [one["random"][0]["torch"] for one in (last(folder / "run"),)]
    arguments = settings_of("tjepa", folder, "model.dropout=0.0")
    run_until(None, tmp_path / "run", arguments)
    assert not (states[0] == last(tmp_path / "run")["random"][0]["torch"]).all()
    assert trace(folder / "run") != trace(tmp_path / "run")


def test_every_generator_is_put_back_also_from_a_part_of_a_tensor():
    def draw():
        return torch.rand(3).tolist(), np.random.randn(3).tolist(), random.gauss(0, 1)

    cpu = torch.device("cpu")
    random.gauss(0, 1)  # keeps a second number for the next call
    np.random.randn(1)
    state = {name: torch.stack([one, one])[1] for name, one in random_state(cpu).items()}
    first = draw()
    set_random_state(state, cpu)
    assert draw() == first != draw()


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize("family", FAMILIES)
def test_every_model_goes_on_exactly(whole, tmp_path, family):
    folder = whole(family)
    go_on(family, folder, tmp_path / "run", Kill(1, 4))
    assert_same_run(folder / "run", tmp_path / "run")


@pytest.mark.slow
@pytest.mark.resume
@pytest.mark.parametrize("probes", ["on", "off"])
@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_whole_matrix(whole, tmp_path, family, place, accumulate, probes):
    more = [f"trainer.accumulate_grad_batches={accumulate}"]
    if probes == "off":
        more += ["objective=val/loss", "callbacks.probe._target_=support.silent"]
    folder = whole(family, *more)
    go_on(family, folder, tmp_path / "run", PLACES[place], *more)
    assert_same_run(folder / "run", tmp_path / "run")


@pytest.mark.slow
@pytest.mark.resume
@pytest.mark.parametrize("place", PLACES)
def test_it_does_not_depend_on_the_threads_that_decode(tmp_path, place):
    root = small_folder(tmp_path / "images", n=40)
    more = [
        "data=image_folder", f"data.path={root}", "data.image_size=16", "data.storage=files",
        f"data.cache_dir={tmp_path / 'cache'}", "trainer.accumulate_grad_batches=2",
    ]  # fmt: skip
    arguments = [
        one for one in settings_of("hjepa", tmp_path, *more) if not one.startswith("data.n_images")
    ]
    run_until(None, tmp_path / "whole", [*arguments, "data.n_workers=1"])
    run_until(PLACES[place], tmp_path / "run", [*arguments, "data.n_workers=1"])
    run_until(None, tmp_path / "run", [*arguments, "data.n_workers=3", "resume=auto"])
    assert_same_run(tmp_path / "whole", tmp_path / "run")
