"""Convolutions as the mechanisms need them: over any number of spatial axes."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from regard.base.errors import UserError

CLASSES: dict[int, type[nn.Conv1d | nn.Conv2d | nn.Conv3d]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
FUNCTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def conv(spatial_dims: int, *args: Any, **options: Any) -> nn.Conv1d | nn.Conv2d | nn.Conv3d:
    """A convolution over 1, 2 or 3 spatial axes; the other arguments are torch's."""
    if spatial_dims not in CLASSES:
        raise UserError(f"spatial_dims is 1, 2 or 3, got {spatial_dims!r}")
    return CLASSES[spatial_dims](*args, **options)


class Mixing(nn.Conv1d):
    """A 1x1 convolution over few positions, (B, C, L) -> (B, out, L), as a matrix product, which is faster there."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__(channels, out, 1)

    def forward(self, input: Tensor) -> Tensor:
        assert self.bias is not None
        return torch.baddbmm(self.bias.unsqueeze(1), self.weight.squeeze(2).expand(input.shape[0], -1, -1), input)


class Pointwise(nn.Linear):
    """A 1x1 convolution, (B, C, *spatial) -> (B, out, *spatial), for any number of spatial axes up to three.

    Its weights are those of ``torch.nn.Linear``, (out, C), and start as those of a 1x1 convolution.
    """

    def forward(self, input: Tensor) -> Tensor:
        axes = input.dim() - 2
        return FUNCTIONS[axes](input, self.weight.reshape(*self.weight.shape, *[1] * axes), self.bias)
