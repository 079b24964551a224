"""A task that asks for attention and a network that cannot do it without, for `make robustness`.

Inside each image lies a checked square, bright or dark, its checks fine or coarse. Around the image runs a frame, light
or dark, and a dark one turns round what fine and coarse mean. Nothing of 4 x 4 pixels holds both the frame and the
square, and the network sees no more at a time: what it adds up over the image can never know the one by the other, as
no sum of two numbers tells whether they are alike. A gate that is made of the average over the image can.
"""

import numpy as np
from torch import Tensor, nn
from torch.nn import functional as F

SIDE, WIDTH, SIGHT = 32, 32, 4
CLASSES = 4


def draw(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Images (count, 32, 32) uint8 and their classes: 2 * bright + (coarse, or in a dark frame fine)."""
    random = np.random.default_rng(seed)
    bright, coarse, dark = random.integers(0, 2, (3, count))
    images = random.normal(110, 12, (count, SIDE, SIDE))
    rows, columns = np.mgrid[:16, :16]
    for image, level, wide, night in zip(images, bright, coarse, dark, strict=True):
        checks = (rows // (1 + wide) + columns // (1 + wide)) % 2
        image[8:24, 8:24] += 50 * (2 * level - 1) + 40 * (2 * checks - 1)
        frame = np.ones((SIDE, SIDE), bool)
        frame[4:-4, 4:-4] = False
        image[frame] += 60 * (1 - 2 * night)
    return images.clip(0, 255).astype(np.uint8), 2 * bright + (coarse ^ dark)


class Block(nn.Module):
    """A residual block that looks at one place at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(WIDTH, WIDTH, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(WIDTH)
        self.conv2 = nn.Conv2d(WIDTH, WIDTH, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))))


class NearSighted(nn.Module):
    """Patches of 4 x 4 pixels, each seen by itself, and their average."""

    def __init__(self, num_classes: int, in_chans: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_chans, WIDTH, SIGHT, stride=SIGHT, bias=False)
        self.norm = nn.BatchNorm2d(WIDTH)
        self.blocks = nn.Sequential(*[Block() for _ in range(3)])
        self.head = nn.Linear(WIDTH, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(F.relu(self.norm(self.stem(x)))).mean((2, 3)))


def build(num_classes: int, in_chans: int) -> nn.Module:
    return NearSighted(num_classes, in_chans)
