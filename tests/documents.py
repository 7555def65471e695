"""The commands, settings and links that README.md and docs/ name.

A command is what an inline code or a line of a fenced block calls: `python -m jepa.<name> ...` or
`make <target> ...`. `<!-- needs: ... -->` on the line above a block says why no test runs it.
"""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
# config.md is made of the yaml files, whose commands tests/test_conf.py composes
PAGES = sorted(p for p in (ROOT / "docs").glob("*.md") if p.name != "config.md")
CALL = r"(?:python -m jepa\.[\w.]+|(?<![\w/])make [a-z][a-z-]*)"
NEEDS = re.compile(r"<!-- needs: (.+?) -->")


@dataclass(frozen=True)
class Command:
    """What one types.

    Args:
        page: where it stands.
        text: the command, without a prompt and a comment behind it.
        inline: it stands in a line of prose or a table.
        needs: what its block's mark says.
    """

    page: str
    text: str
    inline: bool
    needs: str = ""

    @property
    def name(self) -> str:
        """The module below jepa; empty for make."""
        found = re.match(r"python -m jepa\.([\w.]+)", self.text)
        return found[1] if found else ""

    @property
    def arguments(self) -> str:
        return re.sub(CALL, "", self.text, count=1).strip()


@dataclass(frozen=True)
class Block:
    """A fenced block."""

    language: str
    lines: tuple[str, ...]
    needs: str


def blocks(text: str) -> list[Block]:
    found, lines, inside, language, needs = [], [], False, "", ""
    above = ""
    for line in text.splitlines():
        if line.startswith("```"):
            if inside:
                found.append(Block(language, tuple(lines), needs))
            else:
                mark = NEEDS.fullmatch(above.strip())
                lines, language, needs = [], line[3:].strip(), mark[1] if mark else ""
            inside = not inside
        elif inside:
            lines.append(line)
        above = line
    return found


def prose(text: str) -> str:
    """Return the text without its fenced blocks and marks."""
    return re.sub(
        r"<!--.*?-->", "", re.sub(r"^```.*?^```", "", text, flags=re.S | re.M), flags=re.S
    )


def inline_codes(text: str) -> list[str]:
    found = re.findall(r"(?<!`)`([^`]+)`(?!`)", prose(text))
    return [" ".join(one.split()).replace("\\|", "|") for one in found]


def commands(page: Path) -> list[Command]:
    text = page.read_text(encoding="utf-8")
    found = []
    for block in blocks(text):
        for line in block.lines:
            call = re.search(rf"(?:^|\s)({CALL}.*)", line)
            if call and (call[1].startswith("python") or not line[: call.start(1)].strip(" $")):
                typed = re.sub(r"\s+#.*$", "", call[1]).strip()
                found.append(Command(page.name, typed, False, block.needs))
    for code in inline_codes(text):
        if re.match(CALL, code):
            found.append(Command(page.name, code, True))
    return found
