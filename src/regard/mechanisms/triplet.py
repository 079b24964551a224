"""Triplet Attention (Misra et al. 2021): https://arxiv.org/abs/2010.03045"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from regard import ops
from regard.base.errors import UserError
from regard.layers.norm import BatchNorm
from regard.layers.tap import Tap
from regard.registry.info import Translation
from regard.registry.registration import register, wrong_axes


def _translate(
    tensors: Mapping[str, Tensor],
    channels: int | None,
    *,
    no_spatial: bool = False,
    gate_channels: int | None = None,
    reduction_ratio: int = 16,  # their second file takes both, and uses neither
    pool_types: Sequence[str] = ("avg", "max"),
) -> Translation:
    names: dict[str, str] = {}
    for ours, (one, other) in enumerate((("cw", "ChannelGateH"), ("hc", "ChannelGateW"), ("hw", "SpatialGate"))):
        for theirs, inner in ((one, "conv"), (other, "spatial")):
            names |= {f"{theirs}.{inner}.conv": f"conv.{ours}", f"{theirs}.{inner}.bn": f"norm.{ours}"}
    first = "ChannelGateH.spatial" if "ChannelGateH.spatial.conv.weight" in tensors else "cw.conv"
    size = tensors[f"{first}.conv.weight"].shape[-1]
    return gate_channels or channels or 1, {"spatial": not no_spatial, "kernel_size": size}, names


@register(
    "triplet",
    category="channel and spatial",
    paper="Misra et al. 2021, arXiv 2010.03045",
    place="branches",
    parameters=lambda channels, *, kernel_size, spatial: (2 + spatial) * (2 * kernel_size**2 + 2),
    signature="(B, C, H, W) -> same",
    official={"triplet": _translate},
    goals={("large", "inference"): 2.0, ("large", "training"): 2.5},  # three gates, and their mean
)
class Triplet(nn.Module):
    """Weigh each pair of channel and column, of channel and row, and of row and column, and take the mean of the three.

    Paper:    Misra et al. 2021, Rotate to Attend: Convolutional Triplet Attention Module, arXiv 2010.03045, section 3.
    Category: channel and spatial; one number per channel and column, channel and row, and pixel.
    Formula:  z_A(x) = [max_A(x), mean_A(x)];  g_A = sigmoid(norm(conv_k(z_A(x)))) over the two other axes;
              y = x * (g_H + g_W + g_C) / 3
    Shape:    x, y: (B, C, H, W);  g_H: (B, C, 1, W);  g_W: (B, C, H, 1);  g_C: (B, 1, H, W)
    Cost:     3 (2 k^2 + 2) parameters; reads x twice, writes it once.
    Place:    branches: the end of each residual branch, before the addition.
    Differs:  As the released code, with one gate for the mean of the three instead of three products. The channels have
              an order here: the convolutions run over neighbouring channels. The authors' second file names its
              weights differently; both are read. Popular copies put a ReLU before the sigmoid, so that the gate is
              never below 0.5, give the convolutions a bias, or take the mean before the maximum.
    Maps:     `gate.0` (channel and column), `gate.1` (channel and row), `gate.2` (pixel), axis, values in (0, 1).

    Args:
        channels: C; the module does not depend on it.
        kernel_size: k, an odd number of pixels.
        spatial: whether the third gate, over rows and columns, takes part.

    Example:
        >>> import regard, torch
        >>> regard.create("triplet", 64)(torch.randn(2, 64, 7, 9)).shape
        torch.Size([2, 64, 7, 9])
    """

    def __init__(self, channels: int, *, kernel_size: int = 7, spatial: bool = True) -> None:
        super().__init__()
        if kernel_size % 2 == 0:
            raise UserError(f"triplet: kernel_size is an odd number, so that the gates fit the map, got {kernel_size}")
        self.axes = (2, 3, 1)[: 2 + spatial]  # what each gate looks along
        self.conv = nn.ModuleList(nn.Conv2d(2, 1, kernel_size, padding=kernel_size // 2, bias=False) for _ in self.axes)
        self.norm = nn.ModuleList(BatchNorm(1, momentum=0.01) for _ in self.axes)
        self.gate = nn.ModuleList(Tap("axis") for _ in self.axes)

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 4:
            raise wrong_axes("triplet", x.dim() - 2)
        joint = ops.Joint(x)
        stats = joint.squeeze(*((axis,) for axis in self.axes), kinds=("max", "avg"))
        pairs = zip(stats[::2], stats[1::2], strict=True)
        gates = [
            tap(self._weigh(pair, axis, conv, norm))
            for tap, pair, axis, conv, norm in zip(self.gate, pairs, self.axes, self.conv, self.norm, strict=True)
        ]
        return joint.gate(*gates, mean=True)

    def _weigh(self, pair: tuple[Tensor, Tensor], axis: int, conv: nn.Module, norm: nn.Module) -> Tensor:
        squeezed = torch.stack([z.squeeze(axis) for z in pair], dim=1)
        if axis == 3:  # rows by channels, as the authors turn it
            return (
                torch.sigmoid(norm(ops.convolve(squeezed.transpose(2, 3), conv)))
                .squeeze(1)
                .transpose(1, 2)
                .unsqueeze(3)
            )
        return torch.sigmoid(norm(ops.convolve(squeezed, conv))).squeeze(1).unsqueeze(axis)
