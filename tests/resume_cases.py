"""Small runs of every model that are cut off somewhere, gone on from, and compared bit for bit."""

import csv
import shutil
import sys

import lightning as L
import support
import torch
from support import SMALL, run_training, write_table

# 24 batches of an epoch are whole groups of 1 and of 4; validations after epochs 2 and, as the
# last step is always validated, 3
PLAN = (
    "trainer=cpu", "trainer.max_epochs=3", "trainer.check_val_every_n_epoch=2", "logger=csv",
    "trainer.log_every_n_steps=1", "trainer.limit_train_batches=8", "test=false",
    "callbacks.resume.every_n_steps=1", "callbacks.resume.every_minutes=null",
    "callbacks.probe.max_rows=60", "callbacks.probe.max_val_rows=40", "report.max_rows=60",
)  # fmt: skip
PATCHTST = ("data=toy_series", "data.n_steps=500", "data.look_back=48", "data.horizon=8", "data.batch_size=16", "model.width=8", "model.depth=1", "model.n_heads=2", "model.dropout=0.2")  # fmt: skip  # noqa: E501
FAMILIES = {
    "tjepa": ("data=table", "data.target=label", *SMALL, "data.batch_size=8", "model.dropout=0.2"),
    "hjepa": (
        "data=toy_images", "model=hjepa", "data.n_images=160", "data.batch_size=8", "augment=light",
        "model.width=16", "model.depth=2", "model.n_heads=2", "model.patch=4", "model.levels=1",
        "model.level_weights=[1.0]", "model.predictor_width=8", "model.predictor_depth=1",
        "model.predictor_n_heads=2", "model.drop_path=0.2",
    ),
    "patchtst": (*PATCHTST, "model=patchtst"),
    "patchtst_ssl": (*PATCHTST, "model=patchtst_ssl"),
    "patchtst_jepa": (*PATCHTST, "model=patchtst_jepa", "model.predictor_width=8"),
}  # fmt: skip


class Killed(Exception):
    """Ends a run as a kill would: nothing is written on the way out."""


class Kill(L.Callback):
    """Stop in an epoch, at a batch or (None) once the epoch is over."""

    def __init__(self, epoch, batch=None):
        self.epoch, self.batch = epoch, batch

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if (trainer.current_epoch, batch_idx) == (self.epoch, self.batch):
            raise Killed

    def on_train_epoch_start(self, trainer, pl_module):
        if self.batch is None and trainer.current_epoch == self.epoch + 1:
            raise Killed


def settings_of(family, folder, *more):
    """Return the overrides of a family; of two that set the same key, the later one stays."""
    path = folder / "table.csv"
    data = [f"data.path={path if path.exists() else write_table(path)}"]
    chosen = {}
    for one in (*FAMILIES[family], *(data if family == "tjepa" else ()), *PLAN, *more):
        chosen[one.split("=")[0].lstrip("+")] = one.lstrip("+")
    return list(chosen.values())


def run_until(kill, run_dir, arguments):
    """Run, and end as told; without `kill` to the end."""
    support.EXTRA[:] = [kill or L.Callback()]
    try:
        run_training(run_dir, *arguments, "+callbacks.kill._target_=support.extra")
    except Killed:
        assert kill is not None
    else:
        assert kill is None, "the run was never at the place to be killed at"
    finally:
        support.EXTRA.clear()


def read(path):
    return torch.load(path, weights_only=True)


def last(run_dir):
    return read(run_dir / "checkpoints" / "last.ckpt")


def differences(a, b, where=""):
    """Yield where two nested values differ; text is left out, as it names directories."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        if not torch.equal(a.nan_to_num(), b.nan_to_num()) or a.dtype != b.dtype:
            yield where
    elif isinstance(a, dict) and isinstance(b, dict):
        if sorted(map(str, a)) != sorted(map(str, b)) and "best_k_models" not in where:
            yield f"{where}: {sorted(map(str, a))} and {sorted(map(str, b))}"
        pairs = zip(a.values(), b.values(), strict=True) if "best_k" in where else None
        for key, (one, other) in zip(a, pairs or [(a[k], b.get(k)) for k in a], strict=True):
            yield from differences(one, other, f"{where}/{key}")
    elif isinstance(a, list | tuple):
        if len(a) != len(b):
            yield f"{where}: {len(a)} and {len(b)} entries"
        for i, (one, other) in enumerate(zip(a, b, strict=False)):
            yield from differences(one, other, f"{where}/{i}")
    elif (not isinstance(a, str) or "metrics.csv" in where) and a != b:
        yield f"{where}: {a} and {b}"


def trace(run_dir):
    """Return the rows of metrics.csv, without times and memory."""
    with (run_dir / "metrics.csv").open() as file:
        rows = [
            {k: v for k, v in row.items() if v and not k.startswith(("time/", "memory/"))}
            for row in csv.DictReader(file)
        ]
    return [row for row in rows if row.keys() - {"epoch", "step"}]


def assert_same_run(a, b):
    """Weights, teacher, optimizer, schedules, random states, callbacks, place, every logged row."""
    one, other = last(a), last(b)
    for content in (one, other):
        del content["callbacks"]["Progress"]["training_s"]  # seconds
    parts = one.keys() - {"metrics_rows"}  # that of times are written or not
    assert parts == other.keys() - {"metrics_rows"}
    if "beartype" in sys.modules:  # it picks the entries of lists to check with python's generator
        for state in (*one["random"], *other["random"]):
            del state["python"]
    found = list(differences({k: one[k] for k in parts}, {k: other[k] for k in parts}))
    found += differences(trace(a), trace(b), "metrics.csv")
    found += differences(best(a), best(b), "best.ckpt")
    assert not found, found


def best(run_dir):
    path = run_dir / "checkpoints" / "best.ckpt"
    return read(path)["state_dict"] if path.exists() else {}


def copy_until(source, target, checkpoint):
    """Copy a finished run as it was when it wrote `checkpoint`, its newest then."""
    shutil.copytree(source, target)
    folder = target / "checkpoints"
    (folder / "last.ckpt").unlink()
    shutil.copy(folder / checkpoint, folder / "last.ckpt")
    for path in folder.glob("step_*.ckpt"):
        path.unlink()
