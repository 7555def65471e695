"""Score a checkpoint: `python -m jepa.evaluate run=<directory or .ckpt> [probe=... split=...]`.

The same probe scores the trained encoder, the untrained one, and the raw input. A model that
predicts the target is scored by its own predictions, and by those probes that are asked for.
"""

import json
from typing import Any, cast

import hydra
from omegaconf import DictConfig, OmegaConf

from jepa.config import CONF, run_command


@hydra.main(config_path=str(CONF), config_name="evaluate")
def main(cfg: DictConfig) -> None:
    """Open the checkpoint, probe it, print the table and write evaluation.json beside it."""
    from hydra.utils import instantiate

    from jepa import report, run, screen
    from jepa.measure import measure
    from jepa.settle import settle

    if cfg.split not in ("val", "test"):
        raise ValueError(
            f"split={cfg.split}: a probe is scored on val or test, never on its own rows"
        )
    path = run.find_checkpoint(cfg.run)
    trained_cfg, model, checkpoint = run.load_model(path, cfg.trust)
    if cfg.data.path is not None:
        if "path" not in trained_cfg.data:
            raise ValueError(
                f"data.path={cfg.data.path}: the data of this run, {trained_cfg.data._target_}, is "
                "read from no path of yours; leave the key out"
            )
        trained_cfg.data.path = cfg.data.path
    with run.from_a_file(cfg.trust):
        data = instantiate(trained_cfg.data)
    data.prepare()
    run.check_data(checkpoint, data, path)
    if cfg.split not in data.splits:
        raise ValueError(f"split={cfg.split}: this data has {', '.join(data.splits)}")
    out = path.parent.parent if path.parent.name == "checkpoints" else path.parent
    own = cast(DictConfig, OmegaConf.merge(cfg, {"run_dir": str(out / "evaluation")}))
    settled = settle(own, data, predicts_target=getattr(model, "predicts_target", False))
    with run.from_a_file(cfg.trust):
        untrained = run.build_model(trained_cfg, data.spec).eval()
    with run.FROM_THE_USER:
        probes = run.build_probes(settled, data.spec)
        run.check_probes(settled, probes, data.spec)
    measured = measure(
        model,
        untrained,
        data,
        probes,
        split=cfg.split,
        max_rows=cfg.max_rows,
        max_split_rows=cfg.max_split_rows,
        seed=cfg.seed,
    )
    measured.pop("samples")
    content = report.new(status="finished", reason=f"evaluated {path}", **measured)
    content["probe_settings"] = OmegaConf.to_container(settled.probe)
    target = out / "evaluation.json"
    report.write_text(target, json.dumps(content, indent=1, allow_nan=False) + "\n")
    screen.show_report(content)
    screen.say(f"written: {target}")
    log_metrics(settled, content)


def log_metrics(cfg: DictConfig, content: dict[str, Any]) -> None:
    """Hand the values to the loggers that were asked for."""
    from hydra.utils import instantiate

    from jepa.run import FROM_THE_USER

    values = {
        key: one["value"] for key, one in content["metrics"].items() if one["value"] is not None
    }
    for node in cast(DictConfig, cfg.get("logger") or OmegaConf.create({})).values():
        with FROM_THE_USER:
            logger = instantiate(node)
        logger.log_metrics(values, step=0)
        logger.finalize("success")


def cli() -> None:
    """Run the command."""
    run_command(main, "evaluate")


if __name__ == "__main__":
    cli()
