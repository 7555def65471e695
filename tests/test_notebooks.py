"""Notebooks run from top to bottom, offline, in a folder of their own; none holds outputs."""

import ast
import re
import socket
import time
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
LIMIT_S = 120  # on two free cores; a busy machine may take several times as long


def code(notebook):
    cells = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return [re.sub(r"^%.*$", "", source, flags=re.MULTILINE) for source in cells]


def test_there_are_five():
    names = ["tables", "images", "series", "reading_a_study", "comparing_two_runs"]
    assert [path.stem for path in NOTEBOOKS] == [f"0{i + 1}_{n}" for i, n in enumerate(names)]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_valid_and_holds_no_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert not cell.get("outputs") and cell.get("execution_count") is None


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_defines_nothing_that_others_need(path):
    for source in code(nbformat.read(path, as_version=4)):
        for node in ast.walk(ast.parse(source)):
            assert not isinstance(node, ast.FunctionDef | ast.ClassDef), ast.unparse(node)


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_offline_and_leaves_nothing_behind(path, tmp_path, monkeypatch):
    temporary, data, here = (tmp_path / name for name in ("temporary", "data", "here"))
    for folder in (temporary, data, here):
        folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "jupyter"))
    monkeypatch.setenv("JEPA_DATA", str(data))  # empty, so nothing but what ships is read
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=":")
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    # a download would go through a proxy that is not there
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{closed_port()}")
    notebook = nbformat.read(path, as_version=4)
    where = {"metadata": {"path": str(here)}}
    client = NotebookClient(notebook, timeout=5 * LIMIT_S, kernel_name="python3", resources=where)
    started = time.perf_counter()
    client.execute()
    print(f"{path.name}: {time.perf_counter() - started:.0f} s")
    pictures = [
        output
        for cell in notebook.cells
        for output in cell.get("outputs", ())
        if "image/png" in output.get("data", {})
    ]
    assert len(pictures) >= 2
    assert not list(here.iterdir()), "it writes beside itself"
    assert not list(data.iterdir()), "it downloads"
    assert not list(temporary.glob("tmp*/*")), "its runs stay"


def closed_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]
