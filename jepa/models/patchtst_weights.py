"""Weights of other runs and of other code: the authors' two trees and the Hugging Face port.

Every name has a place here, or the file is refused: nothing is skipped.
"""

from collections.abc import Mapping
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

Weights = Mapping[str, Tensor]
STATISTICS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def load_strictly(net: nn.Module, weights: Weights, *, advice: str) -> None:
    """Load all weights, or none.

    Raises:
        ValueError: naming every weight that is missing, unknown or of another shape.
    """
    own = {name: tuple(value.shape) for name, value in net.state_dict().items()}
    given = {name: tuple(value.shape) for name, value in weights.items()}
    wrong = [f"{name} is missing" for name in own.keys() - given.keys()]
    wrong += [f"{name} is unknown" for name in given.keys() - own.keys()]
    wrong += [
        f"{name} has shape {given[name]}, not {own[name]}"
        for name in own.keys() & given.keys()
        if own[name] != given[name]
    ]
    if wrong:
        raise ValueError(f"the weights do not fit: {'; '.join(sorted(wrong))}. {advice}")
    net.load_state_dict(dict(weights))


def encoder_of(state_dict: Weights) -> dict[str, Tensor]:
    """Return the encoder's weights of a run of this family: of the slow one, where there is one.

    Raises:
        ValueError: for weights of another family.
    """
    for prefix in ("teacher.net.", "encoder."):
        found = _below(state_dict, prefix)
        if "to_token.weight" in found:
            return found
    raise ValueError(
        "these weights hold no encoder of patches, only "
        f"{', '.join(sorted({name.split('.')[0] for name in state_dict})) or 'nothing'}: give a "
        "run of model=patchtst, patchtst_ssl or patchtst_jepa"
    )


def load_official_state_dict(model: Any, state_dict: Weights) -> None:
    """Load a checkpoint of the authors' supervised or self-supervised code into a fitting model.

    Raises:
        ValueError: for a checkpoint whose settings have no counterpart, or do not fit the model.
    """
    names = _below(state_dict, "model.") or dict(state_dict)
    weights: dict[str, Tensor] = {}
    for name, value in names.items():
        weights |= _from_official(name, value, model)
    _load(model, _fuse(weights))


def _from_official(name: str, value: Tensor, model: Any) -> dict[str, Tensor]:
    """Give one weight of the authors' code its name here.

    Raises:
        ValueError: if it has none.
    """
    encoder = model.encoder
    if name.endswith(".sdp_attn.scale"):  # a constant: it tells how wide a head is
        scale = (encoder.width // encoder.blocks[0].n_heads) ** -0.5
        if abs(float(value) - scale) > 1e-6:
            raise ValueError(
                f"{name} is {float(value):.4f}, so a head is {round(float(value) ** -2)} wide, and "
                f"not {encoder.width // encoder.blocks[0].n_heads}: set model.n_heads accordingly"
            )
        return {}
    name = name.replace("backbone.", "", 1)
    if name in ("W_pos", "W_P.weight", "W_P.bias"):
        return {f"encoder.{name.replace('W_pos', 'position').replace('W_P', 'to_token')}": value}
    if name.startswith("head.linear."):
        return _head(name.rpartition(".")[2], value, model, "h (d n) -> h (n d)")
    parts = {
        "self_attn.W_Q": "q",
        "self_attn.W_K": "k",
        "self_attn.W_V": "v",
        "self_attn.to_out.0": "to_out",
        "norm_attn.1": "attn_norm",
        "ff.0": "mlp.0",
        "ff.3": "mlp.3",
        "norm_ffn.1": "mlp_norm",
    }
    return _of_layer(name, value, "encoder.layers.", parts)


def load_hugging_face_state_dict(model: Any, state_dict: Weights) -> None:
    """Load the weights of `PatchTSTForPrediction` or `PatchTSTForPretraining` of transformers.

    The model needs `end_padding=false` and `residual_attention=false`, which the port lacks.

    Raises:
        ValueError: for a model with these, and for weights whose settings do not fit the model.
    """
    block = model.encoder.blocks[0]
    if model.encoder.end_padding or block.residual_attention:
        raise ValueError(
            f"the port has neither: model.end_padding={model.encoder.end_padding}, "
            f"model.residual_attention={block.residual_attention}; set both to false"
        )
    weights: dict[str, Tensor] = {}
    for name, value in state_dict.items():
        weights |= _from_hugging_face(name, value, model)
    _load(model, _fuse(weights))


def _from_hugging_face(name: str, value: Tensor, model: Any) -> dict[str, Tensor]:
    """Give one weight of the port its name here.

    Raises:
        ValueError: if it has none.
    """
    kind = name.rpartition(".")[2]
    if name.startswith("model.encoder.embedder.input_embedding."):
        return {f"encoder.to_token.{kind}": value}
    if name == "model.encoder.positional_encoder.position_enc":
        return {"encoder.position": value}
    if name.startswith(("head.projection.", "head.linear.")):
        return _head(kind, value, model, "h (n d) -> h (n d)")
    parts = {
        "self_attn.q_proj": "q",
        "self_attn.k_proj": "k",
        "self_attn.v_proj": "v",
        "self_attn.out_proj": "to_out",
        "norm_sublayer1.batchnorm": "attn_norm",
        "norm_sublayer1": "attn_norm",
        "norm_sublayer3.batchnorm": "mlp_norm",
        "norm_sublayer3": "mlp_norm",
        "ff.0": "mlp.0",
        "ff.3": "mlp.3",
    }
    return _of_layer(name, value, "model.encoder.layers.", parts)


def _below(weights: Weights, prefix: str) -> dict[str, Tensor]:
    """Return what begins with `prefix`, without it."""
    return {
        name[len(prefix) :]: value for name, value in weights.items() if name.startswith(prefix)
    }


def _of_layer(name: str, value: Tensor, prefix: str, parts: Mapping[str, str]) -> dict[str, Tensor]:
    """Rename a weight of a layer.

    Raises:
        ValueError: if it is none that a block has.
    """
    index, _, rest = name.removeprefix(prefix).partition(".")
    part, _, kind = rest.rpartition(".")
    if not name.startswith(prefix) or part not in parts or kind not in STATISTICS:
        raise ValueError(
            f"the weight {name} has no place here: decomposition, a learned affine map of RevIN, "
            "heads for each channel and attention across channels are not supported"
        )
    return {f"encoder.blocks.{index}.{parts[part]}.{kind}": value}


def _head(kind: str, value: Tensor, model: Any, order: str) -> dict[str, Tensor]:
    """Rename a weight of the head; ours takes the codes patch by patch."""
    place = next(i for i, layer in enumerate(model.head) if isinstance(layer, nn.Linear))
    width, n = model.encoder.width, model.encoder.n_patches
    if kind == "weight" and value.shape[1] == width * n and value.shape[1] != width:
        value = rearrange(value, order, d=width, n=n)
    return {f"head.{place}.{kind}": value}


def _fuse(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Join the three projections of each block."""
    fused = {}
    for name, value in weights.items():
        stem, _, kind = name.rpartition(".")
        block, _, part = stem.rpartition(".")
        three = [weights.get(f"{block}.{one}.{kind}") for one in "qkv"]
        if part not in ("q", "k", "v") or any(one is None for one in three):
            fused[name] = value
        elif part == "q":
            fused[f"{block}.to_qkv.{kind}"] = torch.cat([one for one in three if one is not None])
    return fused


def _load(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Load into encoder and head; the model's metrics hold nothing to load."""
    load_strictly(
        model,
        weights,
        advice="build the model with the sizes and the norm of the checkpoint",
    )
