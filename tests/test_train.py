"""The commands of the README, and what a run leaves behind."""

import csv
import errno
import json
import math
import os
import subprocess
import sys

import pytest
import torch
from omegaconf import OmegaConf
from support import overrides_for, run_training, settings, write_table

slow = [pytest.mark.slow, pytest.mark.ci]


def command(*arguments, cwd, module="jepa.train", check=True, **variables):
    done = subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=600,
        env=os.environ | variables,
        check=False,
    )
    if check and done.returncode:
        raise AssertionError(f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    table = write_table(folder / "table.csv")
    value = run_training(folder / "run", *overrides_for(table))
    return folder / "run", value


def test_a_disk_that_is_full_at_the_end_costs_no_report(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("jepa.samples.write_samples", full)
    run_training(tmp_path / "run", *overrides_for(write_table(tmp_path / "t.csv")))
    content = json.loads((tmp_path / "run" / "report.json").read_text())
    assert content["status"] == "finished" and content["metrics"]
    assert not (tmp_path / "run" / "samples.npz").exists()


def test_a_run_directory_holds_what_is_of_record(finished):
    run_dir, _ = finished
    names = {path.name for path in run_dir.iterdir()}
    assert names == {
        "config.yaml", "environment.json", "metrics.csv", "events.jsonl", "report.json",
        "report.md", "checkpoints", "plots", "samples.npz",
    }  # fmt: skip  # overrides.yaml, train.log and hydra.yaml come from the command
    assert {p.name for p in (run_dir / "checkpoints").iterdir()} == {
        "last.ckpt", "best.ckpt", "step_4.ckpt", "step_8.ckpt", "manifest.json",
    }  # fmt: skip


def test_the_report_has_metrics_with_intervals_beside_the_controls(finished):
    run_dir, value = finished
    report = json.loads((run_dir / "report.json").read_text())
    assert report["status"] == "finished" and "max_epochs=2" in report["reason"]
    assert report["objective"] == {"name": "probe/ridge/error", "value": value}
    error = report["metrics"]["test/ridge/error"]
    assert 0 <= error["low"] <= error["value"] <= error["high"] <= 1 and error["n"] == 24
    for control in ("untrained", "raw", "chance"):
        assert report["controls"][control]["test/ridge/error"]["value"] is not None
    assert report["events"][-1]["kind"] == "end"


def test_checkpoints_load_as_weights_only_and_carry_config_spec_and_preprocessing(finished):
    run_dir, _ = finished
    for name in ("last.ckpt", "best.ckpt"):
        content = torch.load(run_dir / "checkpoints" / name, weights_only=True)
        cfg = OmegaConf.create(content["config"])
        assert cfg == OmegaConf.load(run_dir / "config.yaml")
        assert cfg.objective == "probe/ridge/error"
        assert content["spec"]["columns"] and content["preprocessing"]


def test_metrics_csv_has_the_logged_names(finished):
    run_dir, _ = finished
    with (run_dir / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    seen = {key for row in rows for key, value in row.items() if value}
    assert {"train/loss", "val/loss", "probe/ridge/error", "probe/label_free/rankme"} <= seen


def test_the_same_seed_gives_the_same_run(finished, tmp_path):
    run_dir, value = finished
    table = run_dir.parent / "table.csv"
    assert run_training(tmp_path, *overrides_for(table)) == value
    a, b = (
        torch.load(d / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for d in (run_dir, tmp_path)
    )
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_a_directory_with_checkpoints_is_refused_without_resume(finished):
    run_dir, _ = finished
    before = (run_dir / "report.json").read_text()
    with pytest.raises(ValueError, match="resume=auto"):
        run_training(run_dir, *overrides_for(run_dir.parent / "table.csv"))
    assert (run_dir / "report.json").read_text() == before


def test_a_run_goes_on_from_its_last_checkpoint(tmp_path):
    arguments = overrides_for(write_table(tmp_path / "table.csv"))
    run_training(tmp_path / "run", *arguments)
    run_training(tmp_path / "run", *arguments, "trainer.max_epochs=4", "resume=auto")
    last = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 4 * 4  # 78 training rows: 4 batches of 16 an epoch
    with (tmp_path / "run" / "metrics.csv").open() as file:
        steps = [int(row["step"]) for row in csv.DictReader(file) if row["train/loss"]]
    assert min(steps) < 8 <= max(steps) and steps == sorted(steps)
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    ends = [event["step"] for event in report["events"] if event["kind"] == "end"]
    assert ends == [8, 16]


def test_a_checkpoint_of_another_table_is_refused(finished, tmp_path):
    run_dir, _ = finished
    other = (run_dir.parent / "table.csv").read_text().replace("n3", "renamed")
    (tmp_path / "other.csv").write_text(other)
    arguments = [*overrides_for(tmp_path / "other.csv"), f"resume={run_dir}"]
    with pytest.raises(ValueError, match=r"another table.*renamed"):
        run_training(tmp_path / "run", *arguments)


def test_a_checkpoint_of_another_size_is_refused(finished, tmp_path):
    run_dir, _ = finished
    arguments = [*overrides_for(run_dir.parent / "table.csv"), f"resume={run_dir}", "model.depth=2"]
    with pytest.raises(ValueError, match=r"model\.depth=1"):
        run_training(tmp_path / "run", *arguments)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("objective=probe/rigde/error", "objective=probe/rigde/error"),
        ("criteria=[{name: x, metrik: y}]", "criteria"),
        ("criteria=[{name: x, metric: y, at_most: 1, against: untraned}]", "untraned"),
        ("probes=knn", r"probes=\[knn\]"),
        ("probes=[knm]", "knm"),
        ("trainer.limit_train_batches=3", "accumulate_grad_batches=2"),
    ],
)
def test_what_would_fail_later_fails_before_training(tmp_path, override, message):
    table = write_table(tmp_path / "table.csv")
    arguments = [*overrides_for(table), "trainer.accumulate_grad_batches=2", override]
    with pytest.raises(ValueError, match=message):
        run_training(tmp_path / "run", *arguments)
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_foreign_file_is_refused_whatever_is_in_it(tmp_path):
    from jepa.run import read_checkpoint

    generator = torch.Generator().manual_seed(0)
    for i in range(60):
        content = bytes(torch.randint(0, 256, (50,), generator=generator).tolist())
        (tmp_path / f"{i}.ckpt").write_bytes(b"\x80\x02" * (i % 2) + content)
        with pytest.raises(ValueError, match="not a checkpoint of jepa"):
            read_checkpoint(tmp_path / f"{i}.ckpt")


def test_a_checkpoint_may_call_shipped_constructors_only(finished, tmp_path):
    from jepa.run import load_model

    content = torch.load(finished[0] / "checkpoints" / "last.ckpt", weights_only=True)
    cfg = OmegaConf.create(content["config"])
    cfg.model = {"_target_": "jepa.data.files.fetch", "_partial_": True, "url": "http://x/y"}
    torch.save(content | {"config": OmegaConf.to_yaml(cfg)}, tmp_path / "crafted.ckpt")
    with pytest.raises(Exception, match="whitelist"):
        load_model(tmp_path / "crafted.ckpt")


def test_a_checkpoint_of_another_version_says_which_settings_differ(finished, tmp_path):
    from jepa.run import load_model

    content = torch.load(finished[0] / "checkpoints" / "last.ckpt", weights_only=True)
    cfg = OmegaConf.create(content["config"])
    del cfg.model.momentum_end
    torch.save(content | {"config": OmegaConf.to_yaml(cfg)}, tmp_path / "old.ckpt")
    with pytest.raises(ValueError, match=r"old.ckpt is of another version of jepa.*momentum_end"):
        load_model(tmp_path / "old.ckpt")


def test_max_steps_ends_validated_with_its_weights_and_reason(tmp_path):
    table = write_table(tmp_path / "table.csv")
    run_training(tmp_path / "run", *overrides_for(table), "trainer.max_steps=3", "trainer.max_epochs=9")  # fmt: skip  # noqa: E501
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["reason"] == "trainer.max_steps=3 reached"
    last = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 3
    assert "probe/ridge/error" in (tmp_path / "run" / "metrics.csv").read_text()


def test_max_time_ends_in_good_order(tmp_path):
    table = write_table(tmp_path / "table.csv")
    run_training(
        tmp_path / "run", *overrides_for(table), "trainer.max_epochs=100000",
        "trainer.max_time={seconds: 2}", "callbacks.early_stopping.patience=null",
    )  # fmt: skip
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["status"] == "stopped" and "max_time" in report["reason"]
    assert report["objective"]["value"] is not None


def test_early_stopping_stops_and_says_why(tmp_path):
    table = write_table(tmp_path / "table.csv")
    arguments = [*overrides_for(table), "trainer.max_epochs=50", "callbacks.early_stopping.min_delta=1.0"]  # fmt: skip  # noqa: E501
    run_training(tmp_path / "a", *arguments, "callbacks.early_stopping.patience=2")
    report = json.loads((tmp_path / "a" / "report.json").read_text())
    assert report["status"] == "stopped" and report["reason"].startswith("early stopping")
    steps = torch.load(tmp_path / "a" / "checkpoints" / "last.ckpt", weights_only=True)
    assert steps["epoch"] == 3  # complete: the first validation and two without the gain


def test_without_patience_nothing_stops_early(tmp_path):
    table = write_table(tmp_path / "table.csv")
    run_training(
        tmp_path / "run", *overrides_for(table), "trainer.max_epochs=5",
        "callbacks.early_stopping.min_delta=1.0", "callbacks.early_stopping.patience=null",
    )  # fmt: skip
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["reason"] == "trainer.max_epochs=5 reached"


def test_without_a_validation_split_the_run_says_so_and_ends(tmp_path, capsys):
    table = write_table(tmp_path / "table.csv")
    run_training(
        tmp_path / "run", *overrides_for(table), "data.val_share=0",
        "trainer.check_val_every_n_epoch=10",
    )  # fmt: skip
    assert "early stopping is off" in capsys.readouterr().out
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["objective"]["name"] == "train/loss" and report["status"] == "finished"
    assert report["objective"]["value"] is not None
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").exists()


def test_without_a_test_split_the_report_is_on_val(tmp_path, capsys):
    table = write_table(tmp_path / "table.csv")
    run_training(tmp_path / "run", *overrides_for(table), "data.test_share=0")
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert all(key.startswith("val/") for key in report["metrics"])
    assert "no test split" in capsys.readouterr().out


def test_without_a_target_the_loss_is_the_objective(tmp_path):
    table = write_table(tmp_path / "table.csv")
    run_training(tmp_path / "run", *overrides_for(table), "data.target=null")
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["objective"]["name"] == "val/loss"
    assert math.isfinite(report["metrics"]["test/label_free/rankme"]["value"])


def test_an_effective_batch_becomes_accumulation(tmp_path):
    table = write_table(tmp_path / "table.csv")
    arguments = [*overrides_for(table), "trainer.accumulate_grad_batches=auto"]
    run_training(tmp_path / "a", *arguments, "data.effective_batch_size=32")
    assert OmegaConf.load(tmp_path / "a" / "config.yaml").trainer.accumulate_grad_batches == 2
    last = torch.load(tmp_path / "a" / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 2 * 2  # 78 training rows: 4 batches, so 2 groups an epoch


def test_a_batch_that_does_not_divide_the_effective_one_is_lowered(tmp_path):
    table = write_table(tmp_path / "table.csv")
    arguments = [*overrides_for(table), "trainer.accumulate_grad_batches=auto"]
    run_training(tmp_path / "a", *arguments, "data.effective_batch_size=20")
    cfg = OmegaConf.load(tmp_path / "a" / "config.yaml")
    assert (cfg.data.batch_size, cfg.trainer.accumulate_grad_batches) == (10, 2)  # 16 was asked for
    last = torch.load(tmp_path / "a" / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 2 * 3  # 78 training rows: 3 steps of 20 an epoch
    with pytest.raises(ValueError, match=r"needs data\.effective_batch_size"):
        run_training(tmp_path / "b", *arguments)


@pytest.mark.parametrize("choice", ["ridge", "knn", "logistic", "sgd_linear", "mlp", "few_shot"])
def test_any_probe_can_stand_behind_the_objective(choice, tmp_path):
    table = write_table(tmp_path / "table.csv")
    from hydra import compose, initialize_config_dir

    from jepa.config import CONF
    from jepa.train import train

    with initialize_config_dir(str(CONF), job_name="config"):
        cfg = compose("config", [
            f"run_dir={tmp_path}", "study=s", f"probe_name={choice}", *overrides_for(table),
            f"probe={choice}", "trainer.max_epochs=1",
        ])  # fmt: skip
    value = train(cfg, tmp_path)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["objective"] == {"name": f"probe/{choice}/error", "value": value}


def test_mps_says_which_variable_it_set_and_trains_in_float32(tmp_path, monkeypatch, capsys):
    from jepa.train import set_variables

    monkeypatch.delenv("PYTORCH_ENABLE_MPS_FALLBACK", raising=False)
    cfg = settings(tmp_path, "trainer=mps")
    set_variables(cfg)
    assert os.environ["PYTORCH_ENABLE_MPS_FALLBACK"] == "1"
    assert "PYTORCH_ENABLE_MPS_FALLBACK=1" in capsys.readouterr().out
    assert cfg.trainer.precision == "32-true" and cfg.trainer.accelerator == "mps"
    monkeypatch.delenv("PYTORCH_ENABLE_MPS_FALLBACK")


def test_a_model_of_another_kind_of_data_names_a_fitting_one():
    from jepa.models.tjepa import _check_columns

    with pytest.raises(ValueError, match="data=table"):
        _check_columns(object(), n_reg=1, representation="flatten")


def test_counting_flops_leaves_the_model_as_it_was():
    import lightning as L

    from jepa.screen import count_flops

    class Model(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))

        def loss(self, x):
            return self.net(x).square().mean()

    model = Model().train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert count_flops(model, torch.randn(8, 4)) == 2 * 2 * 4 * 3  # x takes no gradient
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


class TestCommand:
    pytestmark = slow

    def test_the_readmes_command_for_a_table_of_ones_own(self, tmp_path):
        write_table(tmp_path / "my table (1).csv")
        arguments = [a for a in overrides_for(tmp_path) if not a.startswith("data.path")]
        done = command(
            'data.path="my table (1).csv"', *arguments, "hydra.run.dir=out", cwd=tmp_path
        )
        before = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir() if p.is_file()}
        again = command(
            'data.path="my table (1).csv"', *arguments, "hydra.run.dir=out", cwd=tmp_path,
            check=False,
        )  # fmt: skip
        assert again.returncode == 2 and "resume=auto" in again.stderr
        after = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir() if p.is_file()}
        assert before == after
        names = {path.name for path in (tmp_path / "out").iterdir()}
        assert {"config.yaml", "overrides.yaml", "train.log", "report.json"} <= names
        assert "samples/s" in (tmp_path / "out" / "train.log").read_text()
        for shown in ("config", "MFLOP per training sample", "untrained", "95 % interval"):
            assert shown in done.stdout
        # and the same run again through the evaluate command
        evaluated = command(
            "run=out", "probe=sgd_linear", "probe.lr=0.01", "probe.n_epochs=3", "split=val",
            "logger=mlflow",
            cwd=tmp_path, module="jepa.evaluate",
        )  # fmt: skip
        assert "val/sgd_linear/error" in evaluated.stdout
        assert (tmp_path / "runs" / "mlflow.db").exists()
        content = json.loads((tmp_path / "out" / "evaluation.json").read_text())
        assert content["metrics"]["val/sgd_linear/accuracy"]["n"] > 0

    def test_two_processes_train_one_model_and_write_one_report(self, tmp_path):
        table = write_table(tmp_path / "table.csv")
        arguments = [a for a in overrides_for(table) if a != "trainer=cpu"]
        command(
            *arguments, "trainer=ddp_cpu", "data.batch_size=8", "hydra.run.dir=out", cwd=tmp_path
        )
        report = json.loads((tmp_path / "out" / "report.json").read_text())
        assert report["status"] == "finished"
        assert report["metrics"]["test/ridge/error"]["n"] == 24
        reports = [p for p in tmp_path.rglob("report.json")]
        assert len(reports) == 1

    def test_a_bare_optuna_sweep_searches_the_models_own_space(self, tmp_path):
        table = write_table(tmp_path / "table.csv")
        arguments = [a for a in overrides_for(table) if not a.startswith("model.")]
        script = [os.path.join(os.path.dirname(sys.executable), "jepa-train")]
        done = subprocess.run(
            [*script, "-m", "hydra/sweeper=optuna", *arguments, "hydra.sweeper.n_trials=2",
             "hydra.sweeper.n_jobs=1", "trainer.max_epochs=1", "hydra.sweep.dir=sweep"],
            cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        assert "model." in (tmp_path / "sweep" / "optimization_results.yaml").read_text()

    def test_a_failing_run_leaves_a_report_and_one_message(self, tmp_path):
        (tmp_path / "bad.csv").write_text("a,label\n1,x\n2,x\n3,x\n4,x\n")
        done = command(
            "data=table", "data.path=bad.csv", "data.target=label", "hydra.run.dir=out",
            cwd=tmp_path, check=False,
        )  # fmt: skip
        assert done.returncode == 1 and "Traceback" not in done.stderr
        assert done.stderr.count("error:") == 1 and "label" in done.stderr
        report = json.loads((tmp_path / "out" / "report.json").read_text())
        assert report["status"] == "failed" and "label" in report["reason"]
        assert not (tmp_path / "out" / "checkpoints").exists()

    def test_a_full_disk_ends_with_one_message(self, tmp_path):
        write_table(tmp_path / "t.csv")
        arguments = overrides_for(tmp_path / "t.csv")
        limit = "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (40000,) * 2); "  # fmt: skip  # noqa: E501
        start = "sys.argv = ['jepa.train'] + sys.argv[1:]; runpy.run_module('jepa.train', run_name='__main__')"  # fmt: skip  # noqa: E501
        done = subprocess.run(
            [sys.executable, "-c", limit + start, *arguments, "hydra.run.dir=out"],
            cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == 1, done.stdout + done.stderr
        assert done.stderr.count("error:") == 1 and "disk is full" in done.stderr
        assert "Traceback" not in done.stderr
        report = json.loads((tmp_path / "out" / "report.json").read_text())
        assert report["status"] == "failed"
        assert not list((tmp_path / "out" / "checkpoints").glob("*"))

    def test_an_unknown_key_writes_nothing(self, tmp_path):
        done = command("model.widht=3", cwd=tmp_path, check=False)
        assert done.returncode == 2 and "did you mean model.width" in done.stderr
        assert not list(tmp_path.iterdir())

    def test_a_pickle_posing_as_a_checkpoint_runs_nothing(self, tmp_path):
        import pickle

        class Evil:
            def __reduce__(self):
                return (os.system, (f"touch {tmp_path}/ran",))

        (tmp_path / "evil.ckpt").write_bytes(pickle.dumps(Evil()))
        torch.save({"state_dict": Evil()}, tmp_path / "evil2.ckpt")
        for name in ("evil.ckpt", "evil2.ckpt"):
            done = command(f"run={name}", cwd=tmp_path, module="jepa.evaluate", check=False)
            assert done.returncode == 1 and "not a checkpoint of jepa" in done.stderr
        assert not (tmp_path / "ran").exists()
