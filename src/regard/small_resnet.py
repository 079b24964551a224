"""The network of the demo: small images, and seconds for an epoch."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F


class Block(nn.Module):
    """A 3x3 convolution to another width, halved by the largest of four where asked, and a residual branch of one."""

    def __init__(self, channels: int, width: int, *, halve: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, 1, 1, bias=False)
        self.pool = nn.MaxPool2d(2, ceil_mode=True) if halve else nn.Identity()
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        # pooled before the norm, which then has a quarter of the numbers
        x = F.relu(self.norm1(self.pool(self.conv1(x))))
        return F.relu(x + self.norm2(self.conv2(x)))


class SmallResNet(nn.Module):
    """A residual network for small images: a stem that halves the sides, then three stages that each halve them again.

    Shape: (B, channels, H, W) -> (B, classes)

    Args:
        classes: width of the output.
        channels: of the images.
        width: of the first stage; the stem has three quarters of it, the others twice and four times as many.
        depth: blocks in each stage.
    """

    def __init__(self, classes: int, channels: int = 3, *, width: int = 16, depth: int = 1) -> None:
        super().__init__()
        widths = [max(1, width * 3 // 4), width, 2 * width, 4 * width]
        self.stem = nn.Sequential(
            nn.Conv2d(channels, widths[0], 3, 2, 1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU()
        )
        stages = []
        for entering, leaving in pairwise(widths):
            blocks = [Block(entering if at == 0 else leaving, leaving, halve=at == 0) for at in range(depth)]
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(widths[-1], classes)

    def get_classifier(self) -> nn.Module:
        return self.head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stages(self.stem(x)).mean((2, 3)))
