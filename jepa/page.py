"""A report as one HTML file: no script, no network, light and dark, narrow and wide."""

import base64
import html
import re
import struct
from collections.abc import Iterable, Mapping, Sequence

# Colours that are told apart in both schemes, also without red and green (Okabe and Ito, 2008).
LIGHT = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8a6d00", "#3a3a3a", "#56b4e9", "#7a4fa3")
DARK = ("#56b4e9", "#ff9548", "#2fd0a0", "#f0a3c9", "#f0e442", "#d0d0d0", "#8ecdf5", "#c3a1e8")


def colours(values: Sequence[str]) -> str:
    """Return the colours of lines as variables."""
    return "".join(f"--c{i}:{value};" for i, value in enumerate(values))


STYLE = f"""
:root {{ color-scheme: light dark; --ink:#1d2126; --pale:#5c6670; --paper:#fff; --panel:#f5f6f8;
  --edge:#dcdfe4; --good:#00704f; --warn:#8a5a00; --bad:#b3261e; {colours(LIGHT)} }}
@media (prefers-color-scheme: dark) {{ :root {{ --ink:#e6e8eb; --pale:#a2abb5; --paper:#14171a;
  --panel:#1e2226; --edge:#363c43; --good:#46c99b; --warn:#e6b450; --bad:#ff8a80; {colours(DARK)} }} }}
* {{ box-sizing: border-box }}
body {{ font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 84rem; margin: 0 auto; padding: 1rem clamp(.8rem, 3vw, 2.5rem) 4rem }}
h1 {{ font-size: 1.5rem; margin: .4rem 0; overflow-wrap: anywhere }}
h2 {{ font-size: 1.15rem; margin: 2.2rem 0 .6rem; padding-top: .6rem; border-top: 1px solid var(--edge) }}
h3 {{ font-size: 1rem; margin: 1.2rem 0 .2rem }}
p, li {{ max-width: 48rem; overflow-wrap: anywhere }}
.good, .healthy {{ color: var(--good) }} .warn {{ color: var(--warn) }} .bad, .critical {{ color: var(--bad) }}
b.good, b.warn, b.bad {{ white-space: nowrap }}
.lead {{ font-size: 1.15rem; border-left: .3rem solid; padding: .5rem .9rem; background: var(--panel); max-width: 60rem }}
.lead span {{ color: var(--ink) }}
.pale {{ color: var(--pale) }}
.wide {{ overflow-x: auto; max-width: 100% }}
.wide + .wide {{ margin-top: 1.2rem }}
.columns {{ columns: 26rem; column-gap: 2.5rem }} .columns table {{ width: 100% }} .columns td:last-child {{ width: 35% }}
table {{ border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums }}
th, td {{ padding: .25rem .9rem .25rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--edge) }}
th {{ color: var(--pale); font-weight: 600; white-space: nowrap }}
td {{ max-width: 36rem }} td.long {{ min-width: 14rem; overflow-wrap: anywhere }}
td:first-child, th:first-child {{ position: sticky; left: 0; background: var(--paper); max-width: 48vw; min-width: 1.8rem }}
td:first-child code {{ display: inline-block; min-width: 9.5rem }}
code, pre {{ font-family: ui-monospace, monospace, monospace }} code {{ font-size: .9em }}
pre {{ background: var(--panel); padding: .7rem .9rem; white-space: pre-wrap; overflow-wrap: anywhere; font-size: .9rem }}
details {{ margin-top: 1.5rem }} summary {{ cursor: pointer }} dt {{ font-weight: 600 }} dd {{ margin: 0 0 .4rem; max-width: 48rem }}
.charts {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); gap: 1.2rem 2rem }}
figure {{ margin: 0; min-width: 0; max-width: 34rem }} figure.broad {{ max-width: none; grid-column: 1 / -1 }} figcaption {{ font-weight: 600; margin-bottom: .2rem }}
img {{ display: block; max-width: none; background: #fff; border-radius: .3rem }}
@media (prefers-color-scheme: dark) {{ img {{ filter: invert(.9) hue-rotate(180deg) }} }}
svg {{ width: 100%; height: auto; display: block }}
svg text {{ font: 13px system-ui, sans-serif; fill: var(--pale) }}
svg path {{ fill: none; stroke-width: 1.8; stroke-linejoin: round }}
svg .grid {{ stroke: var(--edge); stroke-width: 1 }} svg .axis {{ stroke: var(--pale); stroke-width: 1 }}
svg .faint {{ opacity: .35; stroke-width: 1 }} svg .level {{ stroke-dasharray: 5 4 }}
.legend {{ list-style: none; padding: 0; margin: .2rem 0 0; display: flex; flex-wrap: wrap; gap: .1rem 1.1rem; font-size: .88rem }}
.legend i {{ display: inline-block; width: 1.4em; border-top: 3px solid; margin-right: .4em; vertical-align: middle }}
.legend i.level {{ border-top-style: dashed }}
{"".join(f"path.c{i}{{stroke:var(--c{i})}} circle.c{i}{{fill:var(--c{i})}} i.c{i}{{border-color:var(--c{i})}}" for i in range(len(LIGHT)))}
"""  # noqa: E501
LONG = 34  # letters of a cell that may wrap
GRADES = {True: ("good", "yes"), False: ("bad", "no"), None: ("pale", "not measured")}


def page(title: str, parts: Iterable[str]) -> str:
    """Return the whole file."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<link rel="icon" href="data:,">'  # a browser would ask a server for one
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(part for part in parts if part)
        + "\n</body></html>\n"
    )


def heading(text: str, level: int = 2) -> str:
    """Return a heading."""
    return f"<h{level}>{html.escape(text)}</h{level}>"


def paragraph(text: str, kind: str = "") -> str:
    """Return a paragraph; `kind` is a class of the style."""
    attribute = f' class="{kind}"' if kind else ""
    return f"<p{attribute}>{html.escape(text)}</p>"


def lead(name: str, text: str, state: str) -> str:
    """Return the sentence that says it all, its name in the colour of its state."""
    said = f"<b>{html.escape(name)}</b> " if name else ""
    return f'<p class="lead {state}">{said}<span>{html.escape(text)}</span></p>'


def listing(items: Iterable[str]) -> str:
    """Return a list; nothing where it is empty."""
    found = "".join(f"<li>{html.escape(item)}</li>" for item in items)
    return f"<ul>{found}</ul>" if found else ""


def code(text: str) -> str:
    """Return text to copy."""
    return f"<pre>{html.escape(text)}</pre>"


def terms(title: str, words: Mapping[str, str]) -> str:
    """Return words with their meanings, folded away below a title; nothing where there are none."""
    found = "".join(
        f"<dt>{html.escape(word)}</dt><dd>{html.escape(what)}</dd>" for word, what in words.items()
    )
    return f"<details><summary>{html.escape(title)}</summary><dl>{found}</dl></details>" if found else ""  # fmt: skip  # noqa: E501


def table(
    rows: Sequence[Sequence[str | bool | None]], *, code_first: bool = False, columns: bool = False
) -> str:
    """Return a table, the first row its head; nothing where there is only a head.

    True, False and None are grades: yes, no, not measured.

    Args:
        rows: of cells.
        code_first: the first cell of a row is a name in the code.
        columns: few and short cells, for which a wide page has room several times.
    """
    if len(rows) < 2:
        return ""
    head = "".join(f'<th scope="col">{html.escape(str(cell))}</th>' for cell in rows[0])
    body = ""
    for row in rows[1:]:
        cells = [cell_of(cell) for cell in row]
        if code_first:
            cells[0] = f"<code>{cells[0]}</code>"
        body += "<tr>" + "".join(f"<td{wraps(cell)}>{cell}</td>" for cell in cells) + "</tr>"
    around = 'class="columns"' if columns else 'class="wide" tabindex="0"'
    return f"<div {around}><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def wraps(cell: str) -> str:
    """Return the class of a cell whose text needs room to wrap."""
    return ' class="long"' if len(re.sub("<[^>]*>", "", cell)) > LONG else ""


def cell_of(value: str | bool | None) -> str:
    """Return a cell's content."""
    if value is None or isinstance(value, bool):
        kind, word = GRADES[value]
        return f'<b class="{kind}">{word}</b>' if kind != "pale" else f'<span class="pale">{word}</span>'  # fmt: skip  # noqa: E501
    # names and paths may break after what joins their parts
    return re.sub(r"([./_=,:-])(?=[A-Za-z]{3})", r"\1<wbr>", html.escape(value, quote=False))


def picture(title: str, png: bytes, words: str, *, broad: bool = False) -> str:
    """Return a picture, which scrolls by itself where it is wider than the page.

    Args:
        title: what it shows.
        png: its file, of two pixels for each of the page's, as fine screens have.
        words: the same for those who cannot see it.
        broad: it takes the width of the page.
    """
    width, height = (n // 2 for n in struct.unpack(">II", png[16:24]))
    data = base64.b64encode(png).decode()
    return (
        f"<figure{' class=' + chr(34) + 'broad' + chr(34) if broad else ''}>"
        f"<figcaption>{html.escape(title)}</figcaption>"
        f'<div class="wide" tabindex="0"><img alt="{html.escape(words)}" width="{width}" '
        f'height="{height}" src="data:image/png;base64,{data}"></div></figure>'
    )


def charts(figures: Iterable[str]) -> str:
    """Return figures side by side; nothing where there are none."""
    found = "".join(figures)
    return f'<div class="charts">{found}</div>' if found else ""


def markdown_table(rows: Sequence[Sequence[str | bool | None]]) -> list[str]:
    """Return the same table as lines of Markdown; nothing where there is only a head."""
    if len(rows) < 2:
        return []
    words = [[GRADES[c][1] if c is None or isinstance(c, bool) else c for c in row] for row in rows]
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in words]
    return [lines[0], "|" + "---|" * len(rows[0]), *lines[1:], ""]
