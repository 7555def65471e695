"""Train one model: `python -m jepa.train [+experiment=<name>] [key=value ...]`."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from omegaconf import DictConfig, OmegaConf

from jepa import directory
from jepa.allocator import keep_memory
from jepa.config import CONF, UserError, explain, fail, refuse_used, run_command
from jepa.directory import is_first_rank
from jepa.sweeps import optuna
from jepa.sweeps.naming import with_study

if TYPE_CHECKING:
    import lightning as L

log = logging.getLogger(__name__)


@hydra.main(config_path=str(CONF), config_name="config")
def main(cfg: DictConfig) -> float:
    """Train, score and report; return the objective for the sweeper."""
    set_variables(cfg)
    from jepa import run

    run_dir = Path(cfg.run_dir)
    refuse_used(cfg.resume, run_dir)
    refuse_ddp_sweep(cfg)
    if is_first_rank():
        directory.hold(run_dir)
    try:
        with run.FROM_THE_USER:
            value = train(cfg, run_dir)
        if is_first_rank():
            show_seeds()
        return value
    except BaseException as error:
        if is_first_rank():
            report_early_end(error, run_dir)
        if isinstance(error, SystemExit) and isinstance(error.__context__, KeyboardInterrupt):
            sys.exit(130)  # Lightning makes 1 of it
        raise
    finally:
        if is_first_rank():
            directory.release(run_dir)


def report_early_end(error: BaseException, run_dir: Path) -> None:
    """Write the report of a run that did not come to its end."""
    from jepa import night, report

    stopped = isinstance(error, KeyboardInterrupt | SystemExit)
    reason = getattr(error, "reason", "interrupted") if stopped else str(error)
    content = report.new(
        status="stopped" if stopped else "failed",
        reason=reason or type(error).__name__,
        events=report.read_events(run_dir),
    )
    if stopped:
        log.warning("the run stopped: %s", reason)
        print(f"stopped: {reason}")
    else:
        log.exception("the run failed")
    with suppress(OSError):  # a full disk must not hide why the run ended
        night.write(run_dir, content)


def show_seeds() -> None:
    """Sum up the runs of a grid so far that differ in their seed alone."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from jepa import screen, seeds

    if HydraConfig.get().mode == RunMode.MULTIRUN:
        sweep_dir = Path(HydraConfig.get().sweep.dir)
        with suppress(OSError, ValueError):  # the run itself has ended well
            if lines := seeds.write(sweep_dir):
                screen.say("\n".join([f"over seeds ({sweep_dir / 'seeds.md'}):", *lines]))


def refuse_ddp_sweep(cfg: DictConfig) -> None:
    """Refuse `-m` with several processes a run.

    Raises:
        ValueError: because Lightning starts each further process with the whole command line.
    """
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    if HydraConfig.get().mode == RunMode.MULTIRUN and str(cfg.trainer.strategy).startswith("ddp"):
        raise ValueError(
            "-m with trainer.strategy=ddp would start the sweep again in every process: sweep with "
            "one device a run (trainer=gpu), or start the runs one by one"
        )


def set_variables(cfg: DictConfig) -> None:
    """Set what must be set before torch is imported, and say so."""
    accelerator = cfg.trainer.accelerator
    if cfg.keep_memory:
        keep_memory()
    if accelerator == "mps" or (accelerator == "auto" and sys.platform == "darwin"):
        os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")
        value = os.environ["PYTORCH_ENABLE_MPS_FALLBACK"]
        print(
            f"PYTORCH_ENABLE_MPS_FALLBACK={value}: operations that MPS lacks run on the CPU; "
            "closed-form probes and spectra always do"
        )


def train(cfg: DictConfig, run_dir: Path) -> float:
    """Attempt a run, again where the guard knows a remedy for what failed; return the objective.

    An optional part that fails is left out once: a second one ends the run, and the command without
    any is printed.
    """
    from jepa import retry

    composed, part = retry.replayed(cfg, run_dir), ""
    while True:
        try:
            return attempt(composed, run_dir)
        except retry.Retry as failure:
            again = failure
        except Exception as error:
            if part and explain(error) is None:
                retry.show_conservative(cfg.model)
            raise
        if part and again.part:
            retry.show_conservative(cfg.model)
            raise again.error
        composed, part = retry.go_on(composed, again, run_dir), part or again.part
        retry.let_go(again)


def attempt(cfg: DictConfig, run_dir: Path) -> float:
    """Build data, model and trainer; fit; score the best checkpoint; write the report.

    Raises:
        Retry: where other settings may do what these cannot.
    """
    import lightning as L
    from hydra.utils import instantiate

    from jepa import report, retry, run, screen
    from jepa.checkpoint import CheckpointFiles
    from jepa.resume import find_resume
    from jepa.settle import predicts_target, settle
    from jepa.stages import check_stages, run_stages, stages_of
    from jepa.time_budget import planned
    from jepa.tracking import build_loggers

    quiet()
    L.seed_everything(cfg.seed, workers=True, verbose=False)
    data = instantiate(cfg.data)
    data.prepare()
    composed, cfg = cfg, settle(cfg, data, predicts_target=predicts_target(cfg))
    if is_first_rank() and (again := retry.after_kill(cfg, run_dir)) is not None:
        raise again
    stages = stages_of(composed, cfg, run_dir)
    data.batch_size = cfg.data.batch_size  # less than was asked for, where that does not fit
    report.grade(criteria_of(cfg), report.new(status="", reason=""))  # a bad one costs no training
    probes = run.build_probes(cfg, data.spec)
    run.check_probes(cfg, probes, data.spec)
    model = run.build_model(cfg, data.spec)
    check_stages(stages, cfg, data, model)
    resume, step = find_resume(cfg, data, model, run_dir, first_rank=is_first_rank())
    cfg = planned(cfg, data, probes, resume)
    started = None
    if cfg.init_from is not None and resume is None:
        started = run.start_from(cfg, model)
    text = ""
    if is_first_rank():
        text = run.write_records(run_dir, cfg)
        screen.show_config(cfg)
        screen.say(data.describe())
        if started is not None:
            screen.say(f"the encoder starts from {started}")
    callbacks = build_callbacks(cfg, data, model, probes, text)
    with remedied(cfg, callbacks):
        if is_first_rank():
            first = next(iter(data.probe_batches("train", max_rows=8, seed=0)))["x"]
            screen.show_model(model, None if cfg.model.get("compile") else first)
        loggers = build_loggers(cfg.logger, run_dir, step)
        trainer = instantiate(cfg.trainer)(
            callbacks=callbacks, logger=loggers, plugins=[CheckpointFiles()]
        )
        trainer.fit(model, datamodule=data, ckpt_path=resume, weights_only=True if resume else None)
    best = best_of(trainer, cfg.objective)[0] or str(run_dir / "checkpoints" / "last.ckpt")
    reports = run_stages(stages, best, train=train)
    if trainer.is_global_zero:
        return finish(cfg, run_dir, data, model, trainer, probes, reports)
    return float("nan")


@contextmanager
def remedied(cfg: DictConfig, callbacks: "list[L.Callback]") -> Iterator[None]:
    """Turn an error that other settings may mend into a `Retry`."""
    from jepa import retry

    try:
        yield
    except Exception as error:
        remedy = retry.remedy(error, cfg, callbacks)
        if remedy is None:
            raise
        raise remedy from error


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


def build_callbacks(
    cfg: DictConfig, data: Any, model: "L.LightningModule", probes: dict, text: str
) -> "list[L.Callback]":
    """Return the callbacks of the config and the record that every checkpoint carries.

    A model that predicts the target needs no codes at a validation unless a probe asks for them.
    """
    from functools import partial

    from hydra.utils import instantiate

    from jepa.callbacks.record import Record
    from jepa.encoding import raw_inputs
    from jepa.run import spec_state

    built = [instantiate(node) for node in cfg.callbacks.values() if node]
    if probes or not getattr(model, "predicts_target", False):
        known = {"probes": probes, "raw": partial(raw_inputs, data.spec)}
        callbacks = [c(**known) if isinstance(c, partial) else c for c in built]
    else:
        callbacks = [c for c in built if not isinstance(c, partial)]
    spec = spec_state(data.spec)
    return [Record(config=text, spec=spec, preprocessing=data.preprocessing), *callbacks]


def finish(
    cfg: DictConfig,
    run_dir: Path,
    data: Any,
    model: Any,
    trainer: "L.Trainer",
    probes: dict,
    stages: dict[str, dict[str, Any]],
) -> float:
    """Score the best checkpoint beside its controls, write and show the report."""
    from jepa import night, report, run, screen
    from jepa.curves import draw_curves
    from jepa.measure import measure
    from jepa.samples import write_samples
    from jepa.stored import leaves
    from jepa.tracking import tell
    from jepa.vitals import read_vitals

    status, reason = how_it_ended(trainer)
    last = run_dir / "checkpoints" / "last.ckpt"
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
        if best or last.exists():
            model.load_state_dict(run.read_checkpoint(Path(best or last))["state_dict"])
        device = trainer.strategy.root_device
        measured = measure(
            model.to(device).eval(),
            run.build_model(cfg, data.spec).to(device).eval(),
            data,
            probes,
            split=split,
            max_rows=cfg.report.max_rows,
            max_split_rows=cfg.report.max_split_rows,
            seed=cfg.seed,
        )
        samples = measured.pop("samples")
        with suppress(OSError):  # a full disk costs paired comparisons, not the report
            write_samples(run_dir, samples)
        content |= measured
    report.add_stages(content, stages)
    content["criteria"] = report.grade(criteria_of(cfg), content)
    content["vitals"] = read_vitals(run_dir / "metrics.csv")
    content |= attention_speed(cfg, data, model.to(trainer.strategy.root_device))
    picture = run_dir / "plots" / "probes.png"
    with suppress(OSError):  # a full disk costs the picture, not the report
        if draw_curves(picture, run_dir / "metrics.csv"):
            screen.say(f"curves of the probes: {picture}")
    night.write(run_dir, content)
    settings = dict(leaves(OmegaConf.to_container(cfg)))
    tell(trainer.loggers, settings, content, run_dir)
    screen.show_report(content)
    screen.say(f"run directory: {run_dir}")
    return float("nan") if value is None else value


def attention_speed(cfg: DictConfig, data: Any, model: Any) -> dict[str, Any]:
    """Return, for the report, what the fused attention kernel gains; nothing where not asked for.

    A compiled model is left alone: each kernel would compile it again.
    """
    from jepa.attention_speed import compare_attention

    if not cfg.report.time_attention or cfg.model.get("compile"):
        return {}
    x = next(iter(data.probe_batches("train", max_rows=cfg.data.batch_size)))["x"]
    speed = compare_attention(model, x.to(model.device), precision=cfg.trainer.precision)
    return {"attention_speed": speed} if speed else {}


def criteria_of(cfg: DictConfig) -> list[dict[str, Any]]:
    """Return the criteria as plain dictionaries."""
    return OmegaConf.to_container(cfg.criteria)  # pyright: ignore[reportReturnType]


def how_it_ended(trainer: "L.Trainer") -> tuple[str, str]:
    """Return (status, reason), as the `finish` callback noted or from the trainer."""
    from jepa.callbacks.finish import Finish, why

    for callback in trainer.callbacks:  # pyright: ignore[reportAttributeAccessIssue]
        if isinstance(callback, Finish):
            if callback.status == "failed":  # there was nothing left to train
                callback.note(trainer)
            return callback.status, callback.reason
    return why(trainer)


def best_of(trainer: "L.Trainer", objective: str) -> tuple[str | None, float | None]:
    """Return (path, objective) of the best checkpoint."""
    for callback in trainer.checkpoint_callbacks:
        if getattr(callback, "monitor", None) == objective:
            score = callback.best_model_score  # pyright: ignore[reportAttributeAccessIssue]
            path = callback.best_model_path or None  # pyright: ignore[reportAttributeAccessIssue]
            if score is not None:
                return path, score.item()
    value = trainer.callback_metrics.get(objective)
    return None, None if value is None else value.item()


def cli() -> None:
    """Run the command, with our sweeper behind `hydra/sweeper=optuna`."""
    optuna.register()
    sys.argv[1:] = with_study(sys.argv[1:])
    run_dir = directory.named(sys.argv[1:])
    if run_dir is None or not run_dir.is_dir() or not is_first_rank():
        run_command(main, "config")
        return
    try:
        try:
            directory.hold(run_dir)  # before Hydra writes its files into it
            arguments = directory.go_on(sys.argv[1:])
        except UserError as error:
            fail(str(error), code=1)
        if arguments is not None:
            sys.argv[1:] = arguments
            run_command(main, "config")
    finally:
        directory.release(run_dir)


if __name__ == "__main__":
    cli()
