"""Weights of the authors' code and of the Hugging Face port give the same forecasts here.

The authors' layers are stated again below, from their description, under their names.
"""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from patchtst_settings import MASKED, SUPERVISED, spec_of
from torch import nn

from jepa.models.patchtst import PatchTST
from jepa.models.patchtst_pretraining import PatchTSTMasked
from jepa.models.patchtst_weights import load_hugging_face_state_dict, load_official_state_dict

ADAM = partial(torch.optim.AdamW, lr=1e-2)
SIZES = dict(patch=8, stride=4, width=16, depth=3, n_heads=4, mlp_ratio=2.0)


class OfficialAttention(nn.Module):
    """Multi-head attention that adds the scores of the layer before and hands its own on."""

    def __init__(self, width, n_heads):
        super().__init__()
        self.n_heads = n_heads
        self.W_Q, self.W_K, self.W_V = (nn.Linear(width, width) for _ in range(3))
        self.to_out = nn.Sequential(nn.Linear(width, width), nn.Dropout(0.0))
        self.sdp_attn = nn.Module()
        self.sdp_attn.scale = nn.Parameter(torch.tensor((width // n_heads) ** -0.5))

    def forward(self, x, before):
        split = lambda y: y.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)  # noqa: E731
        q, k, v = (split(project(x)) for project in (self.W_Q, self.W_K, self.W_V))
        scores = q @ k.transpose(-1, -2) * self.sdp_attn.scale
        scores = scores if before is None else scores + before
        mixed = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
        return self.to_out(mixed), scores


class MoveAxes(nn.Module):
    def forward(self, x):
        return x.transpose(1, 2)


class OfficialLayer(nn.Module):
    """Post-norm layer with batch norm between two moves of axes."""

    def __init__(self, width, n_heads, hidden, activation, residual):
        super().__init__()
        norm = lambda: nn.Sequential(MoveAxes(), nn.BatchNorm1d(width), MoveAxes())  # noqa: E731
        self.residual = residual
        self.self_attn = OfficialAttention(width, n_heads)
        self.norm_attn, self.norm_ffn = norm(), norm()
        self.ff = nn.Sequential(
            nn.Linear(width, hidden), activation(), nn.Dropout(0.0), nn.Linear(hidden, width)
        )

    def forward(self, x, before):
        attended, scores = self.self_attn(x, before if self.residual else None)
        x = self.norm_attn(x + attended)
        return self.norm_ffn(x + self.ff(x)), scores


class Official(nn.Module):
    """The supervised backbone and head on windows [b, c, l], instance norm included."""

    def __init__(self, n, horizon, *, patch, width, depth, n_heads, mlp_ratio, stride):
        super().__init__()
        self.patch, self.stride = patch, stride
        self.backbone = nn.Module()
        self.backbone.W_P = nn.Linear(patch, width)
        self.backbone.W_pos = nn.Parameter(torch.randn(n, width))
        self.backbone.encoder = nn.Module()
        hidden = int(mlp_ratio * width)
        self.backbone.encoder.layers = nn.ModuleList(
            OfficialLayer(width, n_heads, hidden, nn.GELU, True) for _ in range(depth)
        )
        self.head = nn.Module()
        self.head.linear = nn.Linear(width * n, horizon)

    def forward(self, x):
        mean = x.mean(-1, keepdim=True)
        std = (x.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt()
        padded = F.pad((x - mean) / std, (0, self.stride), mode="replicate")
        z = padded.unfold(-1, self.patch, self.stride).flatten(0, 1)
        z, scores = self.backbone.W_P(z) + self.backbone.W_pos, None
        for layer in self.backbone.encoder.layers:
            z, scores = layer(z, scores)
        out = self.head.linear(z.transpose(1, 2).flatten(1))  # [b c, d n]: width before patches
        return out.unflatten(0, x.shape[:2]) * std + mean


def randomize(net):
    """Give batch norms statistics and slopes of a trained net."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.bias)
    return net


def pair():
    official = randomize(Official(6, 5, **SIZES))
    settings = SUPERVISED | SIZES | dict(end_padding=True, residual_attention=True)
    ours = PatchTST(spec=spec_of(horizon=5), optimizer=ADAM, **settings)
    state = {f"model.{name}": value for name, value in official.state_dict().items()}
    return official, ours, state


@pytest.mark.parametrize("training", [False, True])
def test_the_official_supervised_weights_give_the_same_forecast(training):
    official, ours, state = pair()
    load_official_state_dict(ours, state)
    x = 3 + 2 * torch.randn(4, 3, 24)
    want = official.train(training)(x)
    torch.testing.assert_close(ours.train(training)(x)[..., 0], want, atol=1e-4, rtol=1e-4)


def test_the_official_gradients_are_the_same():
    official, ours, state = pair()
    load_official_state_dict(ours, state)
    x, y = torch.randn(4, 3, 24), torch.randn(4, 3, 5)
    F.mse_loss(official(x), y).backward()
    ours.loss(x, y).backward()
    for layer, block in zip(official.backbone.encoder.layers, ours.encoder.blocks, strict=True):
        attention = layer.self_attn
        parts = [getattr(attention, name).weight.grad for name in ("W_Q", "W_K", "W_V")]
        torch.testing.assert_close(block.to_qkv.weight.grad, torch.cat(parts), atol=1e-4, rtol=1e-3)
        mlp, theirs = block.mlp[0].weight.grad, layer.ff[0].weight.grad
        torch.testing.assert_close(mlp, theirs, atol=1e-4, rtol=1e-3)
    position = official.backbone.W_pos.grad
    torch.testing.assert_close(ours.encoder.position.grad, position, atol=1e-4, rtol=1e-3)


def test_the_official_pretraining_weights_load():
    official = randomize(Official(3, 8, **SIZES | dict(stride=8)))
    state = official.state_dict() | {"head.linear.weight": torch.randn(8, 16)}
    settings = MASKED | SIZES | dict(stride=8)
    ours = PatchTSTMasked(spec=spec_of(), optimizer=ADAM, **settings)
    load_official_state_dict(ours, state)
    assert torch.equal(ours.head[1].weight, state["head.linear.weight"])
    assert torch.equal(ours.encoder.position, state["backbone.W_pos"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model.revin_layer.affine_weight": torch.zeros(3)}, "affine_weight has no place here"),
        ({"model.head.linears.0.weight": torch.zeros(3)}, "heads for each channel"),
        ({"model.backbone.W_pos": torch.zeros(7, 16)}, r"encoder.position has shape \(7, 16\)"),
        (
            {"model.backbone.encoder.layers.0.self_attn.sdp_attn.scale": torch.tensor(0.25)},
            "a head is 16 wide, and not 4: set model.n_heads",
        ),
        ({"model.backbone.encoder.layers.0.self_attn.W_K.bias": None}, "to_qkv.bias is missing"),
    ],
)
def test_official_weights_that_do_not_fit_are_refused(change, message):
    _, ours, state = pair()
    state |= change
    with pytest.raises(ValueError, match=message):
        load_official_state_dict(ours, {k: v for k, v in state.items() if v is not None})


def hugging_face(kind, **settings):
    """Build a model of the port with the sizes of ours; random weights, trained statistics."""
    transformers = pytest.importorskip("transformers", reason="needs the extra `dev`")
    config = transformers.PatchTSTConfig(
        num_input_channels=3,
        context_length=24,
        prediction_length=5,
        patch_length=8,
        patch_stride=settings.get("stride", 4),
        num_hidden_layers=3,
        d_model=16,
        num_attention_heads=4,
        ffn_dim=32,
        pre_norm=False,
        norm_type="batchnorm",
        positional_encoding_type="random",
        scaling="std",
        pooling_type=None,
        share_projection=True,
        attention_dropout=0.0,
        path_dropout=0.0,
        ff_dropout=0.0,
        positional_dropout=0.0,
        head_dropout=0.0,
        loss="mse",
        do_mask_input=False,
        use_cls_token=False,
    )
    return randomize(getattr(transformers, kind)(config))


@pytest.mark.parametrize("training", [False, True])
def test_the_weights_of_the_port_give_the_same_forecast(training):
    theirs = hugging_face("PatchTSTForPrediction").train(training)
    ours = PatchTST(spec=spec_of(horizon=5), optimizer=ADAM, **SUPERVISED | SIZES)
    load_hugging_face_state_dict(ours, theirs.state_dict())
    x = 3 + 2 * torch.randn(4, 3, 24)
    want = theirs(past_values=x.transpose(1, 2)).prediction_outputs.transpose(1, 2)
    torch.testing.assert_close(ours.train(training)(x)[..., 0], want, atol=1e-4, rtol=1e-4)


def test_the_pretraining_weights_of_the_port_reconstruct_the_same():
    theirs = hugging_face("PatchTSTForPretraining", stride=8).eval()
    # its constructor masks, whatever the config says
    theirs.model.do_mask_input, theirs.model.masking = False, nn.Identity()
    ours = PatchTSTMasked(spec=spec_of(), optimizer=ADAM, **MASKED | SIZES | dict(stride=8)).eval()
    load_hugging_face_state_dict(ours, theirs.state_dict())
    x = torch.randn(4, 3, 24)
    codes = theirs.model(past_values=x.transpose(1, 2)).last_hidden_state
    want = theirs.head(codes).flatten(0, 1)
    masks = ours.masks(x, 0)._replace(context=torch.arange(3).expand(12, -1))  # all are seen
    patches = ours.patches(x, masks, None)
    torch.testing.assert_close(ours.head(ours.encoder(patches)), want, atol=1e-4, rtol=1e-4)


def test_the_port_needs_a_model_without_what_it_lacks():
    ours = PatchTST(spec=spec_of(), optimizer=ADAM, **SUPERVISED | SIZES | dict(end_padding=True))
    with pytest.raises(ValueError, match="set both to false"):
        load_hugging_face_state_dict(ours, {})
