"""The published tables, where they lie below JEPA_DATA; skipped where they do not."""

import os
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from jepa.data.adult import Adult
from jepa.data.california import California
from jepa.data.higgs_small import HiggsSmall

DATA = Path(os.environ.get("JEPA_DATA", "data"))
CONF = Path(__file__).parents[1] / "conf" / "data"


def prepared(data, folder):
    if not (DATA / folder).is_dir():
        pytest.skip(f"{folder} is not below JEPA_DATA={DATA}")
    table = data(batch_size=64, data_dir=str(DATA))
    table.prepare()
    return table


def test_adult_has_its_rows_kinds_and_labels():
    data = prepared(Adult, "adult")
    assert data.spec.classes == ("<=50K", ">50K")  # no dot
    assert sum(c > 0 for c in data.spec.cardinalities) == 8 and data.spec.n_features == 14
    assert len(data.splits["test"]) == 16_281
    assert len(data.splits["train"]) + len(data.splits["val"]) == 32_561
    share = data.splits["test"].y.double().mean().item()
    assert abs(share - 3846 / 16281) < 1e-9  # adult.names: 23.62 % without the unknown ones
    missing = data.splits["test"].x[:, data.spec.columns.index("workclass")] == 0
    assert missing.sum() == 963


def test_california_is_in_hundred_thousand_dollars():
    data = prepared(California, "california_housing")
    y = data.splits["test"].y
    assert y.dtype == torch.float32 and data.spec.task == "regression"
    assert (y.max() - 5.00001).abs() < 1e-6 and 1.9 < y.mean() < 2.2
    assert {name: len(part) for name, part in data.splits.items()} == {
        "train": 13_209,
        "val": 3_303,
        "test": 4_128,
    }


@pytest.mark.skipif((DATA / "higgs_small").is_dir(), reason="the whole set is used where it lies")
def test_higgs_small_says_that_it_is_partial():
    with pytest.warns(UserWarning) as seen:
        data = prepared(HiggsSmall, "higgs_small_subset")
    assert sum("partial" in str(one.message) for one in seen) == 1
    assert len(data.splits["train"]) + len(data.splits["val"]) == 15_688
    assert len(data.splits["test"]) == 19_610 and data.spec.n_features == 28


@pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_yaml_is_a_constructor_call(path):
    cfg = OmegaConf.load(path)
    module, name = cfg._target_.rsplit(".", 1)
    assert module == f"jepa.data.{path.stem}" and name.lower() == path.stem.replace("_", "")
