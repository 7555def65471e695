"""Pre-norm transformer, shared by every model.

Axes: b batch, n tokens, m query tokens, d width, e width of what is attended to, h heads.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from jepa.nn.dropout import Dropout

VECTOR = 16  # float32 numbers in the widest register of a CPU
SHORT = 32  # on the CPU, up to so many tokens, two products and a softmax beat the fused kernel


def take(x: Float[Tensor, "b n d"], index: Int[Tensor, "b m"]) -> Float[Tensor, "b m d"]:
    """Pick tokens by index, row by row."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))


def softmax(scores: Float[Tensor, "... n"]) -> Float[Tensor, "... n"]:
    """Return the softmax over the last axis, as fast on a CPU as it can be.

    Its kernel handles rows shorter than one vector register element by element, ten times as
    slowly, and bfloat16 five times as slowly as float32 (AVX512, torch 2.15): short rows are
    filled up with -inf, which takes no share, and bfloat16 is widened.
    """
    n = scores.shape[-1]
    if scores.device.type != "cpu" or torch.compiler.is_compiling():
        return scores.softmax(-1)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    if n >= VECTOR:
        return scores.softmax(-1)
    return F.pad(scores, (0, VECTOR - n), value=-torch.inf).softmax(-1)[..., :n]


class Attention(nn.Module):
    """Multi-head attention (Vaswani et al., 2017, arXiv:1706.03762, Sec. 3.2).

    Raises:
        ValueError: if the heads do not divide the width.
    """

    def __init__(self, width: int, n_heads: int, *, dropout: float = 0.0):
        super().__init__()
        if width % n_heads:
            raise ValueError(f"width must be a multiple of n_heads, got {width=}, {n_heads=}")
        self.n_heads = n_heads
        self.to_qkv = nn.Linear(width, 3 * width)
        self.to_out = nn.Linear(width, width)
        self.dropout = Dropout(dropout)

    def forward(
        self, x: Float[Tensor, "b n d"], queries: Float[Tensor, "b m d"] | None = None
    ) -> Float[Tensor, "b m d"]:
        """Attend from `queries`, or from `x` itself, to `x`."""
        h = self.n_heads
        if queries is None:
            q, k, v = rearrange(self.to_qkv(x), "b n (three h d) -> three b h n d", three=3, h=h)
        else:
            (to_q, to_kv), (q_bias, kv_bias) = (
                part.split([x.shape[-1], 2 * x.shape[-1]])
                for part in (self.to_qkv.weight, self.to_qkv.bias)
            )
            q = rearrange(F.linear(queries, to_q, q_bias), "b m (h d) -> b h m d", h=h)
            k, v = rearrange(
                F.linear(x, to_kv, kv_bias), "b n (two h d) -> two b h n d", two=2, h=h
            )
        return self.to_out(rearrange(self._mix(q, k, v), "b h m d -> b m (h d)"))

    def _mix(
        self, q: Float[Tensor, "b h m e"], k: Float[Tensor, "b h n e"], v: Float[Tensor, "b h n e"]
    ) -> Float[Tensor, "b h m e"]:
        """Average the values by how well their keys match each query."""
        share = self.dropout.share if self.training else 0.0
        # with dropout the CPU has no fused kernel, and draws its mask the slow way
        if q.device.type != "cpu" or (k.shape[2] > SHORT and not share):
            return F.scaled_dot_product_attention(q, k, v, dropout_p=share)
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        return self.dropout(softmax(scores)) @ v


class Block(nn.Module):
    """One pre-norm attention + MLP block (Xiong et al., 2020, arXiv:2002.04745, Fig. 1b).

    Dropout acts where nn.TransformerEncoderLayer has it: on the attention weights, on the hidden
    layer, and on both branches.
    """

    def __init__(self, width: int, n_heads: int, *, mlp_ratio: float = 4.0, dropout: float = 0.0):
        super().__init__()
        hidden = max(1, round(mlp_ratio * width))
        self.attn_norm = nn.LayerNorm(width)
        self.attn = Attention(width, n_heads, dropout=dropout)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), Dropout(dropout), nn.Linear(hidden, width)
        )
        self.dropout = Dropout(dropout)

    def forward(
        self, x: Float[Tensor, "b n d"], only: Int[Tensor, "b m"] | None = None
    ) -> Float[Tensor, "b m d"]:
        """Attend over the tokens, then transform each of them, or `only` those asked for."""
        seen = self.attn_norm(x)
        if only is None:
            x = x + self.dropout(self.attn(seen))
        else:
            x = take(x, only) + self.dropout(self.attn(seen, take(seen, only)))
        return x + self.dropout(self.mlp(self.mlp_norm(x)))

    def cross(
        self, queries: Float[Tensor, "b m d"], context: Float[Tensor, "b n d"]
    ) -> Float[Tensor, "b m d"]:
        """Attend from the queries to a context that is normalized already."""
        queries = queries + self.dropout(self.attn(context, self.attn_norm(queries)))
        return queries + self.dropout(self.mlp(self.mlp_norm(queries)))


class Transformer(nn.Module):
    """`depth` blocks and a final norm; every token keeps its place."""

    def __init__(self, width: int, depth: int, n_heads: int, **block):
        super().__init__()
        self.blocks = nn.ModuleList(Block(width, n_heads, **block) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def forward(
        self, x: Float[Tensor, "b n d"], only: Int[Tensor, "b m"] | None = None
    ) -> Float[Tensor, "b m d"]:
        """Run the blocks in order; return all tokens, or `only` those asked for.

        The last block computes no more than is asked for.
        """
        last = len(self.blocks) - 1
        for depth, block in enumerate(self.blocks):
            x = block(x, only if depth == last else None)
        return self.norm(x)


class CrossTransformer(nn.Module):
    """Blocks whose queries attend to a context, and not to one another."""

    def __init__(self, width: int, depth: int, n_heads: int, **block):
        super().__init__()
        self.blocks = nn.ModuleList(Block(width, n_heads, **block) for _ in range(depth))
        self.context_norm = nn.LayerNorm(width)
        self.norm = nn.LayerNorm(width)

    def forward(
        self, queries: Float[Tensor, "b m d"], context: Float[Tensor, "b n d"]
    ) -> Float[Tensor, "b m d"]:
        """Move every query towards what the context says about it."""
        context = self.context_norm(context)
        for block in self.blocks:
            assert isinstance(block, Block)
            queries = block.cross(queries, context)
        return self.norm(queries)
