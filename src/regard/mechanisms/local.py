"""Local self-attention in blocks with halos (Vaswani et al. 2021, HaloNet): https://arxiv.org/abs/2103.12731"""

from collections.abc import MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from regard.base.errors import UserError
from regard.layers.conv import Pointwise
from regard.layers.tap import Blend, Tap
from regard.ops.dispatch import not_plain
from regard.registry.info import Translation
from regard.registry.registration import register, wrong_axes

WIDEST = 128  # window, in pixels: each of its blocks has weights for every pixel in it


def _parameters(
    channels: int, *, heads: int, block_size: int, halo: int, width: int | None, bias: bool, **_: Any
) -> int:
    width = width or channels
    return (channels + bias) * (2 * width + channels) + 2 * (2 * (block_size + 2 * halo) - 1) * (width // heads)


def _translate(
    tensors: MutableMapping[str, Tensor],
    channels: int | None,
    *,
    dim: int | None = None,
    dim_out: int | None = None,
    num_heads: int = 8,
    dim_head: int | None = None,
    block_size: int = 8,
    halo_size: int = 3,
    stride: int = 1,
    qk_ratio: float = 1.0,
    qkv_bias: bool = False,
    scale_pos_embed: bool = False,
    avg_down: bool = False,  # says how a stride is made
    feat_size: Sequence[int] | None = None,  # they use it nowhere
) -> Translation:
    width, weight_channels = tensors["q.weight"].shape[:2]
    channels = dim or channels or weight_channels
    if dim_out not in (None, channels) or stride != 1 or scale_pos_embed:
        raise ValueError("local answers with the map's own size and channels and unscaled positions: dim_out, stride "
                         "and scale_pos_embed are left at their defaults")  # fmt: skip
    if num_heads < 1 or width % num_heads or channels % num_heads:
        raise ValueError(f"{num_heads} heads do not divide widths of {width} and {channels}")
    each = width // num_heads
    for kind in ("weight", "bias") if qkv_bias else ("weight",):
        heads = tensors.pop(f"kv.{kind}").unflatten(0, (num_heads, -1))
        tensors[f"key.{kind}"] = heads[:, :each].flatten(0, 1)
        tensors[f"value.{kind}"] = heads[:, each:].flatten(0, 1)
    options = {"heads": num_heads, "block_size": block_size, "halo": halo_size, "width": width, "bias": qkv_bias}
    names = {"q": "query", "pos_embed.height_rel": "rows", "pos_embed.width_rel": "columns"}
    return channels, options | {"hide_padding": False}, names


BLOCKS = (
    "torch settles what has a size of one when it exports, and here the maps of the later stages are one block (8 "
    "pixels a side). With a dynamic batch alone it exports; with dynamic sides too, where the images are so large that "
    "every map has more than one block on each side"
)


@register(
    "local",
    category="spatial",
    attention="self",
    paper="Vaswani et al. 2021, arXiv 2103.12731",
    place="stages",
    parameters=_parameters,
    signature="(B, C, H, W) -> same",
    official={"halo": _translate},
    cannot_export=dict.fromkeys(("export", "onnx"), BLOCKS),
)
class Local(nn.Module):
    """Answer every pixel with the values of its neighbourhood, weighed by likeness and relative position.

    Paper:    Vaswani et al. 2021, Scaling Local Self-Attention (HaloNet), arXiv 2103.12731, sections 2.1-2.2.
    Category: spatial; weights between a pixel and the window around its block, for each head.
    Formula:  w_ij = softmax_j(q_i . k_j / sqrt(d) + q_i . (row_{j - i} + column_{j - i})) over the window of i's block;
              y_i = sum_j w_ij v_j
    Shape:    x, y: (B, C, H, W);  window: n = block_size + 2 halo pixels a side;  row, column: (2 n - 1, d);
              w: (B, heads, rows of blocks, columns of blocks, block_size, block_size, n, n)
    Cost:     3 C^2 + 2 (2 (block_size + 2 halo) - 1) C // heads parameters; time and memory grow with the pixels times
              the window; a training step keeps no more than queries, keys and values.
    Place:    stages: on large maps; HaloNet has it in the place of the 3x3 convolution of each bottleneck.
    Differs:  The paper and its ports need sides that are multiples of the block; here the map is padded to them and cut
              back. Keys outside the image are hidden; the most used PyTorch code (timm's) lets them take part as zeros:
              `hide_padding=False`. There is no addition of the input inside: starting as the identity blends the answer
              with the input.
    Maps:     `weights`, window, one for each head, values in (0, 1).

    Args:
        channels: C.
        heads: number of heads.
        block_size: side of the blocks that share one window.
        halo: how many pixels the window reaches beyond its block on each side.
        width: of queries and keys, all heads together; C by default.
        bias: whether the projections have biases.
        hide_padding: whether pixels outside the image are hidden from the softmax.

    Example:
        >>> import regard, torch
        >>> regard.create("local", 64, heads=4)(torch.randn(2, 64, 14, 10)).shape
        torch.Size([2, 64, 14, 10])
    """

    def __init__(
        self,
        channels: int,
        *,
        heads: int = 1,
        block_size: int = 8,
        halo: int = 3,
        width: int | None = None,
        bias: bool = False,
        hide_padding: bool = True,
    ) -> None:
        super().__init__()
        width = width or channels
        if block_size + 2 * halo > WIDEST:
            raise UserError(f"local: block_size + 2 halo is at most {WIDEST}, got {block_size} + 2 * {halo}")
        if width % heads or channels % heads:
            raise UserError(f"local: {heads} heads do not divide widths of {width} and {channels}")
        self.heads, self.block_size, self.halo, self.hide_padding = heads, block_size, halo, hide_padding
        self.query = Pointwise(channels, width, bias=bias)
        self.key = Pointwise(channels, width, bias=bias)
        self.value = Pointwise(channels, channels, bias=bias)
        reach, each = 2 * (block_size + 2 * halo) - 1, width // heads
        self.rows = nn.Parameter(torch.empty(reach, each))
        self.columns = nn.Parameter(torch.empty(reach, each))
        for projection in (self.query, self.key, self.value):
            nn.init.trunc_normal_(projection.weight, std=channels**-0.5)
        for table in (self.rows, self.columns):
            nn.init.trunc_normal_(table, std=each**-0.5)
        self.weights = Tap("window", rest=None)
        self.blend = Blend()

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 4:
            raise wrong_axes("local", x.dim() - 2)
        maps = self.query(x), self.key(x), self.value(x)
        if self.weights.watched or not torch.is_grad_enabled() or not_plain(*maps):
            return self.blend(x, self._answer(*maps))
        # for the backward pass the windows, which overlap, and their weights are made again instead of kept
        return self.blend(x, checkpoint(self._answer, *maps, use_reentrant=False, preserve_rng_state=False))

    def _answer(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        height, width = query.shape[2:]
        below, right = -height % self.block_size, -width % self.block_size
        # (B, heads, rows of blocks, columns of blocks, d, pixels of a block or window)
        query = self._windows(F.pad(query, (0, right, 0, below)), self.block_size)
        around = (self.halo, self.halo + right, self.halo, self.halo + below)
        n = self.block_size + 2 * self.halo
        key, value = (self._windows(F.pad(map, around), n) for map in (key, value))
        logits = query.mT @ key * query.shape[4] ** -0.5
        logits = logits + self._positions(query, n).to(logits.dtype)
        if self.hide_padding:
            outside = F.pad(query.new_zeros(1, self.heads, height, width), around, value=1)
            logits = logits.masked_fill(self._windows(outside, n).bool(), -float("inf"))
        shape = (*logits.shape[:4], self.block_size, self.block_size, n, n)
        weights = self.weights(torch.softmax(logits, dim=-1).reshape(shape)).reshape(logits.shape)
        blocks = (value @ weights.to(value.dtype).mT).unflatten(5, (self.block_size, self.block_size))
        y = blocks.permute(0, 1, 4, 2, 5, 3, 6).flatten(5, 6).flatten(3, 4).flatten(1, 2)
        # cut by padding: a slice would fix in an exported graph whether the sides are multiples of the block
        return F.pad(y, (0, -right, 0, -below))

    def _windows(self, x: Tensor, side: int) -> Tensor:
        """(B, heads * d, H, W) to (B, heads, rows of blocks, columns of blocks, d, side * side)."""
        step = self.block_size
        cut = x.unfold(2, side, step).unfold(3, side, step).unflatten(1, (self.heads, -1))
        return cut.permute(0, 1, 3, 4, 2, 5, 6).flatten(5, 6)

    def _positions(self, query: Tensor, n: int) -> Tensor:
        """What each query makes of where the keys stand relative to it."""
        at = torch.arange(self.block_size, device=query.device)
        relative = torch.arange(n, device=query.device) - at[:, None] + n - 1
        pixels = query.unflatten(5, (self.block_size, self.block_size))
        rows = torch.einsum("...dyx,ykd->...yxk", pixels, self.rows[relative].to(query.dtype))
        columns = torch.einsum("...dyx,xkd->...yxk", pixels, self.columns[relative].to(query.dtype))
        return (rows.unsqueeze(-1) + columns.unsqueeze(-2)).flatten(-2).flatten(4, 5)

    def extra_repr(self) -> str:
        return f"heads={self.heads}, block_size={self.block_size}, halo={self.halo}, hide_padding={self.hide_padding}"
