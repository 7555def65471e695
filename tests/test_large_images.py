"""Images that stay on the disk: decoded ahead or packed, always the same pixels."""

import json
import os

import numpy as np
import pytest
import torch
from PIL import Image
from test_bad_images import encoded, opened, write_folder
from test_images_data import BASE

from jepa.data import packed
from jepa.data.augment import Augment
from jepa.data.imagenet import ImageNet
from jepa.data.images import some_of
from jepa.data.large import Decoder
from jepa.data.packed import Build, pack

STORAGES = ("files", "packed")


@pytest.fixture(autouse=True)
def small_portions(monkeypatch):
    monkeypatch.setattr(packed, "PORTION", 4)


def folder(root, n=5, splits=("train", "test"), **changes):
    """Write n images of two classes for each split; of other sizes and modes each."""
    files = {}
    for split in splits:
        for kind in ("cat", "dog"):
            for i in range(n):
                mode, size = ("RGB", "L")[i % 2], (12 + i, 10)
                name = f"{split}/{kind}/{i}.png"
                files[name] = encoded(size, mode, seed=len(files))
    write_folder(root, files | changes)
    return root


def prepared(root, storage="memory", **changes):
    return opened(root, storage=storage, cache_dir=str(root.parent / "cache"), **changes)


@pytest.mark.parametrize("storage", STORAGES)
def test_the_images_are_those_that_memory_holds(tmp_path, storage):
    root = folder(tmp_path / "images")
    one, other = (prepared(root, name, image_size=8) for name in ("memory", storage))
    assert one.spec.classes == other.spec.classes and other.spec.n_channels == 3
    for split in ("train", "val", "test"):
        index = torch.arange(len(one.splits[split]))
        a, b = (data.splits[split].pixels.take(index) for data in (one, other))
        assert torch.equal(a["y"], b["y"])
        assert torch.equal(a["x"], b["x"])
    assert storage in other.describe()


@pytest.mark.parametrize("n_workers", [1, 3])
def test_batches_depend_on_no_thread_and_no_storage(tmp_path, n_workers):
    root = folder(tmp_path / "images")
    settings = dict(image_size=8, batch_size=2, augment=Augment(**BASE), seed=3)
    runs = []
    for storage, workers in (("packed", 1), ("files", n_workers)):
        loader = prepared(root, storage, n_workers=workers, **settings).train_dataloader()
        runs.append([batch["x"] for _ in range(2) for batch in loader])
    assert len(runs[0]) > 6
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_a_resumed_loader_goes_on_where_it_was(tmp_path):
    root = folder(tmp_path / "images")
    settings = dict(image_size=8, batch_size=2, augment=Augment(**BASE))
    whole, stopped, resumed = (
        prepared(root, "files", **settings).train_dataloader() for _ in "abc"
    )
    straight = [batch["x"] for batch in whole]
    iterator = iter(stopped)
    next(iterator)
    resumed.load_state_dict(stopped.state_dict())
    rest = [batch["x"] for batch in resumed]
    assert len(rest) == len(straight) - 1
    assert all(torch.equal(a, b) for a, b in zip(straight[1:], rest, strict=True))


def test_only_what_is_expected_next_is_decoded_ahead(tmp_path):
    root = folder(tmp_path / "images", splits=("train",))
    files = {str(p.relative_to(root)): p for p in sorted(root.rglob("*.png"))}
    decoder = Decoder(files, side=8, n_workers=2, max_corrupt_share=0)
    decoder.expect([0, 1, 2])
    assert decoder.ahead.keys() == {0, 1, 2}
    decoder.read([0])
    decoder.expect([1, 5])
    assert decoder.ahead.keys() == {1, 5}
    again = Decoder(files, side=8, n_workers=1, max_corrupt_share=0)
    rows = [5, 1, 1, 0]
    assert torch.equal(decoder.read(rows), again.read(rows))


def test_larger_squares_are_kept_where_asked_for(tmp_path):
    root = folder(tmp_path / "images")
    data = prepared(root, "packed", image_size=4, stored_size=7)
    assert data.splits["train"].pixels.take(torch.tensor([0]))["x"].shape == (1, 3, 7, 7)
    assert next(iter(data.train_dataloader()))["x"].shape[2:] == (4, 4)
    assert "cut from 7 x 7" in data.describe()


@pytest.mark.parametrize("storage", STORAGES)
def test_a_damaged_image_is_left_out_or_gray_and_named(tmp_path, storage):
    root = folder(tmp_path / "images", **{"train/cat/9.png": b"no image", "train/dog/9.png": b""})
    with pytest.warns(UserWarning, match=r"cat/9\.png"):
        data = prepared(root, storage, image_size=8, max_corrupt_share=0.2, val_share=0)
        everything = data.splits["train"].pixels.take(torch.arange(len(data.splits["train"])))["x"]
    n_gray = (everything == 128).flatten(1).all(1).sum().item()
    assert n_gray == (0 if storage == "packed" else 2)
    assert ("left out: 2" in data.describe()) == (storage == "packed")
    with pytest.raises(ValueError, match=r"max_corrupt_share"):
        prepared(root, storage, image_size=8, max_corrupt_share=0.01)


@pytest.mark.parametrize("way", ["file", "journal", "both"])
def test_a_build_that_was_cut_off_goes_on(tmp_path, monkeypatch, way):
    root = folder(tmp_path / "images")
    files = {str(p.relative_to(root)): p for p in sorted(root.rglob("*.png"))}
    whole = pack(files, tmp_path / "a", label="x", side=8, n_workers=2)
    expected = whole.read(range(len(files)))
    cut = pack(files, tmp_path / "b", label="x", side=8, n_workers=2)
    journal = cut.path.with_suffix(".journal")
    if way != "file":
        journal.write_text("\n".join(journal.read_text().splitlines()[:2])[:-7])
    if way != "journal":
        os.truncate(cut.path, 1000)
    written = []
    write = Build.write
    monkeypatch.setattr(Build, "write", lambda b, f, i: written.append(i) or write(b, f, i))
    mended = pack(files, tmp_path / "b", label="x", side=8, n_workers=2)
    assert torch.equal(mended.read(range(len(files))), expected)
    assert written == {"file": [1, 2, 3, 4], "journal": [1, 2, 3, 4], "both": [1, 2, 3, 4]}[way]
    assert json.loads(journal.read_text().splitlines()[-1])["complete"]
    written.clear()
    pack(files, tmp_path / "b", label="x", side=8, n_workers=2)
    assert written == []


def test_a_changed_byte_is_decoded_again_and_a_whole_file_is_not_read_through(
    tmp_path, monkeypatch
):
    root = folder(tmp_path / "images")
    files = {str(p.relative_to(root)): p for p in sorted(root.rglob("*.png"))}
    good = pack(files, tmp_path / "a", label="x", side=8, n_workers=1)
    expected = good.read(range(len(files)))
    with good.path.open("r+b") as file:
        file.seek(9 * good.side**2 * 3)
        file.write(bytes([77] * 50))
    written = []
    write = Build.write
    monkeypatch.setattr(Build, "write", lambda b, f, i: written.append(i) or write(b, f, i))
    mended = pack(files, tmp_path / "a", label="x", side=8, n_workers=1)
    assert written == [2] and torch.equal(mended.read(range(len(files))), expected)
    monkeypatch.setattr(Build, "is_whole", None)  # would raise
    pack(files, tmp_path / "a", label="x", side=8, n_workers=1)


def test_another_image_in_place_of_one_is_another_packed_file(tmp_path):
    root = folder(tmp_path / "images")
    one = prepared(root, "packed", image_size=8)
    (root / "train" / "cat" / "0.png").write_bytes(encoded((30, 30), seed=99))
    two = prepared(root, "packed", image_size=8)
    assert not torch.equal(*(some_of(data.splits["train"].pixels) for data in (one, two)))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(storage="disk"), "data.storage must be one of"),
        (dict(storage="memory", stored_size=9), "data.stored_size=9"),
        (dict(storage="packed", stored_size=0), "data.stored_size=0"),
    ],
)
def test_storage_that_cannot_be_is_refused(tmp_path, changes, words):
    with pytest.raises(ValueError, match=words):
        opened(folder(tmp_path / "images"), **changes)


def test_an_archive_cannot_be_read_out_of_order(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"x")
    with pytest.raises(ValueError, match="unpack it"):
        opened(tmp_path / "a.tar", storage="files")


def imagenet(root, **changes):
    base = dict(
        folder=str(root), n_classes=2, class_list=None, max_corrupt_share=0, storage="packed",
        stored_size=None, cache_dir=str(root.parent / "cache"), image_size=8, batch_size=4,
        val_share=0.2,
    )  # fmt: skip
    data = ImageNet(**base | changes)
    data.prepare()
    return data


def test_imagenet_reports_on_its_val_and_selects_on_a_part_of_train(tmp_path):
    data = imagenet(folder(tmp_path / "imagenet", splits=("train", "val")))
    assert {name: len(part) for name, part in data.splits.items()} == {
        "train": 8, "val": 2, "test": 10,
    }  # fmt: skip
    assert data.spec.classes == ("cat", "dog")


def test_a_class_list_picks_classes_and_their_number_is_checked(tmp_path):
    root = folder(tmp_path / "imagenet", splits=("train", "val"))
    write_folder(root, {"train/cow/1.png": encoded(), "val/cow/1.png": encoded()})
    with pytest.raises(ValueError, match=r"3 classes.*data\.n_classes=2"):
        imagenet(root)
    (tmp_path / "classes.txt").write_text("dog\ncat\n")
    assert imagenet(root, class_list=str(tmp_path / "classes.txt")).spec.classes == ("cat", "dog")
    (tmp_path / "classes.txt").write_text("dog\nn0123\n")
    with pytest.raises(ValueError, match=r"class_list.*n0123"):
        imagenet(root, class_list=str(tmp_path / "classes.txt"))


def test_imagenet_is_not_held_in_memory(tmp_path):
    with pytest.raises(ValueError, match=r"data\.storage=memory"):
        imagenet(tmp_path, storage="memory")


def test_pixels_are_squares_with_three_channels():
    from jepa.data.large import square

    gray = np.asarray(Image.new("L", (4, 4), 9))
    assert square(gray, 6).shape == (3, 6, 6) and (square(gray, 6) == 9).all()
