"""Codes are computed once, kept in files that are whole or not used, and never stale."""

import threading
import time
import warnings
from dataclasses import replace

import pytest
import torch
from small_hjepa import SPEC, build, images

from jepa import features
from jepa.data.pixels import Images, Inputs, ToInput
from jepa.encoding import Encoding
from jepa.features import cached, digest, fingerprint

KEY = {"origin": "abc", "split": "val"}


def codes(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(7, 3, generator=generator), torch.arange(7)


def counting(log):
    def make(names):
        log.append(tuple(names))
        return {name: codes(len(name)) for name in names}

    return make


def never(names):
    raise AssertionError(f"computed again: {names}")


def test_codes_are_made_once_and_read_bit_for_bit(tmp_path):
    first = cached(tmp_path, {"a": KEY}, counting([]))["a"]
    again = cached(tmp_path, {"a": KEY}, never)["a"]
    assert all(torch.equal(x, y) and x.dtype == y.dtype for x, y in zip(first, again, strict=True))


@pytest.mark.parametrize("change", [{"origin": "abd"}, {"split": "test"}, {"max_rows": 3}])
def test_codes_of_anything_else_are_made_anew(tmp_path, change):
    log = []
    cached(tmp_path, {"a": KEY}, counting(log))
    cached(tmp_path, {"a": KEY | change}, counting(log))
    assert len(log) == 2 and len(list(tmp_path.glob("*.codes"))) == 2


def test_what_has_to_be_made_is_made_in_one_pass(tmp_path):
    log, keys = [], {name: KEY | {"representation": name} for name in ("a", "bb", "ccc")}
    cached(tmp_path, {"a": keys["a"]}, counting(log))
    found = cached(tmp_path, keys, counting(log), wanted=["ccc"])
    assert list(found) == ["ccc"] and log == [("a",), ("ccc", "bb")]
    cached(tmp_path, keys, never)


@pytest.mark.parametrize("place", range(0, 400, 37))
def test_a_damaged_file_is_noticed_and_made_anew(tmp_path, place):
    cached(tmp_path, {"a": KEY}, counting([]))
    (path,) = tmp_path.glob("*.codes")
    content = bytearray(path.read_bytes())
    content[place % len(content)] ^= 1
    path.write_bytes(content)
    log = []
    with pytest.warns(UserWarning, match="damaged"):
        found = cached(tmp_path, {"a": KEY}, counting(log))["a"]
    assert log and torch.equal(found[0], codes(1)[0])
    cached(tmp_path, {"a": KEY}, never)


def test_a_file_that_was_cut_is_noticed(tmp_path):
    cached(tmp_path, {"a": KEY}, counting([]))
    (path,) = tmp_path.glob("*.codes")
    for size in (0, 10, 31, 33, path.stat().st_size - 1):
        path.write_bytes(path.read_bytes()[:size])
        with pytest.warns(UserWarning, match="damaged"):
            cached(tmp_path, {"a": KEY}, counting([]))


def test_a_pickle_in_place_of_codes_is_not_loaded(tmp_path):
    import hashlib
    import pickle

    class Runs:
        def __reduce__(self):
            return (tmp_path / "ran").mkdir, ()

    cached(tmp_path, {"a": KEY}, counting([]))
    (path,) = tmp_path.glob("*.codes")
    body = features.describe(KEY).encode() + b"\n" + pickle.dumps(Runs())
    path.write_bytes(body + hashlib.sha256(body).digest())
    with pytest.warns(UserWarning, match="damaged"):
        cached(tmp_path, {"a": KEY}, counting([]))
    assert not (tmp_path / "ran").exists()


def test_a_folder_that_cannot_be_written_costs_the_file_alone(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="not kept"):
        found = cached(tmp_path / "file" / "features", {"a": KEY}, counting([]))
    assert torch.equal(found["a"][0], codes(1)[0])


def test_two_that_ask_at_once_compute_once(tmp_path):
    log = []

    def slow(names):
        time.sleep(0.2)
        return counting(log)(names)

    both = [threading.Thread(target=cached, args=(tmp_path, {"a": KEY}, slow)) for _ in range(2)]
    for one in both:
        one.start()
    for one in both:
        one.join()
    assert len(log) == 1


def test_nothing_is_left_beside_the_codes(tmp_path):
    cached(tmp_path, {"a": KEY}, counting([]))
    assert sorted(p.suffix or p.name for p in tmp_path.iterdir()) == [".codes", ".lock"]


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ([1, 2], [[1], 2]), (["a", "b"], ["ab"]), ([1], ["1"]), ({"a": 1}, {"a": 2}), ([None], []),
        (torch.zeros(4), torch.zeros(2, 2)), (torch.zeros(2), torch.zeros(2, dtype=torch.long)),
    ],
)  # fmt: skip
def test_digests_tell_values_apart(a, b):
    assert digest(a) != digest(b) and digest(a) == digest(a)


class Data:
    """Eight-pixel images with labels, as a data module has them."""

    def __init__(self, n=12, seed=0):
        pixels = (images(n, seed=seed) * 50 + 128).clamp(0, 255).to(torch.uint8)
        to_input = ToInput(8, torch.zeros(1), torch.ones(1))
        rows = Inputs(Images(pixels, torch.arange(n) % 3), to_input)
        self.splits = {"train": rows, "val": rows}
        self.spec = replace(SPEC, task="multiclass", classes=("a", "b", "c"))
        self.preprocessing = {"mean": torch.zeros(1)}

    def probe_batches(self, split, *, max_rows=None, seed=0):
        yield self.splits[split].take(torch.arange(max_rows or len(self.splits[split])))


def test_other_images_have_another_fingerprint():
    one = fingerprint(Data(), "val")
    assert one == fingerprint(Data(), "val")
    assert one != fingerprint(Data(seed=1), "val") and one != fingerprint(Data(n=9), "val")


def encoding(folder, model, **settings):
    model = model.eval()
    sizes = {"train": None, "val": None}
    return Encoding(
        model, model, Data(), **dict(sizes=sizes, seed=0, folder=folder, origin="x") | settings
    )


def test_an_encoding_reads_what_another_has_computed(tmp_path):
    model = build()
    x, y = encoding(tmp_path, model).codes("trained", "val")
    torch.testing.assert_close(x, model.embed(Data().splits["val"].take(torch.arange(12))["x"]))
    model.embed = never
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = encoding(tmp_path, model).codes("trained", "val")
    assert torch.equal(again[0], x) and torch.equal(again[1], y)


@pytest.mark.parametrize(
    "change", [{"origin": "y"}, {"sizes": {"train": None, "val": 5}}, {"seed": 1}]
)
def test_an_encoding_of_other_weights_or_rows_is_not_taken(tmp_path, change):
    encoding(tmp_path, build()).codes("trained", "val")
    encoding(tmp_path, build(), **change).codes("trained", "val")
    encoding(tmp_path, build()).codes("untrained", "val")
    assert len(list(tmp_path.glob("*.codes"))) == 3
