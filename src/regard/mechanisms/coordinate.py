"""Coordinate Attention (Hou et al. 2021): https://arxiv.org/abs/2103.02907"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from regard import ops
from regard.base.errors import UserError
from regard.layers.conv import Mixing
from regard.layers.norm import BatchNorm
from regard.layers.tap import Tap
from regard.registry.info import Translation
from regard.registry.registration import register


def _parameters(channels: int, *, reduction: int, min_width: int, spatial_dims: int) -> int:
    hidden = max(min_width, channels // reduction)
    return hidden * (channels + 1) + 2 * hidden + spatial_dims * channels * (hidden + 1)


def _translate(
    tensors: Mapping[str, Tensor],
    channels: int | None,
    *,
    inp: int | None = None,
    oup: int | None = None,
    reduction: int | None = None,
) -> Translation:
    hidden, width = tensors["conv1.weight"].shape[:2]
    channels = inp or channels or width
    if oup not in (None, channels):
        raise ValueError(f"the gate weighs its own input, so oup must be inp, got {oup} and {channels}")
    options = {"reduction": reduction} if reduction else {"reduction": channels, "min_width": hidden}
    return channels, options, {"conv1": "down", "bn1": "norm", "conv_h": "up.0", "conv_w": "up.1"}


@register(
    "coordinate",
    category="channel and spatial",
    paper="Hou et al. 2021, arXiv 2103.02907",
    place="expansions",
    parameters=_parameters,
    hidden=lambda coordinate: [coordinate.norm],
    official={"coord_attention": _translate},
)
class Coordinate(nn.Module):
    """Weigh each channel along each axis of the map by a small network that sees its averages across the others.

    Paper:    Hou et al. 2021, Coordinate Attention, arXiv 2103.02907, section 3.2.
    Category: channel and spatial; one number per channel and row, one per channel and column.
    Formula:  f = hswish(norm(W1 [mean_W(x), mean_H(x)] + b1));  a = sigmoid(Wh f_h + bh);  b = sigmoid(Ww f_w + bw);
              y = x * a * b;  hswish(t) = t relu6(t + 3) / 6
    Shape:    x, y: (B, C, *spatial);  f: (B, M, H + W) with M = max(8, C / r);  a: (B, C, H, 1);  b: (B, C, 1, W)
    Cost:     M (C + 3) + 2 C (M + 1) parameters; reads x twice, writes it once.
    Place:    expansions: the expanded features of each inverted residual, after the depthwise convolution; where a
              network has none, the end of each residual branch.
    Differs:  Nothing from the released code; the paper does not mention the biases or the least width of 8. Maps with
              one or three spatial axes are treated alike, an axis at a time, which is ours. Popular copies drop the
              biases or round the width otherwise.
    Maps:     `gate.0` (rows), `gate.1` (columns), axis, values in (0, 1).

    Args:
        channels: C.
        reduction: r, how many times narrower the hidden layer is.
        min_width: least width of the hidden layer.
        spatial_dims: number of spatial axes of the map: 1, 2 or 3.

    Example:
        >>> import regard, torch
        >>> regard.create("coordinate", 64)(torch.randn(2, 64, 7, 9)).shape
        torch.Size([2, 64, 7, 9])
    """

    def __init__(self, channels: int, *, reduction: int = 32, min_width: int = 8, spatial_dims: int = 2) -> None:
        super().__init__()
        if spatial_dims not in (1, 2, 3):
            raise UserError(f"coordinate: spatial_dims is 1, 2 or 3, got {spatial_dims}")
        hidden = max(min_width, channels // reduction)
        self.down = Mixing(channels, hidden)
        self.norm = BatchNorm(hidden)
        self.up = nn.ModuleList(Mixing(hidden, channels) for _ in range(spatial_dims))
        self.gate = nn.ModuleList(Tap("axis") for _ in range(spatial_dims))

    def forward(self, x: Tensor) -> Tensor:
        axes, joint = range(2, x.dim()), ops.Joint(x)
        others = [tuple(other for other in axes if other != axis) for axis in axes]
        profiles = joint.squeeze(*others) if len(axes) > 1 else (x,)
        f = F.hardswish(self.norm(self.down(torch.cat([profile.flatten(2) for profile in profiles], dim=2))))
        parts = f.split([x.shape[axis] for axis in axes], dim=2)
        gates = [
            tap(torch.sigmoid(up(part)).view(profile.shape))
            for tap, up, part, profile in zip(self.gate, self.up, parts, profiles, strict=True)
        ]
        return joint.gate(*gates)
