"""Spatial Group-wise Enhance (Li et al. 2019): https://arxiv.org/abs/1905.09646"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from regard import ops
from regard.layers.groups import choose
from regard.layers.tap import Tap
from regard.registry.info import Translation
from regard.registry.registration import register


def _translate(tensors: Mapping[str, Tensor], channels: int | None, *, groups: int | None = None) -> Translation:
    return channels, {"groups": groups or tensors["weight"].numel()}, {}


@register(
    "sge",
    category="spatial",
    paper="Li et al. 2019, arXiv 1905.09646",
    place="branches",
    parameters=lambda channels, *, groups, **_: 2 * choose("sge", channels, groups),
    official={"sge": _translate},
    letters=lambda sge: {"G": sge.groups},
)
class SGE(nn.Module):
    """Weigh the pixels of each group of channels by how well they agree with the group's average.

    Paper:    Li et al. 2019, Spatial Group-wise Enhance, arXiv 1905.09646, section 3.
    Category: spatial; one number per pixel and group of channels.
    Formula:  t = sum_c x_c * mean_HW(x_c) over a group's channels;  t' = (t - mean_HW(t)) / (std_HW(t) + 1e-5);
              y = x * sigmoid(w t' + b)
    Shape:    x, y: (B, C, *spatial);  t, mask: (B, G, *spatial);  w, b: (G)
    Cost:     2 G parameters; on a CPU reads x once and writes y, and in training reads x and dy once and writes dx,
              where a group fits the caches; elsewhere every step reads and writes maps.
    Place:    branches: the end of each residual branch, before the addition.
    Differs:  As the released code: the standard deviation is the unbiased one, the paper's is not (`unbiased=False`).
              The authors' 64 groups are taken where they fit and leave each group 4 channels, else the largest smaller
              number that does. On a map of one pixel the released code gives NaN; here t' is 0 there. Popular copies
              start b at 0 and not at 1 (the mask then starts at 0.5, not 0.731), and fail on channels_last maps.
    Maps:     `mask`, spatial, one for each group, values in (0, 1).

    Args:
        channels: C.
        groups: G, a divisor of C; None takes the largest up to 64 that leaves each group 4 channels.
        unbiased: whether the variance divides by one less than the pixels.

    Example:
        >>> import regard, torch
        >>> regard.create("sge", 64, groups=8)(torch.randn(2, 64, 7, 9)).shape
        torch.Size([2, 64, 7, 9])
    """

    def __init__(self, channels: int, *, groups: int | None = None, unbiased: bool = True) -> None:
        super().__init__()
        self.groups, self.unbiased = choose("sge", channels, groups), unbiased
        self.weight = nn.Parameter(torch.zeros(self.groups))
        self.bias = nn.Parameter(torch.ones(self.groups))
        self.mask = Tap("spatial")

    def forward(self, x: Tensor) -> Tensor:
        return ops.agree(x, self.weight, self.bias, self.mask, unbiased=self.unbiased)

    def extra_repr(self) -> str:
        return f"groups={self.groups}"
