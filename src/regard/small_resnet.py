"""The network of the demo: small images, and seconds for an epoch."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class Block(nn.Module):
    """Two 3x3 convolutions and their sum with the input."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.shortcut = nn.Sequential()
        if stride != 1 or channels != width:
            self.shortcut = nn.Sequential(nn.Conv2d(channels, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        branch = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(branch + self.shortcut(x))


class SmallResNet(nn.Module):
    """A residual network for small images: a stem that halves the sides, then three stages.

    Shape: (B, channels, H, W) -> (B, classes)

    Args:
        classes: width of the output.
        channels: of the images.
        width: of the first stage; the second has twice, the third four times as many.
        depth: blocks in each stage.
    """

    def __init__(self, classes: int, channels: int = 3, *, width: int = 16, depth: int = 1) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(channels, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        stages = []
        for stage in range(3):
            entering = width * 2 ** max(0, stage - 1)
            blocks = [Block(entering, width * 2**stage, stride=2 if stage else 1)]
            blocks += [Block(width * 2**stage, width * 2**stage, stride=1) for _ in range(depth - 1)]
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(4 * width, classes)

    def get_classifier(self) -> nn.Module:
        return self.head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stages(self.stem(x)).mean((2, 3)))
