"""Compare runs: `python -m jepa.compare runs=[<dir>,<dir>,...] [out=<folder>]`.

Writes compare.md, compare.html and compare.json. Runs that differ in their seeds alone are one
group; a sweep directory stands for the runs in it that were scored; the first group is the
reference. Nothing is claimed that the interval of a difference does not allow.
"""

import json
from pathlib import Path
from typing import Any, cast

import hydra
from omegaconf import DictConfig, ListConfig, OmegaConf

from jepa.config import CONF, UserError, run_command


@hydra.main(config_path=str(CONF), config_name="compare")
def main(cfg: DictConfig) -> None:
    """Open the runs, compare, write, and say the verdict."""
    from jepa import compare_page, comparison
    from jepa.report import write_text

    out = Path(cfg.out).expanduser()
    if out.exists() and not out.is_dir():
        raise UserError(f"out={cfg.out} is a file: name a folder")
    runs = cfg.runs if isinstance(cfg.runs, ListConfig) else [cfg.runs]
    groups = comparison.group(comparison.find_runs([str(one) for one in runs]))
    criteria = cast(list[dict[str, Any]], OmegaConf.to_container(cfg.criteria))
    content = comparison.compare(groups, metric=cfg.metric, criteria=criteria)
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "compare.json", json.dumps(content, indent=1, allow_nan=False) + "\n")
    write_text(out / "compare.md", compare_page.markdown(content))
    write_text(out / "compare.html", compare_page.html_page(groups, content))
    for one in groups:
        print(one.name)
    print(content["verdict"])
    for line in content["caveats"]:
        print(f"- {line}")
    print(f"written: {out / 'compare.html'}")


def cli() -> None:
    """Run the command."""
    run_command(main, "compare")


if __name__ == "__main__":
    cli()
