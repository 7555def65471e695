"""From a recorded run to a decision: facts, rules, and what jepa.analyze writes."""

import fcntl
import json
import math
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from recorded_runs import KINDS, write_run

from jepa import rules
from jepa.analysis import facts_of, project, running_median, trend
from jepa.analyze import analyze, write_analysis
from jepa.config import CONF
from jepa.recorded import open_run

ROOT = Path(__file__).parents[1]
FIRED = {
    "healthy": set(),
    "diverged": {"diverged"},
    "plateaued": {"plateaued"},
    "collapsed": {"collapsed"},
    "input-bound": {"input-bound"},
    "leaking": {"leaking"},
}
DECIDED = {
    "healthy": "extend",
    "diverged": "debug",
    "plateaued": "scale",
    "collapsed": "debug",
    "input-bound": "extend",
    "leaking": "extend",
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", [0, 1])
def test_each_kind_of_run_is_told_for_what_it_is(tmp_path, kind, seed):
    content = analyze(open_run(write_run(tmp_path / "run", kind, seed=seed)))
    assert {one["name"] for one in content["findings"]} == FIRED[kind]
    assert content["decision"]["name"] == DECIDED[kind]
    for one in content["findings"]:
        assert one["evidence"] and one["changes"], "evidence, and what to change"
        assert all(c["from"] != c["to"] and c["why"] for c in one["changes"])


def test_the_next_command_is_the_settings_of_the_run_with_the_changes(tmp_path):
    diverged = analyze(open_run(write_run(tmp_path / "a", "diverged")))
    assert diverged["next"] == (
        "python -m jepa.train +experiment=hjepa_fashion_mnist seed=0 trainer.gradient_clip_val=1.0 "
        "model.warmup_share=0.1 model.optimizer.lr=0.00075"
    )
    healthy = analyze(open_run(write_run(tmp_path / "b")))
    assert healthy["next"].endswith("seed=0 model.optimizer.lr=0.0015 trainer.max_epochs=40")


def test_the_next_command_quotes_what_the_run_was_started_with(tmp_path):
    folder = write_run(tmp_path / "a", "diverged")
    path = 'data.path="my  table (1); rm.csv"'
    (folder / "overrides.yaml").write_text(yaml.safe_dump([path]))
    told = analyze(open_run(folder))["next"]
    assert shlex.split(told)[3] == path, "as one word, with both of its spaces"


def test_without_settings_no_command_is_made_up(tmp_path):
    folder = write_run(tmp_path / "a", "diverged")
    (folder / "config.yaml").unlink()
    assert analyze(open_run(folder))["next"] == ""


def test_trust_is_said_check_by_check(tmp_path):
    passed = {
        kind: {
            c["name"]: c["passed"]
            for c in analyze(open_run(write_run(tmp_path / kind, kind)))["checks"]
        }
        for kind in ("healthy", "collapsed", "leaking")
    }
    assert set(passed["healthy"].values()) == {True}
    failed = {kind: {n for n, ok in one.items() if not ok} for kind, one in passed.items()}
    assert {"no collapse", "it came to its end"} <= failed["collapsed"]
    assert failed["leaking"] == {"memory did not grow"}


def test_projected_times_are_those_of_the_measured_rate(tmp_path):
    run = open_run(write_run(tmp_path / "run"))
    hours = project(facts_of(run), run)
    assert list(hours) == [5, 20, 50, 100, 300]
    whole = (3999 * 64 / 440 + 10 * 2.0) / 3600  # 20 epochs of training, and 10 probes
    assert hours[20] == pytest.approx(whole) and hours[300] == pytest.approx(15 * whole)


@pytest.mark.parametrize(
    ("y", "change", "sure"),
    [([1.0] * 20, 0.0, False), ([1 + 0.1 * i for i in range(20)], 1.9 / 1.95, True)],
)
def test_a_trend_is_the_change_over_the_span_relative_to_the_level(y, change, sure):
    slope, certain = trend([(float(i), one) for i, one in enumerate(y)])
    assert slope == pytest.approx(change) and certain == sure


def test_a_running_median_is_that_of_the_window_around_each_point():
    import random
    import statistics

    rng = random.Random(0)
    for n in (1, 3, 7, 200):
        curve = [(float(i), rng.choice([rng.random(), 0.5])) for i in range(n)]
        half = max(2, n // 40)
        y = [one for _, one in curve]
        slow = [statistics.median(y[max(0, i - half) : i + half + 1]) for i in range(n)]
        assert [one for _, one in running_median(curve)] == pytest.approx(slow)


def test_noise_alone_is_no_trend():
    import random

    rng = random.Random(0)
    sure = [trend([(float(i), rng.gauss(1, 0.1)) for i in range(100)])[1] for _ in range(200)]
    assert sum(sure) <= 2


# --- the rules themselves


def all_rules():
    content = rules.rules()
    return [*content["findings"], *content["decisions"]]


def test_every_rule_has_evidence_a_text_and_changes_with_a_reason():
    known = {"name", "state", "when", "says", "do", "change", "command"}
    for rule in all_rules():
        assert not set(rule) - known, rule
        for bound in rule.get("when", {}).values():
            assert bound and not set(bound) - {"above", "below", "is", "state"}, rule
        for one in rule.get("change", ()):
            assert not set(one) - {"set", "to", "times", "least", "most", "where", "why"}, one
            assert ("to" in one) != ("times" in one) and one["why"], one
    for rule in rules.rules()["findings"]:
        assert rule.get("change") or rule.get("do"), f"{rule['name']} says nothing to do"


def test_every_fact_of_a_rule_has_words(tmp_path):
    named = {name for rule in all_rules() for name in rule.get("when", {})}
    named |= {name for one in rules.rules()["checks"] for name in one["holds"]}
    written = set(rules.rules()["facts"])
    for kind in KINDS:
        named |= set(facts_of(open_run(write_run(tmp_path / kind, kind))))
    assert named - {"reason", "objective", "loss_name", "scored"} <= written


def test_every_setting_of_a_rule_can_be_typed():
    from hydra import compose, initialize_config_dir

    from jepa.config import has_key

    choices = (["model=tjepa"], ["data=cifar10", "model=hjepa"], ["data=etth1", "model=patchtst"])
    with initialize_config_dir(str(CONF), job_name="config"):
        known = [compose("config", [*one, "study=test"]) for one in choices]
    for rule in all_rules():
        for one in rule.get("change", ()):  # not below an interpolation, where it could not be set
            assert any(has_key(cfg, one["set"]) for cfg in known), one["set"]


def test_memory_that_ran_out_is_said(tmp_path):
    folder = write_run(tmp_path / "run")
    with (folder / "events.jsonl").open("a") as file:
        file.write(json.dumps({"kind": "retry", "why": "CUDA out of memory", "changes": {}}) + "\n")
    content = analyze(open_run(folder))
    assert {"out of memory", "started anew"} == {one["name"] for one in content["findings"]}
    changes = {c["setting"]: c["to"] for c in content["findings"][0]["changes"]}
    assert changes["data.batch_size"] == 32 and changes["trainer.accumulate_grad_batches"] == 2


@pytest.mark.parametrize(
    ("one", "before", "after"),
    [
        ({"times": 0.5}, 0.001, 0.0005),
        ({"times": 2, "most": 0.3}, 0.2, 0.3),
        ({"times": 2, "most": 0.3}, 0.5, None),  # beyond the limit already
        ({"times": 2, "least": 0.1}, 0.0, 0.1),
        ({"times": 0.5}, 1, None),  # a batch of one row stays
        ({"times": 1.5}, 3, 4),
        ({"times": 2}, None, None),
        ({"times": 2}, "auto", None),
        ({"to": False}, True, False),
        ({"to": False}, False, None),
    ],
)
def test_a_change_starts_from_what_the_run_had(one, before, after):
    found = rules.change({"set": "key", "why": "so", **one}, {"key": before})
    assert (None if found is None else found.after) == after
    assert rules.change({"set": "other", "why": "so", **one}, {"key": before}) is None


def test_a_bound_of_a_band_is_the_bands(tmp_path):
    grad = {"grad_norm": {"state": "warn"}}
    assert not rules.holds({"when": grad}, {"grad_norm": 4.9})
    assert rules.holds({"when": grad}, {"grad_norm": 5.1}) and not rules.holds({"when": grad}, {})


# --- what is written


def test_the_owners_notes_stay(tmp_path):
    folder = write_run(tmp_path / "run")
    write_analysis(open_run(folder))
    page = folder / "report.md"
    page.write_text(page.read_text() + "\nMy own words: | <b>\n")
    before = page.read_text()
    write_analysis(open_run(folder))
    assert page.read_text() == before, "the same analysis, the same page"
    assert "My own words: | &lt;b&gt;" in (folder / "report.html").read_text()
    content = json.loads((folder / "report.json").read_text())
    from jepa.report import write

    write(folder, content | {"reason": "gone on"})  # as a resumed run does
    text = page.read_text()
    assert "My own words" in text and "gone on" in text


def test_notes_below_a_page_of_an_earlier_version_stay(tmp_path):
    folder = write_run(tmp_path / "run")
    from jepa.report import markdown

    page = folder / "report.md"
    page.write_text(markdown(open_run(folder).report) + "\nfrom before\n")
    write_analysis(open_run(folder))
    assert page.read_text().endswith("\nfrom before\n")


def test_analysis_json_is_plain_and_complete(tmp_path):
    folder = write_run(tmp_path / "run", "diverged")
    write_analysis(open_run(folder))
    content = json.loads((folder / "analysis.json").read_text())
    assert content["schema"] == 1 and content["decision"]["name"] == "debug"
    (finding,) = content["findings"]
    lr = next(c for c in finding["changes"] if c["setting"] == "model.optimizer.lr")
    assert (lr["from"], lr["to"]) == (0.0015, 0.00075)
    assert math.isfinite(content["facts"]["loss_over_best"])


# --- what lies in a directory is bad


def test_a_half_written_file_is_read_as_far_as_it_goes(tmp_path):
    folder = write_run(tmp_path / "run")
    whole = open_run(folder)
    metrics = folder / "metrics.csv"
    metrics.write_bytes(metrics.read_bytes()[:-7])
    assert open_run(folder).rows == whole.rows[:-1]
    write_analysis(open_run(folder))


def test_values_that_are_no_number_are_counted_and_left_out(tmp_path):
    folder = write_run(tmp_path / "run")
    clean = facts_of(open_run(folder))
    metrics = folder / "metrics.csv"
    head, *lines = metrics.read_text().splitlines()
    at = head.split(",").index("train/loss")
    for i in (5, 6, 7):
        cells = lines[i].split(",")
        cells[at] = ("nan", "inf", "-inf")[i - 5]
        lines[i] = ",".join(cells)
    metrics.write_text("\n".join([head, *lines]) + "\n")
    facts = facts_of(open_run(folder))
    assert facts["broken_values"] == 3
    assert facts["loss_last"] == pytest.approx(clean["loss_last"], rel=0.05)
    content = write_analysis(open_run(folder))
    assert [one["name"] for one in content["findings"]] == ["not a number"]


def test_events_that_are_none_are_passed_over(tmp_path):
    folder = write_run(tmp_path / "run")
    (folder / "events.jsonl").write_text('[1]\n"x"\n{"step": 3}\n{"kind": "skip"}\n{"kind": "sk')
    assert facts_of(open_run(folder))["skips"] == 1
    assert open_run(folder).events == [{"kind": "skip"}]


def test_without_a_report_the_metrics_are_analysed(tmp_path):
    folder = write_run(tmp_path / "run")
    for name in ("report.json", "report.md", "config.yaml", "events.jsonl", "environment.json"):
        (folder / name).unlink()
    content = write_analysis(open_run(folder))
    assert content["status"] == "unfinished" and content["decision"]["name"] == "wait"
    assert content["facts"]["samples_per_s"] == pytest.approx(440, rel=0.05)


def spoil_nothing(folder):
    return folder / "nowhere"


def spoil_metrics(folder):
    (folder / "metrics.csv").unlink()
    (folder / "report.json").unlink()
    return folder


def spoil_foreign(folder):
    (folder / "metrics.csv").write_text("time,price\n1,2\n")
    return folder


def spoil_text(folder):
    text = (folder / "metrics.csv").read_text().replace("0.244", "a lot", 1)
    (folder / "metrics.csv").write_text(text)
    return folder


def spoil_report(folder):
    (folder / "report.json").write_text('{"schema": 1, "stat')
    return folder


def spoil_metrics_of_report(folder):
    (folder / "report.json").write_text('{"schema": 1, "metrics": [1]}')
    return folder


def spoil_config(folder):
    (folder / "config.yaml").write_text("a: ${oc.env:HOME}\n")
    return folder


def spoil_empty(folder):
    for path in folder.iterdir():
        path.unlink()
    (folder / "metrics.csv").write_text("epoch,step,train/loss\n")
    return folder


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (spoil_nothing, "there is no such directory"),
        (spoil_metrics, "neither metrics.csv nor report.json"),
        (spoil_foreign, "not the metrics of a run"),
        (spoil_text, "line 2, column probe/ridge/error: 'a lot' is no number"),
        (spoil_report, "report.json is damaged"),
        (spoil_metrics_of_report, "report.json is damaged: metrics is no dict"),
        (spoil_config, "no config of a run"),
        (spoil_empty, "nothing was logged yet"),
    ],
)
def test_what_is_no_run_is_refused_by_name(tmp_path, spoil, words):
    folder = spoil(write_run(tmp_path / "run"))
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        open_run(folder)


def test_a_folder_of_runs_names_the_command_that_takes_it(tmp_path):
    write_run(tmp_path / "sweep" / "0")
    with pytest.raises(FileNotFoundError, match=r"jepa\.compare runs="):
        open_run(tmp_path / "sweep")


def test_the_directory_of_a_checkpoint_is_taken(tmp_path):
    folder = write_run(tmp_path / "run")
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "best.ckpt").touch()
    assert open_run(folder / "checkpoints" / "best.ckpt").folder == folder


# --- the command


def command(folder, *more):
    return [sys.executable, "-m", "jepa.analyze", f"run={folder}", *more]


@pytest.mark.slow
@pytest.mark.ci
def test_the_command_writes_its_page_and_waits_for_a_run(tmp_path):
    folder = write_run(tmp_path / "run")
    done = subprocess.run(command(folder), cwd=ROOT, capture_output=True, text=True, check=True)
    assert "extend: Good" in done.stdout and "report.html" in done.stdout
    with (folder / "run.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        waiting = subprocess.Popen(
            command(folder, "wait=true"), cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        assert waiting.stdout and "waiting" in waiting.stdout.readline()
        assert waiting.poll() is None
        page = folder / "report.html"
        page.unlink()
    out = waiting.communicate(timeout=60)[0]
    assert waiting.returncode == 0 and "it ended after" in out and page.exists()


@pytest.mark.slow
@pytest.mark.ci
def test_an_error_is_one_line_with_exit_code_one(tmp_path):
    done = subprocess.run(command(tmp_path), cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert f"error: run={tmp_path} has neither metrics.csv" in done.stderr


def test_rules_are_plain_yaml():
    text = (ROOT / "jepa" / "rules.yaml").read_text()
    assert yaml.safe_load(text) == rules.rules() and "!!" not in text
