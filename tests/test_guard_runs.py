"""Whole runs that fail somewhere: what is written down, replayed, and gone on with."""

import json
import shutil
import sys

import lightning as L
import pytest
import support
import torch
from guard_cases import Plant, events
from resume_cases import Kill, Killed, assert_same_run, last, settings_of
from support import run_training

from jepa import replay as command
from jepa.failures import failed_part, is_out_of_memory
from jepa.micro_batch import smaller
from jepa.replaying import replay
from jepa.run import load_model

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
SLOW = (pytest.mark.slow, pytest.mark.ci)
QUICK = (
    "trainer.max_epochs=2", "callbacks.collapse=null", "callbacks.early_stopping.patience=null",
    "objective=val/loss", "probes=[]",
)  # fmt: skip


def arguments_of(family, folder, *more):
    chosen = {}
    for one in (*settings_of(family, folder), *QUICK, *more):
        chosen[one.split("=")[0].lstrip("+")] = one
    return list(chosen.values())


def train(run_dir, callback, arguments):
    support.EXTRA[:] = [callback]
    try:
        run_training(run_dir, *arguments, "+callbacks.plant._target_=support.extra")
    except Killed:
        pass
    finally:
        support.EXTRA.clear()


def report(run_dir):
    return json.loads((run_dir / "report.json").read_text())


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """A run whose steps from the sixth on are broken: dumped, gone back from once, stopped."""
    folder = tmp_path_factory.mktemp("broken")
    settings = ("guard.max_skips=1", "guard.max_restores=1", "guard.dumps=2", "model.dropout=0.2")
    train(folder / "run", Plant(*range(6, 99)), arguments_of("tjepa", folder, *settings))
    return folder / "run"


def test_a_run_of_broken_steps_stops_with_a_verdict_in_its_report(broken):
    found = report(broken)
    assert found["status"] == "stopped" and "2 broken steps" in found["reason"]
    assert "lower model.optimizer.lr" in found["reason"]
    kinds = [one["kind"] for one in found["events"]]
    assert kinds == ["skip", "skip", "restore", "skip", "skip", "guard_stop", "end"]
    assert len(list((broken / "dumps").iterdir())) == 2
    assert all(value.isfinite().all() for value in last(broken)["state_dict"].values())


def test_a_dump_replays_its_step(broken):
    _, model, content = load_model(broken / "dumps" / "step_6" / "step.ckpt")
    found = replay(model, content, torch.device("cpu"))
    assert found.broken and found.activation and found.gradient
    content["batches"][0]["batch"]["x"].view(-1)[:3] = 0.0
    _, model, _ = load_model(broken / "dumps" / "step_6" / "step.ckpt")
    assert not replay(model, content, torch.device("cpu")).broken


@pytest.mark.slow
@pytest.mark.ci
def test_the_loss_of_a_replay_is_the_loss_of_the_run_to_the_last_bit(tmp_path):
    class Spoil(L.Callback):  # the loss is sound, and draws from the generators
        def on_after_backward(self, trainer, pl_module):
            if trainer.global_step == 3:
                next(iter(pl_module.encoder.parameters())).grad.view(-1)[0] = torch.nan

    more = ("model.dropout=0.2", "trainer.accumulate_grad_batches=2")
    train(tmp_path / "run", Spoil(), arguments_of("tjepa", tmp_path, *more))
    _, model, content = load_model(tmp_path / "run" / "dumps" / "step_3" / "step.ckpt")
    found = replay(model, content, torch.device("cpu"))
    assert found.losses == content["losses"].tolist() and len(found.losses) == 2
    assert not found.broken  # what was planted is not in the batch


@pytest.mark.parametrize(("sound", "code"), [(False, 0), (True, 1)])
def test_the_command_says_what_it_finds(broken, tmp_path, capsys, monkeypatch, sound, code):
    shutil.copytree(broken / "dumps" / "step_6", tmp_path / "step_6")
    path = tmp_path / "step_6" / "step.ckpt"
    if sound:
        content = torch.load(path, weights_only=True)
        content["batches"][0]["batch"]["x"].zero_()
        torch.save(content, path)
    monkeypatch.setattr(sys, "argv", ["replay", f"dump={tmp_path / 'step_6'}", "accelerator=cpu"])
    if sound:
        with pytest.raises(SystemExit) as ended:
            command.cli()
        assert ended.value.code == code
    else:
        command.cli()
    text = capsys.readouterr().out
    assert ("NOT reproduced" in text) == sound
    assert ("first activation that is not finite: none" in text) == sound


@pytest.mark.slow
@pytest.mark.ci
def test_batch_statistics_of_a_broken_step_are_put_back(tmp_path):
    plant = Plant(5)
    train(tmp_path / "run", plant, arguments_of("patchtst_jepa", tmp_path, "model.norm=batch"))
    assert [step for step, moved in plant.moved.items() if not moved] == [5]
    assert any("running_mean" in key for key in plant.before)


def test_a_guard_that_is_off_is_not_there(tmp_path):
    with pytest.raises(ValueError, match="not finite"):  # of the report
        train(tmp_path / "run", Plant(5), arguments_of("tjepa", tmp_path, "guard=none"))
    assert "Guard" not in last(tmp_path / "run")["callbacks"]
    assert not events(tmp_path / "run", "skip") and not (tmp_path / "run" / "dumps").exists()


class Hungry(L.Callback):
    """Run out of memory above a number of rows, from a step on."""

    def __init__(self, *, most, step, micro=0, error=MemoryError):
        self.most, self.step, self.micro, self.error, self.sizes = most, step, micro, error, []

    def on_before_backward(self, trainer, pl_module, loss):
        rows = trainer.datamodule.batch_size
        self.sizes.append((trainer.global_step, rows, trainer.accumulate_grad_batches))
        n = trainer.fit_loop.epoch_loop.batch_progress.current.ready - 1
        due = trainer.global_step > self.step or n % trainer.accumulate_grad_batches >= self.micro
        if rows > self.most and trainer.global_step >= self.step and due:
            raise self.error("out of memory, as planted")


@pytest.mark.parametrize(
    ("step", "accumulate", "micro"),
    [(2, 2, 1), pytest.param(3, 1, 0, marks=SLOW), pytest.param(0, 1, 0, marks=SLOW)],
)
def test_less_memory_goes_on_from_the_step_with_the_same_effective_batch(
    tmp_path, step, accumulate, micro
):
    hungry = Hungry(most=3, step=step, micro=micro)
    more = (f"trainer.accumulate_grad_batches={accumulate}", "callbacks.resume.every_n_steps=null")
    train(tmp_path / "run", hungry, arguments_of("tjepa", tmp_path, *more))
    tried = sorted({(rows, n) for _, rows, n in hungry.sizes}, reverse=True)
    assert tried == [(8, accumulate), (4, 2 * accumulate), (2, 4 * accumulate)]
    assert min(at for at, rows, _ in hungry.sizes if rows < 8) == step
    found = events(tmp_path / "run", "retry")
    assert [one["changes"]["data.batch_size"] for one in found] == [[8, 4], [4, 2]]
    assert report(tmp_path / "run")["status"] == "finished"
    assert last(tmp_path / "run")["global_step"] == 2 * 8 // accumulate
    taken = [at for at, rows, _ in hungry.sizes if rows == 2]
    assert sorted(taken) == sorted([*range(step, 16 // accumulate)] * 4 * accumulate)


@pytest.mark.slow
@pytest.mark.ci
def test_the_rows_after_running_out_of_memory_are_those_that_were_left(tmp_path):
    class Rows(L.Callback):
        def __init__(self):
            self.seen = []

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            self.seen += batch["x"].nan_to_num().sum(1).tolist()

    def rows(name, *callbacks):
        seen = Rows()
        arguments = arguments_of("tjepa", tmp_path, "trainer.max_epochs=1")
        train(tmp_path / name, Together([seen, *callbacks]), arguments)
        return seen.seen

    whole = rows("a")
    assert len(whole) == 64 and rows("b", Hungry(most=4, step=3)) == whole


class Together(L.Callback):
    def __init__(self, callbacks):
        self.callbacks = callbacks

    def on_before_backward(self, *args):
        [one.on_before_backward(*args) for one in self.callbacks]

    def on_train_batch_end(self, *args):
        [one.on_train_batch_end(*args) for one in self.callbacks]


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize("off", ["guard=none", "guard.out_of_memory=false"])
def test_without_the_rung_running_out_of_memory_ends_the_run(tmp_path, off):
    with pytest.raises(MemoryError):
        train(tmp_path / "run", Hungry(most=3, step=1), arguments_of("tjepa", tmp_path, off))
    assert not events(tmp_path / "run", "retry")


@pytest.mark.slow
@pytest.mark.ci
def test_a_run_gone_on_with_later_keeps_the_smaller_micro_batch(tmp_path):
    class Both(Together):
        def on_train_batch_end(self, *args):
            self.callbacks[1].on_train_batch_end(*args)

    arguments = arguments_of("tjepa", tmp_path)
    train(tmp_path / "run", Both([Hungry(most=4, step=2), Kill(1, 5)]), arguments)
    hungry = Hungry(most=4, step=2)
    train(tmp_path / "run", hungry, [*arguments, "resume=auto"])
    assert {rows for _, rows, _ in hungry.sizes} == {4}
    assert len(events(tmp_path / "run", "retry")) == 1


def test_a_run_that_went_back_goes_on_after_a_kill_as_it_would_have(tmp_path):
    settings = ("guard.max_skips=0", "guard.every_share=0.0625", "model.final_lr_share=1.0")
    arguments = arguments_of("tjepa", tmp_path, *settings)
    train(tmp_path / "whole", Plant(4), arguments)
    assert len(events(tmp_path / "whole", "restore")) == 1

    class Both(Plant):
        def on_train_batch_end(self, *args):
            Kill(1, 3).on_train_batch_end(*args)

    train(tmp_path / "run", Both(4), arguments)
    train(tmp_path / "run", Plant(), [*arguments, "resume=auto"])
    assert_same_run(tmp_path / "whole", tmp_path / "run")
    groups = last(tmp_path / "run")["lr_schedulers"]
    assert groups[0]["base_lrs"] == [5e-4, 5e-4]


class Fails(RuntimeError):
    pass


def breaks(*args, **kwargs):
    raise Fails("as planted")


HIERARCHY = ("model.levels=2", "model.level_weights=[1.0,1.0]", "model.pyramid=add")


def test_a_failing_pyramid_is_left_out_once_and_said(tmp_path, monkeypatch, capsys):
    import jepa.nn.pyramid

    monkeypatch.setattr(jepa.nn.pyramid, "enlarge", breaks)
    train(tmp_path / "run", L.Callback(), arguments_of("hjepa", tmp_path, *HIERARCHY))
    assert "pyramid failed: going on with model.pyramid=none" in capsys.readouterr().out
    found = events(tmp_path / "run", "retry")
    assert [one["changes"] for one in found] == [{"model.pyramid": ["add", "none"]}]
    assert "Fails" in found[0]["error"] and report(tmp_path / "run")["status"] == "finished"


def test_a_second_failing_part_ends_the_run_and_prints_the_conservative_command(
    tmp_path, monkeypatch, capsys
):
    import jepa.nn.losses
    import jepa.nn.pyramid

    monkeypatch.setattr(jepa.nn.pyramid, "enlarge", breaks)
    monkeypatch.setattr(jepa.nn.losses.F, "cross_entropy", breaks)
    monkeypatch.setattr(sys, "argv", ["train", "model.width=16", "resume=auto"])
    with pytest.raises(Fails):
        train(
            tmp_path / "run", L.Callback(),
            arguments_of("hjepa", tmp_path, *HIERARCHY, "model.nt_xent=0.5"),
        )  # fmt: skip
    text = capsys.readouterr().out.replace("\n", "")
    assert "python -m jepa.train model.width=16 model.attention=plain model.pyramid=none model.nt_xent=0.0" in text  # fmt: skip  # noqa: E501
    assert len(events(tmp_path / "run", "retry")) == 1


@pytest.mark.parametrize("off", ["guard=none", "guard.parts=false"])
def test_without_the_rung_a_failing_part_ends_the_run(tmp_path, monkeypatch, off):
    import jepa.nn.pyramid

    monkeypatch.setattr(jepa.nn.pyramid, "enlarge", breaks)
    with pytest.raises(Fails):
        train(tmp_path / "run", L.Callback(), arguments_of("hjepa", tmp_path, *HIERARCHY, off))


def test_a_failing_compilation_is_left_out(tmp_path, monkeypatch):
    from torch._dynamo.exc import InternalTorchDynamoError

    def fails(self, **_):
        def forward(*args, **kwargs):
            raise InternalTorchDynamoError("as planted")

        self.forward = forward

    monkeypatch.setattr(torch.nn.Module, "compile", fails)
    train(tmp_path / "run", L.Callback(), arguments_of("tjepa", tmp_path, "model.compile=true"))
    found = events(tmp_path / "run", "retry")
    assert [one["changes"] for one in found] == [{"model.compile": [True, False]}]


def error_of(function, *args):
    try:
        function(*args)
    except Exception as error:
        return error
    raise AssertionError


def test_attention_fails_where_its_kernel_does(monkeypatch):
    from jepa.nn import vit

    monkeypatch.setattr(vit.F, "scaled_dot_product_attention", breaks)
    q = torch.randn(1, 2, 3, 4)
    error = error_of(vit.attend, q, q, q, "sdpa")
    assert failed_part(error, {"attention": "auto"}) == "attention"
    assert failed_part(error, {"attention": "plain"}) == ""
    assert failed_part(error, {"width": 8}) == ""


def test_the_users_own_errors_are_no_failing_part():
    from jepa.nn.pyramid import Pyramid

    def build():
        Pyramid(8, 8, levels=1, kind="add")

    model = {"pyramid": "add", "compile": True, "nt_xent": 1.0, "attention": "auto"}
    assert failed_part(error_of(build), model) == ""
    assert failed_part(error_of(int, "x"), model) == ""


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 18 GB)"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("data.path: out of memory"), False),
    ],
)  # fmt: skip
def test_memory_errors_are_known_on_every_device(error, expected):
    assert is_out_of_memory(error) == expected


def test_micro_batches_shrink_by_their_smallest_factor():
    assert [smaller(n) for n in (16, 9, 7, 1)] == [2, 3, 7, 1]
