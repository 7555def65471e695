"""Every command in the README is one that the checker accepts; the main ones run in test_train."""

import re
import shlex
from pathlib import Path

import pytest

from jepa.config import CONF, check_command_line

ROOT = Path(__file__).parents[1]
NAMES = "evaluate embed forecast checkpoint doctor replay analyze compare export"
CONFIGS = {"train": "config"} | {name: name for name in NAMES.split()}
CONFIGS |= {"sweeps.controller": "config"}


def commands():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.findall(r"python -m jepa\.(?!sweeps\.report)([\w.]+)([^`\n]*)", text)
    return [(command, arguments.split("#")[0]) for command, arguments in found]


def test_there_are_commands():
    assert len(commands()) > 10 and {name for name, _ in commands()} == set(CONFIGS)


@pytest.mark.parametrize(("command", "arguments"), commands())
def test_readme_command_is_accepted(command, arguments):
    arguments = re.sub(r"<[^>]*>", "somewhere", arguments.replace("seed=<s>", "seed=0"))
    if "widht" in arguments:
        return  # shown for its refusal; test_conf
    for one in arguments.split("`, `"):
        check_command_line(shlex.split(one), CONFIGS[command])


def test_every_experiment_names_a_data_set_that_exists():
    for path in (CONF / "experiment").glob("*.yaml"):
        name = re.search(r"override /data: (\w+)", path.read_text())
        assert name and (CONF / "data" / f"{name[1]}.yaml").exists(), path


def test_make_help_lists_the_targets_of_record():
    text = (ROOT / "Makefile").read_text()
    names = ("help", "setup", "run", "test", "test-ci", "test-all", "check", "bench", "clean")
    for target in names:
        assert re.search(rf"^{target}:.*## ", text, re.MULTILINE), target
