"""Criss-Cross Attention (Huang et al. 2019): https://arxiv.org/abs/1811.11721"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from regard import ops
from regard.base.errors import UserError
from regard.layers.conv import Pointwise
from regard.layers.tap import Tap
from regard.registry.info import Translation
from regard.registry.registration import register, wrong_axes

MOST = 16  # times that it runs


def _parameters(channels: int, *, reduction: int, **_: Any) -> int:
    hidden = max(1, channels // reduction)
    return 2 * (channels * hidden + hidden) + channels**2 + channels + 1


def _translate(
    tensors: Mapping[str, Tensor], channels: int | None, *, in_dim: int | None = None, recurrence: int = 1
) -> Translation:
    hidden, width = tensors["query_conv.weight"].shape[:2]
    channels = in_dim or channels or width
    names = {"query_conv": "query", "key_conv": "key", "value_conv": "value"}
    return channels, {"reduction": channels // hidden, "recurrence": recurrence}, names


@register(
    "criss_cross",
    category="spatial",
    attention="self",
    paper="Huang et al. 2019, arXiv 1811.11721",
    place="head",
    parameters=_parameters,
    signature="(B, C, H, W) -> same",
    identity=None,
    official={"ccnet": _translate},
)
class CrissCross(nn.Module):
    """Add to every pixel what its row and column hold, weighed by likeness; twice, so that it reaches every pixel.

    Paper:    Huang et al. 2019, CCNet: Criss-Cross Attention, arXiv 1811.11721, section 3.2.
    Category: spatial; weights between a pixel and the H + W - 1 of its row and column.
    Formula:  w_ij = softmax_j(Q x_i . K x_j) over the pixels j in the row and column of i;
              y_i = x_i + gamma sum_j w_ij V x_j;  again with x = y, as often as `recurrence` says
    Shape:    x, y: (B, C, H, W);  Q, K: C to M = C / r;  V: C to C;  w: (B, H, W, H + W)
    Cost:     2 (C M + M) + C^2 + C + 1 parameters; time and memory grow with (H + W) H W, never with (H W)^2;
              on a CPU a training step keeps only maps.
    Place:    head: the authors put it once, with recurrence 2, on the last map of a dilated network, narrowed to C/4.
    Differs:  As the released code, where the pixel itself is hidden in the column part, so that it counts once. The
              code works on a GPU in float32 only, and its queries have width 0 for C < 8; here any device, any dtype,
              and a width of at least 1. gamma starts at 0, so that a fresh module is the identity. The sum over row and
              column is one softmax, not two.
    Maps:     `weights.0`, `weights.1`, criss-cross, one for each recurrence, values in (0, 1): the column, then the
              row.

    Args:
        channels: C.
        reduction: r, how many times narrower queries and keys are.
        recurrence: how often the module runs with the same weights.

    Example:
        >>> import regard, torch
        >>> regard.create("criss_cross", 64)(torch.randn(2, 64, 7, 9)).shape
        torch.Size([2, 64, 7, 9])
    """

    def __init__(self, channels: int, *, reduction: int = 8, recurrence: int = 2) -> None:
        super().__init__()
        if recurrence > MOST:
            raise UserError(f"criss_cross: recurrence is at most {MOST}, got {recurrence}: with 2 all pixels have met")
        hidden = max(1, channels // reduction)
        self.query = Pointwise(channels, hidden)
        self.key = Pointwise(channels, hidden)
        self.value = Pointwise(channels, channels)
        self.weights = nn.ModuleList(Tap("criss-cross", rest=None) for _ in range(recurrence))
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 4:
            raise wrong_axes("criss_cross", x.dim() - 2)
        for tap in self.weights:
            query, key, value = self.query(x), self.key(x), self.value(x)
            y = ops.cross(query, key, value, watch=tap if tap.watched else None)
            x = x + (self.gamma * y).to(x.dtype)
        return x
