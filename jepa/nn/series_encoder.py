"""Patches of a series to codes: the encoder of PatchTST.

Nie et al., "A Time Series is Worth 64 Words: Long-term Forecasting with Transformers", ICLR 2023,
arXiv:2211.14730, and the authors' code, which fixes what the paper leaves open.

Axes: b windows, c channels, l time steps, r rows (one for each channel of a window, or for each
window), n patches, k patches asked for, p values of a patch, d width, h heads, e width of a head,
f width of the queries and keys of a head.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from jepa.nn.checks import check_choice, check_heads, check_range
from jepa.nn.dropout import Dropout
from jepa.nn.slices import by_slices
from jepa.nn.transformer import softmax

IN_CACHE = 1 << 18  # numbers in the largest tensor of a product: 1 MiB, the cache of one core
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"gelu": nn.GELU, "relu": nn.ReLU}
CHANNELS = ("independent", "mixed")


class TokenBatchNorm(nn.BatchNorm1d):
    """Batch norm of each dimension over all tokens of all rows."""

    def forward(self, x: Float[Tensor, "r n d"]) -> Float[Tensor, "r n d"]:
        """Normalize; on flattened tokens, no axis has to move."""
        return super().forward(x.flatten(0, 1)).view_as(x)


NORMS: dict[str, Callable[[int], nn.Module]] = {
    "batch": TokenBatchNorm,
    "layer": nn.LayerNorm,
    "rms": nn.RMSNorm,
}


class _Attend(torch.autograd.Function):
    """Attention on the CPU, head by head, with the patches along the last axis.

    So every product writes rows of patches, and no axis has to move; with the few dimensions of a
    head last, half of the products take two to four times as long.
    """

    @staticmethod
    def forward(ctx, qkv: Tensor, *earlier: Tensor) -> Tensor:
        ctx.n_earlier = len(earlier)
        ctx.scale = qkv.shape[2] ** -0.5
        mixed, weights = torch.empty_like(qkv[0]), []
        for head in range(qkv.shape[1]):
            pairs = _pairs(qkv, earlier, head)
            scores = torch.bmm((pairs[0][0] * ctx.scale).transpose(1, 2), pairs[0][1])
            for q, k in pairs[1:]:
                scores.baddbmm_(q.transpose(1, 2), k, alpha=ctx.scale)
            weights.append(softmax(scores).to(qkv.dtype))
            mixed[head] = _rows_first(qkv[2, head]).bmm(weights[-1].mT).transpose(0, 1)
        ctx.save_for_backward(qkv, *earlier, *weights)
        return mixed

    @staticmethod
    def backward(ctx, *grads: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        qkv, *others = ctx.saved_tensors
        earlier, weights = others[: ctx.n_earlier], others[ctx.n_earlier :]
        grad_qkv, grad_earlier = torch.empty_like(qkv), [torch.empty_like(one) for one in earlier]
        for head, weight in enumerate(weights):
            mixed, v = _rows_first(grads[0][head]), _rows_first(qkv[2, head])
            grad_qkv[2, head] = mixed.bmm(weight).transpose(0, 1)
            wide = torch.bmm(mixed.mT, v)
            scores = torch._softmax_backward_data(wide, weight, -1, wide.dtype)  # pyright: ignore
            scores.mul_(ctx.scale)
            pairs = zip(
                _pairs(qkv, earlier, head), _pairs(grad_qkv, grad_earlier, head), strict=True
            )
            for (q, k), (grad_q, grad_k) in pairs:
                grad_q.copy_(k.bmm(scores.mT))
                grad_k.copy_(q.bmm(scores))
        return grad_qkv, *grad_earlier


def _rows_first(one: Shaped[Tensor, "e r n"]) -> Shaped[Tensor, "r e n"]:
    """View one head's part so that products run row by row."""
    return one.transpose(0, 1)


def _pairs(
    qkv: Shaped[Tensor, "three h e r n"],
    earlier: Sequence[Shaped[Tensor, "r two h e n"]],
    head: int,
) -> list[tuple[Tensor, Tensor]]:
    """View queries and keys of a head, [r, e, n], of this block and of those before."""
    own = (_rows_first(qkv[0, head]), _rows_first(qkv[1, head]))
    return [own, *((one[:, 0, head], one[:, 1, head]) for one in earlier)]


def attend(
    qkv: Float[Tensor, "three h e r n"], earlier: Sequence[Float[Tensor, "r two h e n"]] = ()
) -> Float[Tensor, "h e r n"]:
    """Average the values by how well their keys match each query, here and in earlier blocks."""
    if qkv.device.type == "cpu" and not torch.compiler.is_compiling():
        return _Attend.apply(qkv, *earlier)  # pyright: ignore[reportReturnType]
    own, v = rearrange(qkv[:2], "two h e r n -> r two h n e"), qkv[2]
    before = (rearrange(one, "r two h e n -> r two h n e") for one in earlier)
    q, k = torch.cat([own, *before], dim=-1).unbind(1)
    mixed = F.scaled_dot_product_attention(
        q, k, rearrange(v, "h e r n -> r h n e"), scale=qkv.shape[2] ** -0.5
    )
    return rearrange(mixed, "r h n e -> h e r n")


class PatchBlock(nn.Module):
    """One block of attention and MLP; the norm follows each branch, as published, or precedes it.

    With residual attention (He et al., 2021, arXiv:2012.11747) the scores of a block are added to
    those of the blocks before. A sum of products is the product of what is joined: each block hands
    on its queries and keys, and no scores are kept.

    Args:
        double_dropout: drop the attention branch twice, as the authors' code does; that is to drop
            it once with share 1 - (1 - dropout)**2.
        recompute: keep nothing between the norms, and compute it again for the gradient.
    """

    def __init__(
        self,
        width: int,
        n_heads: int,
        *,
        mlp_ratio: float,
        dropout: float,
        norm: str,
        pre_norm: bool,
        residual_attention: bool,
        double_dropout: bool,
        activation: str,
        recompute: bool,
    ):
        super().__init__()
        self.n_heads, self.hidden = n_heads, max(1, round(mlp_ratio * width))
        self.pre_norm, self.residual_attention = pre_norm, residual_attention
        self.recompute = recompute
        self.to_qkv = nn.Linear(width, 3 * width)
        self.to_out = nn.Linear(width, width)
        self.attn_dropout = Dropout(1 - (1 - dropout) ** 2 if double_dropout else dropout)
        self.attn_norm = NORMS[norm](width)
        self.mlp = nn.Sequential(
            nn.Linear(width, self.hidden),
            ACTIVATIONS[activation](),
            Dropout(dropout),
            nn.Linear(self.hidden, width),
            Dropout(dropout),
        )
        self.mlp_norm = NORMS[norm](width)

    def forward(
        self, x: Float[Tensor, "r n d"], earlier: Sequence[Float[Tensor, "r two h e n"]]
    ) -> tuple[Float[Tensor, "r n d"], list[Float[Tensor, "r two h e n"]]]:
        """Attend over the patches, transform each; return what later blocks attend with, too."""
        n = x.shape[1]
        rows = (x, self.attn_norm(x), *earlier) if self.pre_norm else (x, *earlier)
        x, query_key = self._run(self._attend, rows, n_numbers=n * n)
        x = x if self.pre_norm else self.attn_norm(x)
        rows = (x, self.mlp_norm(x)) if self.pre_norm else (x,)
        (x,) = self._run(self._transform, rows, n_numbers=n * self.hidden)
        x = x if self.pre_norm else self.mlp_norm(x)
        return x, [*earlier, query_key] if self.residual_attention else []

    def _run(
        self, branch: Callable[..., tuple[Tensor, ...]], rows: tuple[Tensor, ...], *, n_numbers: int
    ) -> tuple[Tensor, ...]:
        """Add a branch to the stream, in slices where nothing else is kept.

        `n_numbers` is how many a row needs at once.
        """
        whole = torch.is_grad_enabled() and not self.recompute
        if whole or torch.compiler.is_exporting():  # a trace would hold every slice
            return branch(*rows)
        return by_slices(branch, rows, net=self, size=max(1, IN_CACHE // n_numbers))

    def _attend(self, x: Tensor, *others: Tensor) -> tuple[Tensor, Tensor]:
        """Return the stream with the attention branch added, and the queries and keys."""
        seen, earlier = (others[0], others[1:]) if self.pre_norm else (x, others)
        tokens = rearrange(seen, "r n d -> d (r n)")
        qkv = torch.addmm(self.to_qkv.bias[:, None], self.to_qkv.weight, tokens)
        qkv = qkv.view(3, self.n_heads, -1, *x.shape[:2])
        mixed = rearrange(attend(qkv, earlier), "h e r n -> (r n) (h e)")
        branch = self.to_out(mixed).view_as(x)
        query_key = rearrange(qkv[:2], "two h e r n -> r two h e n")
        return x + self.attn_dropout(branch), query_key

    def _transform(self, x: Tensor, seen: Tensor | None = None) -> tuple[Tensor]:
        """Return the stream with the MLP branch added."""
        return (x + self.mlp(x if seen is None else seen),)


class PatchTSTEncoder(nn.Module):
    """Cut windows into patches, and code these.

    Args:
        n_channels, look_back: of a window.
        patch, stride: length of a patch, and steps from one to the next.
        end_padding: repeat the last value `stride` times (Sec. 3.1); without it, steps at the
            start that fill no patch are left out.
        channels: `independent` (a row for each channel) or `mixed` (a patch holds all channels).
        dropout: of tokens, hidden layers and branches.
        block: the settings of every `PatchBlock`.

    Raises:
        ValueError: if a setting is out of its range.
    """

    def __init__(
        self,
        n_channels: int,
        look_back: int,
        *,
        patch: int,
        stride: int,
        width: int,
        depth: int,
        n_heads: int,
        dropout: float,
        norm: str,
        pre_norm: bool,
        activation: str,
        end_padding: bool,
        channels: str,
        **block,
    ):
        super().__init__()
        check_heads("model.", width, n_heads)
        for key, value in (("patch", patch), ("stride", stride), ("depth", depth)):
            check_range(f"model.{key}", value, low=1)
        check_range("model.dropout", dropout, low=0, high=1)
        for key, value, choices in (
            ("norm", norm, NORMS),
            ("activation", activation, ACTIVATIONS),
            ("channels", channels, CHANNELS),
        ):
            check_choice(f"model.{key}", value, tuple(choices))
        if patch > look_back:
            raise ValueError(
                f"model.patch={patch} is longer than the window, data.look_back={look_back}: take "
                f"model.patch={look_back} or less, or a longer data.look_back"
            )
        self.patch, self.stride, self.end_padding = patch, stride, end_padding
        self.width, self.mixed = width, channels == "mixed"
        self.n_patches = (look_back - patch) // stride + 1 + end_padding
        self.to_token = nn.Linear(patch * n_channels if self.mixed else patch, width)
        # the authors' draw, in both of their trees
        self.position = nn.Parameter(torch.empty(self.n_patches, width).uniform_(-0.02, 0.02))
        self.dropout = Dropout(dropout)
        self.blocks = nn.ModuleList(
            PatchBlock(
                width,
                n_heads,
                dropout=dropout,
                norm=norm,
                pre_norm=pre_norm,
                activation=activation,
                **block,
            )
            for _ in range(depth)
        )
        self.norm = NORMS[norm](width) if pre_norm else nn.Identity()

    def cut(self, x: Shaped[Tensor, "b c l"]) -> Shaped[Tensor, "r n p"]:
        """Cut windows into patches, a view where it can be; rows go window by window."""
        if self.end_padding:
            x = torch.cat([x, x[..., -1:].expand(-1, -1, self.stride)], dim=-1)
        else:
            x = x[..., (x.shape[-1] - self.patch) % self.stride :]
        patches = x.unfold(-1, self.patch, self.stride)
        if self.mixed:
            return rearrange(patches, "b c n p -> b n (c p)")
        return rearrange(patches, "b c n p -> (b c) n p")

    def forward(
        self, patches: Float[Tensor, "r n p"], only: Int[Tensor, "r k"] | None = None
    ) -> Float[Tensor, "r k d"]:
        """Code the patches, all or `only` those asked for; the others are not seen."""
        position = self.position
        if only is not None:
            index = only[..., None].expand(-1, -1, patches.shape[-1])
            patches, position = patches.gather(1, index), F.embedding(only, position)
        x = self.dropout(self.to_token(patches) + position)
        earlier: list[Tensor] = []
        for block in self.blocks:
            x, earlier = block(x, earlier)
        return self.norm(x)
