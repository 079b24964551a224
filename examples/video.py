"""Attention over time: in which direction does the item move? One frame cannot tell."""

from __future__ import annotations

import math

import numpy as np
import torch
from common import images, quick
from torch import Tensor, nn
from torch.nn import functional as F

import regard

ALONE = ["one frame", "frames", "frames + non-local", "frames + tam"]
ORDERED = ["temporal convolution", "temporal convolution + non-local"]
FRAMES, SIDE, ITEM, DIRECTIONS, SPEED = 8, 32, 14, 8, 2.0  # sides in pixels, speed in pixels per frame
WIDTH, STEPS, BATCH, TEST = 16, 250, 32, 2000


class TemporalConvolution(nn.Module):
    """Mix every channel with itself in the frame before and after, with three weights that do not depend on the clip."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mix = nn.Conv3d(channels, channels, (3, 1, 1), padding=(1, 0, 0), groups=channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return folded(self.mix(unfolded(x)))


class NonLocal(nn.Module):
    """regard's non_local over the pixels of all frames of a clip at once."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block = regard.create("non_local", channels)

    def forward(self, x: Tensor) -> Tensor:
        return folded(self.block(unfolded(x)))


def unfolded(x: Tensor) -> Tensor:
    """(N T, C, H, W) to (N, C, T, H, W)."""
    return x.unflatten(0, (-1, FRAMES)).transpose(1, 2)


def folded(x: Tensor) -> Tensor:
    """(N, C, T, H, W) to (N T, C, H, W)."""
    return x.transpose(1, 2).flatten(0, 1).contiguous(memory_format=torch.channels_last)


class Network(nn.Module):
    """Look at every frame by itself, on maps of 16 and 8 pixels a side, and average over pixels and frames.

    Only what stands in `early` and `late` sees more than one frame.
    """

    def __init__(self, arm: str) -> None:
        super().__init__()
        self.stem = layer(1, WIDTH, 5, stride=2)
        self.second = layer(WIDTH, WIDTH)
        self.third = layer(WIDTH, 2 * WIDTH)
        self.fourth = layer(2 * WIDTH, 2 * WIDTH)
        self.classify = nn.Linear(2 * WIDTH, DIRECTIONS)
        self.early, self.late, self.last = nn.Identity(), nn.Identity(), nn.Identity()
        if arm == "frames + tam":
            self.early, self.late = (regard.create("tam", width, frames=FRAMES) for width in (WIDTH, 2 * WIDTH))
        if arm.startswith("temporal convolution"):
            self.early, self.late = TemporalConvolution(WIDTH), TemporalConvolution(2 * WIDTH)
        if arm.endswith("non-local"):
            self.last = NonLocal(2 * WIDTH)

    def forward(self, clips: Tensor) -> Tensor:
        """(N, T, H, W) to (N, directions)."""
        x = clips.flatten(0, 1)[:, None].contiguous(memory_format=torch.channels_last)
        x = self.second(self.early(self.stem(x)))
        x = self.late(self.third(F.max_pool2d(x, 2)))
        x = self.fourth(self.last(x))
        return self.classify(x.mean((2, 3)).unflatten(0, (len(clips), -1)).mean(1))


def layer(inner: int, outer: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(inner, outer, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outer), nn.ReLU())


def items(part: int) -> Tensor:
    """Items at half their size, (N, 14, 14), of part 0 (training) or 2 (test)."""
    data = images("fashion")
    return F.avg_pool2d(torch.tensor(data.pixels[data.parts == part] / np.float32(255)), 2)[:, 0]


def film(items: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Clips, (count, T, H, W), and the direction of each, in eighths of a turn.

    One item moves straight on over a picture that wraps at its edges; another stands still, and a third is somewhere
    else in every frame. All places are drawn from the whole picture, so no frame by itself tells the direction.
    """
    direction = torch.randint(DIRECTIONS, (count,), generator=generator)
    angle = direction[:, None] * (2 * math.pi / DIRECTIONS)
    moving = SPEED * torch.arange(FRAMES)[:, None] * torch.stack([-angle.sin(), angle.cos()], dim=2)
    jumping = SIDE * torch.rand(count, FRAMES, 2, generator=generator)
    clips = torch.zeros(count, FRAMES, SIDE, SIDE)
    for path in (moving, torch.zeros_like(moving), jumping):
        shape = items[torch.randint(len(items), (count, 1), generator=generator)]
        start = SIDE * torch.rand(count, 1, 2, generator=generator)
        y, x = ((start + path).floor().long()[..., None] + torch.arange(ITEM)).remainder(SIDE).unbind(2)
        place = (torch.arange(count)[:, None, None, None], torch.arange(FRAMES)[:, None, None], y[..., None], x[:, :, None])
        clips[place] = torch.maximum(clips[place], shape)
    return clips, direction


def train(arm: str, seed: int) -> float:
    """Share of right directions, on test items."""
    torch.manual_seed(seed)
    model = Network(arm)
    seen = slice(0, 1) if arm == "one frame" else slice(None)
    steps = 3 if quick() else STEPS
    optimiser = torch.optim.AdamW(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-2, steps)
    pool, generator = items(0), torch.Generator().manual_seed(seed)
    for _ in range(steps):
        clips, direction = film(pool, BATCH, generator)
        loss = F.cross_entropy(model(clips[:, seen]), direction)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    if seed == 0:
        torch.save(model.state_dict(), kept(arm))
    model.eval()
    clips, direction = film(items(2), TEST, torch.Generator().manual_seed(0))
    with torch.inference_mode():
        answers = torch.cat([model(batch[:, seen]) for batch in clips.split(BATCH)])
    return (answers.argmax(1) == direction).float().mean().item()
