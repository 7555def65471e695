import csv
import json
import math
import time
from types import SimpleNamespace
from unittest.mock import Mock

import lightning as L
import pytest
import torch
from support import overrides_for, run_training, write_table

from jepa.callbacks import progress
from jepa.callbacks.early_stopping import EarlyStopping
from jepa.callbacks.metrics_csv import MetricsCSV
from jepa.callbacks.probe import Probe, embed_all, unnoticed
from jepa.callbacks.progress import Progress


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


def test_the_share_of_data_is_that_of_the_steps_since_the_last_record(monkeypatch):
    clock = SimpleNamespace(now=0.0, perf_counter=lambda: clock.now)
    monkeypatch.setattr(progress, "time", clock)
    loader, logged = SimpleNamespace(seconds=5.0), []
    module = Mock(spec=L.LightningModule)
    module.log = lambda name, value, **_: logged.append((name, value))
    trainer = Mock(spec=L.Trainer, global_step=0, world_size=1, log_every_n_steps=2)
    trainer.train_dataloader, trainer.estimated_stepping_batches = loader, 8
    one = Progress()
    one.on_train_start(trainer, module)
    for batch in range(
        8
    ):  # two batches a step; 1 s of data and 3 s of training each, later 3 and 3
        loader.seconds += 1.0 if batch < 4 else 3.0
        one.on_train_batch_start(trainer, module, None, batch)
        clock.now += 3.0
        trainer.global_step = (batch + 1) // 2
        one.on_train_batch_end(trainer, module, None, {"x": torch.zeros(6)}, batch)
        clock.now += 100.0  # validation, checkpoints
    assert logged == [("time/data_share", 0.25), ("time/data_share", 0.5)]
    assert one.rate == pytest.approx(6 * 8 / 40.0)


FAMILIES = {
    "table": ["data=digits_table", "model.width=8", "model.depth=1", "model.n_heads=2"],
    "images": ["data=digits", "model=hjepa", "model.patch=2", "model.depth=1"],
    "series": ["data=toy_series", "model=patchtst", "model.depth=1"],
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_logs_its_share_of_data(tmp_path, family):
    steps = ["trainer=cpu", "trainer.max_steps=2", "trainer.log_every_n_steps=1", "test=false"]
    rest = ["logger=csv", "callbacks.collapse=null", "callbacks.probe.max_rows=50"]
    run_training(tmp_path / "run", *FAMILIES[family], *steps, *rest)
    with (tmp_path / "run" / "metrics.csv").open() as file:
        shares = [float(r["time/data_share"]) for r in csv.DictReader(file) if r["time/data_share"]]
    assert len(shares) == 2 and all(0.0 < share < 1.0 for share in shares)


def rows_of(run_dir):
    with (run_dir / "metrics.csv").open() as file:
        return [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_logs_what_it_asks_of_the_machine(tmp_path, family):
    steps = ["trainer=cpu", "trainer.max_steps=4", "trainer.log_every_n_steps=2", "test=false"]
    rest = ["logger=csv", "callbacks.collapse=null", "callbacks.probe.max_rows=50"]
    run_training(tmp_path / "run", *FAMILIES[family], *steps, *rest)
    rows = rows_of(tmp_path / "run")
    of_steps = [row for row in rows if "train/loss" in row]
    assert len(of_steps) == 2
    for row in of_steps:
        parts = [row[f"time/{name}_ms"] for name in ("forward", "backward", "optimizer")]
        norms = [row[f"train/{name}_norm"] for name in ("grad", "weight", "update")]
        assert all(0 < part < 60_000 for part in parts) and all(norm > 0 for norm in norms)
    (end,) = [row for row in rows if "memory/mib" in row]
    assert 50 < end["memory/mib"] < 1e6 and end["memory/disk_left_gib"] > 0
    assert 0 < end["time/device_share"] < 2 and end["time/left_s"] == 0


def test_the_time_of_other_callbacks_is_no_part_of_a_step(tmp_path, monkeypatch):
    from jepa.callbacks.heartbeat import Heartbeat

    slow = lambda *_: time.sleep(2)  # noqa: E731
    monkeypatch.setattr(Heartbeat, "on_train_batch_end", slow)
    steps = ["trainer=cpu", "trainer.max_steps=2", "trainer.log_every_n_steps=1", "test=false"]
    rest = ["logger=csv", "callbacks.collapse=null", "callbacks.probe.max_rows=50"]
    run_training(tmp_path / "run", *FAMILIES["series"], *steps, *rest)
    row = [row for row in rows_of(tmp_path / "run") if "train/loss" in row][-1]
    assert row["time/optimizer_ms"] < 1000


def test_removing_what_watches_the_machine_changes_no_weight(tmp_path):
    steps = ["trainer=cpu", "trainer.max_steps=4", "trainer.log_every_n_steps=2", "test=false"]
    rest = ["logger=tensorboard", "callbacks.collapse=null", "callbacks.probe.max_rows=50"]
    off = [f"callbacks.{name}=null" for name in ("norms", "machine", "pictures", "histograms")]
    for name, more in (("on", ["callbacks.histograms.every=1"]), ("off", off)):
        run_training(tmp_path / name, *FAMILIES["images"], *steps, *rest, *more)
    a, b = weights(tmp_path / "on"), weights(tmp_path / "off")
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_norms_are_those_of_the_step():
    from jepa.callbacks.norms import Norms

    layer = torch.nn.Linear(2, 1, bias=False)
    torch.nn.init.constant_(layer.weight, 3.0)
    optimizer, logged = torch.optim.SGD(layer.parameters(), lr=0.1), {}
    trainer = Mock(spec=L.Trainer, global_step=1, log_every_n_steps=2, optimizers=[optimizer])
    module = Mock(spec=L.LightningModule)
    module.log_dict = lambda values, **_: logged.update(values)
    module.log = lambda name, value, **_: logged.update({name: value})
    layer(torch.tensor([[3.0, 4.0]])).sum().backward()
    one = Norms()
    one.on_before_optimizer_step(trainer, module, optimizer)
    optimizer.step()
    one.on_train_batch_end(trainer, module, None, None, 0)
    wanted = {"train/grad_norm": 5.0, "train/weight_norm": 18**0.5, "train/update_norm": 0.5}
    assert logged == {key: pytest.approx(value) for key, value in wanted.items()}
    trainer.global_step = 2  # nobody writes the metrics of this step
    one.on_before_optimizer_step(trainer, module, optimizer)
    assert not one.before


def test_a_step_without_a_gradient_has_no_norms():
    from jepa.callbacks.norms import Norms

    layer = torch.nn.Linear(2, 1)
    module = Mock(spec=L.LightningModule)
    trainer = Mock(spec=L.Trainer, global_step=0, log_every_n_steps=1)
    Norms().on_before_optimizer_step(trainer, module, torch.optim.SGD(layer.parameters()))
    assert not module.log_dict.called


def test_curves_start_at_the_untrained_encoder_and_the_raw_input(tmp_path):
    from jepa.curves import draw_curves, read_curves

    arguments = ["callbacks.probe.max_rows=60", "callbacks.probe.max_val_rows=30", "probes=[auto,knn]"]  # fmt: skip  # noqa: E501
    arguments += ["trainer.max_epochs=2", "trainer.check_val_every_n_epoch=1"]
    run_training(tmp_path / "on", *arguments, "callbacks.probe.at_start=true")
    run_training(tmp_path / "off", *arguments)
    on, off = (read_curves(tmp_path / name / "metrics.csv") for name in ("on", "off"))
    assert set(on) - set(off) == {"raw/ridge/error", "raw/knn/error"}
    for name in ("ridge", "knn"):
        key = f"probe/{name}/error"
        assert on[key][0][:2] == (0.0, 0.0)
        assert [values[::2] for values in on[key][1:]] == [values[::2] for values in off[key]]
        samples, seconds, _ = zip(*on[key], strict=True)
        assert samples[2] == 2 * samples[1] > 0
        assert seconds[2] > seconds[1] > 0
    assert (tmp_path / "off" / "plots" / "probes.png").read_bytes()[:4] == b"\x89PNG"
    assert not draw_curves(tmp_path / "no.png", tmp_path / "no.csv")
    assert not (tmp_path / "no.png").exists()


def test_only_the_named_probes_are_scored_at_validations_and_the_report_has_all(tmp_path):
    arguments = ["callbacks.probe.max_rows=60", "callbacks.probe.max_val_rows=30", "probes=[auto,knn]"]  # fmt: skip  # noqa: E501
    arguments += ["trainer.max_epochs=1", "trainer.check_val_every_n_epoch=1"]
    run_training(tmp_path / "all", *arguments)
    run_training(tmp_path / "one", *arguments, "callbacks.probe.names=[auto]")
    everywhere, one = (columns(tmp_path / name / "metrics.csv") for name in ("all", "one"))
    assert {c.split("/")[1] for c in everywhere - one} == {"knn"}
    reports = [json.loads((tmp_path / n / "report.json").read_text()) for n in ("all", "one")]
    assert reports[0]["metrics"] == reports[1]["metrics"]
    assert "test/knn/error" in reports[1]["metrics"]
    assert reports[0]["objective"] == reports[1]["objective"]


def columns(path):
    return set(path.read_text().splitlines()[0].split(","))


@pytest.mark.parametrize(
    ("names", "says"),
    [
        ("[auto,mlp]", r"names has mlp, but probes=\['ridge', 'knn'\]"),
        ("[knn]", "nothing logs that"),
    ],
)
def test_names_of_no_probe_and_without_the_objective_are_refused(tmp_path, names, says):
    with pytest.raises(ValueError, match=says):
        run_training(tmp_path, "probes=[auto,knn]", f"callbacks.probe.names={names}")
