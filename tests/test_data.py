"""The data contract: splits, batches, ranks, resuming, and what is fitted on which rows."""

import inspect
from itertools import chain, islice

import lightning as L
import numpy as np
import pandas as pd
import pytest
import torch

from jepa.data.batches import Batches, OrderedBatches, Rows
from jepa.data.breast_cancer import BreastCancer
from jepa.data.diabetes import Diabetes
from jepa.data.digits_table import DigitsTable
from jepa.data.splits import split_rows
from jepa.data.table import Table
from jepa.data.tabular import TableData
from jepa.data.wine import Wine


class Frames(TableData):
    """A set made of given frames."""

    target = "y"

    def __init__(self, frames, **table):
        super().__init__(**{"batch_size": 4} | table)
        self.frames = frames

    def load(self):
        return self.frames


def frame(n_rows=40, seed=0, n_classes=2):
    rng = np.random.default_rng(seed)
    y = np.arange(n_rows) % n_classes
    return pd.DataFrame(
        {"a": rng.normal(size=n_rows), "b": rng.choice(list("uvw"), n_rows), "y": y}
    )


def prepared(frames=None, **table):
    data = Frames({"train": frame()} if frames is None else frames, **table)
    data.prepare()
    return data


def rows(n):
    return Rows(torch.arange(float(n))[:, None], torch.arange(n))


def ids(batches):
    return [batch["y"].tolist() for batch in batches]


# splits


def test_splits_share_no_row_cover_all_and_follow_the_split_seed_alone():
    a = split_rows(50, {"test": 0.2, "val": 0.1}, labels=None, seed=0)
    assert {name: len(part) for name, part in a.items()} == {"train": 35, "test": 10, "val": 5}
    assert sorted(np.concatenate(list(a.values()))) == list(range(50))
    b = split_rows(50, {"test": 0.2, "val": 0.1}, labels=None, seed=1)
    assert not np.array_equal(a["test"], b["test"])
    one, other = prepared(seed=0), prepared(seed=1)
    assert torch.equal(one.splits["val"].x, other.splits["val"].x)


@pytest.mark.parametrize("n_classes", [2, 7])
def test_splits_hold_the_classes_in_their_shares(n_classes):
    labels = np.sort(np.random.default_rng(0).integers(0, n_classes, 400) ** 2 // n_classes)
    parts = split_rows(400, {"test": 0.2, "val": 0.15}, labels=labels, seed=3)
    assert len(parts["test"]) == 80 and len(parts["val"]) == 60
    for name, share in (("test", 0.2), ("val", 0.15)):
        for c in np.unique(labels):
            expected = share * (labels == c).sum()
            assert abs((labels[parts[name]] == c).sum() - expected) <= 2


def test_every_class_keeps_a_training_row():
    labels = np.repeat(np.arange(10), 2)
    parts = split_rows(20, {"test": 0.3, "val": 0.2}, labels=labels, seed=0)
    assert set(labels[parts["train"]]) == set(range(10))
    assert len(parts["test"]) == 6 and len(parts["val"]) == 4


def test_a_published_split_is_kept_and_only_the_missing_one_is_drawn():
    data = prepared({"train": frame(40), "test": frame(7, seed=1)})
    assert {name: len(split) for name, split in data.splits.items()} == {
        "train": 34,
        "val": 6,
        "test": 7,
    }
    expected = data.transform.encode(frame(7, seed=1))
    assert torch.equal(data.splits["test"].x, expected)


def test_a_share_of_zero_means_no_such_split():
    data = prepared(val_share=0.0, test_share=0.0)
    assert list(data.splits) == ["train"] and len(data.splits["train"]) == 40
    assert len(data.val_dataloader()) == len(data.test_dataloader()) == 0


def test_nothing_is_fitted_on_validation_or_test_rows():
    train, other = frame(40), frame(12, seed=5)
    far = other.assign(a=other["a"] * 1e6, b="never seen")
    states = []
    for held_out in (other, far):
        data = prepared({"train": train, "val": held_out, "test": held_out})
        states.append((data.preprocessing, data.spec))
    assert str(states[0]) == str(states[1])
    assert data.splits["test"].x[:, 1].tolist() == [1.0] * 12  # unseen


def test_changing_drawn_test_rows_changes_no_state():
    before = frame(40)
    parts = split_rows(40, {"test": 0.2, "val": 0.15}, labels=before["y"].to_numpy(), seed=0)
    held_out = np.concatenate([parts["val"], parts["test"]])
    after = before.copy()
    after.loc[held_out, "a"] = 1e5
    one, two = prepared({"train": before}), prepared({"train": after})
    assert str(one.preprocessing) == str(two.preprocessing)
    assert two.splits["test"].x[:, 0].min() > one.splits["train"].x[:, 0].median()


# batches


def test_an_epoch_shuffles_and_leaves_out_other_rows_each_time():
    batches = Batches(rows(10), 4, seed=0)
    first, second = ids(batches), ids(batches)
    assert [len(b) for b in first] == [4, 4]
    assert first != second
    drawn = [set(chain(*epoch)) for epoch in (first, second)]
    assert len(drawn[0]) == 8 and drawn[0] != drawn[1]


def test_the_order_comes_from_seed_and_epoch_alone():
    one, two, other = (Batches(rows(12), 4, seed=s) for s in (7, 7, 8))
    torch.manual_seed(1)
    a = ids(one)
    torch.manual_seed(2)
    assert a == ids(two) != ids(other)
    two.set_epoch(5)
    one.set_epoch(5)
    assert ids(one) == ids(two) != a


def test_neighbouring_seeds_do_not_share_shifted_epochs():
    zero, one = Batches(rows(64), 64, seed=0), Batches(rows(64), 64, seed=1)
    of_zero = [ids(zero)[0] for _ in range(6)]
    of_one = [ids(one)[0] for _ in range(6)]
    assert not [a for a in of_zero if a in of_one]


@pytest.mark.parametrize(("batch_size", "group", "world_size"), [(3, 4, 1), (2, 3, 2), (5, 1, 3)])
def test_training_ranks_share_whole_groups_of_whole_batches(batch_size, group, world_size):
    parts = [
        Batches(rows(64), batch_size, seed=0, group=group, rank=r, world_size=world_size)
        for r in range(world_size)
    ]
    seen = [ids(part) for part in parts]
    assert len({len(part) for part in parts}) == 1
    assert [len(s) for s in seen] == [len(part) for part in parts]
    assert len(parts[0]) % group == 0
    assert {len(batch) for s in seen for batch in s} == {batch_size}
    flat = [i for s in seen for batch in s for i in batch]
    assert len(flat) == len(set(flat)) > 64 - batch_size * group * world_size


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("n_rows", [3, 5, 16, 17])
def test_validation_covers_every_row_once_in_as_many_batches_on_every_rank(n_rows, world_size):
    parts = [
        OrderedBatches(rows(n_rows), 4, rank=r, world_size=world_size) for r in range(world_size)
    ]
    seen = [ids(part) for part in parts]
    assert len({len(s) for s in seen}) == 1 == len({len(part) for part in parts})
    assert len(seen[0]) == len(parts[0])
    assert sorted(i for s in seen for batch in s for i in batch) == list(range(n_rows))
    assert max(len(batch) for s in seen for batch in s) <= 4
    assert all(s == sorted(s) for s in seen)


@pytest.mark.parametrize("stop", [0, 2, 5])
def test_continuing_within_an_epoch_yields_exactly_the_rest(stop):
    whole = Batches(rows(20), 4, seed=3)
    epochs = [ids(whole), ids(whole), ids(whole)]
    broken = Batches(rows(20), 4, seed=3)
    ids(broken)
    iterator = iter(broken)
    head = [next(iterator)["y"].tolist() for _ in range(stop)]
    resumed = Batches(rows(20), 4, seed=3)
    resumed.load_state_dict(broken.state_dict())
    following = [*ids(resumed), *ids(resumed)]
    if stop == 0:  # nothing of the second epoch was drawn: the first is complete
        assert following == [*epochs[1], *epochs[2]]
    elif stop == 5:
        assert head == epochs[1] and following[:5] == epochs[2]
    else:
        assert head + following == [*epochs[1], *epochs[2]]


def test_the_state_carries_over_to_another_number_of_processes():
    one = Batches(rows(64), 4, seed=0)
    list(islice(iter(one), 6))
    two = Batches(rows(64), 4, seed=0, rank=0, world_size=2)
    two.load_state_dict(one.state_dict())
    assert two.position == 3


class Recorder(L.LightningModule):
    """Keep what each training step saw."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen, self.validated = [], 0

    def training_step(self, batch, batch_idx):
        self.seen.append(batch["y"].tolist())
        return (self.weight * batch["x"].nan_to_num().sum()).sum()

    def validation_step(self, batch, batch_idx):
        self.validated += len(batch["y"])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(tmp_path, *, ckpt=None, data=None, **trainer):
    model = Recorder()
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)
    quiet |= {"num_sanity_val_steps": 0, "enable_checkpointing": False, "accelerator": "cpu"}
    runner = L.Trainer(**quiet, default_root_dir=tmp_path, **trainer)
    runner.fit(model, data or Regression(), ckpt_path=ckpt, weights_only=True)
    return model, runner


def Regression(**table):
    y = np.arange(48) + 0.5
    whole = pd.DataFrame({"a": np.arange(48.0), "y": y})
    return Frames({"train": whole}, **{"batch_size": 4, "val_share": 0.2, "test_share": 0} | table)


class SaveAt(L.Callback):
    """Write a checkpoint after the step, as a periodic checkpoint does."""

    def __init__(self, step, path):
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("step", [4, 9, 13, 18])
def test_a_resumed_trainer_sees_exactly_the_rows_that_were_left(tmp_path, step):
    path = tmp_path / "half.ckpt"
    whole, _ = fit(tmp_path, max_epochs=3, callbacks=[SaveAt(step, path)])
    assert len(whole.seen) == 27 and whole.validated == 30
    tail, _ = fit(tmp_path, max_epochs=3, ckpt=path)
    assert tail.seen == whole.seen[step:]


@pytest.mark.filterwarnings("ignore")
def test_a_trainer_with_accumulation_sees_whole_groups(tmp_path):
    model, runner = fit(tmp_path, max_epochs=2, accumulate_grad_batches=4)
    assert len(model.seen) == 2 * 8 and runner.global_step == 4


@pytest.mark.filterwarnings("ignore")
def test_limited_epochs_start_a_new_order_each_time_and_overfitting_keeps_one(tmp_path):
    limited, _ = fit(tmp_path, max_epochs=2, limit_train_batches=3)
    assert limited.seen[:3] != limited.seen[3:]
    overfit, _ = fit(tmp_path, max_epochs=2, overfit_batches=3)
    assert overfit.seen[:3] == overfit.seen[3:]


@pytest.mark.filterwarnings("ignore")
def test_training_runs_without_a_validation_split(tmp_path):
    model, _ = fit(tmp_path, max_epochs=1, data=Regression(val_share=0.0))
    assert len(model.seen) == 12 and model.validated == 0


class FakeTrainer:
    global_rank, world_size, accumulate_grad_batches, overfit_batches = 1, 2, 3, 0.0


def test_ranks_and_groups_come_from_the_trainer():
    data = prepared({"train": frame(60)}, val_share=0.2)
    data.trainer = FakeTrainer()
    train, val = data.train_dataloader(), data.val_dataloader()
    assert (train.rank, train.world_size, len(train) % 3) == (1, 2, 0)
    assert sum(len(b["x"]) for b in val) == 6  # of 12


def test_probe_batches_are_a_seeded_subset_in_order_the_same_on_every_rank():
    data = prepared({"train": frame(60)}, test_share=0.0)
    full = torch.cat([b["x"] for b in data.probe_batches("train", max_rows=None)])
    assert torch.equal(full, data.splits["train"].x)
    one, again, other = (
        torch.cat([b["x"] for b in data.probe_batches("train", max_rows=9, seed=s)])[:, 0]
        for s in (0, 0, 1)
    )
    assert len(one) == 9 and torch.equal(one, again) and not torch.equal(one, other)
    place = [full[:, 0].tolist().index(v) for v in one.tolist()]
    assert place == sorted(place)
    data.trainer = FakeTrainer()
    rank_1 = torch.cat([b["x"] for b in data.probe_batches("train", max_rows=9, seed=0)])[:, 0]
    assert torch.equal(rank_1, one)
    with pytest.raises(ValueError, match="no 'test' split"):
        next(data.probe_batches("test"))


# settings


OTHER = dict(
    batch_size=8,
    val_share=0.3,
    test_share=0.3,
    split_seed=1,
    scaler="minmax",
    kinds={"a": "drop"},
    min_count=20,
    drop=["b"],
    seed=1,
)


def outcome(**table):
    data = prepared({"train": frame(60)}, **table)
    return str((data.spec, ids(data.train_dataloader()), data.splits))


@pytest.mark.filterwarnings("ignore:.*constant")
@pytest.mark.parametrize("knob", OTHER)
def test_each_setting_changes_something(knob):
    assert outcome(**{knob: OTHER[knob]}) != outcome()


def test_settings_are_all_listed_here_or_tested_elsewhere():
    known = inspect.signature(TableData).parameters.keys()
    assert known == OTHER.keys() | {"max_categories", "effective_batch_size"}


def test_max_categories_refuses_what_it_should():
    with pytest.raises(ValueError, match="max_categories"):
        prepared(max_categories=2)


def test_the_effective_batch_size_is_kept_for_the_entry_point():
    assert prepared(effective_batch_size=64).effective_batch_size == 64


# sets that come with scikit-learn


@pytest.mark.filterwarnings("ignore:.*constant")
@pytest.mark.parametrize(
    ("data", "task", "n_classes"),
    [
        (DigitsTable, "multiclass", 10),
        (BreastCancer, "binary", 2),
        (Wine, "multiclass", 3),
        (Diabetes, "regression", 0),
    ],
)
def test_the_offline_sets_are_what_they_state(data, task, n_classes):
    table = data(batch_size=16)
    table.prepare()
    assert (table.spec.task, table.spec.n_classes) == (task, n_classes)
    assert sum(map(len, table.splits.values())) == table.card.rows["train"]
    assert all(torch.isfinite(split.x).all() for split in table.splits.values())
    stated = inspect.getmodule(data).__doc__
    assert table.card.source.split(", ")[1] in stated and f"{table.card.columns} " in stated


def test_a_set_of_another_size_is_refused():
    class Short(Wine):
        def load(self):
            return {name: part.head(100) for name, part in super().load().items()}

    with pytest.raises(ValueError, match=r"Short must have .*178.* found .*100"):
        Short(batch_size=8).prepare()


@pytest.mark.parametrize("ending", ["csv", "csv.gz", "tsv", "parquet"])
def test_a_table_of_yours_is_read_from_a_file(tmp_path, ending):
    path = tmp_path / f"my, table (1) = [x].{ending}"
    whole = frame(30)
    if ending == "parquet":
        whole.to_parquet(path)
    else:
        whole.to_csv(path, index=False, sep="\t" if ending == "tsv" else ",")
    data = Table(path=str(path), target="y", batch_size=4)
    data.prepare()
    assert data.spec.columns == ("a", "b") and data.spec.task == "binary"
    assert {name: len(split) for name, split in data.splits.items()} == {
        "train": 20,
        "val": 4,
        "test": 6,
    }
