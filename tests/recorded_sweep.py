"""The directory of a sweep as jepa.sweeps leaves it: many settings with long names, bad trials."""

import json
import random
from pathlib import Path

import optuna
from optuna.distributions import CategoricalDistribution as Choice
from optuna.distributions import FloatDistribution as Float
from optuna.distributions import IntDistribution as Int
from optuna.trial import TrialState as State

from jepa.sweeps import report
from jepa.sweeps.study import LOST

NAME = "probe/ridge/error"
SPACE = {
    "model.optimizer.lr": Float(1e-5, 1e-2, log=True),
    "model.optimizer.weight_decay": Float(1e-6, 1e-1, log=True),
    "model.weight_decay_end": Float(1e-6, 1e-1, log=True),
    "model.width": Choice((64, 128, 256)),
    "model.depth": Int(1, 12),
    "model.predictor_depth": Int(1, 6),
    "model.warmup_share": Float(0.0, 0.3),
    "model.momentum": Float(0.99, 0.9999),
    "callbacks.early_stopping.patience": Int(2, 20),
    "data.batch_size": Choice((32, 64, 128)),
    "augment.crop_area_low": Float(0.2, 1.0),
    "model.representation": Choice(("mean", "last4", "concatenated_levels")),
}


def draw(rng: random.Random) -> dict:
    """Return a value of each setting."""
    found = {}
    for key, one in SPACE.items():
        if isinstance(one, Choice):
            found[key] = rng.choice(one.choices)
        elif isinstance(one, Int):
            found[key] = rng.randint(one.low, one.high)
        else:
            share = rng.random()
            found[key] = one.low * (one.high / one.low) ** share if one.log else one.low + share * (one.high - one.low)  # fmt: skip  # noqa: E501
    return found


def write_sweep(folder: Path, *, n_trials: int = 24, keys: tuple[str, ...] = tuple(SPACE)) -> Path:
    """Write its tables and its page; every eighth trial failed, was lost, or was pruned."""
    folder.mkdir(parents=True)
    rng = random.Random(0)
    study = optuna.create_study(study_name="hjepa_fashion_mnist_8172414e")
    report.record(folder, storage=None, name=study.study_name, command=["python", "-m", "jepa.train"])  # fmt: skip  # noqa: E501
    for number in range(n_trials):
        params = {key: value for key, value in draw(rng).items() if key in keys}
        rate = params["model.optimizer.lr"]
        value = 0.15 + 4 * abs(rate - 1e-3) + 0.001 * params.get("model.depth", 0)
        state, ended = State.COMPLETE, f"{value:.6g}"
        if number % 8 == 3:
            state, ended = State.FAIL, f"out of memory: MemoryError: DefaultCPUAllocator: can't allocate memory: you tried to allocate 68719476736 bytes. ({folder / str(number)}/output.log)"  # fmt: skip  # noqa: E501
        if number % 8 == 5:
            state, ended = State.PRUNED, "step 2: 0.31 is worse than the median of its peers"
        attributes = {"ended": ended, "seconds": 61.5, "overrides": [f"{k}={v}" for k, v in params.items()]}  # fmt: skip  # noqa: E501
        if number == 11:
            attributes |= {LOST: True, "ended": "its driver died"}
        study.add_trial(
            optuna.trial.create_trial(
                state=state,
                params=params,
                distributions={key: SPACE[key] for key in params},
                value=value if state == State.COMPLETE else None,
                user_attrs=attributes,
            )
        )
        directory = folder / str(number)
        directory.mkdir()
        content = {"objective": {"name": NAME, "value": value}}
        (directory / "report.json").write_text(json.dumps(content))
    report.write_all(study, folder)
    return folder
