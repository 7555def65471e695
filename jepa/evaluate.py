"""Score a checkpoint: `python -m jepa.evaluate run=<run or .ckpt> [protocol=all | probe=...]`.

The same probe scores the trained encoder, the untrained one, and the raw input. A model that
predicts the target is scored by its own predictions, and by those probes that are asked for. Codes
are computed once and kept in `features/` of the run directory. With `-m` and several values, as
`probe.lr=0.001,0.01`, it is a grid: `python -m jepa.sweeps.report run=<its directory>` compares
its jobs.
"""

import json
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import hydra
from omegaconf import DictConfig, OmegaConf

from jepa.config import CONF, UserError, check_command_line, fail, run_command
from jepa.sweeps import grid, optuna
from jepa.sweeps.naming import sweep_directory, with_study

OWN_DATA = "jepa.data.own.own"  # conf/data/own.yaml: no other data set was named


@hydra.main(config_path=str(CONF), config_name="evaluate")
def main(cfg: DictConfig) -> float:
    """Open the checkpoint, measure, print the table and write evaluation.json beside it.

    Returns:
        the error of the probe, or of the model's own predictions; NaN where there is none.
    """
    from jepa import report, run, screen

    path = run.find_checkpoint(cfg.run)
    home = path.parent.parent if path.parent.name == "checkpoints" else path.parent
    out = own_directory() or home
    content = evaluate(cfg, path, home, out)
    target = out / "evaluation.json"
    report.write_text(target, json.dumps(content, indent=1, allow_nan=False) + "\n")
    report.write_text(out / "evaluation.md", report.markdown(content))
    screen.show_report(content)
    seconds = ", ".join(f"{name} {value:.0f} s" for name, value in content["seconds"].items())
    screen.say(f"took {seconds}\nwritten: {target} and evaluation.md")
    log_metrics(cfg, content, out)
    value = content["objective"]["value"]
    return float("nan") if value is None else value


def own_directory() -> Path | None:
    """Return the directory of a job of a grid; None for a command that is none."""
    from hydra.core.hydra_config import HydraConfig

    if not HydraConfig.initialized():
        return None
    where = Path(HydraConfig.get().runtime.output_dir)
    return None if where == Path.cwd() else where


@dataclass(frozen=True)
class Case:
    """What is evaluated: an encoder with its controls on one split.

    Codes are kept at `home`, the run; what is found is written to `out`, in a grid that of the job.
    """

    cfg: DictConfig
    home: Path
    out: Path
    model: Any
    untrained: Any
    origin: str
    names: list[str]

    @property
    def rows(self) -> dict[str, Any]:
        """The split that is scored, and how much is taken."""
        cfg = self.cfg
        return {"split": cfg.split, "max_rows": cfg.max_rows, "max_split_rows": cfg.max_split_rows}

    def encoding(self, data: Any, names: list[str]) -> Any:
        """Return the codes of some data, kept in the run directory."""
        from jepa.encoding import Encoding
        from jepa.features import FOLDER

        sizes = {"train": self.cfg.max_rows, self.cfg.split: self.cfg.max_split_rows}
        return Encoding(
            self.model,
            self.untrained,
            data,
            sizes=sizes,
            seed=self.cfg.seed,
            names=names,
            folder=self.home / FOLDER,
            origin=self.origin,
        )


def evaluate(cfg: DictConfig, path: Path, home: Path, out: Path) -> dict[str, Any]:
    """Return the content of evaluation.json; see `Case` for the directories.

    Raises:
        ValueError: for settings that do not fit each other or the run.
    """
    from jepa import protocols, report, run, screen
    from jepa.checkpoint import checksum_of
    from jepa.codes import pick_device
    from jepa.measure import merge

    if cfg.split not in ("val", "test"):
        raise ValueError(
            f"split={cfg.split}: a probe is scored on val or test, never on its own rows"
        )
    wanted, everything = protocols.chosen(cfg.protocol), cfg.protocol == "all"
    device = pick_device(cfg.accelerator)
    trained_cfg, model, checkpoint = run.load_model(path, cfg.trust)
    wanted, lost = protocols.fitting(
        wanted,
        run.spec_of(checkpoint),
        everything=everything,
        elsewhere=cfg.data._target_ != OWN_DATA,
    )
    names, wide = protocols.representations_of(
        model, cfg.representations, everything=everything, max_codes=cfg.max_codes
    )
    for line in (*lost, *wide):
        screen.say(line)
    data = own_data(cfg, trained_cfg, checkpoint, path)
    other = other_data(cfg, checkpoint) if "transfer" in wanted else None
    with run.from_a_file(cfg.trust):
        untrained = run.build_model(trained_cfg, data.spec).eval()
    case = Case(cfg, home, out, model.to(device), untrained.to(device), checksum_of(path), names)
    parts = {
        "probes": partial(probe_part, case, data, wanted),
        "finetune": partial(finetune_part, case, data),
        "transfer": partial(transfer_part, case, other),
        "pictures": partial(picture_part, case, data),
    }
    wanted = [*wanted, *(["pictures"] if cfg.pictures else [])]
    if cfg.pictures and not hasattr(model, "look"):
        raise ValueError("pictures=true draws what a model of images has learnt; this is none")
    content = report.new(status="finished", reason=f"evaluated {path}") | {"seconds": {}}
    for name, part in parts.items():
        if name in wanted or (name == "probes" and set(wanted) - parts.keys()):
            started = time.perf_counter()
            merge(content, part())
            content["seconds"][name] = time.perf_counter() - started
    content.pop("samples", None)
    return content


def own_data(cfg: DictConfig, trained_cfg: DictConfig, checkpoint: Any, path: Path) -> Any:
    """Return the data a run was trained on, prepared.

    Raises:
        ValueError: if it is not that data, or has no such split.
    """
    from hydra.utils import instantiate

    from jepa import run

    moved = cfg.data.get("path") if cfg.data._target_ == OWN_DATA else None
    if moved is not None:
        if "path" not in trained_cfg.data:
            raise ValueError(
                f"data.path={moved}: the data of this run, {trained_cfg.data._target_}, is "
                "read from no path of yours; leave the key out"
            )
        trained_cfg.data.path = moved
    with run.from_a_file(cfg.trust):
        data = instantiate(trained_cfg.data)
    data.prepare()
    run.check_data(checkpoint, data, path)
    check_split(cfg.split, data)
    return data


def other_data(cfg: DictConfig, checkpoint: dict[str, Any]) -> Any:
    """Return another data set, prepared as the images that a checkpoint was trained on.

    Raises:
        ValueError: if it cannot be.
    """
    from hydra.core.hydra_config import HydraConfig
    from hydra.utils import instantiate

    from jepa import run, transfer

    spec: Any = run.spec_of(checkpoint)
    given = HydraConfig.get().overrides.task
    if any(one.lstrip("+").startswith("data.image_size=") for one in given):
        raise ValueError(f"data.image_size is that of the model, {spec.height}: leave the key out")
    with run.FROM_THE_USER:
        size = {"image_size": spec.height} if "image_size" in cfg.data else {}
        data = instantiate(cfg.data, **size)
    data.prepare()
    check_split(cfg.split, data)
    fitted = checkpoint["preprocessing"]
    transfer.as_trained(data, n_channels=spec.n_channels, preprocessing=fitted)
    return data


def check_split(split: str, data: Any) -> None:
    """Refuse a split that the data does not have.

    Raises:
        ValueError: naming those it has.
    """
    if split not in data.splits:
        raise ValueError(f"split={split}: this data has {', '.join(data.splits)}")


def probe_part(case: Case, data: Any, wanted: list[str]) -> dict[str, Any]:
    """Return what probes score, and how good the codes look without labels."""
    from jepa import protocols
    from jepa.measure import measure, merge

    quality = "feature_quality" in wanted
    levels = protocols.levels_of(case.model, case.cfg.max_codes) if quality else []
    encoding = case.encoding(data, list(dict.fromkeys((*case.names, *levels))))
    settled, probes = build_probes(case, data, [protocols.PROBES.get(one, "") for one in wanted])
    width = getattr(case.model, "width", None)
    content = measure(
        case.model,
        case.untrained,
        data,
        probes,
        **case.rows,
        seed=case.cfg.seed,
        encoding=encoding,
        names=case.names,
        describe=partial(protocols.look, width) if quality else None,
    )
    content["probe_settings"] = OmegaConf.to_container(settled.probe)
    errors = (f"{case.cfg.split}/{settled.probe_name}/error", f"{case.cfg.split}/error")
    if name := next((one for one in errors if one in content["metrics"]), None):
        content["objective"] = {"name": name, "value": content["metrics"][name]["value"]}
    if len(levels) > 1:
        merge(content, protocols.level_content(encoding, case.cfg.split, levels))
    return content


def build_probes(case: Case, data: Any, wanted: list[str]) -> tuple[DictConfig, Any]:
    """Return the settled config, and the probes of the protocols and of `probes` by name.

    `auto` among `wanted` is the one behind `probe`.
    """
    from jepa import run
    from jepa.settle import settle

    cfg = OmegaConf.merge(case.cfg, {"run_dir": str(case.out / "evaluation")})
    predicts = getattr(case.model, "predicts_target", False)
    settled = settle(cast(DictConfig, cfg), data, predicts_target=predicts)
    more = [name for name in wanted if name not in ("auto", "")]
    settled.probes = list(dict.fromkeys((*settled.probes, *more)))
    with run.FROM_THE_USER:
        probes = run.build_probes(settled, data.spec)
        run.check_probes(settled, probes, data.spec)
    if "auto" not in wanted and settled.probe_name not in (*more, *case.cfg.probes):
        probes.pop(settled.probe_name, None)
    return settled, probes


def finetune_part(case: Case, data: Any) -> dict[str, Any]:
    """Return what fine-tuning scores."""
    from hydra.utils import instantiate

    from jepa import protocols, run
    from jepa.measure import stamped

    with run.FROM_THE_USER:
        settings = instantiate(case.cfg.finetune)
    content = protocols.finetune_content(case.model, case.untrained, data, settings, **case.rows)
    return stamped(content, data.stamp)


def transfer_part(case: Case, data: Any) -> dict[str, Any]:
    """Return what probes score on the codes of another data set, below its name."""
    from hydra.core.hydra_config import HydraConfig

    from jepa import screen
    from jepa.measure import probe_content, stamped

    place = HydraConfig.get().runtime.choices["data"]
    screen.say(data.describe())
    _, probes = build_probes(case, data, ["auto", "knn"])
    encoding, split = case.encoding(data, case.names), case.cfg.split
    found = probe_content(encoding, probes, split, 1000, names=case.names, place=place)
    content = stamped(found, data.stamp)
    content.pop("stamp", None)  # it is that of the run's own data
    return content


def picture_part(case: Case, data: Any) -> dict[str, Any]:
    """Draw every picture there is into `plots/`; return where they lie."""
    from jepa import pictures, screen
    from jepa.gallery import DRAW, Gallery, spectrum

    sizes = {"n_images": 8, "n_bank": 2000, "seed": case.cfg.seed}
    gallery = Gallery(
        case.model,
        data,
        reference=spectrum(Gallery(case.untrained, data, **sizes)),
        metrics=case.home / "metrics.csv",
        **sizes,
    )
    for name, figure in gallery.draw(list(DRAW)):
        pictures.save(pictures.pixels(figure), case.out / "plots" / f"{name}.png")
    found = pictures.found(case.out, DRAW)
    screen.say("pictures: " + ", ".join(found))
    return {"pictures": found}


def log_metrics(cfg: DictConfig, content: dict[str, Any], out: Path) -> None:
    """Hand the values to the loggers that were asked for."""
    from hydra.utils import instantiate

    from jepa.run import FROM_THE_USER

    values = {
        key: one["value"] for key, one in content["metrics"].items() if one["value"] is not None
    }
    own = cast(DictConfig, OmegaConf.merge(cfg, {"run_dir": str(out / "evaluation")}))
    for node in cast(DictConfig, own.get("logger") or OmegaConf.create({})).values():
        with FROM_THE_USER:
            logger = instantiate(node)
        logger.log_metrics(values, step=0)
        logger.finalize("success")


def cli() -> None:
    """Run the command, once or as a grid."""
    optuna.register()
    arguments = sys.argv[1:] = with_study(sys.argv[1:], "evaluate")
    folder = None
    if {"-m", "--multirun"} & {*arguments}:
        try:
            check_command_line(arguments, "evaluate")
            cfg, folder = sweep_directory(arguments, "evaluate")
            grid.record(folder, arguments, cfg.success)
        except UserError as error:
            fail(str(error), code=2)
    run_command(main, "evaluate")
    if folder is not None:
        print(f"compare: python -m jepa.sweeps.report run={folder}")


if __name__ == "__main__":
    cli()
