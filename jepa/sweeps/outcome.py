"""How a trial ended: what its process writes, and what the driver makes of it."""

import json
import math
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from jepa.directory import is_first_rank
from jepa.micro_batch import less_memory
from jepa.report import write_text

RESULT, LOG = "result.json", "output.log"
# kinds of errors, and what torch says on the CPU
OUT_OF_MEMORY = ("MemoryError", "OutOfMemoryError", "can't allocate memory")


class RecordOutcome(Callback):
    """Write what the task returned or raised to `result.json` in its directory."""

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Hydra calls this however the task ended, short of the end of its process."""
        if not is_first_rank():
            return  # only the first process of a run returns its value
        content: dict[str, Any] = {"value": None, "kind": None, "error": None}
        if job_return.status == JobStatus.COMPLETED:
            value = job_return.return_value
            content["value"] = list(value) if isinstance(value, list | tuple) else value
        else:
            error = job_return._return_value
            if isinstance(error, SystemExit | KeyboardInterrupt):
                return  # it was asked to leave, and may go on: its exit code says so
            content |= {"kind": type(error).__name__, "error": str(error)}
        path = Path(config.hydra.runtime.output_dir) / RESULT
        write_text(path, json.dumps(content, default=str) + "\n")


@dataclass(frozen=True)
class Outcome:
    """How a trial ended.

    Args:
        state: complete, pruned or failed.
        reason: in words; where its log lies for one that failed.
        values: of the objectives, finite, for a complete one.
        lost: it ended through no fault of its own, and is to be run again.
        changes: settings with which it is to be run again.
    """

    state: str
    reason: str
    values: tuple[float, ...] = ()
    lost: bool = False
    changes: tuple[str, ...] = ()


def read_outcome(directory: Path, code: int, *, n_objectives: int = 1) -> Outcome:
    """Judge a trial by the exit code of its process and what it left behind."""
    try:
        result = json.loads((directory / RESULT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return failed(directory, how_it_left(code))
    if result["kind"] == "PlanError":
        return Outcome("pruned", result["error"])
    if result["kind"] is not None:
        text = f"{result['kind']}: {result['error']}"
        why = "out of memory: " if any(one in text for one in OUT_OF_MEMORY) else ""
        return failed(directory, why + text)
    if code:
        return failed(directory, how_it_left(code))
    return judge(directory, result["value"], n_objectives)


def judge(directory: Path, value: Any, n_objectives: int) -> Outcome:
    """Judge what the task returned."""
    returned = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    try:
        values = tuple(float(one) for one in returned)
    except (TypeError, ValueError):
        return failed(directory, f"the objective must be a number, got {value!r}")
    if len(values) != n_objectives:
        return failed(directory, f"{n_objectives} objectives, but {len(values)} values: {value}")
    if not all(map(math.isfinite, values)):
        return failed(directory, f"the objective is {value}")
    return Outcome("complete", ", ".join(f"{one:.6g}" for one in values), values)


def failed(directory: Path, reason: str) -> Outcome:
    """Return a failure that names the log."""
    return Outcome("failed", f"{reason} ({directory / LOG})")


def starved(directory: Path, reason: str) -> Outcome:
    """Return a trial that was killed for its memory: it may do with a smaller micro-batch.

    It has failed where its guard (`guard.out_of_memory`) is off, and with a batch of one sample.
    """
    reason = f"out of memory: {reason}"
    try:
        cfg = yaml.safe_load((directory / "config.yaml").read_text(encoding="utf-8"))
        allowed = bool(cfg["guard"] and cfg["guard"]["out_of_memory"])
        changes = less_memory(cfg) if allowed else {}
    except (OSError, yaml.YAMLError, KeyError, TypeError):
        return failed(directory, reason)
    if not changes:
        return failed(directory, reason)
    settings = tuple(f"{key}={after}" for key, (_, after) in changes.items())
    return Outcome("failed", f"{reason}; again with {' '.join(settings)}", (), True, settings)


def how_it_left(code: int) -> str:
    """Name the signal that ended a process, or its exit code."""
    number = -code if code < 0 else code - 128
    try:
        return f"killed by {signal.Signals(number).name}"
    except ValueError:
        return f"ended with exit code {code} and without an objective"
