"""Bad input: one message with the value, the key and the fix, before any compute."""

import gzip
import shlex

import numpy as np
import pandas as pd
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from jepa.data.quoting import kind_setting, list_setting, text_setting
from jepa.data.table import Table
from jepa.data.tabular import TableData


def good(n_rows=30):
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {"a": rng.normal(size=n_rows), "b": ["u", "v"] * (n_rows // 2), "y": [0, 1] * (n_rows // 2)}
    )


def prepare(tmp_path, frame, *, name="table.parquet", **settings):
    path = tmp_path / name
    if name.endswith("parquet"):
        frame.to_parquet(path)
    else:
        frame.to_csv(path, index=False)
    table = Table(**{"path": str(path), "target": "y", "batch_size": 4} | settings)
    table.prepare()
    return table


def refused(tmp_path, frame, *words, **settings):
    """Prepare; the one message must hold all words."""
    with pytest.raises(ValueError) as caught:
        prepare(tmp_path, frame, **settings)
    for word in words:
        assert word in str(caught.value), str(caught.value)
    assert "\n" not in str(caught.value)


def hydra_reads(line):
    """What Hydra makes of one argument of a shell command."""
    (argument,) = shlex.split(line)
    override = OverridesParser.create().parse_override(argument)
    return override.key_or_group, override.value()


NAMES = [
    "my file (1).csv", "a,b.csv", "x=[1].csv", 'with "quotes".csv', "it's.csv", "{a: b}.csv",
    "back\\slash.csv", 'back\\"both.csv', "ends\\", "ünï.csv", " blank ", "null", "1", "a:b", "#x",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_the_quoting_in_messages_is_what_shell_and_hydra_read(name):
    key, value = hydra_reads(text_setting("data.path", name))
    assert (key, value if isinstance(value, str) else value.text) == ("data.path", name)
    key, (value,) = hydra_reads(list_setting("data.drop", name))
    assert (key, value if isinstance(value, str) else value.text) == ("data.drop", name)


@pytest.mark.parametrize("name", ["age", "zip code", "a.b", "hours-per-week"])
def test_kinds_can_be_pasted_too(name):
    assert hydra_reads(kind_setting(name, "category")) == ("data.kinds", {name: "category"})


def test_kinds_of_names_beyond_the_grammar_point_to_a_yaml():
    assert kind_setting("a, b=[1]", "date").startswith(
        'data: {kinds: {"a, b=[1]": date}} in a yaml'
    )


def test_a_missing_file_names_path_neighbours_and_quoting(tmp_path):
    good().to_csv(tmp_path / "my file (1).csv")
    with pytest.raises(FileNotFoundError) as caught:
        Table(path=str(tmp_path / "my file (2).csv"), batch_size=4).prepare()
    text = str(caught.value)
    assert "my file (1).csv" in text and str(tmp_path) in text
    assert text_setting("data.path", str(tmp_path / "my file (2).csv")) in text


def test_an_odd_column_name_works_and_its_absence_shows_the_quoting(tmp_path):
    odd = good().rename(columns={"y": "is it, [really] = y?", "a": "an (a)"})
    settings = {"drop": ["b"], "kinds": {"an (a)": "number"}}
    table = prepare(tmp_path, odd, target="is it, [really] = y?", **settings)
    assert table.spec.columns == ("an (a)",)
    refused(
        tmp_path, odd, "is not in the table", "'data.target=\"is it, [really] = y?\"'",
        target="is it, [really] y",
    )  # fmt: skip


def test_an_empty_file_and_an_empty_table(tmp_path):
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(ValueError, match=r"empty\.csv' is empty: it has no header"):
        Table(path=str(tmp_path / "empty.csv"), batch_size=4).prepare()
    refused(tmp_path, good().head(0), "the table is empty (0 rows", "at least 2 rows")
    refused(tmp_path, pd.DataFrame(index=range(5)), "0 columns")


def test_one_row_and_too_few_rows(tmp_path):
    refused(tmp_path, good().head(1), "one row", "at least 2")
    refused(tmp_path, good().head(4).drop(columns="y"), "4 rows are too few", "data.val_share=0.9",
            target=None, val_share=0.9)  # fmt: skip
    refused(tmp_path, good(), "data.val_share must be", "1.5", val_share=1.5)


def test_an_absent_target_names_the_nearest(tmp_path):
    frame = good().rename(columns={"y": "income"})
    refused(tmp_path, frame, "data.target='incme' is not in the table", "'income'", target="incme")
    refused(tmp_path, frame, "there are: 'a', 'b', 'income'", target="zzz")
    refused(tmp_path, frame, "data.task=binary needs a target", target=None, task="binary")
    refused(tmp_path, frame, "data.task must be", "'clasify'", target="income", task="clasify")


@pytest.mark.parametrize(
    ("y", "words"),
    [
        ([1] * 30, ("constant", "1", "data.task=none")),
        (["x"] * 30, ("constant", "'x'")),
        ([1.5] * 30, ("constant", "1.5")),
        (["u"] * 29 + ["w"], ("1 classes of one row", "'w'")),
        ([1, 2, 3] * 9 + [4, 5, 6], ("3 classes of one row", "data.task=regression")),
        (["u", "w"] * 14 + [None, None], ("2 missing values", "data.task=none")),
        ([1.0, 2.5] * 14 + [np.nan, 1.0], ("1 missing values",)),
        ([0.5, np.inf] * 15, ("'y' holds 15 infinite values",)),
        ([0.5, 1e300] * 15, ("beyond 3e38",)),
        (pd.date_range("2024-01-01", periods=30), ("holds dates",)),
    ],
)
def test_a_target_that_cannot_be_learnt(tmp_path, y, words):
    refused(tmp_path, good().assign(y=y), "'y'", *words)


def test_a_task_that_does_not_fit_the_target(tmp_path):
    three = good().assign(y=[0, 1, 2] * 10)
    refused(tmp_path, three, "data.task=binary needs 2 classes", "has 3", task="binary")
    refused(tmp_path, good().assign(y=["u", "w"] * 15), "'u'", task="regression")


def test_a_column_without_values_is_dropped_and_all_of_them_are_refused(tmp_path):
    with pytest.warns(UserWarning, match="left out: empty"):
        prepare(tmp_path, good().assign(empty=np.nan))
    refused(tmp_path, pd.DataFrame({"a": [None] * 30, "c": 5, "y": [0, 1] * 15}),
            "no column of the table varies", "'a', 'c'")  # fmt: skip


def test_an_identifier_is_refused_with_three_ways_out(tmp_path):
    frame = pd.DataFrame({"id": [f"row {i}" for i in range(100_000)], "a": range(100_000)})
    refused(tmp_path, frame, "'id' holds 65000 distinct values", "data.drop=[id]",
            "data.max_categories=65000", "data.min_count=10", target=None)  # fmt: skip
    prepare(tmp_path, frame, target=None, drop=["id"])


def test_infinite_values_name_column_and_count(tmp_path):
    frame = good()
    frame.loc[[3, 7], "a"] = np.inf
    refused(tmp_path, frame, "'a' holds", "infinite", "data.drop=[a]")


def test_infinite_values_of_any_split_are_refused(tmp_path):
    for row in range(30):
        frame = good()
        frame.loc[row, "a"] = -np.inf
        refused(tmp_path, frame, "'a' holds 1 infinite values")


def test_complex_numbers_are_refused():
    class Complex(TableData):
        def load(self):
            return {"train": good().assign(a=1j)}

    with pytest.raises(ValueError, match="'a' holds complex numbers"):
        Complex(batch_size=4).prepare()


@pytest.mark.parametrize("name", ["twice.csv", "twice.csv.gz"])
def test_duplicate_column_names(tmp_path, name):
    text = b"a,b,a\n1,2,3\n4,5,6\n"
    (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith("gz") else text)
    with pytest.raises(ValueError, match="must be unique, it has several of: 'a'"):
        Table(path=str(tmp_path / name), batch_size=2).prepare()


def test_names_that_only_differ_in_type_are_duplicates():
    class Twice(TableData):
        def load(self):
            return {"train": pd.DataFrame([[1, 2], [3, 4]], columns=pd.Index([1, "1"]))}

    with pytest.raises(ValueError, match="several of: '1'"):
        Twice(batch_size=1).prepare()


def test_another_encoding(tmp_path):
    path = tmp_path / "latin.csv"
    path.write_bytes("a,b\n1,caf\xe9\n2,x\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin.csv' is not UTF-8 \(byte 0xe9"):
        Table(path=str(path), batch_size=2).prepare()


@pytest.mark.parametrize("name", ["t.parquet", "t.csv.gz"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_file_cut_short(tmp_path, name, share):
    path = tmp_path / name
    frame = pd.DataFrame(np.random.default_rng(0).normal(size=(300, 3)), columns=list("abc"))
    frame.to_parquet(path) if name.endswith("parquet") else frame.to_csv(path, index=False)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match=name) as caught:
        Table(path=str(path), batch_size=2).prepare()
    assert "\n" not in str(caught.value)


def test_a_file_of_another_kind(tmp_path):
    (tmp_path / "t.xlsx").write_text("x")
    with pytest.raises(ValueError, match=r"must end in one of \.csv"):
        Table(path=str(tmp_path / "t.xlsx"), batch_size=2).prepare()
    (tmp_path / "t.csv").write_text("a,b\n1,2\n3,4,5,6\n")
    with pytest.raises(ValueError, match="cannot be read"):
        Table(path=str(tmp_path / "t.csv"), batch_size=2).prepare()


def test_a_batch_larger_than_the_table(tmp_path):
    words = ("data.batch_size=512", "trainer.accumulate_grad_batches=1", "has 20", "at most 20")
    refused(tmp_path, good(), *words, batch_size=512)
    refused(tmp_path, good(), "data.batch_size must be at least 1", "0", batch_size=0)


def test_an_accumulation_group_larger_than_the_table(tmp_path):
    table = prepare(tmp_path, good())

    class Trainer:
        global_rank, world_size, accumulate_grad_batches, overfit_batches = 0, 2, 3, 0.0

    table.trainer = Trainer()
    with pytest.raises(ValueError, match=r"accumulate_grad_batches=3 x 2 processes = 24 rows.* 20"):
        table.train_dataloader()


def test_settings_that_name_no_column_or_no_choice(tmp_path):
    refused(tmp_path, good(), "data.drop names 'aa'", "'a'", drop=["aa"])
    refused(tmp_path, good(), "data.kinds names 'bb'", "'b'", kinds={"bb": "category"})
    refused(tmp_path, good(), "data.kinds.b must be one of", "'text'", kinds={"b": "text"})
    refused(tmp_path, good(), "data.scaler must be one of", "'robust'", scaler="robust")
    refused(tmp_path, good(), "data.min_count", "min_count=0", min_count=0)
    refused(tmp_path, good(), "'b' is read as a number, but holds 'u'", kinds={"b": "number"})
    refused(tmp_path, good(), "'b' is read as dates, but holds 'u'", kinds={"b": "date"})


def test_a_share_of_a_published_split_is_refused():
    class Split(TableData):
        target = "y"

        def load(self):
            return {"train": good(), "test": good()}

    with pytest.raises(ValueError, match=r"data.test_share=0.2 has no effect.*published"):
        Split(batch_size=4, test_share=0.2).prepare()


def test_a_class_that_only_the_test_split_has_is_refused():
    class Split(TableData):
        target = "y"

        def load(self):
            return {"train": good(), "test": good().assign(y=[0, 7] * 15)}

    with pytest.raises(ValueError, match=r"holds the classes \['7'\], which no training row has"):
        Split(batch_size=4).prepare()
