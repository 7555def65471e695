"""What a finished run's metrics.csv says of its health."""

import pytest
import torch

from jepa.callbacks.memory import memory_share
from jepa.report import markdown, new
from jepa.vitals import read_vitals

HEAD = (
    "epoch,step,train/loss,val/loss,time/samples_per_s,memory/share,health/std,health/teacher_knn\n"
)


def vitals(tmp_path, *lines):
    path = tmp_path / "metrics.csv"
    path.write_text(HEAD + "".join(f"{line}\n" for line in lines))
    return {one["name"]: one for one in read_vitals(path)}


def test_a_healthy_run_has_no_warning(tmp_path):
    lines = [f"{e},{e},,{1 / (e + 1)},100,0.1,1.0,1.1" for e in range(4)]
    found = vitals(tmp_path, *lines)
    assert found.keys() == {
        "epoch_time", "speed_noise", "memory_share", "std", "teacher_knn",
    }  # fmt: skip
    healthy = {name for name, one in found.items() if one["state"] == "healthy"}
    assert healthy == found.keys()


@pytest.mark.parametrize(
    ("name", "last", "value", "state"),
    [
        ("loss_rise", "9,9,,3.0,100,0.1,,", 3.0, "critical"),
        ("flat_epochs", "9,9,,1.5,100,0.1,,", 7.0, "warn"),
        ("epoch_time", "9,9,,0.1,50,0.1,1,1", 2.0, "critical"),
        ("memory_share", "9,9,,0.1,100,0.7,1,1", 0.7, "warn"),
        ("std", "9,9,,0.1,100,0.1,0.01,1", 0.01, "critical"),
        ("teacher_knn", "9,9,,0.1,100,0.1,1,0.5", 0.5, "warn"),
    ],
)
def test_what_is_out_of_its_band_is_told(tmp_path, name, last, value, state):
    lines = [f"{e},{e},,{3 - e},100,0.1,," for e in range(3)]
    found = vitals(tmp_path, *lines, last)
    assert (found[name]["value"], found[name]["state"]) == (value, state)
    page = markdown(new(status="finished", reason="", vitals=list(found.values())))
    assert f"| {name} | {value:.4g} | {state} |" in page


def test_the_loss_against_a_moving_teacher_is_not_judged(tmp_path):
    lines = [f"{e},{e},,{e + 1},100,0.1,1.0,1.0" for e in range(30)]
    assert not {"loss_rise", "flat_epochs"} & vitals(tmp_path, *lines).keys()


def test_the_training_loss_stands_in_and_nothing_gives_nothing(tmp_path):
    found = vitals(tmp_path, "0,0,1.0,,,,,", "6,9,2.5,,,,,")
    assert {k: v["value"] for k, v in found.items()} == {"loss_rise": 2.5, "flat_epochs": 6.0}
    assert read_vitals(tmp_path / "none.csv") == [] and vitals(tmp_path) == {}


def test_a_damaged_file_costs_the_vitals_and_not_the_report(tmp_path):
    with pytest.warns(UserWarning, match=r"not judged.*line 2, column val/loss: 'x' is no number"):
        assert vitals(tmp_path, "0,0,,x,,,,") == {}


def test_the_share_of_memory_grows_with_what_is_held():
    before = memory_share(torch.device("cpu"))
    held = torch.ones(2**26)  # 256 MiB
    assert 0 < before < memory_share(torch.device("cpu")) < 1 and held[0] == 1
