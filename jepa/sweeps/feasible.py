"""Whether a trial can run at all, told before it is started: `python -m jepa.sweeps.feasible`.

Settings that contradict each other (width and heads, masks that leave no context), a size that no
width gives, and a model of which not one sample fits the device never become a job. The process
behind it imports torch and reads the data once, and lasts as long as the sweep. What else may be
wrong, as missing data, is the trial's own to say.
"""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import IO, Any

from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from jepa.config import CONF, explain

NO_MATTER = {"batch_size", "effective_batch_size", "seed"}  # of data, to what a model must know


class Checker:
    """Asks the process about trials, one at a time.

    Args:
        n_jobs: trials that share the memory of this machine; None where they run elsewhere, and
            memory is theirs to plan.
    """

    def __init__(self, *, n_jobs: int | None):
        self.n_jobs = n_jobs
        self.process: subprocess.Popen[str] | None = None

    def refuse(self, overrides: Sequence[str]) -> str:
        """Return why a trial cannot run; nothing where it can, or where that is not known."""
        if self.process is None:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "jepa.sweeps.feasible"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
                start_new_session=True,  # Ctrl-C is for the driver
            )
        streams = self.process
        assert streams.stdin is not None and streams.stdout is not None
        try:
            streams.stdin.write(json.dumps([list(overrides), self.n_jobs]) + "\n")
            streams.stdin.flush()
            return json.loads(streams.stdout.readline())
        except (OSError, ValueError):  # it is gone: the trial says itself what is wrong
            self.close()
            return ""

    def close(self) -> None:
        """End the process; it keeps nothing."""
        if self.process is not None:
            self.process.kill()
            with contextlib.suppress(OSError):
                self.process.communicate()  # closes the pipes
            self.process = None


class Judge:
    """Judges trials by their overrides; keeps what it knows of each data set."""

    def __init__(self) -> None:
        self.known: dict[str, Any] = {}

    def refusal(self, overrides: Sequence[str], n_jobs: int | None) -> str:
        """Return why a trial cannot run; nothing where it can, or where that is not known."""
        from jepa.run import FROM_THE_USER

        with FROM_THE_USER:
            try:
                cfg = composed(overrides)
                data = self.prepared(cfg)
            except Exception:  # of data that is missing, damaged, too large: not of the trial
                return ""
            try:
                check(cfg, data, n_jobs)
            except Exception as error:
                return explain(error) or ""
        return ""

    def prepared(self, cfg: DictConfig) -> Any:
        """Return the data of a trial, prepared; in every trial of most sweeps it is the same."""
        from hydra.utils import instantiate

        node = {k: v for k, v in cfg.data.items() if k not in NO_MATTER}
        name = OmegaConf.to_yaml(OmegaConf.create(node), resolve=True, sort_keys=True)
        if name not in self.known:
            data = instantiate(cfg.data)
            data.prepare()
            self.known = {name: data}  # one at a time: some are large
        return self.known[name]


def composed(overrides: Sequence[str]) -> DictConfig:
    """Return the config of a trial as `jepa.train` composes it."""
    with initialize_config_dir(str(CONF), job_name="feasible"):
        cfg = compose("config", [*overrides, "run_dir=."], return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)  # `study` and `probe_name` refer to it
    OmegaConf.set_struct(cfg, False)
    del cfg["hydra"]
    return cfg


def check(cfg: DictConfig, data: Any, n_jobs: int | None) -> None:
    """Settle the config and build its model without memory; plan a step on one sample.

    Raises:
        ValueError: if the model cannot be built; a `PlanError` if it fits nowhere.
    """
    from jepa.plan import PlanError, device_bytes, plan_batch
    from jepa.resolve import build, pick_device
    from jepa.settle import predicts_target, settle
    from jepa.step_memory import build_unallocated

    settled = settle(cfg, data, predicts_target=predicts_target(cfg))
    model = build_unallocated(lambda: build(settled, data.spec))
    if n_jobs is None:
        return
    device = pick_device(settled.trainer.accelerator)
    plan = plan_batch(
        model,
        effective_batch=1,
        device_bytes=device_bytes(device) // n_jobs,
        precision=settled.trainer.precision,
        device=device,
    )
    if not plan.fits:
        raise PlanError(plan.advice)


def answer(questions: IO[str], answers: IO[str]) -> None:
    """Answer a line of JSON for each line of it, `[overrides, n_jobs]`, until there are no more."""
    judge = Judge()
    for line in questions:
        answers.write(json.dumps(judge.refusal(*json.loads(line))) + "\n")
        answers.flush()


def main() -> None:
    """Answer on stdout; what libraries print there goes to stderr."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    answer(sys.stdin, answers)


if __name__ == "__main__":
    main()
