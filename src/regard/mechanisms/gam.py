"""Global Attention Mechanism (Liu et al. 2021): https://arxiv.org/abs/2112.05561"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from regard import ops
from regard.base.errors import UserError
from regard.layers.conv import Pointwise, conv
from regard.layers.norm import BatchNorm
from regard.layers.tap import Tap
from regard.registry.info import Translation
from regard.registry.registration import register


def _parameters(
    channels: int, *, reduction: int, hidden: int | None, kernel_size: int, spatial_dims: int, **_: Any
) -> int:
    hidden = hidden or max(1, channels // reduction)
    return 2 * channels * hidden * (1 + kernel_size**spatial_dims) + 4 * (channels + hidden)


def _translate(
    tensors: Mapping[str, Tensor],
    channels: int | None,
    *,
    in_channels: int | None = None,
    out_channels: int | None = None,
    rate: float | None = None,
    padding_mode: str = "replicate",
) -> Translation:
    hidden, width = tensors["linear1.weight"].shape
    channels = in_channels or channels or width
    if out_channels not in (None, channels):
        raise ValueError(f"the gate weighs its own input, so out_channels must be {channels}, got {out_channels}")
    if rate is not None and int(channels / rate) != hidden:
        raise ValueError(f"{channels} channels over a rate of {rate} are not the {hidden} that the tensors have")
    options: dict[str, Any] = {"hidden": hidden, "padding": padding_mode}
    options["kernel_size"] = tensors["conv1.weight"].shape[-1]
    return channels, options, {"linear1": "down", "linear2": "up"}


@register(
    "gam",
    category="channel and spatial",
    paper="Liu et al. 2021, arXiv 2112.05561",
    place="branches",
    parameters=_parameters,
    hidden=lambda gam: [gam.down, gam.norm1],
    official={"gam": _translate},
)
class GAM(nn.Module):
    """Multiply every pixel's channels by a small network of them, then weigh everything by two wide convolutions.

    Paper:    Liu et al. 2021, Global Attention Mechanism, arXiv 2112.05561, section 3.
    Category: channel and spatial; one number per channel and pixel, twice; nothing is averaged.
    Formula:  g = W2 relu(W1 x + b1) + b2 at each pixel;  x' = x * g;
              y = x' * sigmoid(norm(conv_k(relu(norm(conv_k(x'))))))
    Shape:    x, g, mask, y: (B, C, *spatial);  hidden width M = C / r
    Cost:     2 C M (1 + k^2) + 4 (C + M) parameters; two convolutions over all channels: far more than a gate.
    Place:    branches: the end of each residual branch, before the addition.
    Differs:  No code by the authors was found. The paper's equations do not show a sigmoid on the first gate, and no
              implementation has one: it may be any number. `padding="replicate"` is that of the most used port,
              `"zeros"` that of most others. The paper tames the cost in ResNet-50 by grouped convolutions with a
              channel shuffle, which is not built here. Popular copies fail on non-contiguous maps.
              With `start="identity"` a hidden layer of fewer than 16 units starts with W1 = 0 and b1 = 1: random
              units could be 0 for every image, and a gate whose units all are never learns.
    Maps:     `gate`, element, any value; `mask`, element, values in (0, 1).

    Args:
        channels: C.
        reduction: r, how many times narrower the hidden layers are.
        hidden: their width itself, instead of C / r.
        kernel_size: k, an odd number of pixels.
        padding: ``"zeros"`` or ``"replicate"``, of the convolutions.
        spatial_dims: number of spatial axes of the map: 1, 2 or 3.

    Example:
        >>> import regard, torch
        >>> regard.create("gam", 16)(torch.randn(2, 16, 7, 9)).shape
        torch.Size([2, 16, 7, 9])
    """

    def __init__(
        self,
        channels: int,
        *,
        reduction: int = 4,
        hidden: int | None = None,
        kernel_size: int = 7,
        padding: str = "zeros",
        spatial_dims: int = 2,
    ) -> None:
        super().__init__()
        if kernel_size % 2 == 0:
            raise UserError(f"gam: kernel_size is an odd number, so that the mask fits the map, got {kernel_size}")
        if padding not in ("zeros", "replicate"):
            raise UserError(f"gam: padding is 'zeros' or 'replicate', got {padding!r}")
        width = hidden or max(1, channels // reduction)
        around: dict[str, Any] = {"padding": kernel_size // 2, "padding_mode": padding}
        self.down = Pointwise(channels, width)
        self.up = Pointwise(width, channels)
        self.gate = Tap("element", low=-float("inf"), high=float("inf"))
        self.conv1 = conv(spatial_dims, channels, width, kernel_size, **around)
        self.norm1 = BatchNorm(width)
        self.conv2 = conv(spatial_dims, width, channels, kernel_size, **around)
        self.norm2 = BatchNorm(channels)
        self.mask = Tap("element")

    def forward(self, x: Tensor) -> Tensor:
        x = ops.gate(x, self.gate(self.up(torch.relu(self.down(x)))))
        hidden = torch.relu(self.norm1(self.conv1(x)))
        return ops.gate(x, self.mask(torch.sigmoid(self.norm2(self.conv2(hidden)))))
