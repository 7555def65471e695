"""One run directory: one process at a time, and what an earlier one has left in it."""

import fcntl
import json
import os
import socket
from pathlib import Path
from typing import IO, Any

from jepa import oom_kill
from jepa.config import UserError
from jepa.stored import check_recorded

LOCK = "run.lock"
# Settings that say where and how to go on, and are no part of what a run is.
WAYS = ("hydra.", "resume=", "trust=")
_held: dict[Path, IO[str]] = {}
_left: dict[Path, str] = {}  # what the process before wrote, where it ended without `release`


def is_first_rank() -> bool:
    """Tell whether this process writes: launchers number the processes of a run."""
    for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID", "NODE_RANK"):
        if os.environ.get(name, "0") != "0":
            return False
    return True


def hold(run_dir: Path) -> None:
    """Lock the directory until `release`, or until this process ends, however it does.

    Raises:
        UserError: naming the process that has it.
    """
    path = run_dir.resolve() / LOCK
    if path in _held:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        file = path.open("a+", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            owner = file.readline().strip() or "another process"
            file.close()
            raise UserError(
                f"{run_dir} is in use by {owner}: wait for its end, stop it with a file named STOP "
                "in that directory, or give another hydra.run.dir="
            ) from None
        if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
            break
        file.close()  # its owner has just removed it
    file.seek(0)
    _left[path] = file.read()
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n{oom_kill.note()}")
    file.flush()
    _held[path] = file


def lacked_memory(run_dir: Path) -> bool:
    """Tell, once, whether the process before this one in the directory was killed for its memory.

    One that left of its own accord has removed its lock.
    """
    return _tells_of_memory(_left.pop(run_dir.resolve() / LOCK, ""))


def died_of_memory(run_dir: Path) -> bool:
    """Tell whether the process that had the directory, and is known to be dead, was."""
    try:
        text = (run_dir / LOCK).read_text(encoding="utf-8")
    except OSError:
        return False
    return _tells_of_memory(text)


def _tells_of_memory(lock: str) -> bool:
    return oom_kill.killed(lock.partition("\n")[2])  # the first line names the process


def release(run_dir: Path) -> None:
    """Remove the lock of this process."""
    path = run_dir.resolve() / LOCK
    if file := _held.pop(path, None):
        path.unlink(missing_ok=True)
        file.close()


def recorded_overrides(run_dir: Path) -> list[str] | None:
    """Return the settings a run was started with, None where they are not known."""
    import yaml

    try:
        text = (run_dir / "overrides.yaml").read_text(encoding="utf-8")
        found = yaml.safe_load(text)
    except (OSError, yaml.YAMLError):
        return None
    return what(map(str, found)) if isinstance(found, list) else None


def what(arguments: Any) -> list[str]:
    """Return the arguments that say what a run is."""
    return [one for one in arguments if not one.startswith((*WAYS, "-"))]


def how_it_ended(run_dir: Path) -> dict[str, Any] | None:
    """Return the event of a run that has come to its end and is reported; None for any other.

    A run that was asked to stop has not come to its end.
    """
    from jepa.report import read_events

    try:
        report = json.loads((run_dir / "report.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    events = [e for e in read_events(run_dir) if e["kind"] in ("resume", "stop", "end")]
    reported = report.get("status") in ("finished", "stopped") and events and report.get("events")
    if not reported or events[-1]["kind"] != "end" or events[-1].get("asked"):
        return None
    return events[-1] if events[-1] in report["events"] else None


def named(arguments: list[str]) -> Path | None:
    """Return the directory that the arguments name, None where they leave it open."""
    found = [one for one in arguments if one.startswith("hydra.run.dir=")]
    return Path(found[-1].split("=", 1)[1].strip("'\"")) if found else None


def go_on(arguments: list[str]) -> list[str] | None:
    """Return the arguments with which a run goes on; None if there is nothing left to do.

    Without any setting of what the run is, `hydra.run.dir=<directory> resume=auto` takes those it
    was started with. They are untrusted, like all that lies in a run directory.

    Raises:
        UserError: if they call what is not shipped.
    """
    run_dir = named(arguments)
    recorded = None if run_dir is None else recorded_overrides(run_dir)
    if "resume=auto" not in arguments or run_dir is None or recorded is None:
        return arguments
    ended = how_it_ended(run_dir)
    if ended is not None and sorted(what(arguments)) in (sorted(recorded), []):
        print(
            f"{run_dir} has come to its end at step {ended['step']} ({ended['reason']}): nothing "
            "to do; give larger limits to go on"
        )
        return None
    if what(arguments):
        return arguments
    check_recorded(recorded, arguments)
    if recorded:
        print(f"settings of {run_dir}: {' '.join(recorded)}")
    return [*arguments, *recorded]
