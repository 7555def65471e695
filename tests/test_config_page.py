"""docs/config.md says what conf/ says; docs/make.py writes it."""

import re

import pytest
import yaml

from docs.make import CONF, GROUPS, PAGE, page, prefix_of, read, words

FILES = sorted(CONF.rglob("*.yaml"))


def leaves(node, prefix):
    """Yield the dotted key of everything that is no mapping."""
    for key, value in node.items():
        if key == "defaults":
            continue
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{key}.")
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            yield from (f"{prefix}{key}[{i}]" for i in range(len(value)))
        else:
            yield f"{prefix}{key}"


def group_of(path):
    return path.parent.relative_to(CONF).as_posix()


def test_the_committed_page_is_what_make_docs_writes():
    assert PAGE.read_text(encoding="utf-8") == page(), "run make docs"


def test_no_group_is_left_out():
    assert {group_of(path) for path in FILES} - {"."} == set(GROUPS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(CONF).as_posix())
def test_every_setting_and_every_comment_of_a_file_is_there(path):
    group = group_of(path)
    option = read(path, "" if group == "." else prefix_of(group))
    loaded = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    prefix = "" if group == "." else prefix_of(group)
    shown = {one.key: one.default for one in option.settings}
    wanted = set(leaves(loaded, prefix))
    assert wanted <= set(shown)
    said = option.text + " ".join(one.comment for one in option.settings)
    for line in path.read_text(encoding="utf-8").splitlines():
        comment = re.search(r"(?:^|\s)#\s?(.*)$", line)
        if comment and not comment[1].startswith("@package"):
            text = comment[1].strip()
            assert text in said or words(text) in said, text


def test_a_default_stands_as_it_is_written():
    shown = {one.key: one for one in read(CONF / "model" / "hjepa.yaml", "model.").settings}
    assert shown["model.optimizer.lr"].default == "1.5e-3"
    assert shown["model.level_weights"].default == "[1.0, 0.7]"
    assert shown["model.level_weights"].comment == "one for each level, finest first"


def test_a_comment_goes_on_below_itself_and_one_by_itself_has_a_row(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text(
        "# The file.\na: 1   # one\n    # not of a\nb: 2   # two,\n       # twice\nc: #3\n"
    )
    option = read(path, "x.")
    assert option.text == "The file."
    assert [(s.key, s.default, s.comment) for s in option.settings] == [
        ("x.a", "1", "one"),
        ("", "", "not of a"),
        ("x.b", "2", "two, twice"),
        ("x.c", "", "3"),
    ]
