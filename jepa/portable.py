"""A model as ONNX or as a torch.export program, compared with the model it was made from."""

import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

TOLERANCE = 1e-3  # of the largest entry: beyond it the export is refused
N_ROWS = (3, 5)  # traced on the first, compared on both: the number of rows must be free


class Function(nn.Module):
    """One function of a model as a module of its own, for the exporter.

    Args:
        model: in eval mode.
        name: `embed` or `predict`.
    """

    def __init__(self, model: nn.Module, name: str):
        super().__init__()
        self.model, self.name = model, name

    def forward(self, x: Tensor) -> Tensor:
        """Call it without the `no_grad` around it, which a program cannot hold."""
        function = getattr(type(self.model), self.name)
        return getattr(function, "__wrapped__", function)(self.model, x)


def write_onnx(path: Path, model: nn.Module, name: str, sample: Tensor) -> float:
    """Write a function of a model as ONNX, the number of rows free; return the parity figure.

    That is the largest difference on made-up rows over the largest entry, as onnxruntime has it.

    Raises:
        ModuleNotFoundError: without the extra `export`.
        ValueError: if it cannot be exported, or differs.
    """
    # an extra that a checker may not see; torch.onnx needs onnxscript, and says so late
    import onnxruntime  # pyright: ignore[reportMissingImports]
    import onnxscript  # noqa: F401  # pyright: ignore[reportMissingImports]

    for noisy in ("onnxscript", "onnx_ir"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    program = exported(model, name, sample[: N_ROWS[0]])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter about itself
        torch.onnx.export(
            program, dynamo=True, input_names=["x"], output_names=["out"], verbose=False
        ).save(str(path))  # pyright: ignore[reportOptionalMemberAccess]
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return parity(
        lambda x: torch.from_numpy(session.run(None, {"x": x.numpy()})[0]), model, name, sample
    )


def write_program(path: Path, model: nn.Module, name: str, sample: Tensor) -> float:
    """Write a function of a model by torch.export; return the parity figure, see `write_onnx`.

    Raises:
        ValueError: if it cannot be exported, or differs.
    """
    torch.export.save(exported(model, name, sample[: N_ROWS[0]]), path)
    return parity(torch.export.load(path).module(), model, name, sample)


def exported(model: nn.Module, name: str, sample: Tensor) -> torch.export.ExportedProgram:
    """Trace a function with a free number of rows.

    Raises:
        ValueError: if the model branches on what only a run knows.
    """
    rows = torch.export.Dim("rows", min=1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.export.export(
                Function(model, name).eval(),
                (sample,),
                dynamic_shapes={"x": {0: rows}},
                strict=False,
            )
    except Exception as error:  # the exporter raises many kinds of its own
        raise ValueError(
            f"a {type(model).__name__} with these settings cannot be exported: "
            f"{str(error).splitlines()[0]}; format=safetensors always works"
        ) from error


def parity(function: Any, model: nn.Module, name: str, sample: Tensor) -> float:
    """Return the largest difference over the largest entry, on two numbers of rows.

    Raises:
        ValueError: beyond the tolerance.
    """
    worst = 0.0
    for n in N_ROWS:
        with torch.no_grad():
            ours, theirs = getattr(model, name)(sample[:n]), function(sample[:n])
        worst = max(worst, ((ours - theirs).abs().max() / ours.abs().max()).item())
    if not worst <= TOLERANCE:
        raise ValueError(f"the exported {name} differs by {worst:.1e} of its largest entry")
    return worst
