"""The guard: no broken step reaches the weights, and a run that diverges goes back or stops."""

import json

import lightning as L
import pytest
import support
import torch
from resume_cases import last, settings_of
from support import run_training

QUICK = (
    "trainer.max_epochs=2", "callbacks.collapse=null", "callbacks.early_stopping.patience=null",
    "test=false", "objective=val/loss", "probes=[]",
)  # fmt: skip


class Plant(L.Callback):
    """Put a value into the batches of some steps, and keep the weights around each."""

    def __init__(self, *steps, value=3e38, every=False):
        self.steps, self.value, self.every = steps, value, every
        self.before, self.moved = {}, {}

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        step = trainer.global_step
        if self.every or step in self.steps:
            batch["x"].view(-1)[:3] = self.value
        self.before = state(trainer, pl_module)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        now = state(trainer, pl_module)
        self.moved[trainer.global_step - 1] = any(
            not torch.equal(now[key], self.before.get(key, torch.empty(0))) for key in now
        )


def state(trainer, pl_module):
    """Weights, teacher, running statistics and what the optimizer holds."""
    found = {key: value.clone() for key, value in pl_module.state_dict().items()}
    for i, one in enumerate(trainer.optimizers[0].state.values()):
        found |= {f"{i}/{key}": torch.as_tensor(v).clone() for key, v in one.items()}
    return found


def train(run_dir, callback, arguments):
    support.EXTRA[:] = [callback]
    try:
        run_training(run_dir, *arguments, "+callbacks.plant._target_=support.extra")
    finally:
        support.EXTRA.clear()
    return callback


def arguments_of(family, folder, *more):
    chosen = {}
    for one in (*settings_of(family, folder), *QUICK, *more):
        chosen[one.split("=")[0].lstrip("+")] = one
    return list(chosen.values())


def events(run_dir, kind):
    lines = (run_dir / "events.jsonl").read_text().splitlines()
    return [one for one in map(json.loads, lines) if one["kind"] == kind]


def report(run_dir):
    return json.loads((run_dir / "report.json").read_text())


def test_a_guard_with_nothing_to_do_changes_no_bit(tmp_path):
    plain = arguments_of("tjepa", tmp_path, "guard=none")
    run_training(tmp_path / "off", *plain)
    run_training(tmp_path / "on", *arguments_of("tjepa", tmp_path, "guard.loss_ratio=null"))
    a, b = last(tmp_path / "off"), last(tmp_path / "on")
    assert all(torch.equal(a["state_dict"][key], b["state_dict"][key]) for key in a["state_dict"])
    assert "Guard" in b["callbacks"] and "Guard" not in a["callbacks"]


@pytest.mark.parametrize(
    ("family", "precision", "more"),
    [
        ("tjepa", "32-true", ()),
        ("tjepa", "bf16-mixed", ()),
        ("patchtst_jepa", "32-true", ("model.norm=batch",)),
    ],
)
def test_a_broken_step_reaches_nothing_and_training_goes_on(tmp_path, family, precision, more):
    arguments = arguments_of(family, tmp_path, f"trainer.precision={precision}", *more)
    plant = train(tmp_path / "run", Plant(5, 9), arguments)
    n = last(tmp_path / "run")["global_step"]
    assert {step for step, moved in plant.moved.items() if not moved} == {5, 9}
    assert len(plant.moved) == n == 16
    found = events(tmp_path / "run", "skip")
    assert [one["step"] for one in found] == [5, 9]
    assert [e for e in report(tmp_path / "run")["events"] if e["kind"] == "skip"] == found
    assert all(v.isfinite().all() for v in last(tmp_path / "run")["state_dict"].values())


def test_without_a_guard_a_broken_step_ruins_the_weights(tmp_path):
    with pytest.raises(ValueError, match="not finite"):
        train(tmp_path / "run", Plant(5), arguments_of("tjepa", tmp_path, "guard=none"))
