"""A few steps of a small T-JEPA under the guard, with something planted in them."""

import json
from functools import partial

import lightning as L
import torch
from test_knobs import BASE, SPEC
from torch.utils.data import DataLoader

from jepa.callbacks.guard import Guard
from jepa.models.tjepa import TJEPA

HUGE = 3e38  # a number that is none after the first product
SETTINGS = dict(
    monitor="val/loss",
    max_skips=5,
    max_restores=3,
    dumps=0,
    every_share=0.025,
    loss_ratio=None,
    smoothing=2,
    rising=None,
    over_budget=False,
    out_of_memory=False,
    parts=False,
)


class Plant(L.Callback):
    """Put a value into the batches of some steps; note before each step what it can change."""

    def __init__(self, *steps, value=HUGE, micro=None):
        self.steps, self.value, self.micro = steps, value, micro
        self.before, self.moved, self.rates = {}, {}, []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        chosen = self.micro is None or batch_idx % trainer.accumulate_grad_batches == self.micro
        if trainer.global_step in self.steps and chosen:
            batch["x"].view(-1)[:3] = self.value
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self.before = state(trainer, pl_module)
            self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        now, before = state(trainer, pl_module), self.before
        same = all(key in before and torch.equal(now[key], before[key]) for key in now)
        self.moved[trainer.global_step - 1] = not same


def state(trainer, pl_module):
    """Weights, teacher, running statistics and what the optimizer holds."""
    found = {key: value.clone() for key, value in pl_module.state_dict().items()}
    for i, one in enumerate(trainer.optimizers[0].state.values()):
        found |= {f"{i}/{key}": torch.as_tensor(v).clone() for key, v in one.items()}
    return found


class Silent(Guard):
    """As if there were none."""

    on_train_start = on_train_batch_start = on_before_backward = lambda self, *args: None
    on_before_optimizer_step = on_train_batch_end = on_validation_end = lambda self, *args: None
    on_train_epoch_end = on_exception = lambda self, *args: None


def fit(tmp_path, *callbacks, n_steps=12, settings=None, knobs=None, guard=Guard, **trainer):
    """Train; return the trainer, the model and the guard."""
    guard = guard(run_dir=str(tmp_path), **SETTINGS | (settings or {}))
    torch.manual_seed(0)
    rows = torch.randn(8 * n_steps * trainer.get("accumulate_grad_batches", 1), 8)
    rows[:, 6:] = 1.0
    own = BASE | {"warmup_share": 0.0} | (knobs or {})
    optimizer = partial(torch.optim.AdamW, lr=1e-2)
    model = TJEPA(spec=SPEC, optimizer=optimizer, **own)
    runner = L.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[*callbacks, guard],
        **{"max_steps": n_steps, "gradient_clip_val": 1.0} | trainer,
    )  # fmt: skip
    val = DataLoader([{"x": rows[:8].clone()}], batch_size=None)
    runner.fit(model, DataLoader([{"x": one} for one in rows.split(8)], batch_size=None), val)
    return runner, model, guard


def read(run_dir):
    path = run_dir / "events.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def events(run_dir, kind):
    return [one for one in read(run_dir) if one["kind"] == kind]
