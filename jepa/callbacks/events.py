"""The decisions of a run, one JSON object to a line of `events.jsonl`."""

import json
import time
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_only


@rank_zero_only
def record_event(run_dir: str | Path, kind: str, **fields: Any) -> None:
    """Append one decision to `events.jsonl`, on a line of its own also after a cut one."""
    line = json.dumps({"time": time.time(), "kind": kind, **fields})
    with (Path(run_dir) / "events.jsonl").open("a+b") as file:
        if file.tell():
            file.seek(-1, 2)
            line = line if file.read(1) == b"\n" else "\n" + line
        file.write(f"{line}\n".encode())
