"""End one run again and again, and compare it bit for bit with one that was left alone.

`python tests/soak.py` kills the offline H-JEPA run for half an hour (`make soak`);
`python tests/soak.py family=tjepa kills=20 every=0,6` kills a small run 20 times, and only so.
"""

import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

SETTINGS = {"family": "digits", "minutes": "30", "kills": "0", "every": "10,30", "seed": "0",
            "epochs": "1200"}  # fmt: skip
WAYS = ("SIGKILL", "SIGTERM", "STOP")
LEFT = {"SIGKILL": (-9,), "SIGTERM": (143, -15), "STOP": (0,)}  # -15: before it listens
DIGITS = (
    "+experiment=hjepa_digits", "test=false", "logger=csv", "trainer=cpu",
    "callbacks.resume.every_n_steps=10", "callbacks.resume.keep=3",
    "trainer.log_every_n_steps=1",
)  # fmt: skip


@dataclass
class Life:
    """One process of the run: how it was ended, its exit code, and what it held at the most."""

    end: str
    code: int = 0
    mib: float = 0.0
    files: int = 0
    seconds: float = 0.0


@dataclass
class Soak:
    """All processes of the run, and what they were started with."""

    run_dir: Path
    arguments: list[str]
    every: tuple[float, float]
    rng: random.Random
    lives: list[Life] = field(default_factory=list)

    def live(self, way: str | None) -> Life:
        """Start or go on with the run; end it by `way` after a while, or (None) let it end."""
        life = Life("its own end")
        log = (self.run_dir.parent / "run.log").open("a")
        line = [sys.executable, "-m", "jepa.train", *self.arguments]
        line += [f"hydra.run.dir={self.run_dir}", "resume=auto"]
        process = subprocess.Popen(line, stdout=log, stderr=subprocess.STDOUT)
        began = time.monotonic()
        while not lock_of(self.run_dir, process.pid) and process.poll() is None:
            time.sleep(0.05)  # torch is imported; now something can be lost
        due = (began if self.every[0] else time.monotonic()) + self.rng.uniform(*self.every)
        while process.poll() is None:
            watch(process.pid, life)
            if way and time.monotonic() >= due:
                end(process, way, self.run_dir)
                life.end, way = way, None
            time.sleep(0.05)
        life.code, life.seconds = process.returncode, time.monotonic() - began
        log.close()
        self.lives.append(life)
        return life


def lock_of(run_dir: Path, pid: int) -> bool:
    """Tell whether the process has the run directory."""
    path = run_dir / "run.lock"
    return path.exists() and f"process {pid} " in path.read_text()


def watch(pid: int, life: Life) -> None:
    """Note the memory and the open files of a process, where the system tells them."""
    folder = Path("/proc") / str(pid)
    try:
        status = (folder / "status").read_text()
        life.files = max(life.files, len(os.listdir(folder / "fd")))
        life.mib = max(life.mib, int(status.split("VmRSS:")[1].split()[0]) / 1024)
    except (OSError, IndexError):
        return  # it has just ended


def end(process: subprocess.Popen, way: str, run_dir: Path) -> None:
    """Ask the process to leave, or do not ask."""
    if way == "STOP":
        (run_dir / "STOP").touch()
    else:
        process.send_signal(getattr(signal, way))


def whole(folder: Path, arguments: list[str]) -> float:
    """Train once without a disturbance; return the seconds it took."""
    began = time.monotonic()
    line = [sys.executable, "-m", "jepa.train", *arguments, f"hydra.run.dir={folder / 'whole'}"]
    with (folder / "whole.log").open("w") as log:
        subprocess.run(line, stdout=log, stderr=subprocess.STDOUT, check=True)
    return time.monotonic() - began


def settings_of(family: str, epochs: str, folder: Path) -> list[str]:
    """Return the run: the offline H-JEPA run, or a small one of the resume tests."""
    import resume_cases

    if family == "digits":
        return [*DIGITS, f"trainer.max_epochs={epochs}"]
    return [
        *resume_cases.settings_of(family, folder),
        "trainer.max_epochs=240",
        "callbacks.early_stopping.patience=null",
    ]


def judge(console: Console, soak: Soak, folder: Path) -> None:
    """Say what happened; raise if the run is not the one that was left alone."""
    from resume_cases import assert_same_run, last

    lives = soak.lives
    counts = {way: sum(life.end == way for life in lives) for way in (*WAYS, "its own end")}
    for i, life in enumerate(lives):
        if life.end in LEFT and life.code not in (*LEFT[life.end], 0):
            raise SystemExit(f"process {i} left with {life.code} after {life.end}: {folder}")
    console.print(
        f"{len(lives)} processes: " + ", ".join(f"{n} {way}" for way, n in counts.items())
    )
    third = len(lives) // 3 + 1
    for name, unit in (("mib", "MiB"), ("files", "open files"), ("seconds", "s")):
        values = [getattr(life, name) for life in lives]
        early, late = statistics.median(values[:third]), statistics.median(values[-third:])
        console.print(
            f"{unit}: median {early:.0f} in the first third, {late:.0f} in the last, "
            f"at most {max(values):.0f}"
        )
    assert_same_run(folder / "whole", folder / "run")
    console.print(f"the same run, bit for bit, at step {last(folder / 'run')['global_step']}")


def main(*arguments: str) -> None:
    """Disturb a run until it is over, and compare."""
    from jepa.directory import how_it_ended

    settings = SETTINGS | dict(argument.split("=", 1) for argument in arguments)
    if settings.keys() - SETTINGS.keys():
        raise SystemExit(
            "use: python tests/soak.py " + " ".join(f"[{k}={v}]" for k, v in SETTINGS.items())
        )
    low, high = map(float, settings["every"].split(","))
    kills, minutes = int(settings["kills"]), float(settings["minutes"])
    folder, console = Path(tempfile.mkdtemp(prefix="soak_")), Console()
    run = settings_of(settings["family"], settings["epochs"], folder)
    console.print(f"{folder}: undisturbed {whole(folder, run):.0f} s")
    ways = ("SIGKILL",) if kills else WAYS
    soak = Soak(folder / "run", run, (low, high), random.Random(int(settings["seed"])))
    began = time.monotonic()
    while how_it_ended(soak.run_dir) is None:
        n_kills = sum(life.end == "SIGKILL" for life in soak.lives)
        more = n_kills < kills if kills else time.monotonic() - began < 60 * minutes
        life = soak.live(soak.rng.choice(ways) if more else None)
        console.print(f"{time.monotonic() - began:6.0f} s  {life}")
        if life.end not in LEFT and life.code:
            raise SystemExit(f"the run failed: {folder / 'run.log'}")
    if sum(life.end == "SIGKILL" for life in soak.lives) < kills:
        raise SystemExit(f"the run was over before {kills} kills: give a smaller every=")
    if not kills and time.monotonic() - began < 60 * minutes:
        raise SystemExit(f"the run was over before {minutes:g} minutes: give more epochs=")
    judge(console, soak, folder)


if __name__ == "__main__":
    main(*sys.argv[1:])
