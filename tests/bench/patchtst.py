"""PatchTST's training step and evaluation at two published shapes, beside a plain restatement.

One step is: gather the windows, loss, gradient, optimizer. The floor is the products of the plain
step over the matrix-product rate of the same run. Evaluation is `score_forecasts`, whose memory
must not grow with the number of windows. Values are synthetic; loading no file is measured.
"""

from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import torch
import yaml
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from jepa.data.batches import Batches, OrderedBatches
from jepa.data.windows import Windows
from jepa.forecasting import score_forecasts
from jepa.models.patchtst import PatchTST
from jepa.spec import SeriesSpec
from tests.bench.machine import interleave, matmul_rate, median, peak_mb, seconds
from tests.bench.official_patchtst import Official, WindowSet

LOOK_BACK, HORIZON, BATCH, N_STEPS = 336, 96, 128, 4
PATCHES = {"patch": 16, "stride": 8, "depth": 3}
SHAPES = {
    "etth1": {"n_channels": 7, "width": 16, "n_heads": 4, "hidden": 128, "dropout": 0.3},
    "weather": {"n_channels": 21, "width": 128, "n_heads": 16, "hidden": 256, "dropout": 0.2},
}
OURS, OFFICIAL = "ours", "official"
FEW, MANY = 512, 2048  # windows evaluated to see whether memory grows


def values_of(n_channels: int, n_windows: int) -> np.ndarray:
    """Draw normal numbers [t, c] that hold so many windows."""
    rng = np.random.default_rng(0)
    n_steps = n_windows + LOOK_BACK + HORIZON - 1
    return rng.normal(size=(n_steps, n_channels)).astype(np.float32)


def build(shape: dict, **settings) -> PatchTST:
    """Our model at the authors' sizes; what the shape does not say is as in the preset."""
    preset = yaml.safe_load(Path("conf/model/patchtst.yaml").read_text())
    preset = {key: value for key, value in preset.items() if not key.startswith("_")}
    sizes = {key: shape[key] for key in ("width", "n_heads", "dropout")} | PATCHES
    sizes["mlp_ratio"] = shape["hidden"] / shape["width"]
    spec = SeriesSpec(
        channels=tuple(f"c{i}" for i in range(shape["n_channels"])),
        look_back=LOOK_BACK,
        horizon=HORIZON,
        location=(0.0,) * shape["n_channels"],
        scale=(1.0,) * shape["n_channels"],
    )
    torch.manual_seed(0)
    optimizer = {"optimizer": partial(torch.optim.AdamW, lr=1e-4)}
    return PatchTST(spec=spec, **preset | sizes | optimizer | settings)


class Ours:
    """Training steps of our model over a series in memory."""

    def __init__(self, shape: dict, *, batch: int = BATCH, bf16: bool = False, **settings):
        self.batch, self.n_channels = batch, shape["n_channels"]
        self.windows = self.series(N_STEPS * batch)
        self.batches = iter(Batches(self.windows, batch, seed=0))
        self.model = build(shape, **settings).train()
        self.precision = torch.autocast("cpu", torch.bfloat16) if bf16 else nullcontext()
        self.optimizer = self.model.optimizer(self.model.parameters())

    def series(self, n_windows: int) -> Windows:
        """Return so many windows."""
        values = torch.from_numpy(values_of(self.n_channels, n_windows)).T.contiguous()
        starts = torch.arange(n_windows)
        return Windows(values=values, starts=starts, look_back=LOOK_BACK, horizon=HORIZON)

    def prepare(self) -> dict[str, torch.Tensor]:
        """Gather the next batch, epoch after epoch."""
        batch = next(self.batches, None)
        if batch is None:
            self.batches = iter(Batches(self.windows, self.batch, seed=0))
            batch = next(self.batches)
        return batch

    def __call__(self) -> None:
        batch = self.prepare()
        with self.precision:
            loss = self.model.loss(batch["x"], batch["y"])
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def evaluate(self, n_windows: int) -> float:
        """Score so many windows."""
        self.model.eval()
        batches = OrderedBatches(self.series(n_windows), self.batch)
        with self.precision:
            found = score_forecasts(
                {"ours": self.model.predict}, batches, scale=[1.0] * self.n_channels
            )
        self.model.train()
        return found["ours"].metrics(block=1)["mse"]


class Theirs:
    """Training steps of the restated official code."""

    def __init__(self, shape: dict, *, batch: int = BATCH):
        self.batch, self.n_channels = batch, shape["n_channels"]
        torch.manual_seed(0)
        self.model = Official(look_back=LOOK_BACK, horizon=HORIZON, **PATCHES, **shape)
        self.loader = self.load(N_STEPS * batch, shuffle=True)
        self.batches = iter(self.loader)

    def load(self, n_windows: int, *, shuffle: bool = False) -> torch.utils.data.DataLoader:
        """Return a loader of so many windows; their ten workers gain nothing on two cores."""
        windows = WindowSet(values_of(self.n_channels, n_windows), LOOK_BACK, HORIZON)
        return torch.utils.data.DataLoader(windows, self.batch, shuffle=shuffle)

    def prepare(self) -> list[torch.Tensor]:
        """Collate the next batch, epoch after epoch."""
        batch = next(self.batches, None)
        if batch is None:
            self.batches = iter(self.loader)
            batch = next(self.batches)
        return batch

    def __call__(self) -> None:
        self.model.step(self.prepare())

    def evaluate(self, n_windows: int) -> float:
        """Score so many windows."""
        self.model.eval()
        error = self.model.evaluate(self.load(n_windows))
        self.model.train()
        return error


def flops(shape: dict) -> float:
    """Count the products of a plain step at the full batch, from 4 windows in proportion."""
    side = Theirs(shape, batch=4)
    with FlopCounterMode(display=False) as counter:
        side()
    return counter.get_total_flops() * BATCH / 4


def train_steps(side: type, shape: dict, settings: dict) -> None:
    """Take two steps."""
    step = side(shape, **settings)
    for _ in range(2):
        step()


def evaluate_windows(side: type, shape: dict, settings: dict, n_windows: int) -> None:
    """Score so many windows."""
    side(shape, **settings).evaluate(n_windows)


def contenders(shape: dict, *, batch: int, threads: int, rates: dict) -> dict[str, Ours | Theirs]:
    """Everything that runs at one setting."""
    sides: dict[str, Ours | Theirs] = {
        OURS: Ours(shape, batch=batch),
        OFFICIAL: Theirs(shape, batch=batch),
    }
    # without bf16 instructions a full batch takes half a minute
    small = 4 if rates["bf16"] < rates["fp32"] else batch
    if threads == 1 or small == batch:
        sides[f"{OURS}, bf16"] = Ours(shape, batch=small, bf16=True)
    return sides


def judge(side: Ours | Theirs, times: list[float], work: float, rate: float) -> dict[str, float]:
    """Turn the times of one side into figures."""
    step = median(times)
    prepared = median([seconds(side.prepare, N_STEPS) for _ in range(3)])
    scored = median([seconds(lambda: side.evaluate(2 * side.batch)) for _ in range(2)])
    return {
        "windows_per_s": side.batch / step,
        "ms_per_step": 1e3 * step,
        "ms_low": 1e3 * min(times),
        "ms_high": 1e3 * max(times),
        "batch": side.batch,
        "floor_ratio": step / (work * side.batch / BATCH / rate),
        "ms_per_batch_of_data": 1e3 * prepared,
        "data_share": prepared / step,
        "evaluated_per_s": 2 * side.batch / scored,
    }


def show(console: Console, title: str, figures: dict[str, dict[str, float]]) -> None:
    """Print one setting's table."""
    table = Table(title=title, title_justify="left")
    columns = ("windows/s", "ms/step", "range", "batch", "x floor", "x official", "data ms",
               "data", "eval windows/s", "x official")  # fmt: skip
    for column in ("", *columns):
        table.add_column(column, justify="left" if not column else "right")
    theirs = figures[OFFICIAL]
    for name, f in figures.items():
        table.add_row(
            name,
            f"{f['windows_per_s']:.0f}",
            f"{f['ms_per_step']:.0f}",
            f"{f['ms_low']:.0f}-{f['ms_high']:.0f}",
            f"{f['batch']:.0f}",
            f"{f['floor_ratio']:.2f}",
            f"{f['windows_per_s'] / theirs['windows_per_s']:.2f}",
            f"{f['ms_per_batch_of_data']:.3f}",
            f"{f['data_share']:.2%}",
            f"{f['evaluated_per_s']:.0f}",
            f"{f['evaluated_per_s'] / theirs['evaluated_per_s']:.2f}",
        )
    console.print(table)


def measure(console: Console, name: str, *, threads: int, quick: bool) -> dict:
    """Time one shape."""
    shape = SHAPES[name]
    # a plain step at the shape of weather takes ten seconds
    batch = 8 if quick else BATCH
    rates = {"fp32": matmul_rate(torch.float32), "bf16": matmul_rate(torch.bfloat16)}
    sides = contenders(shape, batch=batch, threads=threads, rates=rates)
    n_steps = {key: N_STEPS if name == "etth1" else 1 for key in sides}
    times = interleave(sides, n_repeats=2 if quick else 5, n_steps=n_steps)  # pyright: ignore
    rates["fp32"] = max(rates["fp32"], matmul_rate(torch.float32))
    work = flops(shape)
    figures = {
        # without bf16 instructions its own rate is no floor
        key: judge(side, times[key], work, max(rates.values()) if "bf16" in key else rates["fp32"])
        for key, side in sides.items()
    }
    clock = "own CPU time" if threads == 1 else "wall time"
    title = (
        f"{name}, {threads} thread{'s' * (threads > 1)}, {clock}; {work / 1e9:.2f} GFLOP a step "
        f"of {BATCH}; products at "
        + " and ".join(f"{rate / 1e9:.1f} GF/s {kind}" for kind, rate in rates.items())
    )
    show(console, title, figures)
    return {"rates": rates, "gflop": work / 1e9, "sides": figures}


def measure_memory(console: Console, name: str, *, quick: bool) -> dict[str, float]:
    """Return peaks of fresh processes: two steps, and evaluations of few and of many windows."""
    shape, settings = SHAPES[name], {"batch": 8 if quick else BATCH}
    few, many = (n // (8 if quick or name == "weather" else 1) for n in (FEW, MANY))
    peaks = {}
    for key, side in ((OURS, Ours), (OFFICIAL, Theirs)):
        peaks[f"{key}, training"] = peak_mb(train_steps, side, shape, settings)
        for n in (few, many):
            eval_settings = settings if quick or name == "etth1" else {"batch": 16}
            peak = peak_mb(evaluate_windows, side, shape, eval_settings, n)
            peaks[f"{key}, {n} windows evaluated"] = peak
    listed = ", ".join(f"{key} {mb:.0f} MiB" for key, mb in peaks.items())
    console.print(f"peak memory, {name}, imports included: {listed}")
    return peaks


def run(console: Console, *, quick: bool = False, compiled: bool = False) -> dict:
    """Measure every setting; return the figures. `compiled` is for other entries."""
    n_threads, figures = torch.get_num_threads(), {}
    for threads in (1,) if quick else (1, 2):
        torch.set_num_threads(threads)
        for name in SHAPES:
            figures[f"{name}_{threads}"] = measure(console, name, threads=threads, quick=quick)
    torch.set_num_threads(n_threads)
    for name in list(SHAPES)[: 1 if quick else None]:
        figures[f"{name}_peak_mb"] = measure_memory(console, name, quick=quick)
    return figures
