"""Did the kernel end a process for its memory? SIGKILL leaves no word; the kernel's counts tell.

On Linux every control group counts such kills of its own processes (`oom_kill`: cgroup v2 in
memory.events, v1 in memory.oom_control), and /proc/vmstat counts those of the whole machine since
it was started. What a process writes down when it starts is compared with what is there after its
end. A group that is still the same one decides; where it is gone, as a container's is, the machine
does: then another process may have been the victim.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path("/")


def note(root: Path = ROOT, variables: Mapping[str, str] = os.environ) -> str:
    """Return the counts as they are now, for `killed`; empty where the system has none."""
    content: dict[str, Any] = {"group": group(root), "machine": machine(root)}
    if not any(content.values()):
        return ""
    if job := variables.get("SLURM_JOB_ID"):
        content["slurm_job"] = job
    return json.dumps(content)


def killed(text: str, root: Path = ROOT, variables: Mapping[str, str] = os.environ) -> bool:
    """Tell whether a process that wrote a `note`, and has ended with no word, lacked memory."""
    try:
        before = json.loads(text)
    except ValueError:
        return False
    if not isinstance(before, dict):
        return False
    here = rose(before.get("group"), group(root))
    if here is not None:
        return here
    job = str(before.get("slurm_job", ""))
    if job.isdecimal() and job != variables.get("SLURM_JOB_ID"):
        from jepa.sweeps.slurm_queue import accounted

        status = accounted([job]).get(job)
        if status is not None:
            return status.state == "OUT_OF_MEMORY"
    return bool(rose(before.get("machine"), machine(root)))


def rose(before: Any, now: list[Any]) -> bool | None:
    """Tell whether a count is higher; None where it is not one of the same place."""
    if not isinstance(before, list) or not now or before[:-1] != now[:-1]:
        return None
    return isinstance(before[-1], int) and now[-1] > before[-1]


def group(root: Path = ROOT) -> list[Any]:
    """Return [path, inode, kills] of this process's memory group; nothing where there is none.

    A group that is made again under the same path has another inode.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    for line in lines:
        _, kinds, path = line.split(":", 2)
        v1 = "memory" in kinds.split(",")
        if kinds and not v1:
            continue
        place = root / "sys/fs/cgroup" / ("memory" if v1 else "") / path.lstrip("/")
        kills = counter(place / ("memory.oom_control" if v1 else "memory.events"))
        if kills is not None:
            return [str(place), place.stat().st_ino, kills]
    return []


def machine(root: Path = ROOT) -> list[Any]:
    """Return [id of the machine's start, kills since]; nothing where the kernel does not count."""
    kills = counter(root / "proc/vmstat")
    try:
        started = (root / "proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return []
    return [] if kills is None else [started, kills]


def counter(path: Path) -> int | None:
    """Return `oom_kill` of a file of the kernel's, None where it has none."""
    try:
        words = [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return None
    return next((int(pair[1]) for pair in words if len(pair) == 2 and pair[0] == "oom_kill"), None)
