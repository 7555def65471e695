"""Files are untrusted: nothing unpickles or evaluates them, and configs call only what ships."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import OmegaConf
from support import overrides_for, run_training, write_table

from jepa.config import UserError
from jepa.directory import go_on
from jepa.run import FROM_A_FILE, load_model, read_checkpoint
from jepa.stored import allowed, check_recorded, from_a_file, packages, parse_config, trust_of

ROOT = Path(__file__).parents[1]

# Calls that run what they read, whatever their arguments; by their last names, as imported.
NEVER = {
    "pickle": {"load", "loads", "Unpickler"},
    "cPickle": {"load", "loads", "Unpickler"},
    "cloudpickle": {"load", "loads"},
    "marshal": {"load", "loads"},
    "dill": {"load", "loads", "load_session"},
    "joblib": {"load"},
    "shelve": {"open"},
    "pandas": {"read_pickle"},
    "yaml": {"load", "load_all", "unsafe_load", "unsafe_load_all", "full_load", "full_load_all"},
    "os": {"system", "popen", "execv", "execve", "execvp", "spawnl", "spawnv"},
    "subprocess": {"getoutput", "getstatusoutput"},
    "builtins": {"eval", "exec", "__import__"},
    "torch.hub": {"load", "load_state_dict_from_url"},
    "torch.jit": {"load"},
}
# `<file>: <call>`: why it may stay. Empty: torchvision unpickles CIFAR's batches, inside its own
# code and after it has compared their MD5 with the publisher's (test below).
EXEMPT: dict[str, str] = {}


def names_in(tree):
    """Return what each imported name stands for."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for one in node.names:
                names[one.asname or one.name.split(".")[0]] = (
                    one.name if one.asname else one.name.split(".")[0]
                )
        elif isinstance(node, ast.ImportFrom):
            names |= {one.asname or one.name: f"{node.module}.{one.name}" for one in node.names}
    return names


def audit(source):
    """Return the calls and references in a source that may run what they read."""
    tree, found = ast.parse(source), []
    names = names_in(tree)

    def full(node):
        if isinstance(node, ast.Name):
            return names.get(node.id, f"builtins.{node.id}")
        return f"{full(node.value)}.{node.attr}" if isinstance(node, ast.Attribute) else "?"

    for node in ast.walk(tree):
        if isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Load):
            module, _, name = full(node).rpartition(".")
            if name in NEVER.get(module, ()):  # also where it is handed on without a call
                found.append(f"{module}.{name}")
        if isinstance(node, ast.ImportFrom):
            module = node.module or ""
            found += [f"{module}.{o.name}" for o in node.names if o.name in NEVER.get(module, ())]
        if not isinstance(node, ast.Call):
            continue
        given = {one.arg: one.value for one in node.keywords}
        if full(node.func) == "torch.load" and not is_true(given.get("weights_only")):
            found.append("torch.load without weights_only=True")
        if "allow_pickle" in given and not is_false(given["allow_pickle"]):
            found.append("allow_pickle")
        if "shell" in given and not is_false(given["shell"]):
            found.append("shell=True")
        if None in given and full(node.func) in ("torch.load", "numpy.load"):
            found.append(f"{full(node.func)} with **")
    return found


def is_true(node):
    return isinstance(node, ast.Constant) and node.value is True


def is_false(node):
    return isinstance(node, ast.Constant) and node.value is False


@pytest.mark.parametrize(
    "source",
    [
        "import torch; torch.load('x')",
        "import torch; torch.load('x', weights_only=False)",
        "import torch; torch.load('x', weights_only=flag)",
        "import torch as t; t.load('x', map_location='cpu')",
        "from torch import load; load('x')",
        "from torch import load as read; read('x')",
        "import torch; settings = {}; torch.load('x', weights_only=True, **settings)",
        "import numpy as np; np.load('x', allow_pickle=True)",
        "import numpy as np; np.load('x', allow_pickle=flag)",
        "import pickle; pickle.load(f)",
        "import pickle as p; p.loads(b)",
        "from pickle import loads",
        "from pickle import loads as safe",
        "import pickle; read = pickle.Unpickler",
        "import marshal; marshal.loads(b)",
        "import shelve; shelve.open('x')",
        "import joblib; joblib.load('x')",
        "import dill; dill.loads(b)",
        "import pandas as pd; pd.read_pickle('x')",
        "import yaml; yaml.load(text, Loader=yaml.SafeLoader)",
        "import yaml; yaml.unsafe_load(text)",
        "eval('1')",
        "exec('1')",
        "f = eval",
        "__import__('os')",
        "import os; os.system('ls')",
        "from os import system",
        "import os; os.popen('ls')",
        "import subprocess; subprocess.run('ls', shell=True)",
        "import subprocess as s; s.Popen('ls', shell=flag)",
        "import torch; torch.hub.load('a', 'b')",
        "import torch; torch.jit.load('x')",
    ],
)
def test_the_audit_finds_what_is_planted(source):
    assert audit(source)


@pytest.mark.parametrize(
    "source",
    [
        "import torch; torch.load('x', weights_only=True)",
        "import numpy as np; np.load('x')",
        "import numpy as np; np.load('x', allow_pickle=False)",
        "import yaml; yaml.safe_load(text)",
        "import json; json.load(f)",
        "import re; re.compile('x')",
        "import torch; torch.compile(f)",
        "model.eval()",
        "import subprocess; subprocess.run(['ls'])",
    ],
)
def test_the_audit_lets_the_rest_alone(source):
    assert not audit(source)


def test_nothing_in_the_package_unpickles_or_evaluates():
    found = set()
    for path in (ROOT / "jepa").rglob("*.py"):
        found |= {f"{path.relative_to(ROOT)}: {one}" for one in audit(path.read_text())}
    assert found == set(EXEMPT)


def test_archives_that_are_unpickled_are_compared_with_their_checksum_first(tmp_path):
    """The only exemption: CIFAR's batches, which torchvision reads."""
    from torchvision.datasets import CIFAR10

    from jepa.data.torchvision_sets import open_set

    class Runs:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    import pickle

    folder = tmp_path / CIFAR10.base_folder
    folder.mkdir()
    for name in ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5",
                 "test_batch", "batches.meta"):  # fmt: skip
        (folder / name).write_bytes(pickle.dumps(Runs()))
    with pytest.raises(ValueError, match="wrong checksum"):
        open_set(CIFAR10, [tmp_path], CIFAR10.base_folder, train=True)
    assert not (tmp_path / "ran").exists()


# ---- configs from a checkpoint or a run directory


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    run_training(folder / "run", *overrides_for(write_table(folder / "table.csv")))
    return folder / "run"


def crafted(finished, path, change):
    """Write a checkpoint whose config was changed."""
    content = torch.load(finished / "checkpoints" / "last.ckpt", weights_only=True)
    cfg = OmegaConf.to_container(OmegaConf.create(content["config"]))
    change(cfg)
    torch.save(content | {"config": OmegaConf.to_yaml(OmegaConf.create(cfg))}, path)
    return path


def attacks(mark):
    """Return nodes that would make the folder `mark`, by what they try."""
    shell = {"_target_": "os.system", "_args_": [f"mkdir {mark}"]}
    make = {"_target_": "os.mkdir", "path": str(mark)}
    return {
        "plain": {"_target_": "os.system", "command": f"mkdir {mark}"},
        "args": shell,
        "partial": {**shell, "_partial_": True},
        "builtin": {"_target_": "builtins.eval", "_args_": [f"__import__('os').mkdir('{mark}')"]},
        "subprocess": {"_target_": "subprocess.run", "args": ["mkdir", str(mark)]},
        "nested": {"_target_": "torch.optim.AdamW", "_partial_": True, "lr": make},
        "in a list": {"_target_": "torch.optim.AdamW", "_partial_": True, "betas": [make, 0.9]},
        "in the arguments": {"_target_": "torch.optim.AdamW", "_args_": [make]},
        "get_method": {"_target_": "hydra.utils.get_method", "path": "os.mkdir"},
        "get_object": {"_target_": "hydra.utils.get_object", "path": "os.mkdir"},
        "get_class": {"_target_": "hydra.utils.get_class", "path": "subprocess.Popen"},
        "call": {"_target_": "hydra.utils.call", "config": make},
        "instantiate": {"_target_": "hydra.utils.instantiate", "config": make},
        "reexport": {"_target_": "torch.optim.optimizer.functools.reduce", "_args_": [1, 2]},
        "load": {"_target_": "torch.optim.optimizer.torch.load", "f": str(mark)},
        "method": {"_target_": "jepa.models.tjepa.TJEPA.load_from_checkpoint", "path": "x"},
        "own code": {"_target_": "jepa.data.files.fetch", "url": "https://x/y", "path": str(mark)},
        "attribute": {"_target_": "torch.optim.AdamW.__init__.__globals__"},
        "its own list": {**make, "_execution_whitelist_": ["os.*"]},
    }


@pytest.mark.parametrize("name", attacks("x"))
@pytest.mark.parametrize("trust", [[], ["my_package"]])
def test_a_config_from_a_file_calls_nothing_but_what_ships(tmp_path, name, trust):
    mark = tmp_path / "ran"
    node = OmegaConf.create({"model": attacks(mark)[name]})
    with pytest.raises(InstantiationException), from_a_file(trust):
        instantiate(node)
    assert not mark.exists()


def test_these_attacks_do_run_where_nothing_holds_them_back(tmp_path):
    """Else the test above could not fail."""
    from jepa.run import FROM_THE_USER

    for name in ("nested", "in a list"):
        mark = tmp_path / name.replace(" ", "")
        with FROM_THE_USER:
            instantiate(OmegaConf.create(attacks(mark)[name]))
        assert mark.exists()


@pytest.mark.parametrize("name", ["plain", "nested", "get_method"])
def test_a_crafted_checkpoint_is_refused_where_it_is_opened(finished, tmp_path, name):
    def change(cfg):
        cfg["model"]["optimizer"] = attacks(tmp_path / "ran")[name]

    path = crafted(finished, tmp_path / "crafted.ckpt", change)
    with pytest.raises(InstantiationException):
        load_model(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "value", ["${oc.env:SECRET}", "x${oc.env:SECRET,none}", "${seed}", "${oc.decode:'1'}"]
)
@pytest.mark.parametrize("place", ["objective", "model", "list"])
def test_an_interpolation_in_a_stored_config_is_refused(
    finished, tmp_path, monkeypatch, value, place
):
    monkeypatch.setenv("SECRET", "swordfish")

    def change(cfg):
        if place == "list":
            cfg["probes"] = [value]
        elif place == "model":
            cfg["model"]["width"] = value
        else:
            cfg["objective"] = value

    path = crafted(finished, tmp_path / "crafted.ckpt", change)
    with pytest.raises(ValueError, match="stores its values resolved") as caught:
        read_checkpoint(path)
    assert "swordfish" not in str(caught.value)


def test_describing_a_checkpoint_reads_no_variable(finished, tmp_path, monkeypatch):
    from jepa.checkpoint import describe

    monkeypatch.setenv("SECRET", "swordfish")
    change = {"objective": "${oc.env:SECRET}"}
    path = crafted(finished, tmp_path / "crafted.ckpt", lambda cfg: cfg.update(change))
    with pytest.raises(ValueError, match="resolved") as caught:
        describe(torch.load(path, weights_only=True))
    assert "swordfish" not in str(caught.value)


def test_starting_from_a_crafted_checkpoint_reads_no_variable(finished, tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET", "swordfish")
    path = crafted(
        finished, tmp_path / "x.ckpt", lambda cfg: cfg["model"].update(width="${oc.env:SECRET}")
    )
    table = finished.parent / "table.csv"
    for key in ("init_from", "resume"):
        with pytest.raises(ValueError, match=r"resolved|damaged") as caught:
            run_training(tmp_path / key, *overrides_for(table), f"{key}={path}")
        assert "swordfish" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: &x [1]\nb: [*x, *x]", "alias"),
        ("- 1", "no settings"),
        ("a: !!python/object/apply:os.system ['ls']", "python"),
        (b"a: 1", "text"),
    ],
)
def test_a_stored_config_is_plain_yaml(text, words):
    with pytest.raises(Exception, match=words):
        parse_config(text)


def test_a_config_as_runs_write_it_is_read(finished):
    text = torch.load(finished / "checkpoints" / "last.ckpt", weights_only=True)["config"]
    assert parse_config(text) == OmegaConf.create(text)


# ---- the key that admits a package of the user's own


def own_package(folder, monkeypatch):
    (folder / "my_package").mkdir()
    (folder / "my_package" / "__init__.py").write_text(
        "from jepa.models.tjepa import TJEPA\nclass Mine(TJEPA):\n    pass\n"
    )
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "my_package", raising=False)


def test_trust_admits_a_package_and_no_other(finished, tmp_path, monkeypatch):
    own_package(tmp_path, monkeypatch)
    path = crafted(
        finished, tmp_path / "x.ckpt", lambda cfg: cfg["model"].update(_target_="my_package.Mine")
    )
    for trust in ([], ["another"], ["my_pack"]):
        with pytest.raises(InstantiationException, match=r"my_package\.Mine"):
            load_model(path, trust)
    assert type(load_model(path, ["my_package"])[1]).__name__ == "Mine"
    with pytest.raises(InstantiationException), from_a_file(["my_package"]):
        instantiate(OmegaConf.create({"_target_": "os.getcwd"}))


@pytest.mark.parametrize(
    "trust", ["my_package", ["os"], ["builtins"], ["subprocess.run"], ["*"], ["a b"], [""], [3]]
)
def test_trust_takes_packages_of_ones_own(trust):
    with pytest.raises(UserError, match="trust"):
        packages(trust)


@pytest.mark.parametrize("command", ["evaluate", "embed", "forecast", "export"])
def test_every_command_that_builds_from_a_run_has_the_key(command, monkeypatch):
    import importlib

    from hydra import compose, initialize_config_dir

    from jepa.config import CONF

    seen = []

    def load(run, trust=()):
        seen.append(list(trust))
        raise ValueError("seen")

    monkeypatch.setattr("jepa.run.load_model", load)
    monkeypatch.setattr("jepa.run.find_checkpoint", lambda *_, **__: Path("x.ckpt"))
    entry = importlib.import_module(f"jepa.{command}")
    with initialize_config_dir(str(CONF), job_name=command):
        more = [] if command == "export" else ["data.path=README.md"]
        more += ["out=x.npy"] if command == "embed" else []
        cfg = compose(command, ["run=x", "trust=[my_package]", *more])
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("jepa.data.readers.check_path", lambda _: None)
    with pytest.raises(ValueError, match="seen"):
        entry.main.__wrapped__(cfg)
    assert seen == [["my_package"]]


def test_shipped_classes_are_all_that_is_allowed():
    assert all(name.startswith(("jepa.", "torch.optim.")) for name in allowed())
    assert "jepa.models.tjepa.TJEPA" in allowed()
    with FROM_A_FILE:
        instantiate(OmegaConf.create({"_target_": "torch.optim.SGD", "_partial_": True}))


# ---- settings recorded in a run directory, with which resume=auto goes on


@pytest.mark.parametrize(
    "override",
    [
        "+callbacks.x._target_=os.system",
        "+callbacks.x={_target_: os.system, command: ls}",
        "model._target_=torch.optim.optimizer.functools.reduce",
        "model={_target_: my_package.Mine}",
        "++hydra.searchpath=[file:///tmp/evil]",
        "+hydra.callbacks.x._target_=os.system",
        "hydra/launcher=slurm",
        "study=${oc.env:SECRET}",
        "+experiment=nowhere",
        "model={_target_: '${seed}'}",
        "logger.mlflow.tracking_uri=http://x/${oc.env:SECRET}",
    ],
)
def test_recorded_settings_that_call_or_look_up_are_refused(tmp_path, override):
    with pytest.raises(UserError, match="recorded in this run directory"):
        check_recorded(["seed=3", override])
    (tmp_path / "overrides.yaml").write_text(f'- seed=3\n- "{override}"\n')
    with pytest.raises(UserError, match="recorded in this run directory"):
        go_on([f"hydra.run.dir={tmp_path}", "resume=auto"])


@pytest.mark.parametrize(
    "overrides",
    [
        ["seed=3", "model.width=16", "data=digits_table"],
        ["+experiment=tjepa_california", "~callbacks.progress"],
        ["model.optimizer._target_=torch.optim.SGD"],
        ["+callbacks.again._target_=jepa.callbacks.progress.Progress"],
        ["objective=probe/${probe_name}/error"],
    ],
)
def test_recorded_settings_of_usual_runs_are_taken(overrides):
    check_recorded(overrides)


def test_trust_admits_a_package_in_recorded_settings(tmp_path):
    recorded = ["model._target_=my_package.Mine"]
    with pytest.raises(UserError, match=r"trust=\[my_package\]"):
        check_recorded(recorded)
    check_recorded(recorded, ["trust=[my_package]"])
    (tmp_path / "overrides.yaml").write_text(f"- {recorded[0]}\n- trust=[os]\n")
    arguments = [f"hydra.run.dir={tmp_path}", "resume=auto", "trust=[my_package]"]
    assert go_on(arguments) == [*arguments, *recorded]  # a recorded trust counts for nothing


def test_recorded_settings_may_name_an_experiment_of_the_folder_that_is_typed(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\nseed: 5\n")
    with pytest.raises(UserError, match="do not fit"):
        check_recorded(["+experiment=mine"])
    check_recorded(["+experiment=mine"], [f"hydra.searchpath=[file://{tmp_path}]"])


def test_trust_is_read_off_the_command_line():
    assert trust_of(["seed=3", "trust=[a,b.c]"]) == ["a", "b.c"] and trust_of(["seed=3"]) == []


@pytest.mark.parametrize(
    ("says", "code", "words"),
    [
        ("No known vulnerabilities found", 0, ""),
        ("torch  Dependency not found on PyPI and could not be audited", 0, "1 packages could not"),
        ("ConnectionError", 1, "PyPI cannot be reached"),
    ],
)
def test_make_audit_fails_where_nothing_is_known(tmp_path, says, code, words):
    """pip-audit itself ends well when it has skipped every package."""
    if not (ROOT / ".venv" / "bin" / "python").exists():
        pytest.skip("make audit looks at .venv, which is not here")
    tool = tmp_path / "bin" / "pip-audit"
    tool.parent.mkdir()
    tool.write_text(f"#!/bin/sh\necho '{says}'\nexit {code}\n")
    tool.chmod(0o755)
    done = subprocess.run(
        ["make", "audit", f"audit={tmp_path}"], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode == 0) == (not words) and words in done.stdout
    assert "torch==" in (tmp_path / "installed.txt").read_text()


def test_every_promise_of_the_security_notes_names_a_test_that_exists():
    import re

    text = (ROOT / "SECURITY.md").read_text()
    named = re.findall(r"`(tests/\w+\.py)::(\w+)`", text)
    assert len(named) > 8
    for path, name in named:
        assert f"def {name}(" in (ROOT / path).read_text(), f"{path}::{name}"
