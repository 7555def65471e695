import csv
import math

import lightning as L
import pytest
import torch
from support import overrides_for, run_training, write_table

from jepa.callbacks.early_stopping import EarlyStopping
from jepa.callbacks.metrics_csv import MetricsCSV
from jepa.callbacks.probe import Probe, embed_all, unnoticed


def weights(run_dir):
    return torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def test_runs_with_and_without_probes_have_the_same_weights_bit_for_bit(tmp_path):
    arguments = [*overrides_for(write_table(tmp_path / "t.csv")), "objective=val/loss", "model.dropout=0.2"]  # fmt: skip  # noqa: E501
    run_training(tmp_path / "on", *arguments, "probes=[ridge,knn,sgd_linear,mlp,few_shot]")
    run_training(tmp_path / "off", *arguments, "callbacks.probe.max_rows=50", "test=false", "probes=[]")  # fmt: skip  # noqa: E501
    a, b = weights(tmp_path / "on"), weights(tmp_path / "off")
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_removing_the_probe_callback_changes_no_weight(tmp_path):
    arguments = [*overrides_for(write_table(tmp_path / "t.csv")), "model.dropout=0.2"]
    run_training(tmp_path / "on", *arguments)
    run_training(
        tmp_path / "off",
        *arguments,
        "objective=val/loss",
        "callbacks.probe._target_=support.silent",
    )
    a, b = weights(tmp_path / "on"), weights(tmp_path / "off")
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_the_random_state_is_put_back():
    before = torch.get_rng_state()
    with unnoticed():
        torch.rand(3)
    assert torch.equal(torch.get_rng_state(), before)


def test_codes_come_from_the_whole_split_in_order():
    class Identity:
        device = "cpu"

        def embed(self, x):
            return x

    batches = [{"x": torch.full((2, 1), float(i)), "y": torch.tensor([i, i])} for i in range(3)]
    codes, labels = embed_all(Identity(), batches)
    assert codes[:, 0].tolist() == labels.tolist() == [0, 0, 1, 1, 2, 2]


def test_probe_limits_are_checked():
    with pytest.raises(ValueError, match=r"callbacks.probe.max_rows"):
        Probe(probes={}, max_rows=1, max_val_rows=10, seed=0)


def test_patience_below_one_is_refused():
    with pytest.raises(ValueError, match="patience=0"):
        EarlyStopping(monitor="val/loss", patience=0, min_delta=0.0)


@pytest.mark.parametrize(("min_delta", "stops"), [(0.0, False), (0.5, True)])
def test_min_delta_is_the_least_gain_that_counts(min_delta, stops):
    callback = EarlyStopping(monitor="m", patience=2, min_delta=min_delta)
    stopped = [callback._evaluate_stopping_criteria(torch.tensor(v))[0] for v in (1.0, 0.8, 0.7)]
    assert stopped == [False, False, stops]


def test_metrics_csv_is_appended_by_a_second_session(tmp_path):
    for step in (1, 2):
        logger = MetricsCSV(run_dir=str(tmp_path))
        logger.log_metrics({"train/loss": 1.0 / step, **({"new": 5.0} if step == 2 else {})}, step)
        logger.finalize("success")
    with (tmp_path / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["1", "2"] and rows[1]["new"] == "5.0"


def test_the_callbacks_seeds_and_limits_reach_the_probe(tmp_path):
    arguments = [*overrides_for(write_table(tmp_path / "t.csv")), "trainer.max_epochs=1"]

    def first(name, *more):
        run_training(tmp_path / name, *arguments, *more)
        with (tmp_path / name / "metrics.csv").open() as file:
            rows = [r for r in csv.DictReader(file) if r.get("probe/ridge/error")]
        return {k: v for k, v in rows[0].items() if k.startswith("probe/")}

    base = first("a", "callbacks.probe.max_rows=40", "callbacks.probe.max_val_rows=10")
    for i, change in enumerate(
        ("callbacks.probe.seed=5", "callbacks.probe.max_rows=20", "callbacks.probe.max_val_rows=7")
    ):
        changed = first(
            f"b{i}", "callbacks.probe.max_rows=40", "callbacks.probe.max_val_rows=10", change
        )
        assert changed != base, change


@pytest.mark.parametrize("accumulate", [1, 2, 4])
def test_every_step_averages_a_whole_group(tmp_path, accumulate):
    """Lightning divides a short last group by the whole group's size; ours has none."""
    table = write_table(tmp_path / "t.csv")
    groups = []

    class Watch(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            groups.append(trainer.global_step)

    import support

    support.EXTRA[:] = [Watch()]
    try:
        run_training(
            tmp_path / "run", *overrides_for(table), "data.batch_size=8", "test=false",
            f"trainer.accumulate_grad_batches={accumulate}",
            "+callbacks.watch._target_=support.extra",
        )  # fmt: skip
    finally:
        support.EXTRA.clear()
    sizes = [groups.count(step) for step in range(1, max(groups))]
    assert len(groups) == 2 * (9 // accumulate) * accumulate  # 78 rows, two epochs
    assert math.prod(size == accumulate for size in sizes)
