"""Runs that follow from another run's best checkpoint, as probing and fine-tuning do."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import lightning as L
from omegaconf import DictConfig, OmegaConf

from jepa import run, screen
from jepa.config import refuse_used
from jepa.directory import is_first_rank


def stages_of(cfg: DictConfig, settled: DictConfig, run_dir: Path) -> dict[str, DictConfig]:
    """Return the whole config of each stage that follows this run, by name.

    A stage is a run of its own in a folder below this one's: its `model` takes the place of this
    run's, its `trainer` changes what it names, and its encoder starts from this run's best
    checkpoint. What it takes over from this run's model is settled, as the width that `size` asks
    for; the rest is settled anew, as the batch that fits its own model.

    Raises:
        ValueError: for a stage without a model, or with other parts.
    """
    stages = {}
    for name, node in (settled.stages or {}).items():
        changes = cast(dict, OmegaConf.to_container(node, resolve=True)) if node else {}
        if "model" not in changes or set(changes) - {"model", "trainer"}:
            raise ValueError(
                f"stages.{name} takes model (needed) and trainer, got {sorted(changes)}"
            )
        stage = copy.deepcopy(cfg)
        OmegaConf.set_struct(stage, False)
        stage.model = changes["model"]
        stage.trainer = OmegaConf.merge(stage.trainer, changes.get("trainer", {}))
        stage.run_dir = str(run_dir / str(name))
        stage.resume = "auto" if cfg.resume == "auto" else "never"
        stage.size, stage.time_budget.hours = None, None
        stage.objective, stage.probes, stage.criteria, stage.stages = "auto", ["auto"], [], None
        stages[str(name)] = stage
    return stages


def check_stages(
    stages: dict[str, DictConfig], cfg: DictConfig, data: Any, model: L.LightningModule
) -> None:
    """Hand the untrained encoder to each stage, to see before training that it fits.

    Raises:
        ValueError: naming the stage, where it does not.
    """
    for name, stage in stages.items():
        if stage.resume == "never":
            refuse_used("never", Path(stage.run_dir))
        successor = run.build_model(stage, data.spec)
        try:
            run.transfer(successor, model.state_dict(), stage.model, cfg.model)
        except ValueError as error:
            raise ValueError(f"stages.{name}: {error}") from error


def run_stages(
    stages: dict[str, DictConfig], best: str, *, train: Callable[[DictConfig, Path], object]
) -> dict[str, dict[str, Any]]:
    """Train each stage from the best checkpoint; return their reports by name."""
    reports = {}
    for name, stage in stages.items():
        if is_first_rank():
            screen.say(f"stage {name}: from {best}")
        stage.init_from = best
        train(stage, Path(stage.run_dir))
        if is_first_rank():
            text = (Path(stage.run_dir) / "report.json").read_text(encoding="utf-8")
            reports[name] = json.loads(text)
    return reports
