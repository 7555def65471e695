"""The batch planner's peak beside the one measured, for a dozen shapes of the three families.

Measured is the resident memory of a fresh process at one thread: its peak over eight steps (loss,
gradient, clipping, AdamW, slow copy) at the most crowded masks, less what it held before the model
was built. The process has taken a step of a tiny model by then, so that libraries are loaded. It is
measured twice: with malloc as training sets it, whose heap keeps what was freed, and as the planner
expects; and with every piece above 64 KiB mapped on its own, which shows what the tensors take.
"""

import gc
import math
import multiprocessing
import os
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from rich.console import Console
from rich.table import Table

from jepa.allocator import keep_memory
from jepa.config import CONF
from jepa.plan import plan_batch
from jepa.run import FROM_THE_USER
from jepa.spec import ImageSpec, SeriesSpec, TabularSpec
from jepa.step_memory import build_unallocated, loss_arguments

N_STEPS = 8
TINY = dict(width=16, depth=1, n_heads=2)
PREDICTOR = dict(predictor_width=16, predictor_depth=1, predictor_n_heads=2)
WIDE = dict(width=64, depth=4, n_heads=8, dropout=0.1, predictor_width=64)
LARGE = dict(width=512, depth=12, n_heads=8, predictor_width=512, predictor_depth=6)
ETTH1 = dict(width=16, n_heads=4, mlp_ratio=8.0, dropout=0.3)
MIXED = dict(channels="mixed", norm="layer", pre_norm=True, residual_attention=False)
DEEP = MIXED | dict(patch=10, stride=5, width=512, depth=24, n_heads=8, mlp_ratio=4.0)
# (model, size of a sample, settings, batch)
Shape = tuple[str, int, dict[str, Any], int]
SHAPES: list[Shape] = [
    ("tjepa", 28, WIDE, 512),
    ("tjepa", 28, WIDE | {"n_target_masks": 4}, 512),
    ("tjepa", 128, WIDE, 256),
    ("tjepa", 28, LARGE, 16),
    ("patchtst", 7, ETTH1, 128),
    ("patchtst", 7, ETTH1 | {"recompute": True}, 128),
    ("patchtst", 21, {}, 128),
    ("patchtst", 25, DEEP, 64),
    ("hjepa", 32, {}, 64),
    ("hjepa", 32, dict(width=192, depth=12, n_heads=3, target_norm="layer"), 64),
    ("hjepa", 64, dict(width=256, depth=6, n_heads=8, levels=1, level_weights=[1.0]), 32),
    ("hjepa", 32, dict(width=384, depth=8, n_heads=6, gradient_checkpointing=True), 64),
]


def spec_of(model: str, size: int) -> TabularSpec | SeriesSpec | ImageSpec:
    """Describe `size` numeric columns, `size` channels of 336 steps, or images of that side."""
    names = tuple(f"c{i}" for i in range(size))
    if model == "tjepa":
        return TabularSpec(
            columns=names, cardinalities=(0,) * size, quantiles=((0.0, 1.0),) * size, task="none"
        )
    if model == "patchtst":
        return SeriesSpec(
            channels=names,
            look_back=60 if size == 25 else 336,
            horizon=1 if size == 25 else 96,
            location=(0.0,) * size,
            scale=(1.0,) * size,
            task="binary" if size == 25 else "forecast",
        )
    channel = (0.5,) * 3
    return ImageSpec(n_channels=3, height=size, width=size, mean=channel, std=channel, task="none")


def build(model: str, size: int, **settings) -> torch.nn.Module:
    """Build a shipped model with other settings."""
    with initialize_config_dir(str(CONF), job_name="config"):
        cfg = compose("config", [f"model={model}", "run_dir=unused", "study=unused"])
    with FROM_THE_USER:
        return instantiate(cfg.model, **settings)(spec=spec_of(model, size))


def train(model: torch.nn.Module, batch: int, n_steps: int) -> None:
    """Take steps as Lightning takes them: gradients go after the way forward."""
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = model.optimizer([{"params": trained}])
    arguments = loss_arguments(model, batch, device=torch.device("cpu"), dtype=torch.float32)
    arguments["x"].normal_()
    for _ in range(n_steps):
        loss = model.loss(**arguments)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        if hasattr(model, "teacher"):
            model.teacher.update(model.encoder, 0.9)
        del loss


def held(kind: str) -> int:
    """Resident bytes of this process: now (`VmRSS`), or at most since the last reset (`VmHWM`)."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{kind}:")[1].split()[0]) * 1024


def measure(connection: Any, shape: Shape, mapped: bool) -> None:
    """Send bytes: predicted, predicted of the tensors alone, measured."""
    torch.set_num_threads(1)
    if not mapped:
        keep_memory()
    model, size, settings, batch = shape
    small = TINY | (PREDICTOR if model != "patchtst" else {})
    train(build(model, size, **settings | small), 2, 2)
    made = build_unallocated(partial(build, model, size, **settings))
    plan = plan_batch(made, effective_batch=batch, device_bytes=2**60)
    made.heap_share = 1.0  # pyright: ignore[reportAttributeAccessIssue]
    tensors = plan_batch(made, effective_batch=batch, device_bytes=2**60)
    del made
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    before = held("VmRSS")
    train(build(model, size, **settings), batch, N_STEPS)
    connection.send((plan.peak_bytes, tensors.peak_bytes, held("VmHWM") - before))


def in_fresh_process(shape: Shape, *, mapped: bool) -> tuple[int, int, int]:
    """Measure one shape where nothing else has allocated; `mapped`: without glibc's heap."""
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe(duplex=False)
    process = context.Process(target=measure, args=(theirs, shape, mapped))
    if mapped:
        os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"  # glibc reads it as a process starts
    process.start()
    os.environ.pop("MALLOC_MMAP_THRESHOLD_", None)
    theirs.close()
    try:
        return mine.recv()
    finally:
        process.join()


def run(console: Console, *, quick: bool, compiled: bool) -> list[dict[str, Any]]:
    """Print predicted and measured peaks; `quick` takes one shape of each family."""
    if not Path("/proc/self/clear_refs").exists():
        console.print("the peak of a process is measured on Linux only")
        return []
    table = Table("model", "size", "batch", "settings", title="peak of a training step, MiB")
    for name in ("plan", "measured", "ratio", "tensors", "measured", "ratio"):
        table.add_column(name, justify="right")
    figures = []
    for shape in SHAPES[::4] if quick else SHAPES:
        model, size, settings, batch = shape
        planned, tensors, heap = in_fresh_process(shape, mapped=False)
        mapped = in_fresh_process(shape, mapped=True)[2]
        sizes = ", ".join(f"{key} {value}" for key, value in settings.items())
        pairs = [(planned, heap), (tensors, mapped)]
        cells = [f(n) for a, b in pairs for f, n in ((mib, a), (mib, b), ("{:.2f}".format, a / b))]
        table.add_row(model, str(size), str(batch), sizes, *cells)
        figures.append(
            dict(model=model, size=size, batch=batch, settings=settings)
            | dict(planned=planned, heap=heap, tensors=tensors, mapped=mapped)
        )
        console.print(f"{model} {size} {batch}: {cells}")
    console.print(table)
    for a, b in (("planned", "heap"), ("tensors", "mapped")):
        ratios = [figure[a] / figure[b] for figure in figures]
        worst = max(ratios, key=lambda ratio: abs(math.log(ratio)))
        within = sum(abs(ratio - 1) <= 0.15 for ratio in ratios)
        console.print(f"{a}/{b}: {within} of {len(ratios)} within 15 %, furthest {worst:.2f}")
    return figures


def mib(n: int) -> str:
    """Write bytes in MiB."""
    return f"{n / 2**20:,.0f}"
