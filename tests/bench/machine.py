"""What the machine can do, measured beside what is judged by it."""

import math
import multiprocessing
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from jepa.allocator import keep_memory


def describe() -> str:
    """Name processor, cores, load, Python and torch."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return (
        f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores, "
        f"{torch.backends.cpu.get_cpu_capability()}, load {os.getloadavg()[0]:.1f}, "
        f"Python {platform.python_version()}, torch {torch.__version__}"
    )


def cpu_seconds() -> float:
    """User and system time of this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def seconds(call: Callable[[], object], n: int = 1) -> float:
    """Time one of `n` calls: by own CPU time at one thread, which waiting does not change; else by
    the clock."""
    clock = cpu_seconds if torch.get_num_threads() == 1 else time.perf_counter
    start = clock()
    for _ in range(n):
        call()
    return (clock() - start) / n


def matmul_rate(dtype: torch.dtype) -> float:
    """Best of a few products of 1024 x 1024 matrices, in FLOP/s."""
    n = 1024 if dtype == torch.float32 else 512
    a, b = (torch.randn(n, n).to(dtype) for _ in range(2))
    a @ b
    n_products = 8 if dtype == torch.float32 else 2  # some processors take a second for bf16
    return max(2 * n**3 / seconds(lambda: a @ b) for _ in range(n_products))


def interleave(
    calls: dict[str, Callable[[], object]], *, n_repeats: int, n_steps: dict[str, int]
) -> dict[str, list[float]]:
    """Warm up, then time all calls in turn, several times: a busy spell hits all of them."""
    for call in calls.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(n_repeats):
        for name, call in calls.items():
            times[name].append(seconds(call, n_steps[name]))
    return times


def median(values: list[float]) -> float:
    """The middle one."""
    return statistics.median(values)


def _measure_apart(connection, call: Callable[..., object], arguments: tuple) -> None:
    torch.set_num_threads(1)
    keep_memory()
    result, status = call(*arguments), Path("/proc/self/status")
    peak = math.nan
    if status.exists():  # ru_maxrss would begin at the parent's
        peak = int(status.read_text().split("VmHWM:")[1].split()[0]) / 1024
    connection.send((result, peak))


def apart(call: Callable[..., Any], *arguments) -> tuple[Any, float]:
    """Make the call in a fresh process; return what it returns, and that process's peak in MiB.

    The peak is of resident memory, imports included; Linux only, nan elsewhere.
    """
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_measure_apart, args=(theirs, call, arguments))
    process.start()
    theirs.close()
    try:
        return mine.recv()
    finally:
        process.join()


def peak_mb(call: Callable[..., object], *arguments) -> float:
    """Peak resident memory, in MiB, of a fresh process that makes the call."""
    return apart(call, *arguments)[1]
