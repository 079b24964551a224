"""Self-attention by queries, keys and values (Vaswani et al. 2017): https://arxiv.org/abs/1706.03762"""

from collections.abc import MutableMapping
from typing import Any

from torch import Tensor, nn

from regard import ops
from regard.base.errors import UserError
from regard.layers.conv import Pointwise
from regard.layers.tap import Blend, Tap
from regard.registry.info import Translation, Unkept
from regard.registry.registration import register


def _parameters(
    channels: int, *, width: int | None, value_width: int | None, bias: bool, projection: bool, **_: Any
) -> int:
    width, value_width = width or channels, value_width or channels
    count = (channels + bias) * (2 * width + value_width)
    return count + projection * (value_width + bias) * channels


def _translate(
    tensors: MutableMapping[str, Tensor],
    channels: int | None,
    *,
    C: int | None = None,
    dk: int | None = None,
    dv: int | None = None,
    heads: int = 1,
    bias: bool | None = None,
) -> Translation:
    width, weight_channels = tensors["q.weight"].shape[:2]
    options = {"heads": heads, "width": dk or width, "value_width": dv or tensors["v.weight"].shape[0]}
    channels = C or channels or weight_channels
    return channels, options | {"bias": "q.bias" in tensors}, {"q": "query", "k": "key", "v": "value"}


def _translate_torch(
    tensors: MutableMapping[str, Tensor],
    channels: int | None,
    *,
    E: int | None = None,
    h: int | None = None,
    embed_dim: int | None = None,
    num_heads: int | None = None,
    dropout: float = 0.0,
    bias: bool = True,
    batch_first: bool = False,  # a map has no order of batch and tokens
) -> Translation:
    heads = h or num_heads
    if heads is None or dropout:
        raise ValueError(f"pass num_heads=, which the tensors do not tell, and dropout 0, got {heads} and {dropout}")
    bias = "in_proj_bias" in tensors
    for kind in ("weight", "bias") if bias else ("weight",):
        stacked = tensors.pop(f"in_proj_{kind}").chunk(3)
        tensors.update({f"{name}.{kind}": part for name, part in zip(("query", "key", "value"), stacked, strict=True)})
    options = {"heads": heads, "projection": True, "bias": bias}
    return E or embed_dim or channels or tensors["query.weight"].shape[1], options, {"out_proj": "out"}


@register(
    "qkv",
    category="spatial",
    attention="self",
    paper="Vaswani et al. 2017, arXiv 1706.03762",
    place="head",
    parameters=_parameters,
    official={"qkv_conv": _translate, "mhsa": _translate_torch},
    exceptions={
        "a gradient of a gradient": Unkept(
            "torch's own attention, which keeps no weights, has a first derivative only; while "
            "its tap is watched the weights are kept, and there is one",
            error="derivative for .* is not implemented",
        )
    },
)
class QKV(nn.Module):
    """Answer every pixel with the values of all pixels, weighed by how well their keys answer its query.

    Paper:    Vaswani et al. 2017, Attention Is All You Need, arXiv 1706.03762, section 3.2.
    Category: spatial; weights between all pairs of pixels, for each head.
    Formula:  logits_ij = Q x_i . K x_j (query times key), over the root of their width;  w = softmax_j(logits)
              (normalise);  y_i = sum_j w_ij V x_j (times value), then W y + b with a projection
    Shape:    x: (B, C, *spatial);  y: the same, or (B, value_width, *spatial);  w: (B, heads, *spatial, *spatial)
    Cost:     3 C^2 + 3 C parameters; time grows with the square of the pixels, memory does not.
    Place:    head: on small maps; the three steps that danet_position, non_local and local build on.
    Differs:  Written with 1x1 convolutions on a map instead of linear layers on tokens, which is the same; heads are
              contiguous blocks of channels. `projection=True` is torch's own multi-head attention without dropout.
              There is no addition of the input inside: starting as the identity blends the answer with the input.
              Popular copies leave the scale out without saying so, or normalise over the wrong axis.
    Maps:     `weights`, position, one for each head, values in (0, 1).

    Args:
        channels: C.
        heads: number of heads.
        width: of queries and keys, all heads together; C by default.
        value_width: of the values, all heads together; C by default.
        scale: whether logits are divided by the root of a head's width.
        bias: whether the projections have biases.
        projection: whether a last 1x1 convolution leads back to C channels.

    Example:
        >>> import regard, torch
        >>> regard.create("qkv", 64, heads=4)(torch.randn(2, 64, 7, 9)).shape
        torch.Size([2, 64, 7, 9])
    """

    def __init__(
        self,
        channels: int,
        *,
        heads: int = 1,
        width: int | None = None,
        value_width: int | None = None,
        scale: bool = True,
        bias: bool = True,
        projection: bool = False,
    ) -> None:
        super().__init__()
        width, value_width = width or channels, value_width or channels
        if width % heads or value_width % heads:
            raise UserError(f"qkv: {heads} heads do not divide widths of {width} and {value_width}")
        self.heads = heads
        self.scale = (width // heads) ** -0.5 if scale else 1.0
        self.query = Pointwise(channels, width, bias=bias)
        self.key = Pointwise(channels, width, bias=bias)
        self.value = Pointwise(channels, value_width, bias=bias)
        self.out = Pointwise(value_width, channels, bias=bias) if projection else nn.Identity()
        self.weights = Tap("position", rest=None)
        self.blend = Blend()

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (
            project(x).unflatten(1, (self.heads, -1)) for project in (self.query, self.key, self.value)
        )
        watch = self.weights if self.weights.watched else None
        y = ops.attend(query, key, value, scale=self.scale, watch=watch)
        return self.blend(x, self.out(y.flatten(1, 2)))

    def extra_repr(self) -> str:
        return f"heads={self.heads}, scale={self.scale:g}"
