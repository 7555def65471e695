"""A task for sweeps without torch: `python tests/sweep_task.py -m hydra/sweeper=optuna ...`.

It returns `x ** 2`, and goes wrong where `wrong` and its trial's number say so.
"""

import json
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig

from jepa.config import CONF
from jepa.sweeps import optuna


@dataclass
class Config:
    x: float = 0.0
    y: float = 0.0
    seconds: float = 0.0  # of each step
    n_steps: int = 1
    wrong: str = ""  # "1:kill-3:nan": what goes wrong in which trial
    seed: int = 0
    study: str = "study"
    resume: str = "never"


ConfigStore.instance().store(name="sweep_task", node=Config)


def go_wrong(how: str) -> None:
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif how == "raise":
        raise RuntimeError("the loss exploded")
    elif how == "memory":
        raise MemoryError("cannot allocate 30 GiB")
    elif how == "hang":
        time.sleep(3600)


@hydra.main(config_path=str(CONF), config_name="sweep_task")
def main(cfg: Config) -> float:
    where = Path(HydraConfig.get().runtime.output_dir)
    plan = dict(one.split(":") for one in cfg.wrong.split("-") if one)
    how = plan.get(where.name, "")
    go_wrong(how)
    values = []
    for step in range(cfg.n_steps):
        time.sleep(cfg.seconds)
        values.append([step, cfg.x**2 + cfg.n_steps - 1 - step])
        signs = {"step": step, "total": cfg.n_steps, "values": values}
        (where / "heartbeat.tmp").write_text(json.dumps(signs))
        os.replace(where / "heartbeat.tmp", where / "heartbeat.json")
    return float("nan") if how == "nan" else cfg.x**2


if __name__ == "__main__":
    optuna.register()
    main()
