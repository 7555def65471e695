"""T-JEPA's training step at the authors' sizes, beside a plain restatement of their code.

One step is: gather the rows, draw masks, loss, gradient, AdamW, teacher. Both sides see the same
four pairs of counts. The floor is the step's own FLOPs over the matrix-product rate of the same
run; FLOPs are those that torch counts: every product, forward and backward.
"""

from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
import yaml
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from jepa.models.tjepa import TJEPA
from jepa.nn.decay import decay_groups
from jepa.spec import TabularSpec
from tests.bench.machine import interleave, matmul_rate, median, peak_mb, seconds
from tests.bench.official import Official

TABLES = {"higgs": (0,) * 28, "adult": (0,) * 6 + (9, 16, 7, 15, 6, 5, 2, 42)}
ROWS, BATCH, N_COUNTS = 20_000, 512, 4
SIZES = dict(width=64, depth=4, n_heads=8, mlp_ratio=4.0, dropout=0.1)
SIZES |= dict(predictor_width=64, predictor_depth=2, predictor_n_heads=4, predictor_mlp_ratio=4.0)
SIZES |= dict(context_share_low=0.2, context_share_width=0.2)
SIZES |= dict(target_share_low=0.2, target_share_width=0.2)
ONE, FOUR = "one mask", "four masks"
OFFICIAL = "official (four copies of one mask)"


def table_of(cardinalities: tuple[int, ...]) -> torch.Tensor:
    """Normal numbers and uniform codes."""
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(ROWS, len(cardinalities), generator=rng)
    for column, n in enumerate(cardinalities):
        if n:
            x[:, column] = torch.randint(n, (ROWS,), generator=rng).float()
    return x


def build(cardinalities: tuple[int, ...], **settings) -> TJEPA:
    """Our model at the authors' sizes; what they have no word for is as in the preset."""
    preset = yaml.safe_load(Path("conf/model/tjepa.yaml").read_text())
    preset = {k: v for k, v in preset.items() if not k.startswith("_")} | SIZES
    optimizer = partial(torch.optim.AdamW, lr=1e-3)
    spec = TabularSpec(
        columns=tuple(f"c{i}" for i in range(len(cardinalities))),
        cardinalities=cardinalities,
        quantiles=tuple(() if n else (0.0, 1.0) for n in cardinalities),
        task="none",
    )
    torch.manual_seed(0)
    return TJEPA(spec=spec, **preset | {"seed": 0, "optimizer": optimizer} | settings)


class Ours:
    """Training steps of our model over a table in memory."""

    def __init__(self, cardinalities, *, batch=BATCH, bf16=False, **settings):
        self.model = build(cardinalities, **settings).train()
        self.table, self.batch, self.n_steps = table_of(cardinalities), batch, 0
        self.precision = torch.autocast("cpu", torch.bfloat16) if bf16 else nullcontext()
        matrices, rest = decay_groups([self.model.encoder, self.model.predictor])
        groups = [{"params": matrices}, {"params": rest, "weight_decay": 0.0}]
        self.optimizer = self.model.optimizer(groups)
        self.order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(0))

    def prepare(self):
        """Gather the rows and draw their masks."""
        self.n_steps += 1
        start = self.n_steps * self.batch % (ROWS - self.batch)
        x = self.table[self.order[start : start + self.batch]]
        return x, self.model.masks(x, 0, 0, self.n_steps % N_COUNTS)

    def __call__(self):
        x, masks = self.prepare()
        with self.precision:
            loss = self.model.loss(x, masks)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.model.teacher.update(self.model.encoder, 0.996)


class Theirs:
    """Training steps of the restated official code, with the counts that ours draws."""

    def __init__(self, cardinalities):
        torch.manual_seed(0)
        ours = build(cardinalities)
        x = torch.zeros(1, len(cardinalities))
        drawn = [ours.masks(x, 0, 0, step) for step in range(N_COUNTS)]
        self.counts = [(m.context.shape[1], m.targets.shape[2]) for m in drawn]
        predictor = {"width": 64, "depth": 2, "n_heads": 4, "hidden": 256}
        sizes = {"width": 64, "depth": 4, "n_heads": 8, "hidden": 256, "dropout": 0.1}
        self.model = Official(cardinalities, **sizes, predictor=predictor)
        self.table, self.batch, self.n_steps = table_of(cardinalities), BATCH, 0

    def _next(self):
        self.n_steps += 1
        rows = torch.randint(ROWS, (self.batch,)).tolist()
        return self.table, rows, *self.counts[self.n_steps % N_COUNTS]

    def prepare(self):
        """Collate the rows and their masks."""
        return self.model.collate(*self._next())

    def __call__(self):
        self.model.step(*self._next())


def flops(side) -> float:
    """Count the products of a mean step: on 32 rows, because they are proportional to the rows."""
    batch, side.batch = side.batch, 32
    # a compiled product would not be seen
    with torch.compiler.set_stance("force_eager"), FlopCounterMode(display=False) as counter:
        for _ in range(N_COUNTS):
            side()
    side.batch = batch
    return counter.get_total_flops() / N_COUNTS * batch / 32


def peak_of(side: type, cardinalities: tuple[int, ...], settings: dict) -> None:
    """Take two steps."""
    step = side(cardinalities, **settings)
    for _ in range(2):
        step()


def contenders(cardinalities, *, threads: int, quick: bool, rates: dict, compiled: bool) -> dict:
    """Everything that runs at one setting."""
    sides = {
        ONE: Ours(cardinalities),
        OFFICIAL: Theirs(cardinalities),
    }
    if not quick:
        sides[FOUR] = Ours(cardinalities, n_target_masks=4)
        sides["four masks, cross"] = Ours(cardinalities, n_target_masks=4, predictor="cross")
        # without bf16 instructions a full batch takes half a minute
        small = 16 if rates["bf16"] < rates["fp32"] else BATCH
        if threads == 1 or small == BATCH:
            sides[f"{ONE}, bf16"] = Ours(cardinalities, bf16=True, batch=small)
    if compiled and threads == 1 and cardinalities == TABLES["higgs"]:
        sides[f"{ONE}, compiled"] = Ours(cardinalities, compile=True)
    return sides


def judge(side, times: list[float], rate: float) -> dict[str, float]:
    """Turn the times of one side into figures."""
    step = median(times)
    work = flops(side)
    prepared = median([seconds(side.prepare, N_COUNTS) for _ in range(3)])
    return {
        "rows_per_s": side.batch / step,
        "ms_per_step": 1e3 * step,
        "ms_low": 1e3 * min(times),
        "ms_high": 1e3 * max(times),
        "batch": side.batch,
        "gflop": work / 1e9,
        "floor_ratio": step / (work / rate),
        "data_share": prepared / step,
    }


def show(console: Console, title: str, figures: dict[str, dict[str, float]]) -> None:
    """Print one setting's table."""
    table = Table(title=title, title_justify="left")
    columns = [
        "rows/s",
        "ms/step",
        "range",
        "batch",
        "GFLOP",
        "x floor",
        "data+masks",
        "x official",
    ]
    for column in ("", *columns):
        table.add_column(column, justify="left" if not column else "right")
    theirs = figures[OFFICIAL]["rows_per_s"]
    for name, f in figures.items():
        table.add_row(
            name,
            f"{f['rows_per_s']:.0f}",
            f"{f['ms_per_step']:.0f}",
            f"{f['ms_low']:.0f}-{f['ms_high']:.0f}",
            f"{f['batch']:.0f}",
            f"{f['gflop']:.2f}",
            f"{f['floor_ratio']:.2f}",
            f"{f['data_share']:.1%}",
            f"{f['rows_per_s'] / theirs:.2f}",
        )
    console.print(table)


def run(console: Console, *, quick: bool = False, compiled: bool = False) -> dict:
    """Measure every setting; return the figures. Compiling alone takes minutes on two cores."""
    n_threads, figures = torch.get_num_threads(), {}
    for threads in (1,) if quick else (1, 2):
        torch.set_num_threads(threads)
        clock = "own CPU time" if threads == 1 else "wall time"
        for name, cardinalities in TABLES.items():
            rates = {"fp32": matmul_rate(torch.float32), "bf16": matmul_rate(torch.bfloat16)}
            sides = contenders(
                cardinalities, threads=threads, quick=quick, rates=rates, compiled=compiled
            )
            n_steps = {k: N_COUNTS if s.batch == BATCH else 1 for k, s in sides.items()}
            times = interleave(sides, n_repeats=2 if quick else 3, n_steps=n_steps)
            rates["fp32"] = max(rates["fp32"], matmul_rate(torch.float32))
            result = {
                # without bf16 instructions its own rate is no floor
                k: judge(side, times[k], max(rates.values()) if "bf16" in k else rates["fp32"])
                for k, side in sides.items()
            }
            title = f"{name}, {threads} thread{'s' * (threads > 1)}, {clock}; products at " + (
                " and ".join(f"{rate / 1e9:.1f} GF/s {kind}" for kind, rate in rates.items())
            )
            show(console, title, result)
            figures[f"{name}_{threads}"] = {"rates": rates, "sides": result}
    torch.set_num_threads(n_threads)
    for name, cardinalities in list(TABLES.items())[: 1 if quick else None]:
        pairs = {ONE: (Ours, {}), OFFICIAL: (Theirs, {})}
        peaks = {k: peak_mb(peak_of, s, cardinalities, kw) for k, (s, kw) in pairs.items()}
        figures[f"{name}_peak_mb"] = peaks
        listed = ", ".join(f"{k} {mb:.0f} MiB" for k, mb in peaks.items())
        console.print(f"peak memory, {name}, imports included: {listed}")
    return figures
