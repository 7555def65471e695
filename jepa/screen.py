"""What a run shows: its config as a tree, the model in numbers, the result as one table."""

from typing import Any

import lightning as L
import torch
from omegaconf import DictConfig, ListConfig
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.tree import Tree
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from jepa import report

console = Console()
MANY = 40  # metrics; of more, a terminal shows those that say most
HEADLINES = {"error", "accuracy_shot1", "accuracy_shot5", "accuracy_shot10", "rankme",
             "effective_rank", "mean_cosine", "std_mean", "cka_mean_level1",
             "cka_mean_level2", "cka_level1_level2"}  # fmt: skip
SHOWN_LAST = ("callbacks", "logger", "trainer", "paths", "search")


def show_config(cfg: DictConfig) -> None:
    """Print the composed config as a tree."""
    tree = Tree("config")
    keys = sorted(cfg, key=lambda key: (str(key) in SHOWN_LAST, 0))
    for key in keys:
        if key != "search":
            grow(tree, str(key), cfg[key])
    console.print(tree, highlight=False)


def grow(tree: Tree, key: str, value: Any) -> None:
    """Add one key to the tree."""
    if isinstance(value, DictConfig):
        branch = tree.add(key)
        for inner, content in value.items():
            grow(branch, str(inner), content)
    else:
        text = list(value) if isinstance(value, ListConfig) else value
        tree.add(f"{key}: {text}".replace("[", r"\["))


def count_flops(model: L.LightningModule, x: Tensor) -> float:
    """Return the floating-point operations of one training step per sample, backward included.

    Counts matrix products and attention, 2 per multiplication and addition; what is computed twice
    to save memory counts once.
    """
    states = torch.get_rng_state()
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]  # statistics of batch norms
    counter = FlopCounterMode(display=False)
    twice = [module for module in model.modules() if getattr(module, "recompute", False)]
    for module in twice:
        module.recompute = False  # pyright: ignore[reportArgumentType]
    with counter:
        model.loss(x).backward()  # pyright: ignore[reportCallIssue]
    for module in twice:
        module.recompute = True  # pyright: ignore[reportArgumentType]
    model.zero_grad(set_to_none=True)
    for buffer, before in buffers:
        buffer.copy_(before)
    torch.set_rng_state(states)
    return counter.get_total_flops() / len(x)


def show_model(model: L.LightningModule, x: Tensor | None) -> None:
    """Print parameters of each part and the FLOPs of a training sample.

    Counted on the rows `x` under the masks of the first step; not counted where `x` is None, for
    counting would compile a compiled model.
    """
    table = Table("part", "parameters", "trained", title=type(model).__name__, title_justify="left")
    for name, part in model.named_children():
        parameters = list(part.parameters())
        if parameters:
            trained = sum(p.numel() for p in parameters if p.requires_grad)
            table.add_row(name, f"{sum(p.numel() for p in parameters):,}", f"{trained:,}")
    total = list(model.parameters())
    trained = sum(p.numel() for p in total if p.requires_grad)
    table.add_row("total", f"{sum(p.numel() for p in total):,}", f"{trained:,}")
    console.print(table)
    if x is not None:
        flops = count_flops(model, x)
        console.print(f"{flops / 1e6:,.2f} MFLOP per training sample", highlight=False)


def show_report(content: dict[str, Any]) -> None:
    """Print the metrics with their intervals beside the controls, and what they mean."""
    head, *body = report.rows(content)
    if brief := len(body) > MANY:
        body = [row for row in body if row[0].rpartition("/")[2] in HEADLINES]
    free = [row for row in body if "/label_free/" in row[0]]
    scored = [row for row in body if row not in free]
    stamp = report.stamp_of(content)
    show_table(f"{content['status']}: {content['reason']}{stamp}", [head, *scored])
    show_table(f"without a network, scaled{stamp}", report.baseline_rows(content))
    measured = [i for i, name in enumerate(head) if name in ("metric", "value", "untrained", "raw")]
    show_table("without labels", [[row[i] for i in measured] for row in [head, *free]])
    for line in report.verdict(content):
        if brief and "DOES NOT BEAT" not in line:
            continue
        style = "bold red" if "DOES NOT BEAT" in line else ""
        console.print(line + stamp, markup=False, style=style, highlight=False, soft_wrap=True)
    for one in content["vitals"]:
        if one["state"] != "healthy":
            text = f"{one['state']}: {one['name']} is {report.digits(one['value'])}"
            style = "bold red" if one["state"] == "critical" else "yellow"
            console.print(f"{text} (bound {one[one['state']]})", style=style, highlight=False)
    for one in content["criteria"]:
        console.print(
            f"criterion {one.get('name', '')}: {report.asks(one)}: {report.show(one)}, "
            f"passed: {report.grade_word(one)}",
            highlight=False,
            soft_wrap=True,
        )


def show_table(title: str, rows: list[list[str]]) -> None:
    """Print rows of text, the first of them the head; nothing where there is only a head."""
    head, *body = rows
    if not body:
        return
    table = Table(
        title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False
    )
    for index, name in enumerate(head):
        if index:  # on a narrow screen names are folded, figures stay whole
            width = max(len(row[index]) for row in rows)
            table.add_column(name, justify="right", no_wrap=True, min_width=width)
        else:
            table.add_column(name, overflow="fold")
    for row in body:
        table.add_row(*row)
    console.print(table)


def say(text: str) -> None:
    """Print one plain line."""
    console.print(text, highlight=False, soft_wrap=True, markup=False)
