"""How much of the device's memory a run takes."""

import os
from pathlib import Path

import torch


def memory_share(device: torch.device) -> float:
    """Return the part of the device's memory in use; on the CPU, of the machine's, by this process.

    On CUDA the peak so far; nan where the system does not say.
    """
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        return torch.cuda.max_memory_reserved(device) / total
    if device.type == "mps":
        return torch.mps.driver_allocated_memory() / torch.mps.recommended_max_memory()
    own = Path("/proc/self/statm")
    if not own.exists():
        return float("nan")
    return int(own.read_text().split()[1]) / os.sysconf("SC_PHYS_PAGES")  # both in pages
