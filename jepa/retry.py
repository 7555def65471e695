"""Go on after a failure that has a remedy: less memory at a time, or without an optional part."""

import copy
import logging
import shlex
import sys
from pathlib import Path
from typing import Any

import lightning as L
from omegaconf import DictConfig, OmegaConf

from jepa import directory, report, screen
from jepa.callbacks.events import record_event
from jepa.callbacks.guard import Guard
from jepa.failures import OFF, failed_part, is_on, is_out_of_memory
from jepa.micro_batch import less_memory
from jepa.settle import n_devices

log = logging.getLogger(__name__)
WEIGHTED = ("pyramid", "nt_xent")  # parts with weights of their own


class Retry(Exception):
    """A run failed, and these settings are a remedy.

    Args:
        why: what failed, in a few words.
        changes: keys of the config, what they were, and what they are to be.
        part: the optional part that is left out; empty for memory.
        error: what was raised.
    """

    def __init__(self, why: str, changes: dict[str, list[Any]], part: str, error: Exception):
        super().__init__(why)
        self.why, self.changes, self.part, self.error = why, changes, part, error


def remedy(error: Exception, cfg: DictConfig, callbacks: list[L.Callback]) -> Retry | None:
    """Return what to change after an error; None where it is the user's, or nothing helps.

    Several processes would have to fail together: they are left alone.

    Args:
        error: raised by the first pass or by training.
        cfg: settled.
        callbacks: those of the run; without a guard among them there is no remedy.
    """
    guard = next((one for one in callbacks if isinstance(one, Guard)), None)
    if guard is None or n_devices(cfg.trainer) > 1:
        return None
    if is_out_of_memory(error):
        changes = less_memory(cfg) if guard.out_of_memory else {}
        return Retry("out of memory", changes, "", error) if changes else None
    part = failed_part(error, cfg.model) if guard.parts else ""
    changes = without(part, cfg) if part else {}
    return Retry(f"{part} failed", changes, part, error) if changes else None


def after_kill(cfg: DictConfig, run_dir: Path) -> Retry | None:
    """Return what to change where the kernel killed the attempt before for its memory, once.

    Such a kill leaves no time for a word: it is the next process, with `resume=auto`, that goes on
    with less, as this one does after an error.

    Args:
        cfg: settled.
        run_dir: held by this process.
    """
    if cfg.resume != "auto" or not directory.lacked_memory(run_dir):
        return None
    if not cfg.guard or not cfg.guard.out_of_memory or n_devices(cfg.trainer) > 1:
        return None
    error = MemoryError("the kernel killed the process before (SIGKILL, exit code 137)")
    changes = less_memory(cfg)
    if not changes:
        screen.say(f"warning: {error}: out of memory with a micro-batch of one sample")
    return Retry("out of memory", changes, "", error) if changes else None


def without(part: str, cfg: DictConfig) -> dict[str, list[Any]]:
    """Return what leaves a part out; nothing where a checkpoint already has its weights."""
    if part in WEIGHTED and any((Path(cfg.run_dir) / "checkpoints").glob("*.ckpt")):
        return {}
    off = dict(OFF[part])
    if part == "nt_xent" and cfg.model.second_view and not cfg.model.vicreg_invariance:
        off |= {"model.second_view": False, "data.two_views": False}  # nothing else reads it
    if part == "nt_xent" and cfg.model.local_weight and not cfg.model.vicreg_invariance:
        off |= {"model.local_weight": 0.0, "data.n_local_views": 0}
    return {key: [OmegaConf.select(cfg, key), value] for key, value in off.items()}


def changed(cfg: DictConfig, changes: dict[str, list[Any]]) -> DictConfig:
    """Return a copy of a composed config with the changes in it."""
    cfg = copy.deepcopy(cfg)
    OmegaConf.set_struct(cfg, False)
    for key, (_, after) in changes.items():
        OmegaConf.update(cfg, key, after)
    return cfg


def replayed(cfg: DictConfig, run_dir: Path) -> DictConfig:
    """Return the config as the run that is gone on with had come to need it.

    A setting that is another one now than when it was changed stays as it is.
    """
    if cfg.resume != "auto" or not cfg.guard:
        return cfg
    for event in report.read_events(run_dir):
        changes = event["changes"] if event["kind"] == "retry" else {}
        if changes and all(OmegaConf.select(cfg, k) in (was, "auto") for k, (was, _) in changes.items()):  # fmt: skip  # noqa: E501
            cfg = changed(cfg, changes)
    return cfg


def go_on(cfg: DictConfig, retry: Retry, run_dir: Path) -> DictConfig:
    """Say and record what changes; return the config of the next attempt.

    It goes on from the newest checkpoint; without one it starts again, and so does metrics.csv.
    """
    what = ", ".join(f"{key}={after} (was {was})" for key, (was, after) in retry.changes.items())
    text = f"{retry.why}: going on with {what}"
    screen.say(f"warning: {text}")
    log.warning("%s", text, exc_info=retry.error)
    error = f"{type(retry.error).__name__}: {retry.error}"
    record_event(run_dir, "retry", why=retry.why, changes=retry.changes, error=error)
    if any((run_dir / "checkpoints").glob("*.ckpt")):
        return changed(cfg, retry.changes | {"resume": [cfg.resume, "auto"]})
    (run_dir / "metrics.csv").unlink(missing_ok=True)
    return changed(cfg, retry.changes)


def let_go(retry: Retry) -> None:
    """Forget the frames of the failed attempt: they hold its model and its activations."""
    from jepa.allocator import free_memory

    for error in (retry, retry.error):
        error.__traceback__ = error.__cause__ = error.__context__ = None
    free_memory()


def show_conservative(model: DictConfig) -> None:
    """Print the command line of this process with every optional part of the model off."""
    off = [f"{k}={v}" for part in OFF.values() if is_on(part, model) for k, v in part.items()]
    own = ("hydra.run.dir", "resume")  # the directory is used
    arguments = [one for one in sys.argv[1:] if one.split("=")[0] not in own]
    line = shlex.join(["python", "-m", "jepa.train", *arguments, *(one.lower() for one in off)])
    screen.say(f"a second failure; without any optional part: {line}")
