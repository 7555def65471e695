"""What TensorBoard and MLflow get beside the curves."""

from unittest.mock import Mock

import lightning as L
import pytest
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from small_hjepa import build
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from jepa.callbacks.histograms import Histograms
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


def histograms(folder, *, every, n_validations=2):
    logger = tensorboard(folder)
    loggers = [logger, CSVLogger(str(folder))]
    trainer = Mock(spec=L.Trainer, loggers=loggers, sanity_checking=False)
    callback, model = Histograms(every=every), build()
    for trainer.global_step in range(n_validations):
        callback.on_validation_end(trainer, model)
    logger.finalize("success")
    accumulator = EventAccumulator(str(folder), size_guidance={"histograms": 0})
    accumulator.Reload()
    names = accumulator.Tags()["histograms"]
    return {name: [one.step for one in accumulator.Histograms(name)] for name in names}


@pytest.mark.parametrize(("every", "steps"), [(0, None), (1, [0, 1]), (2, [1])])
def test_histograms_are_written_where_asked_for(tmp_path, every, steps):
    trained = [name for name, one in build().named_parameters() if one.requires_grad]
    expected = {} if steps is None else dict.fromkeys(trained, steps)
    assert histograms(tmp_path, every=every) == expected


def test_a_negative_cadence_of_histograms_is_refused():
    with pytest.raises(ValueError, match=r"callbacks\.histograms\.every"):
        Histograms(every=-1)


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
def test_mlflow_gets_settings_scores_files_and_the_place_in_a_sweep(tmp_path, monkeypatch):
    pytest.importorskip("mlflow", reason="needs the extra `mlflow`")
    # mlflow sets it itself, and it would reach the commands of other tests
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
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
