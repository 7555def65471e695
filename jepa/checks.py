"""What the machine gives a run: device, disk, folders, signals. Nothing that is tried stays."""

import re
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend

from jepa.callbacks.interrupt import SIGNALS
from jepa.plan import show, types_of

STATUSES = ("pass", "warn", "fail", "skip")
LOGS = 200 * 2**20  # metrics.csv, tensorboard/, train.log and the report of a long run
SIZE = 256  # of the matrices that tell how fast a precision is


@dataclass(frozen=True)
class Result:
    """What a check found.

    Args:
        name: of the check.
        status: one of STATUSES; `skip` where a check before it left nothing to look at.
        detail: what was found.
        todo: what to do about it.
        values: the numbers behind it, for the JSON document.
        seconds: what the check took.
    """

    name: str
    status: str
    detail: str
    todo: str = ""
    values: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0


def check_device(
    device: torch.device, *, accelerator: str, precision: str, n_devices: int, compiled: bool
) -> Result:
    """See whether device, precision, attention and, where it is on, compilation work.

    Raises:
        ValueError: for an unknown precision.
    """
    weights, autocast = types_of(precision)
    operations = autocast or weights
    if accelerator in ("gpu", "cuda", "mps") and device.type == "cpu":
        found = f"trainer.accelerator={accelerator}, but this machine has none"
        return Result("device", "fail", found, "give trainer=cpu, or another machine")
    n_here = torch.cuda.device_count() if device.type == "cuda" else n_devices
    if n_devices > n_here:
        found = f"{n_devices} devices are asked for, {n_here} are here"
        return Result("device", "fail", found, f"give trainer.devices={n_here}")
    if device.type == "mps" and operations == torch.float64:
        found = f"trainer.precision={precision}: MPS has no float64"
        return Result("device", "fail", found, "give trainer.precision=32-true")
    try:
        kernel = sdpa_kernel(device, operations)
        compilation = try_compile(device) if compiled else "off"
    except Exception as error:  # a compiler or a kernel can fail in any way
        text = (str(error).strip().splitlines() or [""])[0]
        found = f"{device} with {precision} does not work: {type(error).__name__}: {text}"
        todo = "give model.compile=false" if compiled else "give trainer.precision=32-true"
        return Result("device", "fail", found, todo)
    ratio = speed(device, operations) / speed(device, torch.float32)
    found = f"{name_of(device)}, {precision} (matrix products {ratio:.2g} x float32), "
    found += f"attention: {kernel}, compile: {compilation}"
    values = {"device": str(device), "kernel": kernel, "compile": compilation, "ratio": ratio}
    if ratio < 1.0 and operations != torch.float32 and operations != torch.float64:
        return Result(
            "device", "warn", found, "give trainer.precision=32-true: faster here", values
        )
    return Result("device", "pass", found, values=values)


def name_of(device: torch.device) -> str:
    """Name the device: the model of a GPU, the threads of a CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu ({torch.get_num_threads()} threads)" if device.type == "cpu" else device.type


def sdpa_kernel(device: torch.device, dtype: torch.dtype) -> str:
    """Attend once; return the name of the kernel that torch takes."""
    q = torch.ones(1, 2, 16, 16, device=device, dtype=dtype)
    F.scaled_dot_product_attention(q, q, q)
    choice = torch._fused_sdp_choice(q, q, q)  # pyright: ignore[reportPrivateImportUsage]
    return SDPBackend(choice).name.lower()


def try_compile(device: torch.device) -> str:
    """Compile and run a small function.

    Raises:
        Exception: whatever the compiler raises.
    """
    started = time.perf_counter()
    torch.compile(lambda x: x.sin() * 2)(torch.ones(8, device=device))
    return f"works ({time.perf_counter() - started:.0f} s)"


def speed(device: torch.device, dtype: torch.dtype) -> float:
    """Return matrix products a second, of the fastest of a few."""
    a = torch.ones(SIZE, SIZE, device=device, dtype=dtype)

    def once() -> float:
        started = time.perf_counter()
        for _ in range(8):
            torch.mm(a, a)
        synchronize(device)
        return time.perf_counter() - started

    return 8 / min(once() for _ in range(5))


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def nearest_folder(path: Path) -> Path:
    """Return the path, or the nearest folder above it that exists.

    Raises:
        NotADirectoryError: if a file stands in the way.
    """
    for place in (path.absolute(), *path.absolute().parents):
        if place.is_dir():
            return place
        if place.exists():
            raise NotADirectoryError(f"{place} is a file")
    return Path(path.anchor or "/")


def check_folders(run_dir: Path) -> Result:
    """See whether the run directory can be made, and whether temporary files lie beside it."""
    try:
        there = nearest_folder(run_dir)
        with tempfile.TemporaryDirectory(prefix=".jepa-doctor-", dir=there):
            pass
    except OSError as error:
        return Result(
            "folders",
            "fail",
            f"{run_dir} cannot be written: {error}",
            "give hydra.run.dir= a folder that you may write to",
        )
    temporary = Path(tempfile.gettempdir())
    found = f"runs go to {run_dir}, temporary files to {temporary}"
    if there.stat().st_dev != temporary.stat().st_dev:
        # our checkpoints are renamed from a sibling, so nothing of ours depends on it
        found += "; two file systems (checkpoints do not pass through TMPDIR)"
    return Result("folders", "pass", found)


def check_disk(run_dir: Path, *, checkpoint_bytes: int, n_kept: int, n_runs: int = 1) -> Result:
    """Compare the free disk with the checkpoints to come.

    Args:
        run_dir: where they go.
        checkpoint_bytes: of one file, measured.
        n_kept: files that stay at a time; one more is there while it is written.
        n_runs: this one and its stages.
    """
    free = shutil.disk_usage(nearest_folder(run_dir)).free
    need = checkpoint_bytes * (n_kept * n_runs + 1) + LOGS
    found = (
        f"{show(free)} free; {n_kept * n_runs} checkpoints of {show(checkpoint_bytes)}, one more "
        f"while it is written, and logs take {show(need)}"
    )
    values = {"free_bytes": free, "need_bytes": need, "checkpoint_bytes": checkpoint_bytes}
    todo = "free space, give hydra.run.dir= on another disk, or lower callbacks.resume.keep"
    if free < need:
        return Result("disk", "fail", found, todo, values)
    if free < 2 * need:
        return Result("disk", "warn", found, todo, values)
    return Result("disk", "pass", found, values=values)


def check_signals(variables: Mapping[str, str], launcher: Mapping[str, Any]) -> Result:
    """See whether signals can be heard, and what SLURM does with a job that is cut short.

    Args:
        variables: of the environment.
        launcher: settings of Hydra's launcher; those of a SLURM one are looked at.
    """
    if threading.current_thread() is not threading.main_thread():
        found = "no signal can be heard outside the main thread"
        return Result("signals", "fail", found, "start the run in the main thread of a process")
    for name in SIGNALS:
        number = getattr(signal, name)
        signal.signal(number, signal.signal(number, signal.SIG_IGN))
    found = f"{', '.join(SIGNALS)} can be heard"
    if "max_num_timeout" in launcher:
        n = launcher["max_num_timeout"]
        found += f"; launcher: requeued {n} times after a timeout, warned "
        found += f"{launcher.get('signal_delay_s', 0)} s before"
        if not n:
            todo = "give hydra.launcher.max_num_timeout=<times>: a timeout would end the run"
            return Result("signals", "warn", found, todo)
    if "SLURM_JOB_ID" not in variables:
        return Result("signals", "pass", f"{found}; not under SLURM")
    requeue, limit = slurm_settings(variables["SLURM_JOB_ID"])
    found += f"; SLURM job {variables['SLURM_JOB_ID']}: requeue {requeue}, time limit {limit}"
    if requeue != "on":
        return Result("signals", "warn", found, "submit with sbatch --requeue --signal=USR1@90")
    todo = "without sbatch --signal=USR1@90 the run is not warned before its time limit"
    return Result("signals", "pass", found, todo)


def slurm_settings(job: str) -> tuple[str, str]:
    """Return (`on`, `off` or `unknown`; the time limit) of a job, as scontrol tells them."""
    command = ["scontrol", "show", "job", job]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown", "unknown"
    requeue = re.search(r"\bRequeue=(\d)", done.stdout)
    limit = re.search(r"\bTimeLimit=(\S+)", done.stdout)
    words = {"0": "off", "1": "on"}
    return words.get(requeue[1] if requeue else "", "unknown"), limit[1] if limit else "unknown"


def check_memory(
    device: torch.device, batch_size: int, *, predicted: int, measured: int | None, usable: int
) -> Result:
    """Compare the bytes of a step, predicted and measured, with those that may be used.

    `measured` is None where nobody knows, or no step was taken.
    """
    values = {"predicted_bytes": predicted, "measured_bytes": measured, "usable_bytes": usable}
    found = f"a step on data.batch_size={batch_size} takes {show(predicted)} as predicted, "
    found += "unknown" if measured is None else show(measured)
    found += f" as measured; of {device} {show(usable)} may be used"
    todo = (
        "lower data.batch_size, or give data.effective_batch_size= and "
        "trainer.accumulate_grad_batches=auto"
    )
    if predicted > usable:
        return Result("memory", "fail", found, todo, values)
    if measured is not None and measured > usable:
        return Result("memory", "warn", found, todo, values)
    return Result("memory", "pass", found, values=values)


def verdict(results: list[Result]) -> str:
    """Return the worst status of all: `fail`, `warn` or `pass`."""
    found = {one.status for one in results}
    return next((status for status in ("fail", "warn") if status in found), "pass")
