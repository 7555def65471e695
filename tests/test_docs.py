"""Every command of the documents runs in a test, or says what it needs; links and names exist."""

import re
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from documents import PAGES, README, ROOT, blocks, commands, inline_codes, prose
from PIL import Image
from support import write_table

from docs.make import CONF, GROUPS, prefix_of, read

TESTED = [page for page in PAGES if any(not c.needs for c in commands(page) if not c.inline)]
# A few steps on a small model. A value that a command gives is given again: the last one counts.
TINY = (
    "trainer.accelerator=cpu", "trainer.max_epochs=1", "trainer.limit_train_batches=2",
    "trainer.limit_val_batches=2", "trainer.check_val_every_n_epoch=1", "logger=csv",
    "callbacks.probe.max_rows=200", "callbacks.probe.max_val_rows=100",
)  # fmt: skip

# What stands for each command of the README: the test that does it, or what it needs. The first
# pattern that matches the whole command counts.
NEEDS = "needs: "
AS_DOCS = "tests/test_docs.py::test_the_commands_of_a_page_run"
README_RUNS = {
    r"make (setup|run|test|check test|test-ci|test-all|bench( only=\w+)?|docs)": NEEDS + "make; what it starts is the other tests",  # noqa: E501
    r"make (test-resume|soak)": NEEDS + "minutes; tests/test_resume.py is some of it",
    r"make audit": NEEDS + "a network",
    r"make slurm-up test-slurm slurm-down": NEEDS + "root on a Debian machine",
    r"make sweep-slurm .*": NEEDS + "a SLURM cluster",
    r".* hydra/launcher=slurm.*": NEEDS + "a SLURM cluster",
    r".*jepa\.train": "tests/test_train.py::test_the_readmes_command_for_a_table_of_ones_own",
    r".*data=table .*": AS_DOCS,
    r".*data=series .*": AS_DOCS,
    r".*jepa\.embed .*(parquet|npy)": AS_DOCS,
    r".*jepa\.forecast .*": AS_DOCS,
    r".*jepa\.analyze .*": AS_DOCS,
    r".*jepa\.evaluate .*protocol=all.*": NEEDS + "a run of images, data=cifar10",
    r".*jepa\.evaluate .*finetune.*": NEEDS + "a run of images, minutes; tests/test_protocols.py is its parts",  # noqa: E501
    r".*jepa\.evaluate .*": AS_DOCS,
    r".*jepa\.export .*onnx": "tests/test_export.py::test_onnx_gives_the_same_numbers_for_any_number_of_rows",  # noqa: E501
    r".*jepa\.export .*": AS_DOCS,
    r".*jepa\.compare .*": "tests/test_compare.py::test_two_trained_runs_are_compared_in_pairs_of_test_samples",  # noqa: E501
    r".*jepa\.checkpoint .*": AS_DOCS,
    r".*jepa\.replay .*": "tests/test_guard_runs.py::test_the_loss_of_a_replay_is_the_loss_of_the_run_to_the_last_bit",  # noqa: E501
    r".*jepa\.doctor .*": "tests/test_doctor.py::test_the_command_of_the_readme",
    r".*(jepa\.sweeps\.report|sweep-report) .*": "tests/test_probe_grid.py::test_a_grid_over_a_checkpoint_shares_its_codes_and_every_cell_differs",  # noqa: E501
    r".* -m hydra/(sweeper|launcher)=(optuna|local).*": AS_DOCS,
    r".* -m seed=0,1,2 model.depth=2,4": NEEDS + "six runs of two minutes; tests/test_seeds.py",
    r".* trainer=ddp_cpu": "tests/test_ddp.py::test_ranks_agree_on_weights_teacher_probes_and_metrics_and_share_the_rows",  # noqa: E501
    r".* hydra\.run\.dir=<directory> resume=auto": AS_DOCS,
    r".* \+debug=fast": AS_DOCS,
    r".* logger=\[csv,mlflow\]": "tests/test_tracking.py::test_mlflow_gets_settings_scores_files_and_the_place_in_a_sweep",  # noqa: E501
    r".* model\.widht=64": "tests/test_conf.py::test_unknown_keys_are_refused_with_the_nearest",
    r".* model\.width=64 model.optimizer.*": NEEDS + "minutes: the default run, longer",
    r".* probe=logistic 'probes=.*": NEEDS + "two minutes; tests/test_probes.py is its parts",
    r".*data=cifar10 .*": NEEDS + "data=cifar10",
    r".*data=etth1 .*init_from.*": NEEDS + "data=etth1 and a run of it",
    r".*\+experiment=overnight_.*": NEEDS + "its data and a night; tests/test_overnight.py",
    r".*\+experiment=(tjepa|hjepa|ijepa|patchtst)_.*": NEEDS + "its data, minutes to hours",
}  # fmt: skip


def own_files(folder):
    """Write the files that the pages take for the reader's own."""
    write_table(folder / "my.csv", n_rows=480)
    frame = pd.read_csv(folder / "my.csv").rename(columns={"label": "price"})
    frame.to_csv(folder / "my.csv", index=False)
    frame.drop(columns="price").head(20).to_csv(folder / "new.csv", index=False)
    rng, t = np.random.default_rng(0), np.arange(400)
    waves = {f"c{i}": np.sin(t / (3 + i)) + 0.1 * rng.normal(size=len(t)) for i in range(2)}
    series = pd.DataFrame({"date": pd.date_range("2024-01-01", periods=len(t), freq="h"), **waves})
    series.head(300).to_csv(folder / "series.csv", index=False)
    series.tail(150).to_csv(folder / "series_new.csv", index=False)
    for i in range(160):
        place = folder / "photos" / "ab"[i % 2]
        place.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 128, (16, 16, 3)) + 127 * (i % 2)
        Image.fromarray(pixels.astype(np.uint8)).save(place / f"{i}.png")


def newest(text, folder):
    """Put the newest directory in the place of `<time>`."""
    found = re.search(r"(\S*=)?(\S*)<time>", text)
    if found is None:
        return text
    places = sorted(folder.glob(found[2] + "*"), key=lambda path: path.stat().st_mtime)
    assert places, f"no run of this page is at {found[2]}"
    return newest(text.replace(f"{found[2]}<time>", str(places[-1].relative_to(folder)), 1), folder)


def call(command, folder):
    """Run a command of a page in the folder."""
    words = shlex.split(newest(command.text, folder))
    if command.name in ("train", "doctor") and "resume=auto" not in words:  # it has its settings
        words += TINY
    if command.name in ("embed", "forecast", "evaluate"):
        words.append("accelerator=cpu")
    line = [sys.executable, *words[1:]]
    done = subprocess.run(
        line, cwd=folder, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, f"{command.text}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with the reader's files and a run of the table, for pages that start from one."""
    folder = tmp_path_factory.mktemp("docs")
    own_files(folder)
    first = next(c for c in commands(ROOT / "docs" / "tables.md") if "data=table" in c.text)
    call(first, folder)
    return folder


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize("page", TESTED, ids=lambda page: page.name)
def test_the_commands_of_a_page_run(page, trained, tmp_path):
    shutil.copytree(trained, tmp_path / "folder")
    for command in commands(page):
        if not command.needs and not command.inline:
            call(command, tmp_path / "folder")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_has_its_commands_in_blocks_where_they_are_run_or_marked(page):
    inline = [c.text for c in commands(page) if c.inline and c.name]
    assert not inline, "put it into a block of its own"
    unmarked = [c.text for c in commands(page) if not c.inline and not c.needs and not c.name]
    assert not unmarked, "make is not run here: mark the block with <!-- needs: ... -->"


def where(command):
    """Return what README_RUNS says of a command."""
    for pattern, place in README_RUNS.items():
        if re.fullmatch(pattern, command):
            return pattern, place
    return None, None


def test_every_command_of_the_readme_has_a_test_or_a_need():
    typed = {c.text for c in commands(README)}
    used = {text: where(text) for text in typed}
    assert not [text for text, (pattern, _) in used.items() if pattern is None]
    idle = set(README_RUNS) - {pattern for pattern, _ in used.values()}
    assert not idle, "no command of the README is like these"


@pytest.mark.parametrize("place", sorted({*README_RUNS.values()}))
def test_the_tests_named_for_the_readme_and_by_marks_exist(place):
    for file, name in re.findall(r"(tests/\w+\.py)(?:::(\w+))?", place):
        text = (ROOT / file).read_text(encoding="utf-8")
        assert not name or f"def {name}(" in text


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_marks_say_what_is_needed_and_name_files_that_exist(page):
    text = page.read_text(encoding="utf-8")
    marks = re.findall(r"<!--.*?-->", text, flags=re.S)
    assert len(marks) == sum(bool(block.needs) for block in blocks(text)), "a mark above no block"
    for file in re.findall(r"(?:tests|notebooks)/\w+\.\w+", " ".join(marks)):
        assert (ROOT / file).exists(), file


def anchors(page):
    """Return the anchors of a page's headings, as GitHub makes them."""
    heads = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize(
    "page", [README, *PAGES, ROOT / "docs" / "config.md"], ids=lambda p: p.name
)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page.read_text(encoding="utf-8"))):
        if re.match(r"https?://", target):
            continue
        file, _, anchor = target.partition("#")
        there = (page.parent / file).resolve() if file else page
        assert there.exists(), target
        assert not anchor or anchor in anchors(there), target


def known_settings():
    """Return every setting of conf/ as it is typed, and the groups with their options."""
    keys, groups = set(), {}
    for path in CONF.rglob("*.yaml"):
        group = path.parent.relative_to(CONF).as_posix()
        prefix = "" if group == "." else prefix_of(group)
        keys |= {re.sub(r"\[\d+\]$", "", one.key) for one in read(path, prefix).settings}
        if group in GROUPS:
            groups.setdefault(group, set()).add(path.stem)
    return keys, groups


KEYS, OPTIONS = known_settings()
OF_PLUGINS = ("hydra.sweeper.", "hydra.launcher.", "hydra.run.")


def is_known(code):
    """Tell whether `key`, `key=value` or `group=a|b` of a document exists; None for other code."""
    key, equals, value = code.strip("'").partition("=")
    if not re.fullmatch(r"[a-z_]+(?:[./][a-z_0-9]+)*", key) or ("/" in key and not equals):
        return None
    if value in ("True", "False") or value.startswith("<"):
        return None  # Python's, or to be filled in
    if key in OPTIONS and value:
        return set(re.split(r"[|,]", value.strip("[]"))) <= OPTIONS[key]
    if re.search(r"\.(md|html|json|jsonl|csv|yaml|ckpt|png|parquet|npz|npy|log|tar|xz|zip)$", code):
        return None
    if key.startswith(OF_PLUGINS) or key == "hydra/sweeper":
        return True
    if not equals and "." not in key:
        return None  # a word
    if not equals and key.split(".")[0] not in {one.split(".")[0] for one in KEYS if "." in one}:
        return None  # a file, or a name of Python's
    return key in KEYS or any(one.startswith(f"{key}.") for one in KEYS)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_settings_named_in_prose_exist(page):
    codes = [
        part for code in inline_codes(page.read_text(encoding="utf-8")) for part in code.split()
    ]
    wrong = [code for code in codes if is_known(code) is False]
    assert not wrong


def test_a_setting_that_is_not_there_is_noticed():
    assert is_known("model.widht") is False and is_known("model.widht=3") is False
    assert (
        is_known("augment=plain|fancy") is False and is_known("callbacks.collapse.action") is True
    )
    assert is_known("report.md") is None and is_known("augment=plain|light") is True


def test_messages_and_findings_of_the_troubleshooting_page_are_those_of_the_code():
    text = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    sources = [*(ROOT / "jepa").rglob("*.py"), ROOT / "jepa" / "rules.yaml"]
    said = re.sub(r'"\s*\n\s*f?"', "", "\n".join(p.read_text(encoding="utf-8") for p in sources))
    for first in re.findall(r"^\| `([^`]+)` \|", text, flags=re.M):
        shown = re.sub(r"model\.wid\w+", "", first)
        for part in re.split(r": |\?", shown):
            assert part.strip() in said, first
    for quoted in ("is left out", "operations that MPS lacks run on the CPU", "MPS has no float64"):
        assert quoted in text and quoted in said
