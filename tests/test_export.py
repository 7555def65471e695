"""An exported encoder opens with nothing but its folder, and is the encoder that was trained."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from omegaconf import OmegaConf
from recorded_runs import write_run
from safetensors.torch import load_file, save_file
from support import settings, write_table

import jepa
from jepa import encoder, portable, run
from jepa.config import UserError
from jepa.export import check_settings, choose_function
from jepa.model_card import write_card

SMALL = (
    "model.width=8", "model.depth=1", "model.n_heads=2", "model.predictor_width=8",
    "model.predictor_depth=1", "model.predictor_n_heads=2",
)  # fmt: skip
FAMILIES = {
    "table": ("data=table", "data.target=label", *SMALL),
    "images": ("data=toy_images", "data.n_images=24", "data.image_size=8", "model=hjepa",
               "model.levels=1", "model.level_weights=[1.0]", "model.patch=2", *SMALL),
    "series": ("data=toy_series", "data.look_back=32", "data.horizon=8", "model=patchtst",
               "model.width=8", "model.depth=1", "model.n_heads=2", "model.patch=8"),
    "pretrained series": ("data=toy_series", "data.look_back=32", "data.horizon=8",
                          "model=patchtst_jepa", "model.patch=8", "model.stride=8", *SMALL),
}  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return, for each family, (checkpoint file, model, data) with weights as if trained."""
    made = {}

    def make(family):
        if family not in made:
            folder = tmp_path_factory.mktemp(family.replace(" ", "_"))
            more = []
            if family == "table":
                more = [f"data.path={write_table(folder / 't.csv')}"]
            cfg = settings(folder / "run", "data.batch_size=8", *FAMILIES[family], *more)
            parts = ("seed", "data", "model", "augment", "masking", "paths")
            keep = OmegaConf.masked_copy(cfg, [key for key in parts if key in cfg])
            cfg = OmegaConf.create(OmegaConf.to_container(keep, resolve=True))
            with run.FROM_THE_USER:
                data = run.instantiate(cfg.data)
                data.prepare()
                model = run.build_model(cfg, data.spec).eval()
            generator = torch.Generator().manual_seed(1)
            for one in model.parameters():  # student and teacher apart, as after training
                one.data += 0.05 * torch.randn(one.shape, generator=generator)
            content = {
                "state_dict": model.state_dict(),
                "config": OmegaConf.to_yaml(cfg),
                "spec": run.spec_state(data.spec),
                "preprocessing": data.preprocessing,
            }
            path = folder / "run" / "checkpoints" / "best.ckpt"
            path.parent.mkdir(parents=True)
            torch.save(content, path)
            made[family] = (path, model, data)
        return made[family]

    return make


def export(path, folder):
    """Export a checkpoint and move it: what is opened has its folder alone."""
    _, model, content = run.load_model(path)
    encoder.write_encoder(folder / "first", content["config"], model, content)
    shutil.move(folder / "first", folder / "moved")
    return folder / "moved"


def raw(data, n=5):
    """Return raw samples and, independently, what the data makes of them for a model."""
    rng = np.random.default_rng(0)
    if hasattr(data, "path"):
        frame = pd.read_csv(data.path)
        return frame, None
    spec = data.spec
    if hasattr(spec, "height"):
        pixels = rng.integers(0, 256, (n, spec.n_channels, 8, 8), dtype=np.uint8)
        mean, std = (np.array(one)[:, None, None] for one in (spec.mean, spec.std))
        return pixels, torch.from_numpy((pixels / 255.0 - mean) / std).float()
    windows = rng.normal(size=(n, spec.n_channels, spec.look_back)).cumsum(2)
    location, scale = (np.array(one)[:, None] for one in (spec.location, spec.scale))
    return windows, torch.from_numpy((windows - location) / scale).float()


@pytest.mark.parametrize("family", FAMILIES)
def test_codes_of_raw_samples_are_those_of_the_trained_model(tmp_path, trained, family):
    path, model, data = trained(family)
    opened = jepa.load_encoder(export(path, tmp_path))
    samples, x = raw(data)
    if x is None:
        batch = next(iter(data.probe_batches("train", max_rows=None, seed=0)))["x"]
        codes = opened.embed(samples)
        ours = model.embed(batch)
        exact = "donot_use_mm_for_euclid_dist"
        nearest = torch.cdist(ours, codes, compute_mode=exact).min(1).values
        assert (nearest < 1e-4).all(), "each row of training is among them"
        assert len(codes) == len(samples)
    else:
        torch.testing.assert_close(opened.embed(samples, batch_size=2), model.embed(x).cpu())
    assert opened.names == model.code_names()


def test_forecasts_are_in_original_units(tmp_path, trained):
    path, model, data = trained("series")
    opened = jepa.load_encoder(export(path, tmp_path))
    windows, x = raw(data)
    scale, location = (torch.tensor(one)[:, None] for one in (data.spec.scale, data.spec.location))
    torch.testing.assert_close(opened.predict(windows), model.predict(x) * scale + location)
    torch.testing.assert_close(  # an instance-normalised forecast moves with its input
        opened.predict(windows + 3.0), opened.predict(windows) + 3.0, rtol=1e-4, atol=1e-4
    )


def test_missing_values_of_a_window_are_masked_not_read(tmp_path, trained):
    path, model, data = trained("series")
    opened = jepa.load_encoder(export(path, tmp_path))
    windows, x = raw(data)
    windows[:, :, :5] = np.nan
    mask = torch.ones(*x.shape[:2], 32 + 8, dtype=torch.bool)
    mask[:, :, :5] = False
    x[:, :, :5] = 0.0
    torch.testing.assert_close(opened.embed(windows), model.embed(x, mask))


@pytest.mark.parametrize("family", ["table", "images", "pretrained series"])
def test_what_only_training_needs_is_left_out(tmp_path, trained, family):
    folder = export(trained(family)[0], tmp_path)
    tops = {name.split(".")[0] for name in load_file(folder / "model.safetensors")}
    assert tops - {"preprocessing"} == {"teacher"}
    assert {"predictor", "encoder"} <= set(
        json.loads((folder / "encoder.json").read_text())["left_out"]
    )


# --- what is bad


def test_data_of_another_kind_is_refused(tmp_path, trained):
    tables, images, series = (
        jepa.load_encoder(export(trained(family)[0], tmp_path / family))
        for family in ("table", "images", "series")
    )
    with pytest.raises(ValueError, match="a pandas DataFrame, got list"):
        tables.embed([[1, 2]])
    with pytest.raises(ValueError, match="colour"):
        tables.embed(pd.DataFrame({"n0": [1.0]}))
    with pytest.raises(ValueError, match=r"images \[b, 3, y, x\] are wanted, got \[2, 1, 8, 8\]"):
        images.embed(np.zeros((2, 1, 8, 8)))
    with pytest.raises(ValueError, match=r"windows \[b, 3, 32\] are wanted, got \[2, 3, 31\]"):
        series.embed(np.zeros((2, 3, 31)))
    with pytest.raises(ValueError, match="predicts no target"):
        tables.predict(pd.DataFrame())


def spoil_absent(folder):
    (folder / "encoder.json").unlink()


def spoil_weights(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:100])


def spoil_lost(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors.pop(next(name for name in tensors if name.startswith("teacher")))
    save_file(tensors, folder / "model.safetensors")


def spoil_config(folder):
    path = folder / "config.yaml"
    path.write_text(path.read_text().replace("  width: 8", "  width: 16"))


def spoil_lookup(folder):
    path = folder / "config.yaml"
    path.write_text(path.read_text() + "stolen: ${oc.env:HOME}\n")


def spoil_call(folder):
    path = folder / "config.yaml"
    text = path.read_text()
    path.write_text(text.replace("jepa.models.tjepa.TJEPA", "os.system"))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (spoil_absent, "no exported encoder: it has no encoder.json"),
        (spoil_weights, "damaged"),
        (spoil_lost, "do not fit"),
        (spoil_config, "do not fit"),
        (spoil_lookup, "damaged.*values resolved"),
        (spoil_call, "os.system"),
    ],
)
def test_a_folder_that_is_damaged_or_foreign_is_refused(tmp_path, trained, spoil, words):
    folder = export(trained("table")[0], tmp_path)
    spoil(folder)
    with pytest.raises(Exception, match=f"(?s){words}"):
        jepa.load_encoder(folder)


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"checkpoints/best\.ckpt"):
        run.find_checkpoint(write_run(tmp_path / "run"))


@pytest.mark.parametrize(
    ("settings_", "words"),
    [
        (("x", "pickle", "auto"), "format=pickle"),
        (("x", "onnx", "images"), "output=images"),
        (("file", "onnx", "auto"), "is a file"),
        (("full", "onnx", "auto"), "other files"),
    ],
)
def test_settings_that_cannot_be_are_refused_before_anything_is_read(tmp_path, settings_, words):
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "photo.jpg").touch()
    out, form, output = settings_
    with pytest.raises(UserError, match=words):
        check_settings(str(tmp_path / out), form, output)


def test_the_output_is_what_was_asked_for(trained):
    forecaster, codes_only = trained("series")[1], trained("table")[1]
    assert (
        choose_function("auto", forecaster)
        == choose_function("prediction", forecaster)
        == "predict"
    )
    assert choose_function("codes", forecaster) == choose_function("auto", codes_only) == "embed"
    with pytest.raises(UserError, match="predicts no target"):
        choose_function("prediction", codes_only)


# --- the model card


def test_a_model_card_tells_scores_controls_and_limits(tmp_path, trained):
    recorded = write_run(tmp_path / "run", error=0.3)
    path, model, data = trained("images")
    opened = encoder.Encoder(model, data.spec, data.preprocessing)
    (recorded / "checkpoints").mkdir()
    checkpoint = shutil.copy(path, recorded / "checkpoints" / "best.ckpt")
    write_card(tmp_path, checkpoint, opened, extra=("model.onnx", "embed", 1e-6))
    text = (tmp_path / "README.md").read_text()
    for words in (
        "jepa.load_encoder", "images of 3 x 8 x 8", "| test/ridge/error | 0.3 | 0.291..0.309 |",
        "DOES NOT BEAT its untrained self", "differs from the model by 1.0e-06", "seed 0",
    ):  # fmt: skip
        assert words in text, words
    write_card(tmp_path, path, opened, extra=None)
    assert "Not scored" in (tmp_path / "README.md").read_text()


# --- other formats


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize("family", FAMILIES)
def test_torch_export_gives_the_same_numbers_for_any_number_of_rows(tmp_path, trained, family):
    _, model, data = trained(family)
    sample = encoder.sample_input(data.spec, 5)
    for name in encoder.functions_of(model):
        figure = portable.write_program(tmp_path / "model.pt2", model, name, sample)
        assert figure < 1e-5
        program = torch.export.load(tmp_path / "model.pt2").module()
        one = program(sample[:1])
        torch.testing.assert_close(one, getattr(model, name)(sample[:1]), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize("family", FAMILIES)
def test_onnx_gives_the_same_numbers_for_any_number_of_rows(tmp_path, trained, family):
    runtime = pytest.importorskip("onnxruntime", reason="needs the extra `export`")
    pytest.importorskip("onnxscript", reason="needs the extra `export`")
    _, model, data = trained(family)
    sample, name = encoder.sample_input(data.spec, 7), encoder.functions_of(model)[-1]
    figure = portable.write_onnx(tmp_path / "model.onnx", model, name, sample)
    assert figure < 1e-5
    session = runtime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    (out,) = session.run(None, {"x": sample.numpy()})
    expected = getattr(model, name)(sample).numpy()
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-5)


def test_a_program_that_differs_is_refused(trained):
    _, model, data = trained("table")
    sample = encoder.sample_input(data.spec, 5)
    with pytest.raises(ValueError, match="differs by"):
        portable.parity(lambda x: model.embed(x) * 1.01, model, "embed", sample)
