"""Check the machine and the config before a long job: `python -m jepa.doctor [+experiment=...]`.

It takes every key of jepa.train, does a little of everything the run would do, says what it found,
and leaves nothing behind. The exit code is 0 if nothing failed; `json=true` prints one document.
"""

import json
import re
import sys
import time
from contextlib import redirect_stdout
from typing import TYPE_CHECKING, Any

import hydra
from omegaconf import DictConfig

from jepa.config import CONF, UserError, check_command_line, run_command

if TYPE_CHECKING:
    from jepa.checks import Result

COLOURS = {"pass": "green", "warn": "yellow", "fail": "bold red", "skip": "dim"}


def show_results(results: "list[Result]", seconds: float) -> None:
    """Print one table, and the verdict."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    from jepa.checks import verdict
    from jepa.screen import console

    table = Table("check", "verdict", "found", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for one in results:
        text = Text(one.detail)
        if one.todo:
            text.append(f"\n-> {one.todo}", style="italic")
        table.add_row(one.name, Text(one.status, style=COLOURS[one.status]), text)
    console.print(table)
    word = verdict(results)
    console.print(Text(f"{word}, after {seconds:.0f} s", style=COLOURS[word]))


def document(results: "list[Result]", seconds: float) -> str:
    """Return the results as JSON."""
    import dataclasses

    from jepa.checks import verdict

    listed = [dataclasses.asdict(one) for one in results]
    content = {"schema": 1, "verdict": verdict(results), "seconds": seconds, "checks": listed}
    return json.dumps(finite(content), indent=1, allow_nan=False)


def finite(value: Any) -> Any:
    """Return nested values with null for numbers that JSON has no word for."""
    if isinstance(value, dict):
        return {key: finite(one) for key, one in value.items()}
    if isinstance(value, list):
        return [finite(one) for one in value]
    return None if isinstance(value, float) and not abs(value) < float("inf") else value


def tell(results: "list[Result]", *, as_json: bool, seconds: float) -> None:
    """Print the results and leave with the exit code."""
    if as_json:
        print(document(results, seconds))
    else:
        show_results(results, seconds)
    sys.exit(1 if any(one.status == "fail" for one in results) else 0)


@hydra.main(config_path=str(CONF), config_name="doctor")
def main(cfg: DictConfig) -> None:
    """Check everything, print the table, and leave with 1 if anything failed."""
    from jepa.train import set_variables

    started = time.perf_counter()
    with redirect_stdout(sys.stderr):  # notes of the data and of Lightning are no part of it
        set_variables(cfg)
        from jepa.examine import examine  # after what torch reads when it is imported

        results = examine(cfg)
    tell(results, as_json=cfg.json, seconds=time.perf_counter() - started)


def cli() -> None:
    """Run the command; a bad key is a failed check."""
    # Hydra would make the directory that it is given
    arguments = [re.sub(r"^hydra\.run\.dir=", "run_dir=", one) for one in sys.argv[1:]]
    sys.argv[1:] = arguments
    try:
        if {"-m", "--multirun"} & set(arguments):
            raise UserError("jepa.doctor checks one run: leave -m and what it sweeps over out")
        check_command_line(arguments, "doctor")
    except UserError as error:
        from jepa.checks import Result

        failed = [Result("config", "fail", str(error), "mend the key that is named")]
        tell(failed, as_json="json=true" in arguments, seconds=0.0)
    run_command(main, "doctor")


if __name__ == "__main__":
    cli()
