"""Official checkpoints of I-JEPA into our model: names, shapes, and what does not fit.

The format is that of github.com/facebookresearch/ijepa (src/train.py, src/models): a dictionary
with `encoder`, `predictor` and `target_encoder`, whose names may begin with `module.`. The
checkpoints themselves are licensed CC BY-NC 4.0 and are not part of this project.
"""

import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

ENCODER = {"patch_embed.proj": "to_token", "norm": "trunk.norm"}
PREDICTOR = {"predictor_embed": "narrow", "predictor_norm": "trunk.norm"}
BLOCK = {
    "norm1": "attn_norm",
    "attn.qkv": "to_qkv",
    "attn.proj": "to_out",
    "norm2": "mlp_norm",
    "mlp.fc1": "mlp.0",
    "mlp.fc2": "mlp.2",
}
PARTS = ("encoder", "target_encoder", "predictor")
CHOICES = ("all", "encoder", "target_encoder")
SHOWN = 6  # names of each kind that an error lists


def transfer(model: nn.Module, state: Mapping[str, object]) -> None:
    """Start from an official checkpoint, or from both encoders of another run of ours.

    Positions are computed, so the other run may have seen images of another size.

    Raises:
        ValueError: if anything does not fit.
    """
    if isinstance(state.get("encoder"), Mapping):
        load_ijepa_state_dict(state, model)
        return
    found = {
        name: weight
        for name, weight in state.items()
        if name.startswith(("encoder.", "teacher.net.")) and isinstance(weight, Tensor)
    }
    if not found:
        raise ValueError(
            "there is no image encoder in it: give a run of model=hjepa or model=ijepa, or an "
            "official checkpoint of I-JEPA"
        )
    _check(found, dict(model.state_dict()), advice="take the settings of that run's config.yaml")
    model.load_state_dict(found, strict=False)


def load_ijepa(path: str | Path, model: nn.Module, *, which: str = "all") -> None:
    """Load an official checkpoint file into a model; see `load_ijepa_state_dict`.

    Raises:
        ValueError: if the file is no such checkpoint, or does not fit the model.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"{path} is not a checkpoint that can be read safely: {error}") from error
    load_ijepa_state_dict(state, model, which=which)


def load_ijepa_state_dict(
    state: Mapping[str, object], model: nn.Module, *, which: str = "all"
) -> None:
    """Copy the weights of an official checkpoint; nothing is copied where anything does not fit.

    Args:
        state: the dictionary of the file.
        model: an `HJEPA` of one level.
        which: `all` (encoder, teacher and predictor), or the one of the two encoders that both of
            ours are to be.

    Raises:
        ValueError: if parts are absent, or names, shapes or positions differ: with the difference,
            and the settings that the checkpoint was made with.
    """
    if which not in CHOICES:
        raise ValueError(f"which must be one of {', '.join(CHOICES)}, got {which!r}")
    needed = PARTS if which == "all" else (which,)
    absent = [part for part in needed if not isinstance(state.get(part), Mapping)]
    if absent:
        raise ValueError(
            f"no official checkpoint of I-JEPA: it has no {' and no '.join(absent)}; found "
            f"{', '.join(map(str, list(state)[:SHOWN])) or 'nothing'}"
        )
    parts = {part: strip(state[part]) for part in needed}  # pyright: ignore[reportArgumentType]
    sources = {"encoder": which, "teacher.net": which}
    if which == "all":
        sources = {"encoder": "encoder", "teacher.net": "target_encoder"}
    found: dict[str, Tensor] = {}
    for ours, theirs in sources.items():
        found |= {f"{ours}.{name}": w for name, w in rename_encoder(parts[theirs]).items()}
    if which == "all":
        found |= rename_predictor(parts["predictor"])
    made_with = " ".join(f"{key}={value}" for key, value in guess_settings(parts).items())
    tables = {name: table for name, table in model.named_buffers() if name.endswith("s.table")}
    ours = {**model.state_dict(), **tables}
    _check(found, ours, advice=f"it was made with {made_with}")
    differ = [name for name in tables if name in found and not _alike(found[name], tables[name])]
    if differ:
        raise ValueError(
            f"positions that are not fixed sines: {', '.join(differ)}; the model computes its own"
        )
    weights = {name: weight for name, weight in found.items() if name not in tables}
    model.load_state_dict(weights, strict=False)


def strip(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take `module.` off the names, which training in several processes puts before them."""
    return {name.removeprefix("module."): weight for name, weight in weights.items()}


def rename(name: str, whole: Mapping[str, str], blocks: str) -> str:
    """Return our name for one of theirs; `blocks` is what theirs of the blocks begin with."""
    stem, _, kind = name.rpartition(".")
    if stem in whole:
        return f"{whole[stem]}.{kind}"
    first, _, rest = stem.partition(".")
    index, _, layer = rest.partition(".")
    if first == blocks and layer in BLOCK:
        return f"trunk.blocks.{index}.{BLOCK[layer]}.{kind}"
    return name


def rename_encoder(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return an encoder under our names; a convolution over patches becomes a matrix."""
    found = {rename(name, ENCODER, "blocks"): weight for name, weight in weights.items()}
    if "to_token.weight" in found:
        found["to_token.weight"] = found["to_token.weight"].flatten(1)
    if "pos_embed" in found:
        found["positions.table"] = found.pop("pos_embed").squeeze(0)
    return found


def rename_predictor(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a predictor under our names; its last layer is the head of the finest level."""
    found: dict[str, Tensor] = {}
    for name, weight in weights.items():
        if name.startswith("predictor_proj."):
            found[f"pyramid.heads.0.{name.removeprefix('predictor_proj.')}"] = weight
        elif name == "mask_token":
            found["predictor.query"] = weight.flatten()
        elif name == "predictor_pos_embed":
            found["predictor.positions.table"] = weight.squeeze(0)
        else:
            found[f"predictor.{rename(name, PREDICTOR, 'predictor_blocks')}"] = weight
    return found


def guess_settings(parts: Mapping[str, Mapping[str, Tensor]]) -> dict[str, int]:
    """Return the settings that the shapes of a checkpoint tell."""
    settings: dict[str, int] = {}
    for part, weights in parts.items():
        prefix, blocks = (
            ("predictor_", "predictor_blocks") if part == "predictor" else ("", "blocks")
        )
        numbers = {name.split(".")[1] for name in weights if name.startswith(f"{blocks}.")}
        settings[f"model.{prefix}depth"] = len(numbers)
        first = weights.get(f"{blocks}.0.norm1.weight")
        if first is not None:
            settings[f"model.{prefix}width"] = len(first)
        convolution = weights.get("patch_embed.proj.weight")
        if convolution is not None and convolution.dim() == 4:
            settings["model.patch"] = convolution.shape[-1]
            positions = weights.get("pos_embed")
            if positions is not None:
                side = round(positions.shape[-2] ** 0.5)
                settings["data.image_size"] = side * convolution.shape[-1]
    return settings


def _check(theirs: Mapping[str, Tensor], every: Mapping[str, Tensor], *, advice: str) -> None:
    """Compare names and shapes with those of the same parts of the model.

    Raises:
        ValueError: with the difference.
    """
    parts = {name.partition(".")[0] for name in theirs}
    ours = {name: weight for name, weight in every.items() if name.partition(".")[0] in parts}
    shapes = [
        f"{name} {tuple(theirs[name].shape)}, here {tuple(ours[name].shape)}"
        for name in sorted(theirs.keys() & ours.keys())
        if theirs[name].shape != ours[name].shape
    ]
    problems = [
        *_list("only in the checkpoint", theirs.keys() - ours.keys()),
        *_list("only in the model", ours.keys() - theirs.keys()),
        *_list("of another shape", shapes),
    ]
    if problems:
        lines = ["the checkpoint does not fit the model:", *(f"  {one}" for one in problems)]
        raise ValueError("\n".join([*lines, advice]))


def _alike(a: Tensor, b: Tensor) -> bool:
    return bool((a.float().cpu() - b.cpu()).abs().max() < 1e-4)


def _list(what: str, names: Iterable[str]) -> list[str]:
    """Name the first few of them; nothing where there are none."""
    names = sorted(names)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return [f"{len(names)} {what}: {', '.join(names[:SHOWN])}{more}"] if names else []
