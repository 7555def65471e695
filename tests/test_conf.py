"""Every yaml composes, names a real class, and sweeps only over keys that exist."""

from pathlib import Path

import pytest
from hydra import compose, initialize
from hydra.utils import get_object
from omegaconf import OmegaConf

from jepa.config import CONF, UserError, check_command_line, check_keys, explain
from jepa.signatures import parameters

GROUPS = ("data", "model", "trainer", "probe", "callbacks", "guard")


def load(*overrides, config="config"):
    with initialize(config_path="../conf"):
        return compose(
            config, overrides=["run_dir=unused", "study=unused", "probe_name=ridge", *overrides]
        )


def options(group):
    return sorted(p.stem for p in (CONF / group).glob("*.yaml"))


@pytest.mark.parametrize("experiment", options("experiment"))
def test_experiment_composes(experiment):
    cfg = load(f"+experiment={experiment}")
    assert not OmegaConf.missing_keys(cfg)
    check_keys(cfg, "config")


@pytest.mark.parametrize("experiment", options("experiment"))
def test_experiment_starts_with_its_command_time_result_and_criteria(experiment):
    text = (CONF / "experiment" / f"{experiment}.yaml").read_text()
    assert f"python -m jepa.train +experiment={experiment}" in text
    assert "# Time:" in text and "# Result:" in text and "criteria:" in text


@pytest.mark.parametrize("debug", options("debug"))
def test_debug_composes(debug):
    check_keys(load(f"+debug={debug}"), "config")


@pytest.mark.parametrize(("group", "option"), [(g, o) for g in GROUPS for o in options(g)])
def test_every_target_exists_and_takes_every_key(group, option):
    cfg = load(f"{group}={option}")
    check_keys(cfg, "config")
    nodes = [cfg[group]] if "_target_" in cfg[group] else list(cfg[group].values())
    for node in nodes:
        assert callable(get_object(node["_target_"]))
        assert parameters(node["_target_"]) is not None


@pytest.mark.parametrize("logger", options("logger"))
def test_every_logger_names_a_class(logger):
    for node in load(f"logger={logger}").logger.values():
        assert callable(get_object(node["_target_"]))


@pytest.mark.parametrize("search", options("search"))
def test_search_keys_exist(search):
    model = max((one for one in options("model") if search.startswith(one)), key=len)
    cfg = load(f"model={model}", f"search={search}")
    assert cfg.search
    for key in cfg.search:
        assert OmegaConf.select(cfg, key, throw_on_missing=True) is not None, key


@pytest.mark.parametrize("trainer", options("trainer"))
def test_trainer_keys_of_record_stand_without_plus(trainer):
    keys = {
        "max_epochs", "max_steps", "max_time", "accumulate_grad_batches", "gradient_clip_val",
        "precision", "limit_train_batches", "limit_val_batches", "limit_test_batches",
    }  # fmt: skip
    assert keys <= set(load(f"trainer={trainer}").trainer)


@pytest.mark.parametrize(
    ("argument", "nearest"),
    [
        ("foo=1", "valid: "),
        ("model.widht=8", "model.width"),
        ("+model.widht=8", "model.width"),
        ("++model.optimizer.learning_rate=1", "model.optimizer"),
        ("lr=0.1", "model.optimizer.lr"),
        ("trainer.max_epoch=3", "trainer.max_epochs"),
        ("+trainer.max_epoch=3", "trainer.max_epochs"),
        ("+callbacks.early_stopping.patiense=3", "callbacks.early_stopping.patience"),
        ("+callbacks.early_stoping.patience=3", "callbacks.early_stopping"),
        ("+sede=3", "seed"),
        ("+paths.data_dri=x", "paths.data_dir"),
        ("data.batchsize=3", "data.batch_size"),
        ("model.widht=8,16", "model.width"),
        ("model.optimizer.l=interval(0.1,0.2)", "model.optimizer.lr"),
        ("probe.l3=1", "probe.l2"),
    ],
)
def test_unknown_keys_are_refused_with_the_nearest(argument, nearest):
    with pytest.raises(UserError, match="unknown key") as error:
        check_command_line([argument], "config")
    assert nearest in str(error.value)


@pytest.mark.parametrize(
    "arguments",
    [
        ["seed=3", "model.width=32"],
        ["+trainer.reload_dataloaders_every_n_epochs=1"],  # the constructor knows it
        ["+callbacks.mine._target_=lightning.pytorch.callbacks.LearningRateMonitor"],
        ["-m", "seed=0,1"],
        ["hydra.run.dir=x"],
        ["~callbacks.progress"],
    ],
)
def test_known_keys_are_accepted(arguments):
    check_command_line(arguments, "config")


def test_an_unknown_key_inside_an_experiment_file_is_refused(tmp_path, monkeypatch):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "typo.yaml").write_text(
        "# @package _global_\nmodel:\n  widht: 8\n", encoding="utf-8"
    )
    arguments = [f"hydra.searchpath=[file://{tmp_path}]", "+experiment=typo"]
    with pytest.raises(UserError, match=r"model.widht: did you mean model.width"):
        check_command_line(arguments, "config")


def test_a_missing_value_is_named():
    with pytest.raises(UserError, match=r"data.path"):
        check_command_line(["data=table"], "config")


@pytest.mark.parametrize(
    ("package", "extra"), [("wandb", "wandb"), ("onnxruntime", "export"), ("jepa.nowhere", None)]
)
def test_a_missing_optional_package_names_its_extra(package, extra):
    message = explain(ModuleNotFoundError(f"Requirement '{package}>=0.12' not met"))
    assert (message is not None and f"jepa[{extra}]" in message) == (extra is not None)


def test_signatures_equal_the_imported_ones():
    import inspect

    for target in ("lightning.Trainer", "torch.optim.AdamW"):
        imported = set(inspect.signature(get_object(target)).parameters)
        assert parameters(target) == imported


def test_config_folder_is_the_checkouts():
    assert Path(__file__).parents[1] / "conf" == CONF


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("model.num_hierarchies=3", "model.levels"),
        ("+model.vicreg.std_coeff=1.0", "model.vicreg_variance"),
        ("model.ema.momentum_end=1.0", "model.momentum_end"),
        ("model.use_layerscale=true", "model.layer_scale"),
        ("+loss.jepa_loss_type=smoothl1", "model.loss"),
        ("model.target_encoder.ema_end_decay=1.0", "model.momentum_end"),
        ("data.use_multi_dataset=true", "data.weights"),
        ("data.augmentation.color_jitter=0.4", "augment.brightness"),
    ],
)
def test_a_key_of_the_design_documents_is_refused_with_its_new_name(old, new):
    with pytest.raises(UserError, match=f"here it is.*{new}"):
        check_command_line(["data=digits", "model=hjepa", old], "config")
