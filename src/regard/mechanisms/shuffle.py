"""Shuffle Attention (Zhang and Yang 2021): https://arxiv.org/abs/2102.00240"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from regard import ops
from regard.base.errors import UserError
from regard.layers.groups import AUTHORS, most
from regard.layers.tap import Blend, Tap
from regard.registry.info import Translation
from regard.registry.registration import register


def _groups(channels: int, groups: int | None) -> int:
    fit = [g for g in range(1, channels // 2 + 1) if channels % (2 * g) == 0]
    if groups is None and fit:
        return most(fit, channels)
    if groups not in fit:
        listed = f"the groups that fit are {', '.join(map(str, fit))}" if fit else "no number of groups fits"
        raise UserError(
            f"shuffle: every group is halved, so {channels} channels must divide by twice the groups, got "
            f"groups={groups}: {listed}"
        )
    return groups


def _translate(
    tensors: Mapping[str, Tensor], channels: int | None, *, channel: int | None = None, groups: int = AUTHORS
) -> Translation:
    channels = channel or channels or 2 * groups * tensors["cweight"].numel()
    names = {"cweight": "channel_weight", "cbias": "channel_bias", "sweight": "pixel_weight", "sbias": "pixel_bias"}
    return channels, {"groups": groups}, names | {"gn": "norm"}


@register(
    "shuffle",
    category="channel and spatial",
    paper="Zhang and Yang 2021, arXiv 2102.00240",
    place="branches",
    parameters=lambda channels, *, groups: 3 * channels // _groups(channels, groups),
    official={"shuffle_attention": _translate},
    letters=lambda shuffle: {"G": shuffle.groups},
)
class Shuffle(nn.Module):
    """Weigh one half of each group's channels by its average, the other half pixel by pixel, and shuffle the channels.

    Paper:    Zhang and Yang 2021, SA-Net: Shuffle Attention, arXiv 2102.00240, section 3.
    Category: channel and spatial; half of the channels get one number each, the other half one per pixel.
    Formula:  x = [u, v] in each group;  a = sigmoid(w1 * mean_HW(u) + b1);  m = sigmoid(w2 * norm(v) + b2);
              y = shuffle([u * a, v * m])
    Shape:    x, y, gate = [a, m]: (B, C, *spatial);  w1, b1, w2, b2 and the norm's weights: (C / 2 G), shared by groups
    Cost:     3 C / G parameters; on a CPU reads x once and writes y, and in training reads x and dy once and writes
              dx, where a channel fits the caches; elsewhere every step reads and writes maps.
    Place:    branches: the end of each residual branch, before the addition.
    Differs:  As the released code; the abstract's 300 parameters for ResNet-50 do not match it (708 with 64 groups).
              The authors' 64 groups are taken where they fit and leave each group 4 channels, else the largest smaller
              number that does. Since the channels change their places, starting as the identity blends the result with
              the input. Popular copies fail on channels_last maps and set 8 groups.
    Maps:     `gate`, element, values in (0, 1), before the shuffle.

    Args:
        channels: C, even.
        groups: G; C must divide by 2 G; None takes the largest number up to 64 that fits and
            leaves each group 4 channels.

    Example:
        >>> import regard, torch
        >>> regard.create("shuffle", 64, groups=8)(torch.randn(2, 64, 7, 9)).shape
        torch.Size([2, 64, 7, 9])
    """

    def __init__(self, channels: int, *, groups: int | None = None) -> None:
        super().__init__()
        self.groups = _groups(channels, groups)
        width = channels // (2 * self.groups)
        self.channel_weight = nn.Parameter(torch.zeros(width))
        self.channel_bias = nn.Parameter(torch.ones(width))
        self.pixel_weight = nn.Parameter(torch.zeros(width))
        self.pixel_bias = nn.Parameter(torch.ones(width))
        self.norm = nn.GroupNorm(width, width)
        self.gate = Tap("element")
        self.blend = Blend()

    def forward(self, x: Tensor) -> Tensor:
        if not ops.plain(self.norm):
            return self.blend(x, self._weigh(x))
        none = x.new_zeros(len(self.channel_weight))
        y = ops.selfgate(
            x,
            self.gate,
            level=torch.cat([self.channel_weight, none]),
            slope=torch.cat([none, self.pixel_weight * self.norm.weight]),
            bias=torch.cat([self.channel_bias, self.pixel_bias + self.pixel_weight * self.norm.bias]),
            epsilon=self.norm.eps,
            shuffle=True,
        )
        return self.blend(x, y)

    def _weigh(self, x: Tensor) -> Tensor:
        """The same, the norm being called."""
        a, b = x.unflatten(1, (self.groups, -1)).flatten(0, 1).chunk(2, dim=1)
        wide = lambda weight: weight.view(1, -1, *[1] * (x.dim() - 2))  # noqa: E731
        mean = a.mean(tuple(range(2, x.dim())), keepdim=True)
        channel = (wide(self.channel_weight) * mean + wide(self.channel_bias)).expand_as(a)
        pixel = wide(self.pixel_weight) * self.norm(b) + wide(self.pixel_bias)
        gate = torch.sigmoid(torch.cat([channel, pixel], dim=1)).unflatten(0, (-1, self.groups)).flatten(1, 2)
        return (x * self.gate(gate)).unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)

    def extra_repr(self) -> str:
        return f"groups={self.groups}"
