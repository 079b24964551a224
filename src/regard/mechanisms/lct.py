"""Linear Context Transform (Ruan et al. 2020): https://arxiv.org/abs/1909.03834"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from regard import ops
from regard.base.errors import UserError
from regard.layers.groups import choose
from regard.layers.norm import wide
from regard.layers.tap import Tap
from regard.registry.info import Translation
from regard.registry.registration import register


def _translate(tensors: Mapping[str, Tensor], channels: int | None, *, groups: int, eps: float = 1e-5) -> Translation:
    return channels or tensors["w"].numel(), {"groups": groups, "epsilon": eps}, {"w": "weight", "b": "bias"}


@register(
    "lct",
    category="channel",
    paper="Ruan et al. 2020, arXiv 1909.03834",
    place="branches",
    parameters=lambda channels, **_: 2 * channels,
    official={"lct": _translate},
)
class LCT(nn.Module):
    """Weigh each channel by how its average stands beside those of its group, with two learnt numbers per channel.

    Paper:    Ruan et al. 2020, Linear Context Transform Block, arXiv 1909.03834, AAAI 2020.
    Category: channel; one number per channel and image, the same at every pixel.
    Formula:  s = mean_HW(x);  n = (s - mean_G(s)) / sqrt(var_G(s) + eps) over a group's channels;
              y = x * sigmoid(w n + b)
    Shape:    x, y: (B, C, *spatial);  s, n, gate: (B, C, 1, ...);  w, b: (C)
    Cost:     2 C parameters; reads x twice, writes it once.
    Place:    branches: the end of each residual branch, before the addition.
    Differs:  No code by the authors was found; the numbers are those of a port, which starts w at 1 and b at 0. Here w
              starts at 0 and b at 1, as in another port and in SGE: the gate starts at 0.731 everywhere. The port asks
              for the number of groups; here up to 64 are taken that fit and leave each group 4 channels, since in a
              group of one channel n is 0 whatever the map holds. The port computes the variance as a difference of
              squares, which loses its digits in half precision.
    Maps:     `gate`, channel, values in (0, 1).

    Args:
        channels: C.
        groups: G, a divisor of C; None takes the largest up to 64 that leaves each group 4 channels.
        epsilon: eps, which keeps a group of equal averages from dividing by zero.

    Example:
        >>> import regard, torch
        >>> regard.create("lct", 64, groups=8)(torch.randn(2, 64, 7, 9)).shape
        torch.Size([2, 64, 7, 9])
    """

    def __init__(self, channels: int, *, groups: int | None = None, epsilon: float = 1e-5) -> None:
        super().__init__()
        if epsilon <= 0:
            raise UserError(f"lct: epsilon is above 0, got {epsilon}")
        self.groups, self.epsilon = choose("lct", channels, groups), epsilon
        self.weight = nn.Parameter(torch.zeros(channels))
        self.bias = nn.Parameter(torch.ones(channels))
        self.gate = Tap("channel")

    def forward(self, x: Tensor) -> Tensor:
        axes, joint = tuple(range(2, x.dim())), ops.Joint(x)
        (mean,) = joint.squeeze(axes)
        s = wide(mean).flatten(1).unflatten(1, (self.groups, -1))
        apart = s - s.mean(2, keepdim=True)
        n = apart / (apart.square().mean(2, keepdim=True) + self.epsilon).sqrt()
        gate = torch.sigmoid(self.weight * n.flatten(1) + self.bias)
        return joint.gate(self.gate(gate.reshape(*gate.shape, *[1] * len(axes))))

    def extra_repr(self) -> str:
        return f"groups={self.groups}"
