"""What a driver reads in the directory of a trial in flight."""

import json
from pathlib import Path
from typing import Any

from jepa.sweeps.outcome import LOG

HEARTBEAT = "heartbeat.json"


def last_sign(directory: Path) -> float:
    """Return when the trial last took a step, or wrote a line where it says no steps."""
    for name in (HEARTBEAT, LOG):
        try:
            return (directory / name).stat().st_mtime
        except OSError:
            continue
    return 0.0


def heartbeat(directory: Path) -> dict[str, Any]:
    """Return step, total and the values reached so far; nothing before the first."""
    try:
        return json.loads((directory / HEARTBEAT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def newest_checkpoint(directory: Path) -> Path | None:
    """Return what a run that goes on elsewhere starts from, None where there is nothing."""
    path = directory / "checkpoints" / "last.ckpt"
    return path if path.exists() else None
