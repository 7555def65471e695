"""What a user gets: a wheel that carries `conf/`, quick help, a light import."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from support import write_table

ROOT = Path(__file__).parents[1]
slow = [pytest.mark.slow, pytest.mark.ci]


def test_importing_the_package_and_asking_for_help_import_nothing_heavy():
    """Time is noise here; what costs it is not: torch takes seconds."""
    for code in (
        "import jepa",
        "import jepa.train, jepa.evaluate, jepa.embed, jepa.forecast, jepa.doctor",
        "import jepa.analyze, jepa.compare, jepa.export",
    ):
        check = f"{code}; import sys; print([m for m in ('torch', 'lightning', 'pandas') if m in sys.modules])"  # fmt: skip  # noqa: E501
        done = subprocess.run(
            [sys.executable, "-c", check], capture_output=True, text=True, cwd=ROOT, check=True
        )
        assert done.stdout.strip() == "[]", code


class TestWheel:
    pytestmark = slow

    def test_an_installed_wheel_trains_in_an_empty_folder(self, tmp_path):
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
        subprocess.run(
            [*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", tmp_path / "dist", ROOT],
            check=True,
        )
        (wheel,) = (tmp_path / "dist").glob("*.whl")
        # an environment that sees the installed dependencies, but not the checkout
        subprocess.run(
            [sys.executable, "-m", "venv", "--without-pip", tmp_path / "env"], check=True
        )
        python = tmp_path / "env" / "bin" / "python"
        (site,) = (tmp_path / "env" / "lib").glob("python*/site-packages")
        (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
        subprocess.run(
            [*pip, "--python", python, "install", "--no-deps", "--no-index", wheel], check=True
        )
        empty = tmp_path / "empty"
        empty.mkdir()
        write_table(tmp_path / "t.csv")
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        done = subprocess.run(
            [tmp_path / "env" / "bin" / "jepa-train", "data=table", f"data.path={tmp_path}/t.csv",
             "data.target=label", "data.batch_size=16", "trainer=cpu", "+debug=fast"],
            cwd=empty, capture_output=True, text=True, timeout=300, env=environment, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        assert len(list(empty.glob("runs/tjepa/table/*/report.json"))) == 1
        where = subprocess.run(
            [python, "-c", "import jepa.config; print(jepa.config.CONF)"],
            cwd=empty, capture_output=True, text=True, env=environment, check=True,
        )  # fmt: skip
        assert Path(where.stdout.strip()) == site / "jepa" / "conf"
