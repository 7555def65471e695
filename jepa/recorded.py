"""What a run directory says of its run: metrics, report, settings and events, as plain values.

Everything in it is untrusted and read as text; nothing is built.
"""

import contextlib
import fcntl
import json
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from jepa.directory import LOCK, recorded_overrides, what
from jepa.history import Rows, read_rows
from jepa.report import new, read_events
from jepa.stored import read_settings

ALIVE_S = 120.0  # a heartbeat younger than this is of a run that goes on (written every 10 s)


@dataclass(frozen=True)
class Recorded:
    """One run directory.

    Args:
        folder: the directory.
        rows: of metrics.csv.
        report: of report.json; an empty one with the status `unfinished` where there is none.
        settings: of config.yaml by dotted key; empty where there is none.
    """

    folder: Path
    rows: Rows
    report: dict[str, Any]
    settings: dict[str, Any]

    @property
    def name(self) -> str:
        """The last parts of the path that tell runs apart."""
        return "/".join(self.folder.resolve().parts[-2:])

    @cached_property
    def overrides(self) -> list[str]:
        """What the run was started with, where it writes left out."""
        given = recorded_overrides(self.folder)
        if given is None:
            typed = [str(one) for one in self.environment.get("command", [])]
            given = what(one for one in typed if "=" in one)
        return [one for one in given if not one.startswith("run_dir=")]

    @cached_property
    def events(self) -> list[dict[str, Any]]:
        """Its decisions, in order."""
        return read_events(self.folder)

    @cached_property
    def environment(self) -> dict[str, Any]:
        """What environment.json says of the machine; empty where there is none."""
        with contextlib.suppress(OSError, ValueError):
            content = json.loads((self.folder / "environment.json").read_text(encoding="utf-8"))
            return content if isinstance(content, dict) else {}
        return {}

    @property
    def family(self) -> str:
        """The model's class, without its module; `unknown` where there is no config."""
        return str(self.settings.get("model._target_", "unknown")).rpartition(".")[2]

    @property
    def data(self) -> str:
        """The data's class, without its module, and the file where it is one's own."""
        name = str(self.settings.get("data._target_", "unknown")).rpartition(".")[2]
        path = self.settings.get("data.path")
        return f"{name} {Path(str(path)).name}" if path else name


def open_run(run: str | Path, *, key: str = "run") -> Recorded:
    """Read a run directory, or that of a checkpoint.

    Args:
        run: the directory, or a checkpoint in it.
        key: the setting that named it.

    Raises:
        FileNotFoundError: if there is none, or it holds no run; naming what was looked for.
        ValueError: for files in it that are damaged or of another kind.
    """
    folder = directory_of(run, key=key)
    metrics, report = folder / "metrics.csv", folder / "report.json"
    if not metrics.exists() and not report.exists():
        inner = sorted(path.parent for path in folder.glob("*/metrics.csv"))
        hint = ": no run directory"
        if inner:
            hint = (
                f", but {len(inner)} runs below it: give {key}={inner[0]}, or compare them with "
                f"python -m jepa.compare runs=[{folder}]"
            )
        raise FileNotFoundError(f"{key}={run} has neither metrics.csv nor report.json{hint}")
    rows = read_rows(metrics) if metrics.exists() else []
    content = read_report(report)
    if not rows and not content["metrics"]:
        raise ValueError(
            f"{key}={run}: nothing was logged yet and nothing scored ({content['status']}: "
            f"{content['reason']}): there is nothing to tell"
        )
    config = folder / "config.yaml"
    settings = read_settings(config) if config.exists() else {}
    return Recorded(folder=folder, rows=rows, report=content, settings=settings)


def directory_of(run: str | Path, *, key: str) -> Path:
    """Return the run directory that a setting names by itself or by a checkpoint in it.

    Raises:
        FileNotFoundError: if there is nothing there.
    """
    path = Path(run).expanduser()
    if path.is_file():
        return path.parent.parent if path.parent.name == "checkpoints" else path.parent
    if not path.is_dir():
        raise FileNotFoundError(f"{key}={run}: there is no such directory or checkpoint")
    return path


def read_report(path: Path) -> dict[str, Any]:
    """Return a report with every key of record.

    Raises:
        ValueError: for a file that is none.
    """
    unfinished = new(status="unfinished", reason="there is no report.json yet")
    if not path.exists():
        return unfinished
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if not isinstance(content, dict) or content.get("schema") != 1:
        raise ValueError(f"{path} is no report of jepa of schema 1")
    for key, default in unfinished.items():
        if not isinstance(content.get(key, default), type(default)):
            raise ValueError(f"{path} is damaged: {key} is no {type(default).__name__}")
    return unfinished | content


def is_running(folder: Path) -> bool:
    """Tell whether a process is at work in the directory.

    It holds the lock; from another machine, where locks may not be seen, its heartbeat is young.
    """
    heartbeat, lock = folder / "heartbeat.json", folder / LOCK
    with contextlib.suppress(OSError), lock.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    with contextlib.suppress(OSError):
        return lock.exists() and time.time() - heartbeat.stat().st_mtime < ALIVE_S
    return False


def wait_for(folder: Path, *, every_s: float = 1.0) -> float:
    """Return when no process is at work in the directory; return the seconds it took."""
    started = time.monotonic()
    while is_running(folder):
        time.sleep(every_s)
    return time.monotonic() - started
