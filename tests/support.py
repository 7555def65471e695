"""A whole training run inside the test process, on a table of a few rows."""

from pathlib import Path

import numpy as np
import pandas as pd
from hydra import compose, initialize_config_dir

from jepa.config import CONF
from jepa.spec import SeriesSpec

# the daily bars of patchtst_hpo
BARS = SeriesSpec(
    channels=("open", "high", "low", "close", "volume"),
    look_back=60,
    horizon=1,
    location=(0.0,) * 5,
    scale=(1.0,) * 5,
    task="binary",
    classes=("below", "above"),
)

SMALL = (
    "data.batch_size=16", "model.width=8", "model.depth=1", "model.n_heads=2",
    "model.predictor_width=8", "model.predictor_depth=1", "model.predictor_n_heads=2",
    "trainer=cpu", "trainer.max_epochs=2", "trainer.check_val_every_n_epoch=1",
    "trainer.log_every_n_steps=1", "logger=csv",
)  # fmt: skip


def write_table(path: Path, *, n_rows: int = 120, seed: int = 0) -> Path:
    """Write a csv with numbers, a category, missing values and a binary target `label`."""
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=n_rows)
    frame = pd.DataFrame({f"n{i}": hidden + rng.normal(size=n_rows) for i in range(5)})
    frame["colour"] = np.where(hidden > 0.5, "red", np.where(hidden < -0.5, "blue", "green"))
    frame.loc[frame.index[::10], "n0"] = np.nan
    frame["label"] = np.where(hidden + 0.3 * rng.normal(size=n_rows) > 0, "yes", "no")
    frame.to_csv(path, index=False)
    return path


def overrides_for(path: Path) -> list[str]:
    return ["data=table", f"data.path={path}", "data.target=label", *SMALL]


def settings(run_dir: Path, *overrides: str):
    with initialize_config_dir(str(CONF), job_name="config"):
        return compose(
            "config", [f"run_dir={run_dir}", "study=test", "probe_name=auto", *overrides]
        )


def run_training(run_dir: Path, *overrides: str) -> float:
    """Train as `python -m jepa.train` does, without a new process; return the objective."""
    from jepa.run import FROM_THE_USER
    from jepa.train import train

    run_dir.mkdir(parents=True, exist_ok=True)
    with FROM_THE_USER:
        return train(settings(run_dir, *overrides), run_dir)


EXTRA = []  # a callback that a test hands to a run


def extra():
    return EXTRA[0]


def silent(**_):
    """Stand in for a callback that was removed."""
    from lightning import Callback

    return Callback()
