"""Embedding a file: the checkpoint is enough, and how the file is read changes nothing."""

import gzip
import os
import pickle
import resource
import subprocess
import sys

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from omegaconf import OmegaConf

from jepa.codes import embed_parts, pick_device, regroup, write_codes
from jepa.config import CONF
from jepa.data.tables import TableTransform
from jepa.embed import check_out, embed_file, transform_of
from jepa.run import build_model, load_model, spec_state

SIZE = {
    "width": 4, "depth": 1, "n_heads": 2,
    "predictor_width": 4, "predictor_depth": 1, "predictor_n_heads": 2,
}  # fmt: skip


def table(n_rows=50, seed=1):
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "size": rng.normal(size=n_rows).round(3),
            "zip": rng.choice(["007", "A12", "9"], n_rows),
            "grade": rng.choice([1, 2, 3], n_rows),
            "member": rng.choice([True, False], n_rows),
            "day": rng.choice(["2024-01-31", "2023-05-06", "2020-02-29"], n_rows),
            "label": rng.choice(["yes", "no"], n_rows),
        }
    )


def save_checkpoint(path, frame):
    """Write what a run leaves, without the run: it is the file that counts here."""
    transform = TableTransform(target="label", kinds={"grade": "category"}).fit(frame)
    model_cfg = OmegaConf.merge(OmegaConf.load(CONF / "model" / "tjepa.yaml"), SIZE)
    cfg = OmegaConf.create({"seed": 0, "model": model_cfg})
    model = build_model(cfg, transform.spec)
    content = {
        "state_dict": model.state_dict(),
        "config": OmegaConf.to_yaml(cfg, resolve=True),  # as a run stores it
        "spec": spec_state(transform.spec),
        "preprocessing": transform.state(),
    }
    torch.save(content, path)
    return path


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    path = save_checkpoint(tmp_path_factory.mktemp("run") / "last.ckpt", table(200, seed=0))
    _, model, content = load_model(path)
    return model, transform_of(content, path)


def embed(opened, source, out, *, chunk_rows=64, batch_size=16):
    model, transform = opened
    n_rows = embed_file(
        model, transform, source, out,
        batch_size=batch_size, device=torch.device("cpu"), chunk_rows=chunk_rows,
    )  # fmt: skip
    codes = np.load(out) if out.suffix == ".npy" else pd.read_parquet(out).to_numpy()
    assert codes.dtype == np.float32 and n_rows == len(codes)
    return codes


def write(frame, path):
    if path.suffix == ".parquet":
        frame.to_parquet(path, index=False)
    else:
        frame.to_csv(path, index=False, sep="\t" if ".tsv" in path.name else ",")
    return path


def test_codes_are_what_the_model_says_of_the_encoded_rows(opened, tmp_path):
    model, transform = opened
    codes = embed(opened, write(table(), tmp_path / "a.csv"), tmp_path / "a.npy", batch_size=99)
    expected = model.embed(transform.encode(table())).numpy()
    np.testing.assert_array_equal(codes, expected)
    assert codes.shape == (50, len(model.code_names())) and np.ptp(codes, axis=0).max() > 0


@pytest.mark.parametrize("name", ["b.csv.gz", "b.tsv", "b.tsv.gz", "b.parquet"])
def test_every_format_gives_the_same_codes(opened, tmp_path, name):
    codes = embed(opened, write(table(), tmp_path / "a.csv"), tmp_path / "a.npy")
    again = embed(opened, write(table(), tmp_path / name), tmp_path / "b.npy")
    np.testing.assert_array_equal(codes, again)


def test_the_same_file_twice_gives_the_same_bytes(opened, tmp_path):
    source = write(table(), tmp_path / "a.csv")
    for suffix in ("npy", "parquet"):
        for name in ("one", "two"):
            embed(opened, source, tmp_path / f"{name}.{suffix}")
        one, two = (tmp_path / f"{name}.{suffix}" for name in ("one", "two"))
        assert one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize("chunk_rows", [1, 7, 1000])
@pytest.mark.parametrize("name", ["a.csv", "a.parquet"])
def test_chunk_boundaries_do_not_matter(opened, tmp_path, name, chunk_rows):
    source = tmp_path / name
    if name == "a.csv":
        write(table(), source)
    else:
        table().to_parquet(source, index=False, row_group_size=11)
    codes = embed(opened, write(table(), tmp_path / "whole.csv"), tmp_path / "whole.npy")
    again = embed(opened, source, tmp_path / "cut.npy", chunk_rows=chunk_rows)
    np.testing.assert_array_equal(codes, again)


def test_npy_and_parquet_agree_and_columns_are_named(opened, tmp_path):
    source = write(table(), tmp_path / "a.csv")
    codes = embed(opened, source, tmp_path / "a.npy")
    np.testing.assert_array_equal(codes, embed(opened, source, tmp_path / "a.parquet"))
    schema = pq.read_schema(tmp_path / "a.parquet")
    assert schema.names == opened[0].code_names()
    assert {str(kind) for kind in schema.types} == {"float"}


def test_small_row_groups_lose_nothing(monkeypatch, opened, tmp_path):
    source = write(table(), tmp_path / "a.csv")
    codes = embed(opened, source, tmp_path / "a.npy")
    monkeypatch.setattr("jepa.codes._GROUP_BYTES", 4 * codes.shape[1] * 9)
    np.testing.assert_array_equal(codes, embed(opened, source, tmp_path / "a.parquet"))
    assert pq.ParquetFile(tmp_path / "a.parquet").num_row_groups == 6  # of 9 rows each
    np.testing.assert_array_equal(codes, embed(opened, source, tmp_path / "b.npy"))


def test_columns_are_found_by_name_and_the_target_may_be_absent(opened, tmp_path):
    codes = embed(opened, write(table(), tmp_path / "a.csv"), tmp_path / "a.npy")
    other = table().drop(columns="label")[["day", "member", "size", "zip", "grade"]]
    other.insert(1, "unknown", "\N{SNOWMAN}")
    for name in ("b.csv", "b.parquet"):
        again = embed(opened, write(other, tmp_path / name), tmp_path / "b.npy")
        np.testing.assert_array_equal(codes, again)


def test_labels_written_in_another_form_are_the_same_labels(opened, tmp_path):
    codes = embed(opened, write(table(), tmp_path / "a.csv"), tmp_path / "a.npy")
    other = table()
    other["member"] = other["member"].map({True: "TRUE", False: "false"})
    other["grade"] = other["grade"].map("{:.1f}".format)
    again = embed(opened, write(other, tmp_path / "b.csv"), tmp_path / "b.npy")
    np.testing.assert_array_equal(codes, again)


def test_a_label_of_digits_only_stays_text_where_the_part_has_no_letters(opened, tmp_path):
    whole = table()
    digits = whole[whole["zip"] == "007"]
    assert len(digits) > 3
    codes = embed(opened, write(whole, tmp_path / "a.csv"), tmp_path / "a.npy", batch_size=1)
    alone = embed(opened, write(digits, tmp_path / "b.csv"), tmp_path / "b.npy", batch_size=1)
    np.testing.assert_array_equal(codes[whole["zip"] == "007"], alone)


def test_missing_and_unseen_values_give_finite_codes(opened, tmp_path):
    frame = table().astype(object)
    frame.loc[::2, ["size", "zip", "grade", "member", "day"]] = None
    frame.loc[1::2, "zip"] = "never seen"
    for name in ("a.csv", "a.parquet"):
        source = tmp_path / name
        write(frame if name == "a.csv" else frame.convert_dtypes(), source)
        codes = embed(opened, source, tmp_path / f"{name}.npy", chunk_rows=5)
        assert np.isfinite(codes).all()
    np.testing.assert_array_equal(codes, np.load(tmp_path / "a.csv.npy"))


def test_regroup_keeps_every_row_in_order():
    parts = [torch.arange(a, b) for a, b in ((0, 3), (3, 3), (3, 20), (20, 21))]
    groups = list(regroup(parts, 4))
    assert [len(group) for group in groups] == [4, 4, 4, 4, 4, 1]
    assert torch.equal(torch.cat(groups), torch.arange(21))
    assert list(regroup([], 4)) == []


def test_the_model_sees_the_same_batches_however_the_rows_come():
    class Counter:
        def embed(self, x):
            return torch.full((len(x), 1), len(x))

    for cuts in ([10], [1] * 10, [3, 0, 7]):
        parts = torch.zeros(10, 2).split(cuts)
        found = embed_parts(Counter(), parts, batch_size=4, device=torch.device("cpu"))
        assert torch.cat(list(found)).flatten().tolist() == [4] * 8 + [2] * 2


def test_a_failure_half_way_leaves_the_old_file_and_nothing_else(opened, tmp_path):
    frame = table()
    frame["size"] = frame["size"].astype(object)
    frame.loc[40, "size"] = "tall"
    source = write(frame, tmp_path / "a.csv")
    for name in ("out.npy", "out.parquet"):
        (tmp_path / name).write_text("old")
        with pytest.raises(ValueError, match=r"'size'.*'tall'"):
            embed(opened, source, tmp_path / name, chunk_rows=8, batch_size=8)
        assert (tmp_path / name).read_text() == "old"
    assert {path.name for path in tmp_path.iterdir()} == {"a.csv", "out.npy", "out.parquet"}


@pytest.mark.parametrize("suffix", ["npy", "parquet"])
def test_a_full_disk_leaves_nothing(tmp_path, suffix):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    codes = [torch.zeros(5000, 8)] * 4  # 640 kB
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(ValueError, match=r"cannot be written.*nothing was left behind"):
            write_codes(tmp_path / f"a.{suffix}", [f"c{i}" for i in range(8)], codes)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())


def test_a_table_without_rows_is_refused(opened, tmp_path):
    for name in ("a.csv", "a.parquet"):
        source = write(table().iloc[:0], tmp_path / name)
        with pytest.raises(ValueError, match="no rows"):
            embed(opened, source, tmp_path / "out.npy")
    assert {path.name for path in tmp_path.iterdir()} == {"a.csv", "a.parquet"}


def test_a_gz_cut_short_says_so(opened, tmp_path):
    content = gzip.compress(table(3000).to_csv(index=False).encode())
    (tmp_path / "a.csv.gz").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"a\.csv\.gz.*cut short"):
        embed(opened, tmp_path / "a.csv.gz", tmp_path / "out.npy")
    assert {path.name for path in tmp_path.iterdir()} == {"a.csv.gz"}


def test_out_is_checked_first(tmp_path):
    for out, message in (
        ("codes.csv", "must end in .parquet or .npy"),
        (str(tmp_path / "absent" / "a.npy"), "no folder"),
        (str(tmp_path / "table.parquet"), "overwrite"),
    ):
        with pytest.raises(ValueError, match=message):
            check_out(out, str(tmp_path / "table.parquet"), 1)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        check_out("a.npy", "b.csv", 0)


def test_an_absent_device_is_refused():
    with pytest.raises(ValueError, match=r"accelerator must be one of.*'tpu'"):
        pick_device("tpu")
    assert pick_device("cpu").type == "cpu"
    if not torch.backends.mps.is_available():
        with pytest.raises(ValueError, match="accelerator=mps: this machine has none"):
            pick_device("mps")


def command(*arguments, cwd, module="jepa.embed"):
    return subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        cwd=cwd, capture_output=True, text=True, timeout=600, check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.ci
def test_the_checkpoint_of_a_run_embeds_new_rows_without_the_training_file(tmp_path):
    write(table(120, seed=0), tmp_path / "train.csv")
    trained = command(
        "data=table", "data.path=train.csv", "data.target=label", "data.batch_size=16",
        *(f"model.{name}={value}" for name, value in SIZE.items()),
        "trainer=cpu", "trainer.max_epochs=1", "logger=csv", "hydra.run.dir=run",
        cwd=tmp_path, module="jepa.train",
    )  # fmt: skip
    assert trained.returncode == 0, trained.stdout + trained.stderr
    (tmp_path / "train.csv").unlink()
    write(table(30, seed=2).drop(columns="label"), tmp_path / "new rows, (1)=a.csv")
    source = 'data.path="new rows, (1)=a.csv"'
    done = command("run=run", source, "out=codes.parquet", "accelerator=cpu", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "30 rows" in done.stdout and "rows/s" in done.stdout
    codes = pd.read_parquet(tmp_path / "codes.parquet")
    assert len(codes) == 30 and "size_0" in codes and np.isfinite(codes.to_numpy()).all()
    again = command("run=run/checkpoints/last.ckpt", source, "out=codes.npy", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert {path.name for path in tmp_path.iterdir()} == {
        "run", "codes.parquet", "codes.npy", "new rows, (1)=a.csv",
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.ci
def test_what_cannot_be_done_is_one_message_and_no_file(tmp_path):
    save_checkpoint(tmp_path / "last.ckpt", table(60, seed=0))
    write(table(5), tmp_path / "good.csv")
    write(table(5).drop(columns=["size", "zip"]), tmp_path / "lacking.csv")
    (tmp_path / "evil.ckpt").write_bytes(pickle.dumps({"state_dict": print}))
    before = {path.name for path in tmp_path.iterdir()}
    good = {"run": "last.ckpt", "data.path": "good.csv", "out": "a.npy", "accelerator": "cpu"}
    for key, value, message in (
        ("data.path", "lacking.csv", "lacks 2 of 5 columns: 'size', 'zip'"),
        ("run", "evil.ckpt", "not a checkpoint of jepa"),
        ("out", "codes.csv", "must end in .parquet or .npy"),
        ("bath_size", "3", "did you mean batch_size"),
    ):
        done = command(*(f"{k}={v}" for k, v in (good | {key: value}).items()), cwd=tmp_path)
        assert done.returncode and message in done.stderr, (key, value, done.stderr)
        assert "Traceback" not in done.stderr and done.stderr.count("error:") == 1
        assert {path.name for path in tmp_path.iterdir()} == before
