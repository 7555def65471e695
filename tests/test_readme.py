"""Every command in the README and in docs/ is one that the checker accepts; test_docs runs them."""

import re
import shlex

import pytest
from documents import PAGES, README, ROOT, commands

from jepa.config import CONF, check_command_line

NAMES = "evaluate embed forecast checkpoint doctor replay analyze compare export"
CONFIGS = {"train": "config"} | {name: name for name in NAMES.split()}
CONFIGS |= {"sweeps.controller": "config"}
TARGETS = set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE))
ALL = {(c.text, c.page): c for page in (README, *PAGES) for c in commands(page)}
# it reads a directory and has no config of its own
JEPA = [c for c in ALL.values() if c.name not in ("", "sweeps.report")]


def test_there_are_commands():
    readme = [c for c in JEPA if c.page == "README.md"]
    assert len(readme) > 10 and {c.name for c in readme} == set(CONFIGS)


@pytest.mark.parametrize("command", JEPA, ids=lambda c: f"{c.page} {c.text}")
def test_command_is_accepted(command, monkeypatch):
    monkeypatch.setattr("jepa.config.refuse_absent", lambda _: None)  # folders that one has to have
    arguments = re.sub(r"(?<=\s)<[^>]*>", "", command.arguments.replace("seed=<s>", "seed=0"))
    arguments = re.sub(r"<[^>]*>", "somewhere", arguments)
    if "widht" in arguments:
        return  # shown for its refusal; test_conf
    check_command_line(shlex.split(arguments), CONFIGS[command.name])


@pytest.mark.parametrize("command", [c for c in ALL.values() if not c.name], ids=lambda c: c.text)
def test_make_knows_the_target(command):
    typed = re.sub(r"<[^>]*>", "somewhere", command.text)
    words = [one for one in shlex.split(typed)[1:] if "=" not in one]
    assert set(words) <= TARGETS


def test_every_experiment_names_a_data_set_that_exists():
    for path in (CONF / "experiment").glob("*.yaml"):
        name = re.search(r"override /data: (\w+)", path.read_text())
        assert name and (CONF / "data" / f"{name[1]}.yaml").exists(), path


def test_make_help_lists_the_targets_of_record():
    names = {"help", "setup", "run", "test", "test-ci", "test-all", "check", "bench", "clean"}
    assert names <= TARGETS
