"""`time_budget.hours`: time the first steps, then train as many as end, schedules and all, in time.

The plan is settled before training: a learning rate that comes down over the steps that there
will be is right from the first one on. It stands in the config of every checkpoint, so that a
resumed run keeps it. What the first steps did not show is for the guard, which watches
`trainer.max_time`.
"""

import copy
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig

from jepa import run, screen
from jepa.callbacks.probe import unnoticed
from jepa.resolve import pick_device
from jepa.settle import n_devices
from jepa.stored import parse_config
from jepa.trial import n_train_batches, probe_a_little, train_a_little, validate_a_little

TRIAL_S = 20.0  # of training, at most 50 batches
SPARE = 0.03  # of the time, for checkpoints and pictures


@dataclass(frozen=True)
class Costs:
    """What was measured, in seconds: a step, a validation with its probes, the code of a row."""

    step_s: float
    validation_s: float
    row_s: float


def planned(cfg: DictConfig, data: Any, probes: run.Probes, resume: str | None) -> DictConfig:
    """Return a copy of a settled config whose steps fill the time; the same one without a budget.

    Args:
        cfg: settled.
        data: prepared.
        probes: those of the run.
        resume: the checkpoint that the run goes on from; its plan is kept.

    Raises:
        ValueError: for a budget that something else contradicts, or that is too short.
    """
    budget = cfg.time_budget
    if budget.hours is None:
        return cfg
    check(cfg)
    steps, seconds, said = budget.steps, budget.seconds, "as given"
    if steps is None and resume is not None:
        steps, seconds, said = *recorded(Path(resume)), "as before"
    if steps is None:
        costs = measure(cfg, data, probes)
        steps, seconds, said = fill(cfg, data, costs)
    screen.say(f"time budget of {budget.hours:g} h: {steps:,} steps, {said}")
    cfg = copy.deepcopy(cfg)
    cfg.time_budget = {"hours": budget.hours, "steps": steps, "seconds": seconds}
    cfg.trainer.max_steps, cfg.trainer.max_epochs = steps, -1
    if cfg.trainer.max_time is None and seconds is not None:
        cfg.trainer.max_time = {"seconds": int(seconds)}
    return cfg


def recorded(checkpoint: Path) -> tuple[int, float | None]:
    """Return the plan of a checkpoint: steps, and seconds of training.

    Raises:
        ValueError: if it has none.
    """
    before = parse_config(run.read_checkpoint(checkpoint)["config"]).get("time_budget") or {}
    if before.get("steps") is None:
        raise ValueError(
            f"{checkpoint} is of a run without time_budget.hours, and its schedules have an end "
            "already: leave time_budget out; trainer.max_time= makes a late run end in time"
        )
    return before["steps"], before.get("seconds")


def check(cfg: DictConfig) -> None:
    """Refuse a budget beside other ends, and with several processes.

    Raises:
        ValueError: then.
    """
    hours = cfg.time_budget.hours
    if hours <= 0:
        raise ValueError(f"time_budget.hours must be above 0, or null, got {hours}")
    if cfg.trainer.max_steps not in (-1, None):
        raise ValueError(
            f"time_budget.hours={hours} finds trainer.max_steps itself, got trainer.max_steps="
            f"{cfg.trainer.max_steps}: leave one of them out"
        )
    if n_devices(cfg.trainer) > 1 and cfg.time_budget.steps is None:
        raise ValueError(
            "time_budget.hours times one process, but trainer.devices starts "
            f"{n_devices(cfg.trainer)}: give time_budget.steps=<optimizer steps> as well, or "
            "trainer.max_time= alone, by which the guard ends the schedules"
        )


def measure(cfg: DictConfig, data: Any, probes: run.Probes) -> Costs:
    """Take the first steps, and parts of a validation and of a probe, with a model of their own."""
    trainer = instantiate(cfg.trainer)
    accumulate, batch_size = cfg.trainer.accumulate_grad_batches, cfg.data.batch_size
    model = run.build_model(cfg, data.spec)
    with unnoticed(), tempfile.TemporaryDirectory(prefix="jepa-time-") as name:
        folder = Path(name)
        trial = train_a_little(
            trainer, model, data, batch_size=batch_size, accumulate=accumulate, seconds=TRIAL_S,
            folder=folder,
        )  # fmt: skip
        validation_s = probe_s = row_s = 0.0
        if "val" in data.splits:
            validation_s = validate_a_little(trainer, model, data, folder)
        if "val" in data.splits and cfg.callbacks.get("probe"):
            probe = instantiate(cfg.callbacks.probe)(probes=probes)
            asked = {"train": probe.max_rows, "val": probe.max_val_rows}
            model.to(pick_device(cfg.trainer.accelerator)).eval()
            _, probe_s = probe_a_little(probe, model, data)
            n_rows = sum(min(n, len(data.splits[split])) for split, n in asked.items())
            row_s = probe_s / n_rows
    return Costs(trial.batch_s * accumulate, validation_s + probe_s, row_s)


def fill(cfg: DictConfig, data: Any, costs: Costs) -> tuple[int, float, str]:
    """Return how many steps the time holds, the seconds of training, and the plan in words.

    Raises:
        ValueError: if it holds none.
    """
    trainer = cfg.trainer
    group = trainer.accumulate_grad_batches
    n_batches = n_train_batches(trainer, len(data.train_dataloader()))
    every = (trainer.check_val_every_n_epoch or 1) * n_batches / group  # steps
    most = {"train": cfg.report.max_rows, last_split(cfg, data): cfg.report.max_split_rows}
    sizes = {split: len(rows) for split, rows in data.splits.items() if split in most}
    # by the trained and by the untrained encoder
    n_scored = 2 * sum(min(n, most[split] or n) for split, n in sizes.items())
    watch = cfg.callbacks.get("collapse")
    n_watched = 2 * watch.n_rows / watch.every_share if watch else 0.0
    seconds = (1.0 - SPARE) * 3600.0 * cfg.time_budget.hours
    scoring_s = n_scored * costs.row_s
    left = seconds - scoring_s
    steps = int((left - n_watched * costs.row_s) / (costs.step_s + costs.validation_s / every))
    if steps < 1:
        raise ValueError(
            f"time_budget.hours={cfg.time_budget.hours} is too short for a step: scoring at the "
            f"end takes {scoring_s:.0f} s (report.max_rows, report.max_split_rows), checks of the "
            f"codes {n_watched * costs.row_s:.0f} s (callbacks.collapse.every_share, n_rows)"
        )
    said = f"{costs.step_s:.3g} s each, {steps * group / n_batches:.3g} epochs of {n_batches} "
    said += f"batches, a validation of {costs.validation_s:.3g} s every {every:,.0f} steps, "
    said += f"{n_watched * costs.row_s:.3g} s of checks, {scoring_s:.3g} s of scoring at the end"
    return steps, left, said


def last_split(cfg: DictConfig, data: Any) -> str:
    """Return the split that the report is on; empty where there is none."""
    return next((one for one in ("test" if cfg.test else "val", "val") if one in data.splits), "")
