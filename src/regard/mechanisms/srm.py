"""Style-based Recalibration Module (Lee et al. 2019): https://arxiv.org/abs/1903.10829"""

from collections.abc import Mapping
from math import prod

import torch
from torch import Tensor, nn

from regard import ops
from regard.layers.norm import BatchNorm
from regard.layers.tap import Tap
from regard.registry.info import Translation
from regard.registry.registration import register


def _translate(tensors: Mapping[str, Tensor], channels: int | None, *, channel: int | None = None) -> Translation:
    return channel or channels or tensors["cfc"].shape[0], {}, {"cfc": "weight", "bn": "norm"}


@register(
    "srm",
    category="channel",
    paper="Lee et al. 2019, arXiv 1903.10829",
    place="branches",
    parameters=lambda channels: 4 * channels,
    official={"srm": _translate},
)
class SRM(nn.Module):
    """Weigh each channel by its own average and spread over the map.

    Paper:    Lee et al. 2019, SRM: A Style-based Recalibration Module, arXiv 1903.10829, section 3.
    Category: channel; one number per channel and image, the same at every pixel.
    Formula:  z_c = w_c . (mean_HW(x_c), sqrt(var_HW(x_c) + 1e-5));  y = x * sigmoid(norm(z))
    Shape:    x, y: (B, C, *spatial);  w: (C, 2);  z, gate: (B, C, 1, ...)
    Cost:     4 C parameters; reads x three times, writes it once.
    Place:    branches: the end of each residual branch, before the addition.
    Differs:  As the released code, with the unbiased variance, which is NaN on a map of one pixel; here it is 0 there.
              w starts at 0, so that the gate starts at 0.5. The batch norm over images needs more than one of them in
              training; a single value per channel is normalised by the running statistics here.
    Maps:     `gate`, channel, values in (0, 1).

    Args:
        channels: C.

    Example:
        >>> import regard, torch
        >>> regard.create("srm", 64)(torch.randn(2, 64, 7, 9)).shape
        torch.Size([2, 64, 7, 9])
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(channels, 2))
        self.norm = BatchNorm(channels)
        self.gate = Tap("channel")

    def forward(self, x: Tensor) -> Tensor:
        axes = tuple(range(2, x.dim()))
        joint = ops.Joint(x)
        mean, variance = joint.squeeze(axes, kinds=("avg", "var"))
        count = prod(x.shape[2:])
        spread = (variance * (count / max(count - 1, 1)) + 1e-5).sqrt()
        z = (torch.stack([mean.flatten(1), spread.flatten(1)], dim=2) * self.weight).sum(2)
        return joint.gate(self.gate(torch.sigmoid(self.norm(z)).view(mean.shape)))
