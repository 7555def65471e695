"""Imports point one way: data and nn know no model, models know no callback."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "jepa"
MAY_IMPORT = {
    "data": {"data", "spec"},
    "nn": {"nn"},
    "models": {"models", "nn", "schedules", "spec"},
    "probes": {"probes", "metrics"},
    "callbacks": {
        "bands",
        "callbacks",
        "checkpoint",
        "criteria",
        "failures",
        "gallery",
        "metrics",
        "pictures",
        "probes",
    },
    "gallery.py": {"pictures", "probes"},
    "pictures.py": {"history"},
    "spec.py": set(),
    "schedules.py": set(),
    "metrics.py": set(),
    "baselines.py": set(),
    "bands.py": set(),
    "criteria.py": set(),
    "environment.py": set(),
    "failures.py": set(),
    "forecasting.py": {"metrics"},
    "signatures.py": set(),
    "report.py": {"criteria"},
    "night.py": {"history", "report"},
    "history.py": set(),
    "vitals.py": {"bands", "history"},
    "config.py": {"signatures"},
}


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: imports are absolute"
            if node.module == "jepa":
                yield from (alias.name for alias in node.names)
            elif (node.module or "").startswith("jepa."):
                yield node.module.removeprefix("jepa.")
        elif isinstance(node, ast.Import):
            yield from (
                a.name.removeprefix("jepa.") for a in node.names if a.name.startswith("jepa.")
            )


@pytest.mark.parametrize("layer", MAY_IMPORT)
def test_imports_point_one_way(layer):
    place = PACKAGE / layer
    for path in place.rglob("*.py") if place.is_dir() else [place]:
        for target in imported(path):
            ok = any(target == m or target.startswith(m + ".") for m in MAY_IMPORT[layer])
            assert ok, f"{path.relative_to(PACKAGE)} must not import jepa.{target}"


def test_only_entry_points_and_run_see_a_config():
    allowed = {
        "train", "evaluate", "embed", "forecast", "run", "settle", "resolve", "config", "screen",
        "estimator", "checkpoint", "resume", "replay", "retry", "doctor", "examine", "stored",
        "stages", "time_budget", "analyze", "compare", "export",
    }  # fmt: skip
    for path in PACKAGE.rglob("*.py"):
        inside = path.relative_to(PACKAGE)
        if inside.parts[0] != "sweeps" and inside.stem not in allowed:
            assert "omegaconf" not in path.read_text(), f"{inside} must not read a config"


def test_no_model_saves_hyperparameters():
    for path in PACKAGE.rglob("*.py"):
        assert "save_hyperparameters(" not in path.read_text(), path
