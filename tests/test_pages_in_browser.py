"""The pages in a browser, and that the checks see each fault."""

import pytest
from page_checks import faults, opened
from recorded_runs import write_run
from recorded_sweep import write_sweep

from jepa import comparison
from jepa.analyze import write_analysis
from jepa.charts import Line, line_chart
from jepa.compare_page import html_page
from jepa.page import charts, page, paragraph
from jepa.recorded import open_run

pytestmark = [pytest.mark.slow, pytest.mark.ci]


@pytest.fixture(scope="module")
def shown():
    with opened() as browser:
        yield browser


def analysis(folder, kind):
    run = write_run(folder / "a_directory_with_a_rather_long_name" / "2026-11-21_23-37-12", kind)
    write_analysis(open_run(run))
    return run / "report.html"


def compared(folder):
    names = ("healthy", "collapsed", "a_directory_with_a_rather_long_name")
    runs = [write_run(folder / name, "collapsed" if name == "collapsed" else "healthy", seed=i) for i, name in enumerate(names)]  # fmt: skip  # noqa: E501
    for i, run in enumerate(runs):
        config = run / "config.yaml"
        config.write_text(config.read_text() + f"note: /{'long_unbroken_path_' * 5}/{i}\n")
    groups = comparison.group(comparison.find_runs([str(one) for one in runs]))
    criterion = {"metric": "test/ridge/error", "improvement": 0.05, "name": "clearly better"}
    path = folder / "compare.html"
    path.write_text(html_page(groups, comparison.compare(groups, criteria=[criterion])))
    return path


PAGES = {
    "healthy run": lambda folder: analysis(folder, "healthy"),
    "collapsed run": lambda folder: analysis(folder, "collapsed"),
    "diverged run": lambda folder: analysis(folder, "diverged"),
    "comparison": compared,
    "sweep": lambda folder: write_sweep(folder / "sweep") / "report.html",
}


@pytest.mark.parametrize("kind", PAGES)
def test_a_page_is_readable_narrow_and_wide_light_and_dark(tmp_path, shown, kind):
    assert faults(shown, PAGES[kind](tmp_path)) == []


LINES = [Line(name="a", points=[(0.0, 1.0), (100.0, 2.0)])]
CHART = charts([line_chart("A title", LINES, x="optimizer step", y="loss")])
PICTURE = (
    "<figure><figcaption>title</figcaption><img alt='words for who cannot see it' {}></figure>"
)
AT_TOP = 'x="0" y="14"'  # of the name of the y axis
FAULTS = {
    "console": "<script>console.error('x')</script>",
    "page error": "<script>nothing()</script>",
    "request": "<link rel=stylesheet href=other.css>",
    "overflow": "<p style='width:2000px'>wide</p>",
    "contrast": "<p style='color:#888;background:#999'>pale</p>",
    "small: 10.0": "<p style='font-size:10px'>small</p>",
    "small: 9": "<style>svg {width:280px !important}</style>",  # its text shrinks with it
    "shrunk": PICTURE.format("width=900 style='width:300px'"),
    "no alt text": CHART.replace("aria-label", "data-x"),
    "no title": CHART.replace("figcaption", "b"),
    "no axis names": CHART.replace(">loss</text>", "></text>"),
    "cut off": CHART.replace(AT_TOP, 'x="390" y="14"'),
    "overlap": CHART.replace(AT_TOP, 'x="200" y="262"'),
    "glare": "<style>body {background:#fff !important; color:#000 !important}</style>",
}


@pytest.mark.parametrize("fault", [None, *FAULTS])
def test_the_checks_see_each_fault(tmp_path, shown, fault):
    path = tmp_path / "page.html"
    path.write_text(page("A page", [paragraph("text"), CHART, FAULTS.get(fault, "")]))
    found = faults(shown, path, widths=[400])
    assert any(fault in one for one in found) if fault else not found, found


def test_a_page_of_a_sweep_with_one_trial_or_none_is_whole(tmp_path, shown):
    for n in (0, 1):
        folder = write_sweep(tmp_path / str(n), n_trials=n)
        assert faults(shown, folder / "report.html", widths=[400]) == []
