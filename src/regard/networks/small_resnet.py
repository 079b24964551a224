"""The network of the demo: small images, and seconds for an epoch."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F


class Block(nn.Module):
    """Two 3x3 convolutions and their sum with the input; where sides are halved, the largest of four is taken.

    The branch is pooled behind its first convolution, which loses less than a stride does.
    """

    def __init__(self, channels: int, width: int, *, halve: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, 1, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.pool = _halved() if halve else nn.Identity()
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        shortcut: list[nn.Module] = [_halved()] if halve else []
        if channels != width:
            shortcut += [nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width)]
        self.shortcut = nn.Sequential(*shortcut)

    def forward(self, x: Tensor) -> Tensor:
        branch = self.norm2(self.conv2(self.pool(F.relu(self.norm1(self.conv1(x))))))
        return F.relu(branch + self.shortcut(x))


def _halved() -> nn.Module:
    return nn.MaxPool2d(2, ceil_mode=True)


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
