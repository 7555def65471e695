"""The twelve studies of PatchTST, 4 sizes x 3 horizons: `make patchtst-studies`.

`python -m jepa.sweeps.studies [start_from=<n>] [n_trials=<n>] [dir=<folder>] [key=value ...]` runs
them one after the other, each in a process of its own, and ends with a summary. A study that has
its n_trials is skipped; one that was interrupted goes on. Other keys are handed to jepa.train.
"""

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import OmegaConf

SIZES, HORIZONS = ("2m", "20m", "200m", "2b"), (1, 3, 5)
USE = (
    "use: python -m jepa.sweeps.studies [start_from=1..12] [n_trials=50] [dir=...] [key=value ...]"
)


@dataclass(frozen=True)
class Study:
    """One size and one horizon, and where its trials lie."""

    size: str
    horizon: int
    folder: Path

    @property
    def name(self) -> str:
        """The name of the study and of its directory."""
        return f"patchtst_{self.size}_h{self.horizon}"

    def command(self, n_trials: int, further: Sequence[str]) -> list[str]:
        """Return the command that runs it, or goes on with it."""
        return [
            *(sys.executable, "-m", "jepa.train", "-m", "hydra/sweeper=optuna"),
            *("+experiment=patchtst_hpo", f"size={self.size}", f"data.horizon={self.horizon}"),
            f"study={self.name}",
            f"hydra.sweep.dir={self.folder}",
            f"hydra.sweeper.study_name={self.name}",
            f"hydra.sweeper.storage=sqlite:///{self.folder}/optuna.db",
            *(f"hydra.sweeper.n_trials={n_trials}", "hydra.sweeper.n_jobs=1"),
            "hydra.sweeper.sampler.seed=0",
            *further,
        ]

    def is_finished(self, n_trials: int) -> bool:
        """Tell whether it has its trials, however these ended."""
        path = self.folder / "optimization_results.yaml"
        return path.exists() and sum(OmegaConf.load(path).trials.values()) >= n_trials


def studies(folder: Path) -> list[Study]:
    """Return all twelve, small ones first."""
    return [
        Study(size, horizon, folder / f"patchtst_{size}_h{horizon}")
        for size in SIZES
        for horizon in HORIZONS
    ]


def run_all(
    plan: Sequence[Study],
    *,
    n_trials: int,
    further: Sequence[str] = (),
    run: Callable[[list[str]], int] = subprocess.call,
) -> dict[str, str]:
    """Run studies in order; return PASS, FAIL or SKIP by name, NOT RUN after an interruption."""
    outcome = {study.name: "NOT RUN" for study in plan}
    try:
        for number, study in enumerate(plan, 1):
            print(f"[{number}/{len(plan)}] {study.name}", flush=True)
            if study.is_finished(n_trials):
                outcome[study.name] = "SKIP"
                continue
            study.folder.mkdir(parents=True, exist_ok=True)
            ended_well = run(study.command(n_trials, further)) == 0
            outcome[study.name] = "PASS" if ended_well else "FAIL"
    except KeyboardInterrupt:
        print("interrupted: the same command goes on")
    return outcome


def main(*arguments: str) -> int:
    """Run the studies that the arguments ask for; return 1 if one failed or did not run.

    Raises:
        SystemExit: for an argument that is none.
    """
    if not all("=" in argument for argument in arguments):
        raise SystemExit(USE)
    settings = {"start_from": "1", "n_trials": "50", "dir": "runs/sweeps"}
    own = dict(argument.split("=", 1) for argument in arguments)
    further = [a for a in arguments if a.split("=", 1)[0] not in settings]
    settings |= {key: value for key, value in own.items() if key in settings}
    every = studies(Path(settings["dir"]))
    try:
        first, n_trials = int(settings["start_from"]), int(settings["n_trials"])
    except ValueError:
        raise SystemExit(USE) from None
    if not 1 <= first <= len(every) or n_trials < 1:
        raise SystemExit(USE)
    outcome = run_all(every[first - 1 :], n_trials=n_trials, further=further)
    for name, word in outcome.items():
        print(f"{word:8} {name}")
    return int(not set(outcome.values()) <= {"PASS", "SKIP"})


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
