"""Which checkpoint a run goes on from, and whether it is one of this run's kind."""

from pathlib import Path
from typing import Any

import lightning as L
from omegaconf import DictConfig

from jepa import checkpoint, run, screen
from jepa.callbacks.events import record_event
from jepa.config import refuse_used


def find_resume(
    cfg: DictConfig, data: Any, model: L.LightningModule, run_dir: Path, *, first_rank: bool
) -> tuple[str | None, int | None]:
    """Return the checkpoint to go on from, and its step; clean up after a killed run.

    Raises:
        ValueError: if the directory holds checkpoints and `resume` was not given, or the
            checkpoint is of another model or table.
    """
    refuse_used(cfg.resume, run_dir)
    if first_rank:
        checkpoint.clean(run_dir / "checkpoints")
    if cfg.resume == "never":
        return None, None
    path, damaged = choose_resume(cfg.resume, run_dir / "checkpoints")
    if path is None:
        return None, None
    content = run.read_checkpoint(path)
    run.check_data(content, data, path)
    run.check_model(content, cfg, model, path)
    step = content["global_step"]
    if first_rank:
        why = f"; damaged and left out: {', '.join(damaged)}" if damaged else ""
        screen.say(f"resume={cfg.resume}: going on from {path}, step {step}{why}")
        record_event(run_dir, "resume", step=step, path=str(path), damaged=damaged)
        best = run_dir / "checkpoints" / "best.ckpt"
        if not best.exists() and path.with_name("best.ckpt").exists():
            best.parent.mkdir(parents=True, exist_ok=True)
            checkpoint.alias(path.with_name("best.ckpt"), best)  # of the run it goes on from
    return str(path), step


def choose_resume(resume: str, own: Path) -> tuple[Path | None, list[str]]:
    """Return the newest good checkpoint and the damaged newer ones; None where there is none.

    Args:
        resume: `auto`, a checkpoint, or a run directory.
        own: where this run keeps its checkpoints.

    Raises:
        FileNotFoundError: if a path names nothing.
        ValueError: if all there are, or the one that was named, is damaged.
    """
    folder = own if resume == "auto" else run.find_checkpoint(resume, "last.ckpt").parent
    if resume != "auto" and Path(resume).is_file():
        if checkpoint.is_good(Path(resume)):
            return Path(resume), []
        good = checkpoint.newest_good(folder)[0]
        raise ValueError(f"resume={resume} is damaged: " + (f"give resume={good}" if good else ""))
    path, damaged = checkpoint.newest_good(folder)
    if path is None and damaged:
        raise ValueError(
            f"resume={resume}: every checkpoint in {folder} is damaged ({', '.join(damaged)}): "
            "start again in another hydra.run.dir="
        )
    return path, damaged
