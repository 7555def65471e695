"""Vision transformer whose encoder can be given some patches of an image only.

Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021, arXiv:2010.11929, Sec. 3.1, without
a class token and with fixed positions, as in I-JEPA (arXiv:2301.08243).

Axes: b images, c channels, n patches, k kept patches, m tokens asked for, d width, h heads,
e width of a head, p predictor width.
"""

from typing import cast

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from jepa.nn.checks import check_choice, check_heads, check_range
from jepa.nn.positions import Positions, Rotation, rotate
from jepa.nn.transformer import softmax, take

EPS = 1e-6  # of the norms, as in the authors' code of I-JEPA
LONG = 256  # tokens from which the scores are too large to be kept whole
ATTENTIONS = ("auto", "sdpa", "plain")


class LayerScale(nn.Module):
    """A learned factor for each dimension of a branch (Touvron et al., 2021, arXiv:2103.17239)."""

    def __init__(self, width: int, start: float):
        super().__init__()
        self.factor = nn.Parameter(torch.full((width,), start))

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        """Scale."""
        return x * self.factor


class DropPath(nn.Module):
    """Leave a branch out for some images and scale it up (Huang et al., 2016, arXiv:1603.09382)."""

    def __init__(self, share: float):
        super().__init__()
        self.share = share

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        """Drop whole images, in training only."""
        if not self.training or not self.share:
            return x
        kept = 1 - self.share
        return x * torch.empty(len(x), 1, 1, device=x.device, dtype=x.dtype).bernoulli_(kept) / kept


def attend(
    q: Float[Tensor, "b h m e"],
    k: Float[Tensor, "b h n e"],
    v: Float[Tensor, "b h n e"],
    attention: str,
) -> Float[Tensor, "b h m e"]:
    """Average the values by how well their keys match each query.

    `auto` is the fused kernel, but for up to `LONG` tokens on a CPU, where two products and a
    softmax are as fast in float32 and 2 to 9 times as fast in bfloat16 (AVX512, torch 2.15).
    """
    short = q.device.type == "cpu" and k.shape[2] <= LONG
    if attention == "sdpa" or (attention == "auto" and not short):
        return F.scaled_dot_product_attention(q, k, v)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    return softmax(scores).to(v.dtype) @ v


class Block(nn.Module):
    """One pre-norm block with LayerScale, stochastic depth and rotary positions.

    Args:
        layer_scale: start of the factors; None for no factors.
        drop_path: share of the images for which a branch is left out.
        attention: `auto`, `sdpa` or `plain`.
    """

    def __init__(
        self,
        width: int,
        n_heads: int,
        *,
        mlp_ratio: float,
        layer_scale: float | None = None,
        drop_path: float = 0.0,
        attention: str = "auto",
    ):
        super().__init__()
        hidden = max(1, round(mlp_ratio * width))
        self.n_heads, self.attention = n_heads, attention
        self.attn_norm = nn.LayerNorm(width, eps=EPS)
        self.to_qkv = nn.Linear(width, 3 * width)
        self.to_out = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width, eps=EPS)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        scales = [nn.Identity() if layer_scale is None else LayerScale(width, layer_scale)
                  for _ in range(2)]  # fmt: skip
        self.attn_scale, self.mlp_scale = scales
        self.drop_path = DropPath(drop_path)

    def forward(
        self, x: Float[Tensor, "b n d"], rotation: Rotation | None = None, n_last: int | None = None
    ) -> Float[Tensor, "b m d"]:
        """Attend over the tokens, then transform each of them, or the `n_last` ones."""
        attended = self.attn(self.attn_norm(x), rotation, n_last)
        x = x if n_last is None else x[:, -n_last:]
        x = x + self.drop_path(self.attn_scale(attended))
        return x + self.drop_path(self.mlp_scale(self.mlp(self.mlp_norm(x))))

    def attn(
        self, x: Float[Tensor, "b n d"], rotation: Rotation | None, n_last: int | None
    ) -> Float[Tensor, "b m d"]:
        """Attend from all tokens, or from the `n_last` ones, to all."""
        pattern = "b n (part h e) -> part b h n e"
        if n_last is None:
            q, k, v = rearrange(self.to_qkv(x), pattern, part=3, h=self.n_heads)
        else:
            sizes = [x.shape[-1], 2 * x.shape[-1]]
            weights, biases = self.to_qkv.weight.split(sizes), self.to_qkv.bias.split(sizes)
            (q,) = rearrange(
                F.linear(x[:, -n_last:], weights[0], biases[0]), pattern, part=1, h=self.n_heads
            )
            k, v = rearrange(F.linear(x, weights[1], biases[1]), pattern, part=2, h=self.n_heads)
        if rotation is not None:
            cos, sin = rotation
            mine = slice(None) if n_last is None else slice(-n_last, None)
            q, k = rotate(q, (cos[:, mine], sin[:, mine])), rotate(k, rotation)
        mixed = attend(q, k, v, self.attention)
        return self.to_out(rearrange(mixed, "b h m e -> b m (h e)"))

    def weights(
        self, x: Float[Tensor, "b n d"], rotation: Rotation | None = None
    ) -> Float[Tensor, "b h n n"]:
        """Return how much each token, before the norm, takes from each: rows add up to 1."""
        q, k, _ = rearrange(
            self.to_qkv(self.attn_norm(x)), "b n (part h e) -> part b h n e", part=3, h=self.n_heads
        )
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        return softmax((q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2))


class Trunk(nn.Module):
    """`depth` blocks and a final norm.

    Args:
        drop_path: share of images left out in the last block; it rises from 0 in the first.
        gradient_checkpointing: compute each block again in the backward pass instead of keeping
            what it computed.
        block: what every block takes.
    """

    def __init__(
        self,
        width: int,
        depth: int,
        n_heads: int,
        *,
        drop_path: float = 0.0,
        gradient_checkpointing: bool = False,
        **block,
    ):
        super().__init__()
        shares = [drop_path * i / max(depth - 1, 1) for i in range(depth)]
        self.blocks = nn.ModuleList(
            Block(width, n_heads, drop_path=share, **block) for share in shares
        )
        self.norm = nn.LayerNorm(width, eps=EPS)
        self.gradient_checkpointing = gradient_checkpointing

    def forward(
        self, x: Float[Tensor, "b n d"], rotation: Rotation | None = None, n_last: int | None = None
    ) -> Float[Tensor, "b m d"]:
        """Run the blocks in order; return all tokens, or the `n_last` ones.

        The last block computes no more than is asked for.
        """
        last = len(self.blocks) - 1
        for depth, block in enumerate(self.blocks):
            x = self.run(block, x, rotation, n_last if depth == last else None)
        return self.norm(x)

    def hidden(
        self, x: Float[Tensor, "b n d"], rotation: Rotation | None = None
    ) -> list[Float[Tensor, "b n d"]]:
        """Return what each block gives, and last of all what the trunk gives."""
        outputs = []
        for block in self.blocks:
            x = self.run(block, x, rotation, None)
            outputs.append(x)
        return [*outputs, self.norm(x)]

    def run(
        self, block: nn.Module, x: Tensor, rotation: Rotation | None, n_last: int | None
    ) -> Tensor:
        """Call one block, keeping nothing of it if so set."""
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return cast(Tensor, checkpoint(block, x, rotation, n_last, use_reentrant=False))
        return block(x, rotation, n_last)


def init_weights(net: nn.Module) -> None:
    """Draw matrices from a normal distribution cut at two units, std 0.02; biases are zero.

    What the authors' code of I-JEPA trains: it draws again after it has scaled by depth.
    """
    for module in net.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class ViT(nn.Module):
    """Patches to codes; the patches that are not kept are not computed.

    Args:
        n_channels: of the images.
        image_size: height and width in pixels; other sizes are taken as well, if `patch` divides
            them, and lie on the same positions.
        patch: side in pixels.
        position: `sincos` or `rope`.
        trunk: settings of the trunk.

    Raises:
        ValueError: if the patches do not cover the image, or the heads do not divide the width.
    """

    def __init__(
        self,
        n_channels: int,
        image_size: tuple[int, int],
        *,
        patch: int,
        width: int,
        depth: int,
        n_heads: int,
        position: str,
        **trunk,
    ):
        super().__init__()
        check_range("model.patch", patch, low=1)
        check_heads("model.", width, n_heads)
        self.patch = patch
        self.grid = self.grid_of(*image_size)
        self.to_token = nn.Linear(n_channels * patch * patch, width)
        self.positions = Positions(position, self.grid, width, n_heads)
        self.trunk = Trunk(width, depth, n_heads, **trunk)
        init_weights(self)
        # DIFF(I-JEPA): as the code of MAE (arXiv:2111.06377), by the number of pixels; at 0.02 the
        # few pixels of a small patch vanish beside the positions
        nn.init.xavier_uniform_(self.to_token.weight)

    def grid_of(self, height: int, width: int) -> tuple[int, int]:
        """Return rows and columns of patches of an image.

        Raises:
            ValueError: if the patches do not cover it.
        """
        if height % self.patch or width % self.patch:
            sizes = [
                n for n in range(1, min(height, width) + 1) if not height % n and not width % n
            ]
            nearest = sorted(sorted(sizes, key=lambda n: abs(n - self.patch))[:2])
            raise ValueError(
                f"patches of model.patch={self.patch} pixels do not cover an image of {height} x "
                f"{width}: take model.patch={' or '.join(map(str, nearest))}, or "
                f"data.image_size={max(height // self.patch, 1) * self.patch}"
            )
        return height // self.patch, width // self.patch

    def tokens(
        self, x: Float[Tensor, "b c y x"], keep: Int[Tensor, "b k"] | None = None
    ) -> tuple[Float[Tensor, "b k d"], Rotation | None]:
        """Cut an image into patches and return the tokens of those kept, or of all, with places."""
        p, grid = self.patch, self.grid_of(*x.shape[2:])
        patches = rearrange(x, "b c (gy py) (gx px) -> b (gy gx) (c py px)", py=p, px=p)
        if keep is not None:
            patches = take(patches, keep)
        # the residual stream stays in float32, whatever the products are computed in
        tokens = self.to_token(patches).float()
        return self.positions.add(tokens, keep, grid), self.positions.rotation(keep, grid)

    def forward(
        self, x: Float[Tensor, "b c y x"], keep: Int[Tensor, "b k"] | None = None
    ) -> Float[Tensor, "b k d"]:
        """Code the patches kept, or all; a patch that is not kept changes nothing."""
        return self.trunk(*self.tokens(x, keep))

    def hidden(self, x: Float[Tensor, "b c y x"]) -> list[Float[Tensor, "b n d"]]:
        """Return the codes of all patches after each block, and last of all the final ones."""
        return self.trunk.hidden(*self.tokens(x))


class BlockPredictor(nn.Module):
    """Context codes and the places of hidden patches to predicted features of these.

    Args:
        grid: rows and columns of patches.
        encoder_width: of the context codes.
        width: of the predictor, narrower than the encoder as a rule.
        mode: `blocks` predicts each block on its own, as I-JEPA; in `joint` all blocks of an image
            see one another, which costs fewer tokens.
        trunk: settings of the trunk.
    """

    def __init__(
        self,
        grid: tuple[int, int],
        encoder_width: int,
        *,
        width: int,
        depth: int,
        n_heads: int,
        mode: str,
        position: str,
        **trunk,
    ):
        super().__init__()
        check_heads("model.predictor_", width, n_heads)
        check_choice("model.predictor_mode", mode, ("blocks", "joint"))
        self.mode = mode
        self.narrow = nn.Linear(encoder_width, width)
        self.query = nn.Parameter(torch.empty(width))
        self.positions = Positions(position, grid, width, n_heads)
        self.trunk = Trunk(width, depth, n_heads, **trunk)
        init_weights(self)
        nn.init.trunc_normal_(self.query, std=0.02)

    def forward(
        self,
        context: Float[Tensor, "b k d"],
        index: Int[Tensor, "b k"],
        targets: Int[Tensor, "b m n"],
    ) -> Float[Tensor, "b m n p"]:
        """Predict every target block in one call."""
        n_blocks, n_patches = targets.shape[1:]
        seen = self.positions.add(self.narrow(context).float(), index)
        if self.mode == "blocks":
            seen, index = (part.repeat_interleave(n_blocks, dim=0) for part in (seen, index))
            asked = targets.flatten(0, 1)
        else:
            asked = targets.flatten(1)
        queries = self.positions.add(self.query.expand(*asked.shape, -1), asked)
        rotation = self.positions.rotation(torch.cat([index, asked], dim=1))
        out = self.trunk(torch.cat([seen, queries], dim=1), rotation, asked.shape[1])
        return out.reshape(len(targets), n_blocks, n_patches, -1)
