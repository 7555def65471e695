"""Image files, folders and archives as they come: pixels, or one message with the fix."""

import bz2
import gzip
import io
import lzma
import pickle
import stat
import tarfile
import warnings
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from jepa.data.archives import read_files
from jepa.data.cifar10 import Cifar10
from jepa.data.decode import Decoded, attempt, decode, decode_files
from jepa.data.fashion_mnist import FashionMnist
from jepa.data.idx import read_idx
from jepa.data.image_folder import ImageFolder
from jepa.data.tree import arrange

FUZZ = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
NAMES = [f"{kind}/{i}.png" for kind in ("cat", "dog") for i in range(6)]
SPLIT_NAMES = [f"{s}/{kind}/{i}.png" for s in ("train", "test") for kind in "ab" for i in range(4)]


def encoded(size=(6, 6), mode="RGB", kind="PNG", seed=0, **options):
    rng = np.random.default_rng(seed)
    channels = {"L": (), "LA": (2,), "RGBA": (4,), "CMYK": (4,)}.get(mode, (3,))
    values = rng.integers(0, 256, (size[1], size[0], *channels), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(values, mode if mode in ("LA", "CMYK") else None).save(file, kind, **options)
    return file.getvalue()


def flat(colour, mode="RGB", kind="PNG", size=(6, 6), **options):
    file = io.BytesIO()
    Image.new(mode, size, colour).save(file, kind, **options)
    return file.getvalue()


def write_folder(root, files):
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def write_tar(path, files, mode="w"):
    with tarfile.open(path, mode) as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def write_zip(path, files):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def pictures(names=NAMES, **options):
    return {name: encoded(seed=i, **options) for i, name in enumerate(names)}


def opened(path, **changes):
    base = dict(image_size=8, batch_size=2, max_corrupt_share=0.1, n_workers=1)
    base |= dict(storage="memory", stored_size=None, cache_dir="unused")
    data = ImageFolder(path=str(path), **base | changes)
    data.prepare()
    return data


def refusal(path, **changes):
    with pytest.raises(ValueError) as error:
        opened(path, **changes)
    return str(error.value)


def everything(data):
    return {name: (part.pixels.x, part.pixels.y) for name, part in data.splits.items()}


# --- one file


def test_png_pixels_come_back_exactly():
    content = encoded()
    np.testing.assert_array_equal(
        decode(content, side=8), np.asarray(Image.open(io.BytesIO(content)))
    )


def test_grey_stays_one_channel():
    assert decode(encoded(mode="L"), side=8).shape == (6, 6)


@pytest.mark.parametrize(
    ("content", "colour"),
    [
        (flat((200, 30, 30), kind="JPEG", quality=95), (200, 30, 30)),
        (flat((0, 255, 255, 0), "CMYK", "JPEG", quality=95), (255, 0, 0)),
        (flat((10, 20, 30, 255), "RGBA"), (10, 20, 30)),
        (flat((10, 20, 30, 0), "RGBA"), (255, 255, 255)),
        (flat((0, 0, 0, 128), "RGBA"), (127, 127, 127)),
        (flat((90, 255), "LA"), 90),
        (flat((90, 0), "LA"), 255),
        (flat(1, "1"), 255),
        (flat(3, "P"), None),
        (flat(0xFFFF, "I;16"), 255),
        (flat(257 * 100, "I;16"), 100),
        (flat(40, "L", "JPEG"), 40),
    ],
)
def test_a_colour_is_seen_as_meant(content, colour):
    pixels = decode(content, side=8)
    assert pixels.dtype == np.uint8 and pixels.shape[:2] == (6, 6)
    if colour is not None:
        assert np.abs(pixels.astype(int) - np.array(colour)).max() <= 3


def test_a_palette_gives_its_colours():
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 12, 200, 34])
    for options in ({}, {"transparency": 0}):
        file = io.BytesIO()
        image.save(file, "PNG", **options)
        assert decode(file.getvalue(), side=4)[0, 0].tolist() == [12, 200, 34]


def test_a_transparent_colour_shows_white():
    assert (decode(flat((1, 2, 3), transparency=(1, 2, 3)), side=6) == 255).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_cameras_orientation_is_applied(orientation):
    from PIL import ImageOps

    image = Image.fromarray((np.arange(64).reshape(8, 8) * 4).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    image.save(file, "PNG", exif=exif)
    steps = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.T,
        6: lambda a: np.rot90(a, -1),
        7: lambda a: a[::-1, ::-1].T,
        8: lambda a: np.rot90(a, 1),
    }
    np.testing.assert_array_equal(
        decode(file.getvalue(), side=8), steps[orientation](np.asarray(image))
    )
    assert ImageOps.exif_transpose(Image.open(io.BytesIO(file.getvalue()))).size == (8, 8)


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (3, 7), (40, 30)])
def test_any_shape_gives_a_square(size):
    side = min(*size, 8)
    assert decode(encoded(size), side=8).shape == (side, side, 3)


def test_a_large_jpeg_is_shrunk_and_not_merely_sampled():
    checks = ((np.indices((256, 256)).sum(0) % 2) * 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(checks).save(file, "JPEG", quality=95)
    assert np.abs(decode(file.getvalue(), side=16).astype(int) - 127).max() < 12


@pytest.mark.parametrize(
    "content", [b"", b"not an image", encoded()[:60], encoded(kind="JPEG")[:200]]
)
def test_a_damaged_file_gives_a_reason(content):
    assert isinstance(attempt(content, side=8), str)


def test_a_file_of_another_kind_under_our_extension_is_damaged():
    assert isinstance(attempt(flat((1, 2, 3), kind="GIF"), side=8), str)


def test_a_decompression_bomb_is_not_decoded():
    header = encoded((2, 2))
    wide = header[:16] + (60_000).to_bytes(4, "big") * 2 + header[24:]
    import zlib

    wide = wide[:29] + zlib.crc32(wide[12:29]).to_bytes(4, "big") + wide[33:]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reason = attempt(wide, side=8)
    assert isinstance(reason, str) and ("pixels" in reason)


@FUZZ
@given(st.sampled_from(["PNG", "JPEG"]), st.integers(0, 400), st.integers(0, 255), st.booleans())
def test_a_changed_byte_gives_pixels_or_a_reason(kind, at, value, cut):
    content = bytearray(encoded(kind=kind))
    at %= len(content)
    content[at] = value
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = attempt(bytes(content[:at] if cut else content), side=8)
    assert isinstance(result, str) or (result.dtype == np.uint8 and result.shape[0] <= 8)


@FUZZ
@given(st.binary(max_size=200))
def test_any_bytes_give_pixels_or_a_reason(content):
    assert isinstance(attempt(content, side=8), str | np.ndarray)


def test_threads_do_not_change_the_result():
    files = [(name, content) for name, content in pictures().items()]
    files[3] = ("broken.png", b"x")
    a, b = (decode_files(files, side=4, n_workers=n) for n in (1, 3))
    assert list(a.pixels) == list(b.pixels) and a.damaged.keys() == b.damaged.keys()
    np.testing.assert_array_equal(a.stack(4), b.stack(4))


def test_mixed_shapes_and_modes_become_alike():
    done = Decoded()
    done.add("grey", decode(flat(9, "L", size=(3, 3)), side=8))
    done.add("colour", decode(flat((1, 2, 3), size=(20, 10)), side=8))
    x = done.stack(8)
    assert x.shape == (2, 3, 8, 8) and (x[0] == 9).all() and x[1, :, 0, 0].tolist() == [1, 2, 3]


def test_images_that_do_not_fit_into_memory_are_refused(monkeypatch):
    monkeypatch.setattr("os.sysconf", lambda name: 10)
    with pytest.raises(ValueError, match=r"data.image_size=8"):
        decode_files([("a.png", encoded())], side=8, n_workers=1)


# --- trees


@pytest.mark.parametrize(
    "layout",
    [
        "{split}/{kind}/{i}.png",
        "{split}/{kind}/images/{i}.JPG",
        "top/{split}/{kind}/{i}.jpeg",
        "./a/b/{split}/{kind}/deep/er/{i}.PNG",
    ],
)
def test_splits_and_classes_are_read_from_the_names(layout):
    names = [
        layout.format(split=split, kind=kind, i=i).removeprefix("./")
        for split in ("train", "valid", "test")
        for kind in ("dog", "cat")
        for i in range(2)
    ]
    tree = arrange(names)
    assert list(tree.splits) == ["train", "val", "test"]
    assert tree.classes == ("cat", "dog")
    assert all(tree.classes[tree.labels[name]] in name for name in names)


def test_a_class_may_be_called_train():
    tree = arrange(["train/1.png", "bus/1.png", "bus/images/2.png"])
    assert list(tree.splits) == ["train"] and tree.classes == ("bus", "train")


@pytest.mark.parametrize(
    "names", [["1.png", "2.png"], ["train/1.png"], ["images/1.png"], ["a/1.png"]]
)
def test_without_classes_to_tell_apart_there_are_no_labels(names):
    assert arrange(names).classes == ()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["train/a/1.png", "extra/a/1.png"], "extra"),
        (["test/a/1.png", "val/a/1.png"], "below train/"),
        (["train/a/1.png", "train/b/1.png", "val/c/1.png"], "'c'"),
        (["a/1.png", "b/1.png", "1.png"], "1.png lies in no class"),
        (["train/a/1.png", "1.png"], "no folder"),
    ],
)
def test_a_tree_without_a_clear_meaning_is_refused(names, message):
    with pytest.raises(ValueError, match=message):
        arrange(names)


@pytest.mark.parametrize("folder", ["train/empty/", "train/empty/images/", "test/a/"])
def test_a_class_without_images_is_named(folder):
    with pytest.raises(ValueError, match="has no image"):
        arrange(["train/a/1.png", "train/b/1.png", "test/b/1.png"], [folder])


@FUZZ
@given(
    st.lists(
        st.lists(
            st.sampled_from(["train", "val", "test", "a", "b", "images", "x.png"]), max_size=4
        ),
        min_size=1,
        max_size=6,
    ),
    st.lists(st.sampled_from(["", ".", "train", "a/b", "c", "test/q/"]), max_size=3),
)
def test_any_names_give_a_tree_or_one_message(parts, folders):
    names = {"/".join([*one, f"{i}.png"]) for i, one in enumerate(parts)}
    try:
        tree = arrange(names, folders)
    except ValueError:
        return
    assert sorted(n for split in tree.splits.values() for n in split) == sorted(names)
    assert "train" in tree.splits and (not tree.classes or tree.labels.keys() == names)


# --- folders and archives

WAYS = {
    "folder": lambda path, files: write_folder(path / "tree", files),
    "tar": lambda path, files: write_tar(path / "a.tar", files),
    "tar.gz": lambda path, files: write_tar(path / "a.tar.gz", files, "w:gz"),
    "tar.bz2": lambda path, files: write_tar(path / "a.tbz", files, "w:bz2"),
    "tar.xz": lambda path, files: write_tar(path / "a.tar.xz", files, "w:xz"),
    "zip": lambda path, files: write_zip(path / "a.zip", files),
}


@pytest.mark.parametrize("way", WAYS)
def test_the_same_images_come_from_a_folder_and_every_archive(tmp_path, way):
    files = pictures(SPLIT_NAMES)
    expected = everything(opened(write_folder(tmp_path / "plain", files)))
    files = dict(reversed(files.items())) | {"README.txt": b"hello", "train/a/.hidden.png": b""}
    found = everything(opened(WAYS[way](tmp_path, files)))
    assert found.keys() == expected.keys() == {"train", "val", "test"}
    for name, (x, y) in expected.items():
        assert torch.equal(found[name][0], x) and torch.equal(found[name][1], y)


def test_a_tree_without_splits_is_split_by_its_seed(tmp_path):
    root = write_folder(tmp_path, pictures())
    a, b, c = (everything(opened(root, split_seed=s)) for s in (0, 0, 1))
    assert list(a) == ["train", "val", "test"]
    assert all(torch.equal(a[name][0], b[name][0]) for name in a)
    assert any(not torch.equal(a[name][0], c[name][0]) for name in a)


def test_images_without_classes_can_be_pretrained_on(tmp_path):
    data = opened(write_folder(tmp_path, pictures([f"{i}.png" for i in range(10)])))
    assert data.spec.task == "none" and "y" not in next(iter(data.val_dataloader()))


def test_a_loop_of_links_ends(tmp_path):
    write_folder(tmp_path, pictures())
    (tmp_path / "cat" / "again").symlink_to(tmp_path)
    assert sum(len(part) for part in opened(tmp_path).splits.values()) == len(NAMES)


@pytest.mark.parametrize("share", [0.1, 0.0])
def test_damaged_images_are_named_and_left_out_up_to_a_share(tmp_path, share):
    files = pictures() | {"cat/torn.jpg": encoded(kind="JPEG")[:150]}
    root = write_folder(tmp_path, files)
    if share:
        with pytest.warns(UserWarning, match=r"1 of 13 images .* cat/torn.jpg"):
            data = opened(root, max_corrupt_share=share)
        assert sum(len(part) for part in data.splits.values()) == 12
        assert "damaged, left out: 1" in data.describe()
    else:
        text = refusal(root, max_corrupt_share=share)
        assert "cat/torn.jpg" in text and "data.max_corrupt_share=0.0" in text


def test_all_images_damaged_is_an_error_whatever_the_share(tmp_path):
    assert "2 of 2" in refusal(
        write_folder(tmp_path, {"a.png": b"", "b.png": b"x"}), max_corrupt_share=0.9
    )


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"cat/a.gif": b"GIF89a", "cat/b.webp": b""}, ("no .jpg", ".gif, .webp")),
        ({}, ("no .jpg",)),
        (pictures() | {"bird/notes.txt": b""}, ("'bird'", "no image")),
        (pictures() | {"only.png": encoded()}, ("only.png", "no class folder")),
        (pictures(["cat/1.png"]), ("1 rows are too few",)),
    ],
)
def test_a_folder_that_cannot_be_learnt_from_is_refused(tmp_path, files, words):
    text = refusal(write_folder(tmp_path, files))
    assert all(word in text for word in words)


def test_a_class_whose_images_are_all_damaged_is_named(tmp_path):
    with pytest.warns(UserWarning, match="damaged"):
        assert "'bird'" in refusal(write_folder(tmp_path, pictures() | {"bird/1.png": b"x"}))


def test_a_place_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"data.path=.*nowhere"):
        opened(tmp_path / "nowhere")


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_a_share_outside_its_range_is_refused(tmp_path, share):
    assert "max_corrupt_share" in refusal(tmp_path, max_corrupt_share=share)


@pytest.mark.parametrize(
    "name", ["../out.png", "/etc/out.png", "cat/../../out.png", "cat\\out.png"]
)
@pytest.mark.parametrize("way", ["tar", "tar.xz", "zip"])
def test_a_name_that_leads_out_is_refused(tmp_path, name, way):
    text = refusal(WAYS[way](tmp_path, pictures() | {name: encoded()}))
    assert "is refused" in text and "leads out" in text
    assert sorted(p.name for p in tmp_path.rglob("*")) == [f"a.{way}"]


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE]
)
def test_links_and_devices_in_a_tar_are_refused(tmp_path, kind):
    path = write_tar(tmp_path / "a.tar", pictures())
    with tarfile.open(path, "a") as tar:
        member = tarfile.TarInfo("cat/link.png")
        member.type, member.linkname = kind, "/etc/passwd"
        tar.addfile(member)
    text = refusal(path)
    assert "cat/link.png" in text and ("link" in text.split("it is a")[1] or "special" in text)


def test_a_link_in_a_zip_is_refused(tmp_path):
    path = write_zip(tmp_path / "a.zip", pictures())
    with zipfile.ZipFile(path, "a") as archive:
        member = zipfile.ZipInfo("cat/link.png")
        member.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(member, "/etc/passwd")
    assert "cat/link.png" in refusal(path)


@pytest.mark.parametrize("way", ["tar", "zip"])
def test_a_name_that_stands_twice_is_refused(tmp_path, way):
    path = WAYS[way](tmp_path, pictures())
    if way == "tar":
        with tarfile.open(path, "a") as tar:
            tar.addfile(tarfile.TarInfo("cat/0.png"))
    else:
        with zipfile.ZipFile(path, "a") as archive, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            archive.writestr("cat/0.png", b"")
    assert "twice" in refusal(path)


def test_an_archive_that_unpacks_to_far_more_than_its_size_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("jepa.data.archives.most_bytes", lambda path: 100_000)
    files = pictures() | {"zeros.bin": bytes(200_000)}
    for way in ("tar.xz", "tar.gz", "zip"):
        assert "is refused" in refusal(WAYS[way](tmp_path, files))


def test_a_long_name_field_cannot_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("jepa.data.archives.most_bytes", lambda path: 1 << 20)
    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 1 << 34
    path = tmp_path / "a.tar.gz"
    with gzip.open(path, "wb") as file:
        file.write(header.tobuf(tarfile.GNU_FORMAT) + bytes(8 << 20))
    assert "is refused" in refusal(path)


@pytest.mark.parametrize("way", ["tar", "tar.gz", "tar.bz2", "tar.xz", "zip"])
def test_an_archive_cut_short_is_damaged(tmp_path, way):
    path = WAYS[way](tmp_path, pictures())
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    text = refusal(path, max_corrupt_share=0.0)
    assert "damaged" in text


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello" * 200,
        gzip.compress(b"x", mtime=0),
        bz2.compress(b"x"),
        lzma.compress(b"x"),
        b"PK\3\4 no zip",
    ],
)
def test_a_file_that_is_no_archive_is_refused(tmp_path, content):
    path = tmp_path / "a.tar"
    path.write_bytes(content)
    assert "a.tar" in refusal(path)


def test_an_encrypted_zip_is_refused(tmp_path):
    path = write_zip(tmp_path / "a.zip", {"a.png": encoded()})
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\1\2") + 8] |= 1
    path.write_bytes(content)
    assert "encrypted" in refusal(path)


@FUZZ
@given(
    st.sampled_from(["tar", "tar.gz", "tar.xz", "zip"]),
    st.integers(0, 1 << 16),
    st.integers(0, 255),
)
def test_an_archive_with_a_changed_byte_is_read_or_refused(tmp_path, way, at, value):
    path = WAYS[way](tmp_path, pictures(["cat/1.png", "dog/1.png"]))
    content = bytearray(path.read_bytes())
    content[at % len(content)] = value
    path.write_bytes(content)
    try:
        names = [name for name, content in read_files(path) if content is not None]
    except ValueError as error:
        assert str(path) in str(error)
    else:
        assert len(names) <= 2


# --- the published sets


def test_a_wrong_checksum_is_told(tmp_path):
    write_folder(tmp_path, {"cifar10/cifar10_jpeg_q75.tar.xz": b"another file"})
    data = Cifar10(data_dir=str(tmp_path), image_size=32, batch_size=8)
    with pytest.raises(ValueError, match="wrong checksum"):
        data.prepare()
    write_folder(tmp_path, {"fashion_mnist/train-images-idx3-ubyte.gz": b"another file"})
    data = FashionMnist(data_dir=str(tmp_path), image_size=28, batch_size=8)
    with pytest.raises(ValueError, match="wrong checksum"):
        data.prepare()


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("folder", ["cifar10/cifar-10-batches-py", "cifar-10-batches-py"])
def test_a_pickle_with_a_wrong_checksum_is_never_opened(tmp_path, folder):
    pytest.importorskip("torchvision")
    mark = tmp_path / "executed"
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"]
    write_folder(tmp_path, {f"{folder}/{name}": pickle.dumps(Trap(mark)) for name in names})
    data = Cifar10(data_dir=str(tmp_path), image_size=32, batch_size=8)
    with pytest.raises(ValueError, match="wrong checksum"):
        data.prepare()
    assert not mark.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"x" * 10,
        gzip.compress(b"\0\0\x08\1\0\0\0\7abc", mtime=0),
        gzip.compress(b"", mtime=0),
        gzip.compress(b"\0\0\x0d\1\0\0\0\0", mtime=0),
    ],
)
def test_an_idx_file_that_does_not_fit_its_header_is_refused(tmp_path, content):
    path = tmp_path / "a.gz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="run again"):
        read_idx(path)


def test_an_idx_file_gives_its_array(tmp_path):
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(b"\0\0\x08\2\0\0\0\2\0\0\0\3" + bytes(range(6))))
    assert read_idx(path).tolist() == [[0, 1, 2], [3, 4, 5]]


def test_another_set_under_a_published_name_is_refused(tmp_path, monkeypatch):
    from jepa.data import digits

    real = digits.load_digits()
    real.images, real.target = real.images[:100], real.target[:100]
    monkeypatch.setattr(digits, "load_digits", lambda: real)
    with pytest.raises(ValueError, match="not the published set"):
        digits.Digits(image_size=8, batch_size=8).prepare()
