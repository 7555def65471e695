"""How much of the device's memory a run takes."""

import math
import os
from pathlib import Path

import torch


def memory_bytes(device: torch.device) -> tuple[float, float]:
    """Return what is in use of the device's memory, and what there is.

    On the CPU what this process holds of the machine's; on CUDA the peak so far; nan where the
    system does not say.
    """
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        return float(torch.cuda.max_memory_reserved(device)), float(total)
    if device.type == "mps":
        return float(torch.mps.driver_allocated_memory()), float(torch.mps.recommended_max_memory())
    own = Path("/proc/self/statm")
    if not own.exists():
        return math.nan, math.nan
    pages, size = int(own.read_text().split()[1]), os.sysconf("SC_PAGE_SIZE")
    return float(pages * size), float(os.sysconf("SC_PHYS_PAGES") * size)


def memory_share(device: torch.device) -> float:
    """Return the part of the device's memory in use, see `memory_bytes`."""
    used, total = memory_bytes(device)
    return used / total
