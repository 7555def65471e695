"""Export an encoder: `python -m jepa.export run=<run> out=<folder> format=safetensors|onnx|...`.

The folder opens with `jepa.load_encoder(folder)` and needs no other file; its README.md is a model
card. `format=onnx` and `format=torch_export` add model.onnx and model.pt2, whose input is what
`Encoder.prepare` returns, and print how far they differ from the model.
"""

from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig

from jepa.config import CONF, UserError, run_command

FORMATS = {"safetensors": None, "onnx": "model.onnx", "torch_export": "model.pt2"}
OUTPUTS = {"codes": "embed", "prediction": "predict"}


@hydra.main(config_path=str(CONF), config_name="export")
def main(cfg: DictConfig) -> None:
    """Open the checkpoint, write the folder, say what is in it."""
    out = check_settings(cfg.out, cfg.format, cfg.output)
    from jepa import encoder, portable, run, screen
    from jepa.model_card import write_card

    path = run.find_checkpoint(cfg.run)
    _, model, content = run.load_model(path, cfg.trust)
    function = choose_function(cfg.output, model)
    opened = encoder.write_encoder(out, content["config"], model, content)
    lines, parity = [f"the codes of {encoder.WEIGHTS} are those of the model, bit for bit"], None
    name = FORMATS[cfg.format]
    if name is not None:
        write = portable.write_onnx if cfg.format == "onnx" else portable.write_program
        sample = encoder.sample_input(opened.spec, max(portable.N_ROWS))
        parity = write(out / name, opened.model, function, sample)
        lines.append(f"{name} ({function}): differs by {parity:.1e} of the largest entry")
    write_card(out, path, opened, extra=None if name is None else (name, function, parity))
    for line in lines:
        screen.say(line)
    size = sum(file.stat().st_size for file in out.iterdir() if file.is_file())
    screen.say(
        f"written: {out}: {size / 2**20:,.1f} MiB; open it with jepa.load_encoder({str(out)!r})"
    )


def check_settings(out: str, form: str, output: str) -> Path:
    """Return the folder to write to.

    Raises:
        UserError: for an unknown format or output, and for a folder with other things in it.
    """
    if form not in FORMATS:
        raise UserError(f"format={form}: there is no such format; valid: {', '.join(FORMATS)}")
    if output not in ("auto", *OUTPUTS):
        raise UserError(f"output={output}: valid are auto, {', '.join(OUTPUTS)}")
    folder = Path(out).expanduser()
    if folder.is_file():
        raise UserError(f"out={out} is a file: name a folder")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "encoder.json").exists():
        raise UserError(f"out={out} has other files in it: name a folder that is empty or new")
    return folder


def choose_function(output: str, model: Any) -> str:
    """Return the function to export: `embed` or `predict`.

    Raises:
        UserError: for predictions of a model that makes none.
    """
    predicts = getattr(model, "predicts_target", False)
    if output == "auto":
        return "predict" if predicts else "embed"
    if output == "prediction" and not predicts:
        raise UserError(
            f"output=prediction: a {type(model).__name__} predicts no target; give output=codes"
        )
    return OUTPUTS[output]


def cli() -> None:
    """Run the command."""
    run_command(main, "export")


if __name__ == "__main__":
    cli()
