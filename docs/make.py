"""Write docs/config.md from the yaml files of conf/: `make docs`.

A comment belongs to the setting on whose line it begins; the lines below it that hold nothing but a
comment in the same column go on with it. Comments above all settings are the option's own text, and
any other stands in a row by itself.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import yaml

ROOT = Path(__file__).parents[1]
CONF = ROOT / "conf"
PAGE = ROOT / "docs" / "config.md"
# In the order of a run; the groups of Hydra come last.
GROUPS = (
    "data", "augment", "model", "masking", "probe", "callbacks", "guard", "trainer", "logger",
    "paths", "search", "experiment", "debug", "hydra/launcher",
)  # fmt: skip
HEAD = """# Settings

Every setting that a yaml of `conf/` holds, with its default and the comment that stands beside it
there. Written by `make docs`; a test compares. A setting is given as `key=value`, an option of a
group as `group=option` (`hydra/launcher=slurm`); `python -m jepa.train --cfg job` prints what a
command line makes of them. Settings of Lightning, Optuna and submitit that are not named here have
their own defaults.
"""


@dataclass(frozen=True)
class Setting:
    """One key of a yaml file; a comment by itself has no key."""

    key: str
    default: str
    comment: str


@dataclass(frozen=True)
class Option:
    """One yaml file."""

    text: str
    settings: tuple[Setting, ...]


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(), encoding="utf-8")


def page() -> str:
    """Return the whole page."""
    names = ["config.yaml", *sorted(p.name for p in CONF.glob("*.yaml") if p.stem != "config")]
    parts = [HEAD, contents()]
    parts += ["## Commands\n", *(section(CONF / name, command(name)) for name in names)]
    for group in GROUPS:
        parts.append(f"## {group}\n")
        files = sorted((CONF / group).glob("*.yaml"))
        parts += [section(path, f"{group}={path.stem}", prefix_of(group)) for path in files]
    return "\n".join(parts).rstrip() + "\n"


def contents() -> str:
    """Return the links to the groups."""
    links = [f"[{name}](#{name.replace('/', '')})" for name in GROUPS]
    return f"Groups: [commands](#commands), {', '.join(links)}.\n"


def command(name: str) -> str:
    """Return the command whose settings a main yaml holds."""
    return f"jepa.{'train' if name == 'config.yaml' else Path(name).stem}"


def prefix_of(group: str) -> str:
    """Return what stands before the keys of a group on the command line.

    Nothing, where the file is put at the root or its keys are whole already.
    """
    if group in ("experiment", "debug", "search"):
        return ""
    return group.replace("/", ".") + "."


def section(path: Path, title: str, prefix: str = "") -> str:
    """Return the part of one file."""
    option = read(path, prefix)
    lines = [f"### {title}\n"]
    if option.text:
        lines.append(f"```text\n{option.text}\n```\n")
    if option.settings:
        lines += ["| setting | default | what |", "|---|---|---|"]
        lines += [f"| {code(s.key)} | {code(s.default)} | {s.comment} |" for s in option.settings]
        lines.append("")
    return "\n".join(lines)


def code(text: str) -> str:
    """Return a cell of code."""
    return f"`{text.replace('|', chr(92) + '|')}`" if text else ""


def words(text: str) -> str:
    """Keep Markdown from reading a comment as its own signs."""
    return re.sub(r"([|<*_$`])", r"\\\1", text)


def read(path: Path, prefix: str = "") -> Option:
    """Read one yaml with its comments."""
    lines = path.read_text(encoding="utf-8").splitlines()
    root = yaml.compose("\n".join(lines), Loader=yaml.SafeLoader)
    first = next(
        (i for i, line in enumerate(lines) if line and not line.startswith("#")), len(lines)
    )
    comments = Comments(lines)
    text = [comments.own(i) or "" for i in range(first) if not lines[i].startswith("# @package")]
    settings: list[Setting] = []
    if isinstance(root, yaml.MappingNode):
        settings = list(walk(root, prefix, comments, first))
    return Option("\n".join(text).rstrip(), tuple(settings))


class Comments:
    """The comments of a file by line and column."""

    def __init__(self, lines: list[str]):
        self.lines = lines

    def own(self, i: int) -> str | None:
        """Return the comment of a line that holds nothing else."""
        line = self.lines[i].strip() if i < len(self.lines) else ""
        return line.removeprefix("#").removeprefix(" ") if line.startswith("#") else None

    def after(self, i: int, column: int) -> str:
        """Return the comment behind what ends there, with the lines that go on with it."""
        start = self.lines[i].find(" #", column)
        if start < 0 or not re.fullmatch(r"[ \]}]*(&\w+)? *", self.lines[i][column:start]):
            return ""
        parts, own = [self.lines[i][start:].strip(" #")], start + 1
        while (more := self.own(i + 1)) is not None and self.lines[i + 1].index("#") == own:
            parts.append(more)
            i += 1
        return " ".join(parts)


def walk(node: yaml.MappingNode, prefix: str, comments: Comments, first: int) -> Iterator[Setting]:
    """Yield the settings of a mapping, in order, with the comments between them."""
    line = first
    for key, value in node.value:
        yield from between(comments, line, key.start_mark.line)
        name = key.value if key.value == "defaults" else f"{prefix}{key.value}"
        end = max(key.end_mark.line, end_of(value).line)  # an alias ends where its anchor does
        line = end + 1
        block = not isinstance(value, yaml.ScalarNode) and not value.flow_style
        head = comments.after(key.end_mark.line, key.end_mark.column + 1) if block else ""
        if head:
            yield Setting(name, "", words(head))
        if isinstance(value, yaml.MappingNode) and value.value:
            inner = next(iter(value.value))[0].start_mark.line
            merged = key.value == "<<"  # an anchor's keys are the mapping's own
            yield from walk(value, prefix if merged else f"{name}.", comments, inner)
        elif isinstance(value, yaml.SequenceNode) and not value.flow_style:
            items = cast(list[yaml.Node], value.value)
            for i, item in enumerate(items):
                yield Setting(f"{name}[{i}]", source(comments, item), words(behind(comments, item)))
        else:
            yield Setting(name, source(comments, value), words(behind(comments, value)))


def between(comments: Comments, start: int, end: int) -> Iterator[Setting]:
    """Yield the comment that stands by itself between two settings."""
    parts, column = [], None
    for i in range(start, end):
        own = comments.own(i)
        if own is None:
            continue
        here = comments.lines[i].index("#")
        above = comments.lines[i - 1].find(" #")
        if not parts and here in (above + 1, column) and above + 1:
            column = here  # what stands behind the setting above goes on
            continue
        parts.append(own)
    if parts:
        yield Setting("", "", words(" ".join(parts)))


def behind(comments: Comments, node: yaml.Node) -> str:
    """Return the comment behind a value."""
    end = end_of(node)
    return comments.after(end.line, end.column) if end.line < len(comments.lines) else ""


def end_of(node: yaml.Node) -> yaml.Mark:
    """Return where a value ends; yaml's own mark of a block lies behind the comments after it."""
    if isinstance(node, yaml.MappingNode) and not node.flow_style and node.value:
        return end_of(node.value[-1][1])
    if isinstance(node, yaml.SequenceNode) and not node.flow_style and node.value:
        return end_of(node.value[-1])
    return node.end_mark


def source(comments: Comments, node: yaml.Node) -> str:
    """Return a value as the file has it, on one line."""
    if isinstance(node, yaml.ScalarNode) and node.style in ("|", ">"):
        return "(text)"
    start, end = node.start_mark, end_of(node)
    lines = comments.lines[start.line : end.line + 1]
    if start.line == end.line:
        return lines[0][start.column : end.column]
    parts = [lines[0][start.column :], *lines[1:-1], lines[-1][: end.column]]
    return " ".join(one.split(" #")[0].strip() for one in parts)


if __name__ == "__main__":
    main()
