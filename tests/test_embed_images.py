"""Codes of image files: those of the same pixels in training, wherever the files lie."""

import json
import os
import subprocess
import sys
import zipfile

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from small_hjepa import SPEC, build

from jepa.data.image_folder import stream_images
from jepa.data.pixels import ToInput
from jepa.embed import embed_images
from jepa.run import spec_state

CPU = torch.device("cpu")
INPUT = ToInput(8, torch.tensor([0.3]), torch.tensor([0.5]))


def pixels(n=5, side=8, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, size=(n, side, side), dtype=np.uint8)


def write_images(folder, arrays):
    folder.mkdir(parents=True)
    for i, array in enumerate(arrays):
        Image.fromarray(array).save(folder / f"{i:03d}.png")
    return folder


def content(spec=SPEC):
    fitted = {"image_size": INPUT.side, "mean": INPUT.mean, "std": INPUT.std}
    return {"preprocessing": fitted, "spec": spec_state(spec)}


def embed(source, out, *, share=0.0, batch_size=3):
    model = build()
    n = embed_images(
        model, content(), source, out,
        batch_size=batch_size, device=CPU, max_corrupt_share=share,
    )  # fmt: skip
    codes = np.load(out) if out.suffix == ".npy" else pd.read_parquet(out).to_numpy()
    assert len(codes) == n
    return codes


@pytest.mark.parametrize("suffix", ["npy", "parquet"])
def test_codes_are_what_the_model_says_of_the_pixels_in_the_order_of_the_names(tmp_path, suffix):
    arrays = pixels()
    folder = write_images(tmp_path / "a" / "class", arrays).parent
    codes = embed(folder, tmp_path / f"codes.{suffix}", batch_size=5)
    expected = build().embed(INPUT(torch.from_numpy(arrays)[:, None]))
    np.testing.assert_allclose(codes, expected.numpy(), rtol=1e-5, atol=1e-6)
    names = (tmp_path / "codes.files.txt").read_text().splitlines()
    assert names == [f"class/{i:03d}.png" for i in range(5)]


def test_an_archive_gives_the_codes_of_the_folder(tmp_path):
    folder = write_images(tmp_path / "a", pixels())
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for path in sorted(folder.iterdir()):
            archive.write(path, path.name)
    one, two = (embed(tmp_path / name, tmp_path / "c.npy") for name in ("a", "a.zip"))
    np.testing.assert_array_equal(one, two)


def test_a_code_does_not_depend_on_the_images_beside_it(tmp_path):
    small, large = pixels(2, side=8), pixels(2, side=20, seed=1)
    alone = write_images(tmp_path / "alone", small)
    mixed = write_images(tmp_path / "mixed", [*small, *large])
    one, two = (embed(at, tmp_path / "c.npy", batch_size=1) for at in (alone, mixed))
    np.testing.assert_array_equal(one, two[:2])


def test_gray_images_fit_a_model_of_colours_and_not_the_other_way_round(tmp_path):
    folder, names = write_images(tmp_path / "gray", pixels(2)), []
    three = ToInput(8, torch.zeros(3), torch.ones(3))
    (x,) = stream_images(folder, three, n_channels=3, max_corrupt_share=0.0, names=names)
    assert x.shape == (2, 3, 8, 8) and torch.equal(x[:, 0], x[:, 2]) and len(names) == 2
    write_images(tmp_path / "colour", [np.repeat(one[..., None], 3, axis=2) for one in pixels(2)])
    with pytest.raises(ValueError, match=r"000\.png .* has colours"):
        embed(tmp_path / "colour", tmp_path / "c.npy")
    assert not (tmp_path / "c.npy").exists()


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_damaged_images_are_named_and_left_out_up_to_the_share(tmp_path, share):
    folder = write_images(tmp_path / "a", pixels(4))
    (folder / "001.png").write_bytes(b"not an image")
    if not share:
        with pytest.raises(ValueError, match=r"1 of 4 images.*001\.png"):
            embed(folder, tmp_path / "c.npy", share=share)
        assert not (tmp_path / "c.npy").exists() and not (tmp_path / "c.files.txt").exists()
        return
    with pytest.warns(UserWarning, match=r"1 of 4 images.*001\.png"):
        codes = embed(folder, tmp_path / "c.npy", share=share)
    names = (tmp_path / "c.files.txt").read_text().split()
    assert len(codes) == 3 and names == ["000.png", "002.png", "003.png"]


def test_a_place_without_images_is_refused(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "notes.txt").write_text("x")
    with pytest.raises(ValueError, match=r"holds no .*\.png files"):
        embed(tmp_path / "a", tmp_path / "c.npy")


def command(module, *arguments, cwd):
    done = subprocess.run(
        [sys.executable, "-m", f"jepa.{module}", *map(str, arguments)],
        cwd=cwd, capture_output=True, text=True, timeout=600, check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    return done


@pytest.mark.slow
@pytest.mark.ci
def test_a_run_on_digits_is_evaluated_and_codes_image_files(tmp_path):
    trained = command(
        "train", "data=digits", "model=hjepa", "model.patch=2", "model.width=16",
        "trainer=cpu", "trainer.max_steps=4", "logger=csv", "test=false", "hydra.run.dir=run",
        cwd=tmp_path,
    )  # fmt: skip
    assert trained.returncode == 0, trained.stdout + trained.stderr
    page = (tmp_path / "run" / "report.md").read_text()
    assert "as fast as the plain one" in page and "plots/neighbours.png" in page
    scored = command(
        "evaluate", "run=run", "protocol=all", "split=val", "data=toy_images", "pictures=true",
        "finetune.n_steps=2", cwd=tmp_path,
    )  # fmt: skip
    assert scored.returncode == 0, scored.stdout + scored.stderr
    content = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    for key in (
        "val/ridge/error", "val/knn/error", "val/last4/few_shot/accuracy_shot5",
        "val/level1/ridge/error", "val/label_free/effective_rank", "val/finetune/error",
        "val/toy_images/level1/knn/error", "val/patches/knn/error",
    ):  # fmt: skip
        measured = content["metrics"][key]
        assert measured["low"] <= measured["value"] <= measured["high"], key
        assert content["controls"]["untrained"][key]["value"] is not None, key
    hierarchy = content["metrics"]["val/label_free/cka_mean_level1"]
    assert 0 < hierarchy["value"] <= 1
    assert "plots/spectrum.png" in (tmp_path / "run" / "evaluation.md").read_text()
    assert len(list((tmp_path / "run" / "features").glob("*.codes"))) == 32
    moved = command("evaluate", "run=run", "data.path=elsewhere", cwd=tmp_path)
    assert moved.returncode == 1 and "leave the key out" in moved.stderr
    write_images(tmp_path / "new", pixels(6, side=8))
    coded = command(
        "embed", "run=run", "data.path=new", "out=codes.parquet", "accelerator=cpu", cwd=tmp_path
    )
    assert coded.returncode == 0, coded.stdout + coded.stderr
    assert pd.read_parquet(tmp_path / "codes.parquet").shape == (6, 16)
    assert len((tmp_path / "codes.files.txt").read_text().splitlines()) == 6
    missing = command("embed", "run=run", "data.path=nowhere", "out=c.npy", cwd=tmp_path)
    assert missing.returncode == 1 and "does not exist" in missing.stderr
