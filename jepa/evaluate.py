"""Score a checkpoint: `python -m jepa.evaluate run=<directory or .ckpt> [probe=... split=...]`.

The same probe scores the trained encoder, the untrained one, and the raw columns.
"""

import json
from collections.abc import Callable
from typing import Any, cast

import hydra
from omegaconf import DictConfig, OmegaConf

from jepa.config import CONF, run_command


def measure(
    model: Any,
    untrained: Any,
    data: Any,
    probes: dict[str, Callable[..., dict[str, float]]],
    *,
    split: str,
    max_rows: int | None,
    max_split_rows: int | None = None,
    seed: int = 0,
    n_bootstrap: int = 1000,
) -> dict[str, Any]:
    """Return `metrics` and `controls` of the report for one split.

    Every probe is fitted on training rows alone, at most `max_rows` of them, and scored once.
    """
    from functools import partial

    from jepa.callbacks.probe import embed_all, score_all
    from jepa.metrics import chance
    from jepa.probes.label_free import label_free
    from jepa.probes.raw import raw_features
    from jepa.report import entry

    def batches(name: str, limit: int | None):
        return data.probe_batches(name, max_rows=limit, seed=seed)

    def both(encoder: Any) -> tuple[Any, Any]:
        return embed_all(encoder, batches("train", max_rows)), embed_all(
            encoder, batches(split, max_split_rows)
        )

    probes = {name: partial(probe, n_bootstrap=n_bootstrap) for name, probe in probes.items()}

    def scored(train: Any, val: Any) -> dict[str, Any]:
        scores = score_all(probes, train, val) if len(val[1]) else {}
        scores |= {f"label_free/{key}": value for key, value in label_free(val[0]).items()}
        return {f"{split}/{key}": entry(value) for key, value in scores.items()}

    trained = both(model)
    metrics = scored(*trained)
    controls = {"untrained": scored(*both(untrained))}
    if len(trained[1][1]):
        (_, y_train), (_, y_val) = trained
        x_train, x_val = (
            collect(batches("train", max_rows)),
            collect(batches(split, max_split_rows)),
        )
        raw_train, raw_val = raw_features(x_train, x_val, data.spec.cardinalities)
        controls["raw"] = scored((raw_train, y_train), (raw_val, y_val))
        base = {key: entry(value) for key, value in chance(y_train, y_val).items()}
        controls["chance"] = {
            f"{split}/{name}/{key}": value for name in probes for key, value in base.items()
        }
    return {"metrics": metrics, "controls": controls}


def collect(batches: Any) -> Any:
    """Return the inputs of all batches as one tensor on the CPU."""
    import torch

    return torch.cat([batch["x"].cpu() for batch in batches])


@hydra.main(config_path=str(CONF), config_name="evaluate")
def main(cfg: DictConfig) -> None:
    """Open the checkpoint, probe it, print the table and write evaluation.json beside it."""
    from hydra.utils import instantiate

    from jepa import report, run, screen

    if cfg.split not in ("val", "test"):
        raise ValueError(
            f"split={cfg.split}: a probe is scored on val or test, never on its own rows"
        )
    path = run.find_checkpoint(cfg.run)
    trained_cfg, model, checkpoint = run.load_model(path)
    if cfg.data.path is not None:
        trained_cfg.data.path = cfg.data.path
    with run.FROM_A_FILE:
        data = instantiate(trained_cfg.data)
    data.prepare()
    run.check_table(checkpoint, data, path)
    if cfg.split not in data.splits:
        raise ValueError(f"split={cfg.split}: this data has {', '.join(data.splits)}")
    out = path.parent.parent if path.parent.name == "checkpoints" else path.parent
    own = cast(DictConfig, OmegaConf.merge(cfg, {"run_dir": str(out / "evaluation")}))
    settled = run.settle(own, data)
    with run.FROM_A_FILE:
        untrained = run.build_model(trained_cfg, data.spec).eval()
    with run.FROM_THE_USER:
        probes = run.build_probes(settled)
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
