"""Take a broken step again: `python -m jepa.replay dump=<run>/dumps/step_<n>`.

Says where a value first stops being a number: in the input, forward, or on the way back.
Exit code 0 if the step breaks again, 1 if it does not.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from omegaconf import DictConfig

from jepa.config import CONF, run_command

if TYPE_CHECKING:
    from jepa.replaying import Replay


@hydra.main(config_path=str(CONF), config_name="replay")
def main(cfg: DictConfig) -> None:
    """Rebuild the model, take the step, print what is found; leave with 1 if it is sound."""
    from jepa import run, screen
    from jepa.replaying import replay
    from jepa.resolve import pick_device

    path = find_dump(cfg.dump)
    trained_cfg, model, content = run.load_model(path)
    if "batches" not in content:
        raise ValueError(f"dump={cfg.dump} is a checkpoint, not a step that the guard left out")
    found = replay(model, content, pick_device(cfg.accelerator))
    screen.say(f"{path}: {trained_cfg.model._target_}, step {content['global_step']}")
    for line in describe(found, content):
        screen.say(line)
    if not found.broken:
        sys.exit(1)


def find_dump(dump: str) -> Path:
    """Return the file of a dump, given that or its folder.

    Raises:
        FileNotFoundError: if there is none.
    """
    for path in (Path(dump), Path(dump) / "step.ckpt"):
        if path.is_file():
            return path
    raise FileNotFoundError(f"dump={dump}: neither a dump nor a folder with step.ckpt")


def describe(found: "Replay", content: dict[str, Any]) -> list[str]:
    """Say what the step did then and now."""
    then = ", ".join(f"{loss:.9g}" for loss in content["losses"].tolist())
    lines = [
        f"loss then: {then}",
        f"loss now:  {', '.join(f'{loss:.9g}' for loss in found.losses)}",
        *(f"input {name}" for name in found.inputs),
        f"first activation that is not finite: {found.activation or 'none'}",
        f"first gradient that is not finite:   {found.gradient or 'none'}",
    ]
    verdict = "reproduced" if found.broken else "NOT reproduced: loss and gradient are finite"
    return [*lines, verdict]


def cli() -> None:
    """Run the command."""
    run_command(main, "replay")


if __name__ == "__main__":
    cli()
