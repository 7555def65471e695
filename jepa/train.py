"""Train one model: `python -m jepa.train [+experiment=<name>] [key=value ...]`."""

import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from omegaconf import DictConfig, OmegaConf

from jepa.config import CONF, run_command
from jepa.sweeps import optuna

if TYPE_CHECKING:
    import lightning as L

log = logging.getLogger(__name__)


@hydra.main(config_path=str(CONF), config_name="config")
def main(cfg: DictConfig) -> float:
    """Train, score and report; return the objective for the sweeper."""
    set_variables(cfg)
    from jepa import report, run

    run_dir = Path(cfg.run_dir)
    try:
        with run.FROM_THE_USER:
            return train(cfg, run_dir)
    except BaseException as error:
        if is_first_rank():
            reason = str(error) or type(error).__name__
            stopped = isinstance(error, KeyboardInterrupt | SystemExit)
            events = report.read_events(run_dir)
            content = report.new(
                status="stopped" if stopped else "failed", reason=reason, events=events
            )
            log.exception("the run %s", content["status"])
            with suppress(OSError):  # a full disk must not hide why the run ended
                report.write(run_dir, content)
        raise


def set_variables(cfg: DictConfig) -> None:
    """Set what must be set before torch is imported, and say so."""
    if cfg.trainer.accelerator == "mps":
        os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")
        value = os.environ["PYTORCH_ENABLE_MPS_FALLBACK"]
        print(
            f"PYTORCH_ENABLE_MPS_FALLBACK={value}: operations that MPS lacks run on the CPU; "
            "closed-form probes and spectra always do"
        )


def is_first_rank() -> bool:
    """Tell whether this process writes: Lightning's DDP children carry a LOCAL_RANK."""
    return os.environ.get("LOCAL_RANK", "0") == "0" and os.environ.get("NODE_RANK", "0") == "0"


def train(cfg: DictConfig, run_dir: Path) -> float:
    """Build data, model and trainer; fit; score the best checkpoint; write the report."""
    import lightning as L
    from hydra.utils import instantiate

    from jepa import run, screen

    quiet()
    L.seed_everything(cfg.seed, workers=True, verbose=False)
    data = instantiate(cfg.data)
    data.prepare()
    cfg = run.settle(cfg, data)
    probes = run.build_probes(cfg) if data.spec.task != "none" else {}
    model = run.build_model(cfg, data.spec)
    resume = find_resume(cfg, data, run_dir)
    text = ""
    if is_first_rank():
        text = run.write_records(run_dir, cfg)
        screen.show_config(cfg)
        screen.say(data.describe())
        screen.show_model(model, next(iter(data.probe_batches("train", max_rows=8, seed=0)))["x"])
    callbacks = build_callbacks(cfg, data, probes, text)
    trainer = instantiate(cfg.trainer)(callbacks=callbacks, logger=build_loggers(cfg))
    trainer.fit(model, datamodule=data, ckpt_path=resume, weights_only=True if resume else None)
    if trainer.is_global_zero:
        return finish(cfg, run_dir, data, model, trainer, probes)
    return float("nan")


def quiet() -> None:
    """Silence Lightning's notes that do not concern this run; say other warnings in one line."""
    import warnings

    def say(message, category, filename, lineno, file=None, line=None) -> None:
        print(f"warning: {message}")
        log.warning("%s (%s, %s:%s)", message, category.__name__, filename, lineno)

    warnings.showwarning = say
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for message in (
        ".*in eval mode.*",  # the teacher, as meant
        ".*does not have many workers.*",
        ".*exists and is not empty.*",
        ".*Checkpoint directory.*",
        ".*smaller than the logging interval.*",
        ".*`isinstance\\(treespec, LeafSpec\\)` is deprecated.*",
    ):
        warnings.filterwarnings("ignore", message)


def find_resume(cfg: DictConfig, data: Any, run_dir: Path) -> str | None:
    """Return the checkpoint to go on from.

    Raises:
        ValueError: if the directory holds checkpoints and `resume` was not given, or the
            checkpoint is of another model or table.
    """
    from jepa import run

    last = run_dir / "checkpoints" / "last.ckpt"
    if cfg.resume == "never":
        if last.exists() and is_first_rank():
            raise ValueError(
                f"{run_dir} already holds checkpoints: give resume=auto to go on from them, or "
                "another hydra.run.dir="
            )
        return None
    if cfg.resume == "auto" and not last.exists():
        return None
    path = last if cfg.resume == "auto" else run.find_checkpoint(cfg.resume, "last.ckpt")
    run.check_fits(run.read_checkpoint(path), cfg, data.spec, path)
    return str(path)


def build_callbacks(cfg: DictConfig, data: Any, probes: dict, text: str) -> "list[L.Callback]":
    """Return the callbacks of the config and the record that every checkpoint carries."""
    from functools import partial

    from hydra.utils import instantiate

    from jepa.callbacks.record import Record
    from jepa.run import spec_state

    built = [instantiate(node) for node in cfg.callbacks.values() if node is not None]
    callbacks = [c(probes=probes) if isinstance(c, partial) else c for c in built]
    spec = spec_state(data.spec)
    return [Record(config=text, spec=spec, preprocessing=data.preprocessing), *callbacks]


def build_loggers(cfg: DictConfig) -> list:
    """Return the loggers of the config."""
    from hydra.utils import instantiate

    return [instantiate(node) for node in (cfg.logger or {}).values()]


def finish(
    cfg: DictConfig,
    run_dir: Path,
    data: Any,
    model: Any,
    trainer: "L.Trainer",
    probes: dict,
) -> float:
    """Score the best checkpoint beside its controls, write and show the report."""
    from jepa import report, run, screen
    from jepa.evaluate import measure

    status, reason = how_it_ended(trainer)
    last = run_dir / "checkpoints" / "last.ckpt"
    if not last.exists():  # no validation wrote it
        trainer.save_checkpoint(last)
    best, value = best_of(trainer, cfg.objective)
    content = report.new(
        status=status,
        reason=reason,
        objective={"name": cfg.objective, "value": value},
        events=report.read_events(run_dir),
    )
    split = "test" if cfg.test and "test" in data.splits else "val"
    if split in data.splits:
        if split == "val" and cfg.test:
            screen.say("this data has no test split: the report is on val")
        path = Path(best) if best else last
        model.load_state_dict(run.read_checkpoint(path)["state_dict"])
        probe = cfg.callbacks.probe
        content |= measure(
            model.to("cpu").eval() if trainer.strategy.root_device.type == "mps" else model.eval(),
            run.build_model(cfg, data.spec).to(model.device).eval(),
            data,
            probes,
            split=split,
            max_rows=2 * probe.max_rows,
            max_split_rows=20 * probe.max_val_rows,
            seed=cfg.seed,
        )
    criteria = OmegaConf.to_container(cfg.criteria)
    content["criteria"] = report.grade(criteria, content)  # pyright: ignore[reportArgumentType]
    report.write(run_dir, content)
    screen.show_report(content)
    screen.say(f"run directory: {run_dir}")
    return float("nan") if value is None else value


def how_it_ended(trainer: "L.Trainer") -> tuple[str, str]:
    """Return (status, reason), as the `finish` callback noted or from the trainer."""
    from jepa.callbacks.finish import Finish, why

    for callback in trainer.callbacks:  # pyright: ignore[reportAttributeAccessIssue]
        if isinstance(callback, Finish) and callback.status != "failed":
            return callback.status, callback.reason
    return why(trainer)


def best_of(trainer: "L.Trainer", objective: str) -> tuple[str | None, float | None]:
    """Return (path, objective) of the best checkpoint."""
    for callback in trainer.checkpoint_callbacks:
        if getattr(callback, "monitor", None) == objective:
            score = callback.best_model_score  # pyright: ignore[reportAttributeAccessIssue]
            path = callback.best_model_path or None  # pyright: ignore[reportAttributeAccessIssue]
            return path, None if score is None else score.item()
    value = trainer.callback_metrics.get(objective)
    return None, None if value is None else value.item()


def cli() -> None:
    """Run the command, with our sweeper behind `hydra/sweeper=optuna`."""
    optuna.register()
    run_command(main, "config")


if __name__ == "__main__":
    cli()
