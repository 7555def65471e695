"""What a run was done with: software, machine, command, commit."""

import importlib.metadata as metadata
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("jepa", "torch", "lightning", "hydra-core", "torchmetrics", "numpy", "pandas")


def environment() -> dict[str, Any]:
    """Describe the software, the machine and the command."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "command": [Path(sys.executable).name, *sys.orig_argv[1:]],
        "python": platform.python_version(),
        "versions": versions,
        "platform": platform.platform(),
        "cpu": {"count": os.cpu_count(), "torch_threads": torch.get_num_threads()},
        "cuda": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "commit": commit(),
    }


def commit() -> str | None:
    """Return the checkout's commit, with `+` where files differ; None outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
