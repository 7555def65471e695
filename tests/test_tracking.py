"""What TensorBoard and MLflow get beside the curves."""

from unittest.mock import Mock

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from small_hjepa import build
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from jepa.callbacks.pictures import Pictures, bright, visible
from jepa.report import entry, new
from jepa.tracking import nest, tell

CONTENT = new(
    status="finished",
    reason="",
    objective={"name": "probe/ridge/error", "value": 0.25},
    metrics={"test/ridge/error": entry(0.5), "test/ridge/auc": entry(float("nan"))},
)


def tensorboard(folder):
    return TensorBoardLogger(str(folder), name="", version="")


def tags(folder):
    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    return accumulator.Tags()


def pictures(folder, batch, *, n_images=2, histograms=False):
    logger = tensorboard(folder)
    loggers = [logger, CSVLogger(str(folder))]
    trainer = Mock(spec=L.Trainer, global_step=0, loggers=loggers, sanity_checking=False)
    callback, model = Pictures(n_images=n_images, histograms=histograms), build()
    callback.on_train_batch_start(trainer, model, batch, 0)
    callback.on_validation_end(trainer, model)
    logger.finalize("success")
    return tags(folder)


IMAGES = {"x": torch.rand(4, 1, 8, 8)}


@pytest.mark.parametrize(("n_images", "written"), [(2, ["images and their context"]), (0, [])])
def test_images_are_written_as_many_as_asked_for(tmp_path, n_images, written):
    assert pictures(tmp_path, IMAGES, n_images=n_images)["images"] == written


def test_tables_have_no_images(tmp_path):
    assert pictures(tmp_path, {"x": torch.rand(4, 3)})["images"] == []


@pytest.mark.parametrize("histograms", [False, True])
def test_histograms_are_written_where_asked_for(tmp_path, histograms):
    found = pictures(tmp_path, IMAGES, histograms=histograms)["histograms"]
    trained = [name for name, one in build().named_parameters() if one.requires_grad]
    assert sorted(found) == (sorted(trained) if histograms else [])


def test_what_the_context_encoder_does_not_see_is_dark():
    model, x = build(), IMAGES["x"]
    seen = visible(model, x)
    assert seen.shape == (4, 1, 8, 8) and seen.unique().tolist() == pytest.approx([0.15, 1.0])
    context = model.masks(x, model.seed, 0, 0).context
    assert (seen == 1).sum() == context.numel() * 2 * 2  # pixels of a patch
    assert bright(x).amin() == 0 and bright(x).amax() == 1


def test_a_negative_number_of_images_is_refused():
    with pytest.raises(ValueError, match=r"callbacks\.pictures\.n_images"):
        Pictures(n_images=-1, histograms=False)


def test_tensorboard_gets_settings_and_scores(tmp_path):
    tell([tensorboard(tmp_path)], {"model.width": 8, "data.path": "t.csv"}, CONTENT, tmp_path)
    accumulator = EventAccumulator(str(tmp_path))
    accumulator.Reload()
    assert {"objective", "test/ridge/error"} <= set(accumulator.Tags()["scalars"])
    assert accumulator.Scalars("objective")[0].value == 0.25
    plugins = accumulator.PluginTagToContent("hparams")
    assert any("session_start" in tag for tag in plugins)
    assert b"model.width" in b"".join(plugins.values())


@pytest.mark.slow
@pytest.mark.ci
def test_mlflow_gets_settings_scores_files_and_the_place_in_a_sweep(tmp_path):
    pytest.importorskip("mlflow", reason="needs the extra `mlflow`")
    from lightning.pytorch.loggers import MLFlowLogger

    sweep = tmp_path / "study"
    sweep.mkdir()
    (sweep / "report.json").write_text("{}")
    made = [
        MLFlowLogger("tests", tracking_uri=f"sqlite:///{tmp_path}/mlflow.db",
                     artifact_location=str(tmp_path / "artifacts"))
        for _ in range(2)
    ]  # fmt: skip
    parents = set()
    for logger in made:
        nest(logger, sweep)
        tell([logger], {"model.width": 8, "data.path": "x" * 9000}, CONTENT, sweep)
        found = logger.experiment.get_run(logger.run_id)
        parents.add(found.data.tags["mlflow.parentRunId"])
        assert found.data.params["model.width"] == "8"
        assert found.data.metrics == {"test/ridge/error": 0.5, "objective": 0.25}
        files = [one.path for one in logger.experiment.list_artifacts(logger.run_id)]
        assert files == ["report.json"]
    (parent,) = parents
    above = logger.experiment.get_run(parent)
    assert above.data.tags["mlflow.runName"] == "study" and above.info.status == "FINISHED"
