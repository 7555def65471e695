"""Trackers: their runs, and what they get beside the curves: settings, final scores, files."""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from lightning.pytorch.loggers import MLFlowLogger, TensorBoardLogger

from jepa.directory import is_first_rank

FILES = ("config.yaml", "report.json", "report.md", "metrics.csv", "events.jsonl")
PARENT = "mlflow_parent"  # in a sweep directory: the MLflow run above those of its trials


def build_loggers(nodes: Mapping[str, Any] | None, run_dir: Path, step: int | None) -> list:
    """Return the loggers; a run that goes on keeps its runs in them.

    Args:
        nodes: what to instantiate, by name.
        run_dir: its loggers.json has the identity of each run in a tracking server.
        step: from which a run goes on; None for a new one.
    """
    record = run_dir / "loggers.json"
    known = json.loads(record.read_text()) if step is not None and record.exists() else {}
    loggers, identities = [], {}
    for name, node in (nodes or {}).items():
        own = {"purge_step": step, "run_id": known.get(name), "id": known.get(name)}
        keys = {key: value for key, value in own.items() if key in node and node[key] is None}
        logger = instantiate(node, **keys)
        loggers.append(logger)
        if is_first_rank() and keys.keys() & {"run_id", "id"}:
            _ = logger.experiment  # it gets its identity with the first use
            identities[name] = logger.version
            if "run_id" in keys and not known and (run_dir.parent / "sweep.yaml").exists():
                nest(logger, run_dir.parent)
    if identities:
        record.write_text(json.dumps(identities) + "\n")
    return loggers


def tell(
    loggers: Sequence[Any], settings: dict[str, Any], content: dict[str, Any], run_dir: Path
) -> None:
    """Hand settings and final scores to every tracker, and to MLflow the files of the run.

    Args:
        loggers: of the run.
        settings: by dotted key.
        content: of the report.
        run_dir: where the files lie.
    """
    scores = {k: one["value"] for k, one in content["metrics"].items() if one["value"] is not None}
    value = content["objective"]["value"]
    scores |= {} if value is None else {"objective": value}
    plain = {
        key: one if isinstance(one, bool | int | float) else str(one)
        for key, one in settings.items()
    }
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.log_hyperparams(plain, scores)
            logger.finalize("success")
        elif isinstance(logger, MLFlowLogger):
            logger.log_hyperparams(plain)
            logger.log_metrics(scores)
            for name in FILES:
                if (run_dir / name).exists():
                    logger.experiment.log_artifact(logger.run_id, str(run_dir / name))
        else:
            logger.log_hyperparams(plain)  # metrics.csv takes none


def nest(logger: MLFlowLogger, sweep_dir: Path, *, patience_s: float = 20.0) -> None:
    """Put the MLflow run of a trial below one run of its sweep, which the first trial makes.

    Args:
        logger: of the trial.
        sweep_dir: names the run above, and keeps its identity.
        patience_s: how long to wait for another trial that is making it.
    """
    record = sweep_dir / PARENT
    try:
        with record.open("x") as file:
            tags = {"mlflow.runName": sweep_dir.name}
            parent = logger.experiment.create_run(logger.experiment_id, tags=tags)
            file.write(parent.info.run_id)
        logger.experiment.set_terminated(parent.info.run_id)
    except FileExistsError:
        until = time.monotonic() + patience_s
        while not record.read_text() and time.monotonic() < until:
            time.sleep(0.05)
    if identity := record.read_text():
        logger.experiment.set_tag(logger.run_id, "mlflow.parentRunId", identity)
