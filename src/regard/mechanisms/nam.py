"""Normalization-based Attention Module (Liu et al. 2021): https://arxiv.org/abs/2111.12419"""

import torch
from torch import Tensor, nn

from regard import ops
from regard.layers.norm import BatchNorm
from regard.layers.tap import Tap
from regard.registry.info import Translation, Unkept
from regard.registry.registration import register


def _translate(
    tensors: dict[str, Tensor],
    channels: int | None,
    *,
    shape: int | None = None,
    out_channels: int | None = None,
    no_spatial: bool = True,
) -> Translation:
    if not no_spatial:
        raise ValueError("the part with a weight for every pixel fits maps of one size alone, and is not here")
    for name in [name for name in tensors if name.startswith("Spatial_Att.")]:  # built there, and not called
        del tensors[name]
    return channels or tensors["Channel_Att.bn2.weight"].numel(), {}, {"Channel_Att.bn2": "norm"}


@register(
    "nam",
    category="channel and spatial",
    paper="Liu et al. 2021, arXiv 2111.12419",
    place="branches",
    parameters=lambda channels: 2 * channels,
    official={"nam": _translate},
    exceptions={
        "gradients": Unkept(
            "the authors take the share of each channel as a constant, so that gamma learns through the norm alone",
            error="Jacobian",
        ),
    },
)
class NAM(nn.Module):
    """Weigh every value of a map by itself, normalised, and by how large its channel's weight is in that norm.

    Paper:    Liu et al. 2021, NAM: Normalization-based Attention Module, arXiv 2111.12419.
    Category: channel and spatial; one number per channel and pixel.
    Formula:  z = gamma (x - mean_BHW(x)) / sqrt(var_BHW(x) + 1e-5) + beta;  y = x * sigmoid(|gamma| / sum_C |gamma| z)
    Shape:    x, y, gate: (B, C, *spatial);  gamma, beta: (C)
    Cost:     2 C parameters; reads x three times in training, writes a gate of its size, and y.
    Place:    branches: the end of each residual branch, before the addition.
    Differs:  As the released code. The paper calls this its channel attention, though nothing is pooled; its spatial
              part, a norm with a weight for every pixel, fits maps of one size alone, is off in the released module
              unless asked for, and is left out. One version of that module cuts z off below 0. The share
              |gamma| / sum |gamma| is a constant in training, as there. All shares start at 1 / C, so that in a wide
              layer the gate starts close to 0.5; the authors' training can add an L1 penalty on all norms, which
              drives them apart.
    Maps:     `gate`, element, values in (0, 1).

    Args:
        channels: C.

    Example:
        >>> import regard, torch
        >>> regard.create("nam", 64)(torch.randn(2, 64, 7, 9)).shape
        torch.Size([2, 64, 7, 9])
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = BatchNorm(channels)
        self.gate = Tap("element")

    def forward(self, x: Tensor) -> Tensor:
        size = self.norm.weight.detach().abs()
        share = (size / size.sum()).reshape(-1, *[1] * (x.dim() - 2))
        return ops.gate(x, self.gate(torch.sigmoid(share * self.norm(x))))
