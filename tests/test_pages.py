"""The pages that jepa.analyze and jepa.compare write: one file, no network, said in words too."""

import html.parser
import re

import pytest
from recorded_runs import write_run

from jepa import comparison
from jepa.analyze import write_analysis
from jepa.charts import HEIGHT, WIDTH, Line, Scale, brief, line_chart, thinned
from jepa.compare_page import html_page
from jepa.recorded import open_run

EVIL = "</style><script>alert(1)</script>"


def analysis_page(tmp_path):
    folder = write_run(tmp_path / "run", "diverged")
    write_analysis(open_run(folder))
    report = folder / "report.md"
    report.write_text(report.read_text() + EVIL)
    write_analysis(open_run(folder))
    return folder / "report.html"


def comparison_page(tmp_path):
    folders = [write_run(tmp_path / name, seed=i) for i, name in enumerate((EVIL[2:7], "b"))]
    config = folders[1] / "config.yaml"
    config.write_text(config.read_text() + f'note: "{EVIL}"\n')
    groups = comparison.group(comparison.find_runs([str(one) for one in folders]))
    page = tmp_path / "compare.html"
    page.write_text(html_page(groups, comparison.compare(groups)))
    return page


PAGES = {"analysis": analysis_page, "comparison": comparison_page}


class Reader(html.parser.HTMLParser):
    """Note every tag with its attributes, and which are open."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.unbalanced = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "!doctype", "wbr", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.unbalanced.append(tag)

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


@pytest.mark.parametrize("kind", PAGES)
def test_a_page_is_whole_in_itself_and_runs_nothing(tmp_path, kind):
    text = PAGES[kind](tmp_path).read_text()
    page = Reader(text)
    assert not page.unbalanced and not page.open
    assert not page.all("script") and EVIL not in text, "what others wrote is shown, not obeyed"
    for _, attrs in page.tags:
        assert not any(name.startswith("on") for name in attrs)
        for name in ("src", "href", "action", "data"):
            assert attrs.get(name, "data:,").startswith("data:"), attrs
    assert "url(" not in text and "@import" not in text and "http" not in text


@pytest.mark.parametrize("kind", PAGES)
def test_a_page_is_made_for_narrow_and_wide_light_and_dark(tmp_path, kind):
    text = PAGES[kind](tmp_path).read_text()
    page = Reader(text)
    (viewport,) = [m["content"] for m in page.all("meta") if m.get("name") == "viewport"]
    assert viewport == "width=device-width, initial-scale=1"
    assert "prefers-color-scheme: dark" in text and page.all("html") == [{"lang": "en"}]
    # a wide table scrolls by itself, so that the page does not, and takes the keyboard for it
    wrapped = re.findall(r'<div class="(?:wide" tabindex="0|columns)"><table>', text)
    assert len(wrapped) == len(page.all("table")) > 0
    for variable in set(re.findall(r"var\((--\w+)\)", text)):
        assert text.count(f"{variable}:") == 2, f"{variable} in both schemes"


@pytest.mark.parametrize("kind", PAGES)
def test_charts_have_titles_units_and_words(tmp_path, kind):
    text = PAGES[kind](tmp_path).read_text()
    figures = re.findall(r"<figure>.*?</figure>", text, flags=re.DOTALL)
    assert len(figures) >= 4
    for figure in figures:
        assert re.search(r"<figcaption>[^<]+</figcaption>", figure)
        (label,) = re.findall(r'role="img" aria-label="([^"]+)"', figure)
        assert " over " in label and f"<title>{label}</title>" in figure
        words = [word for word in re.findall(r"<text[^>]*>([^<]+)</text>", figure) if not re.match(r"^[-\d.,ekM]+$", word)]  # fmt: skip  # noqa: E501
        assert len(words) == 2, "the names of both axes"
        for path in re.findall(r' d="([^"]+)"', figure):
            numbers = [float(one) for one in re.findall(r"[-\d.]+", path)]
            assert all(0 <= one <= max(WIDTH, HEIGHT) for one in numbers)


def test_a_chart_of_nothing_is_none():
    assert line_chart("t", [Line(name="a", points=[])], x="x", y="y") == ""
    assert line_chart("t", [Line(name="a", points=[(0.0, 1.0)])], x="x", y="y") == ""


@pytest.mark.parametrize("values", [[0.0, 0.0], [5.0], [1e-12, 1e12], [-3.0, 7.0], [0.997, 1.003]])
@pytest.mark.parametrize("log", [False, True])
def test_a_scale_holds_its_values_and_has_a_few_ticks(values, log):
    log = log and min(values) > 0
    scale = Scale.of(values, log=log)
    assert all(0 < scale.place(value) < 1 for value in values)
    assert 2 <= len(scale.ticks) <= 26 and all(0 <= scale.place(tick) <= 1 for tick in scale.ticks)


def test_thinning_keeps_the_extremes_and_the_order():
    points = [(float(i), 0.0) for i in range(10_000)]
    points[1234], points[8000] = (1234.0, 9.0), (8000.0, -9.0)
    kept = thinned(points)
    assert len(kept) <= 320 and kept == sorted(kept)
    assert {points[1234], points[8000]} <= set(kept)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (1.5e6, "1.5M"),
        (20000, "20k"),
        (2000, "2,000"),
        (0.25, "0.25"),
        (1.5e-5, "1.5e-5"),
    ],
)
def test_ticks_are_short(value, text):
    assert brief(float(value)) == text
