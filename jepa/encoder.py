"""An exported encoder: a folder that opens with no other file, `jepa.load_encoder(folder)`.

The folder holds `model.safetensors` (the weights that coding needs, and what was fitted on the
training rows), `config.yaml`, `encoder.json` (spec and preprocessing) and `README.md` (the model
card). It is untrusted: nothing in it is unpickled, and its config may call what ships only.

Axes: b rows, c channels, l time steps, e code.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from jepa import run
from jepa.data.pixels import ToInput
from jepa.data.tables import TableTransform
from jepa.report import write_text
from jepa.spec import KINDS, ImageSpec, SeriesSpec, Spec, TabularSpec
from jepa.stored import parse_config

WEIGHTS, ABOUT, CONFIG = "model.safetensors", "encoder.json", "config.yaml"
FITTED = "preprocessing."  # in front of the names of its tensors
TENSOR = "$tensor"
N_TRIED = 4  # rows of the sample that a model is tried on


class Encoder:
    """A trained model with what it needs to read raw data.

    Args:
        model: with its weights, in eval mode.
        spec: of its data.
        preprocessing: what was fitted on the training rows.
    """

    def __init__(self, model: Any, spec: Spec, preprocessing: dict[str, Any]):
        self.model, self.spec, self.preprocessing = model, spec, preprocessing

    @property
    def names(self) -> list[str]:
        """The name of each entry of a code."""
        return self.model.code_names()

    def prepare(self, data: Any) -> Tensor:
        """Return the model's input.

        Args:
            data: a DataFrame with the columns of training, in any order; or images [b, c, y, x]
                with values from 0 to 255; or windows [b, c, l] of a series in original units, NaN
                where a value is missing.

        Raises:
            ValueError: for data of another kind or shape.
        """
        if isinstance(self.spec, TabularSpec):
            if not isinstance(data, pd.DataFrame):
                raise ValueError(
                    f"a table is wanted, a pandas DataFrame, got {type(data).__name__}"
                )
            return TableTransform.from_state(self.preprocessing).encode(data)
        x = torch.as_tensor(np.asarray(data) if not isinstance(data, Tensor) else data).float()
        if isinstance(self.spec, ImageSpec):
            if x.ndim != 4 or x.shape[1] != self.spec.n_channels:
                raise ValueError(
                    f"images [b, {self.spec.n_channels}, y, x] are wanted, got {list(x.shape)}"
                )
            fitted = self.preprocessing
            return ToInput(fitted["image_size"], fitted["mean"], fitted["std"])(x)
        shape = (self.spec.n_channels, self.spec.look_back)
        if x.ndim != 3 or tuple(x.shape[1:]) != shape:
            raise ValueError(f"windows [b, {shape[0]}, {shape[1]}] are wanted, got {list(x.shape)}")
        return ((x.double() - self._column("location")) / self._column("scale")).float()

    def embed(self, data: Any, *, batch_size: int = 256) -> Float[Tensor, "b e"]:
        """Code raw data, see `prepare`; on the device of the model, the codes on the CPU.

        A model of separate channels codes each channel of a window: b is then windows x channels.
        """
        return self._apply(self.model.embed, data, batch_size)

    def predict(self, data: Any, *, batch_size: int = 256) -> Tensor:
        """Return forecasts [b, c, h] in original units, or the logits [b, 1] of a class.

        Raises:
            ValueError: for a model that predicts no target.
        """
        if not getattr(self.model, "predicts_target", False):
            raise ValueError(f"a {type(self.model).__name__} predicts no target: take embed")
        out = self._apply(self.model.predict, data, batch_size)
        if isinstance(self.spec, SeriesSpec) and self.spec.task == "forecast":
            out = (out.double() * self._column("scale") + self._column("location")).float()
        return out

    def _column(self, name: str) -> Float[Tensor, "c 1"]:
        return torch.tensor(getattr(self.spec, name), dtype=torch.float64)[:, None]

    def _apply(self, function: Any, data: Any, batch_size: int) -> Tensor:
        device = next(self.model.parameters()).device
        parts = []
        with torch.inference_mode():
            for x in self.prepare(data).split(batch_size):
                given = {}
                if isinstance(self.spec, SeriesSpec) and bool(x.isnan().any()):
                    known = ~x.isnan()
                    rest = (*known.shape[:2], self.spec.horizon)
                    given["mask"] = torch.cat([known, known.new_ones(rest)], dim=2).to(device)
                    x = x.nan_to_num()
                parts.append(function(x.to(device), **given).float().cpu())
        return torch.cat(parts)


def load_encoder(folder: str | Path, trust: Sequence[str] = ()) -> Encoder:
    """Open an exported folder.

    Args:
        folder: that `python -m jepa.export` has written.
        trust: packages of your own that its config may call.

    Raises:
        FileNotFoundError: if it is no such folder.
        ValueError: if a file in it is damaged, or does not fit the others.
    """
    place = Path(folder).expanduser()
    missing = [name for name in (WEIGHTS, ABOUT, CONFIG) if not (place / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{folder} is no exported encoder: it has no {', '.join(missing)}; python -m "
            "jepa.export run=<directory or .ckpt> out=<folder> writes one"
        )
    try:
        tensors = load_file(place / WEIGHTS)
        about = json.loads((place / ABOUT).read_text(encoding="utf-8"))
        cfg = parse_config((place / CONFIG).read_text(encoding="utf-8"))
        spec = KINDS[about["kind"]](**tupled(about["spec"]))
        fitted = joined(about["preprocessing"], tensors)
        left_out = tuple(f"{name}." for name in about["left_out"])
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder} is damaged, or no export of jepa: {error}") from error
    with run.from_a_file(trust):
        model = run.build_model(cfg, spec)
    weights = {name: one for name, one in tensors.items() if not name.startswith(FITTED)}
    try:
        absent, foreign = model.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        raise ValueError(f"{folder}: weights and config do not fit: {error}") from error
    lost = [name for name in absent if not name.startswith(left_out or ("\0",))]
    if lost or foreign:
        raise ValueError(f"{folder}: weights and config do not fit: {[*lost, *foreign][:5]}")
    return Encoder(model.eval(), spec, fitted)


def write_encoder(folder: Path, text: str, model: Any, checkpoint: dict[str, Any]) -> Encoder:
    """Write weights, config, spec and preprocessing; return the encoder as it opens from there.

    Args:
        folder: to write to.
        text: the config as YAML.
        model: with its weights.
        checkpoint: whose spec and preprocessing are taken.

    Raises:
        RuntimeError: if what was written does not give the very codes of the model: our mistake.
    """
    spec = run.spec_of(checkpoint)
    sample = sample_input(spec, N_TRIED)
    used = parts_in_use(model, sample)
    left_out = [name for name, _ in model.named_children() if name not in used]
    fitted: dict[str, Tensor] = {}
    about = {
        "schema": 1,
        **{key: value for key, value in run.spec_state(spec).items() if key == "kind"},
        "spec": {key: value for key, value in run.spec_state(spec).items() if key != "kind"},
        "preprocessing": parted(checkpoint["preprocessing"], fitted),
        "left_out": left_out,
    }
    dropped = tuple(f"{name}." for name in left_out)
    weights = {
        name: one.detach().cpu().clone().contiguous()
        for name, one in model.state_dict().items()
        if not (dropped and name.startswith(dropped))
    }
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f".{WEIGHTS}.tmp"
    save_file(weights | fitted, part, metadata={"format": "pt"})
    os.replace(part, folder / WEIGHTS)
    write_text(folder / CONFIG, text)
    write_text(folder / ABOUT, json.dumps(about, indent=1) + "\n")
    opened = load_encoder(folder)
    for one in functions_of(model):
        with torch.inference_mode():
            a, b = getattr(model, one)(sample), getattr(opened.model, one)(sample)
        if not torch.equal(a, b):
            raise RuntimeError(f"{folder}: {one} of what was written differs from the model's")
    return opened


def functions_of(model: Any) -> tuple[str, ...]:
    """Return what a model can do with data."""
    return ("embed", "predict") if getattr(model, "predicts_target", False) else ("embed",)


def parts_in_use(model: nn.Module, sample: Tensor) -> set[str]:
    """Return the children of a model that coding and predicting call, found by doing so."""
    used: set[str] = set()

    def note(top: str) -> Any:
        return lambda *_: used.add(top)

    hooks = [
        module.register_forward_pre_hook(note(name.split(".")[0]))
        for name, module in model.named_modules()
        if name
    ]
    with torch.inference_mode():
        for one in functions_of(model):
            getattr(model, one)(sample)
    for hook in hooks:
        hook.remove()
    return used


def sample_input(spec: Spec, n: int) -> Tensor:
    """Return n made-up rows of a model's input: numbers, some of them missing, codes, pixels."""
    generator = torch.Generator().manual_seed(0)
    if isinstance(spec, TabularSpec):
        x = torch.randn(n, spec.n_features, generator=generator)
        for column, size in enumerate(spec.cardinalities):
            if size:
                x[:, column] = torch.randint(size, (n,), generator=generator).float()
            elif column % 3 == 0:
                x[0, column] = torch.nan
        return x
    if isinstance(spec, ImageSpec):
        return torch.randn(n, spec.n_channels, spec.height, spec.width, generator=generator)
    return torch.randn(n, spec.n_channels, spec.look_back, generator=generator).cumsum(2)


def parted(node: Any, tensors: dict[str, Tensor]) -> Any:
    """Return nested values with a name in the place of each tensor, which goes to `tensors`."""
    if isinstance(node, Tensor):
        name = f"{FITTED}{len(tensors)}"
        tensors[name] = node.detach().cpu().clone().contiguous()
        return {TENSOR: name}
    if isinstance(node, dict):
        return {str(key): parted(value, tensors) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [parted(value, tensors) for value in node]
    return node


def joined(node: Any, tensors: dict[str, Tensor]) -> Any:
    """Undo `parted`; lists stay lists."""
    if isinstance(node, dict):
        if node.keys() == {TENSOR}:
            return tensors[node[TENSOR]]
        return {key: joined(value, tensors) for key, value in node.items()}
    return [joined(value, tensors) for value in node] if isinstance(node, list) else node


def tupled(node: Any) -> Any:
    """Return nested values with tuples for lists, as a spec has them."""
    if isinstance(node, dict):
        return {key: tupled(value) for key, value in node.items()}
    return tuple(tupled(value) for value in node) if isinstance(node, list) else node
