"""Attention in segmentation: gates on the skips of a U-Net, and dual attention as the head of a plain encoder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from common import images, quick
from torch import Tensor, nn
from torch.nn import functional as F

import regard

SKIPS = ["unet", "unet + gates"]
HEADS = ["plain head", "danet head, attention off", "danet head"]
TRAINING, TEST, EPOCHS, BATCH = 4000, 1000, 4, 64  # images, of 56 pixels a side
CLASSES, WIDTH = 11, 16  # ten items and the background; channels of the finest map
RIGHT, WRONG, MISSED = (0, 114, 178), (230, 159, 0), (240, 240, 240)  # as told apart with any colour vision


def layer(inner: int, outer: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(inner, outer, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outer), nn.ReLU())


class UNet(nn.Module):
    """Maps of 28, 14 and 7 pixels a side, and back to 28; with gates, the coarser map says what a skip lets through."""

    def __init__(self, gated: bool) -> None:
        super().__init__()
        self.stem = layer(1, WIDTH, 5, stride=2)
        self.fine = layer(WIDTH, WIDTH)
        self.middle = nn.Sequential(layer(WIDTH, 2 * WIDTH), layer(2 * WIDTH, 2 * WIDTH))
        self.coarse = nn.Sequential(layer(2 * WIDTH, 4 * WIDTH), layer(4 * WIDTH, 4 * WIDTH))
        self.merge_middle = layer(6 * WIDTH, 2 * WIDTH)
        self.merge_fine = layer(3 * WIDTH, WIDTH)
        self.classify = nn.Conv2d(WIDTH, CLASSES, 1)
        if gated:
            self.gate_middle = regard.create("attention_gate", 2 * WIDTH, gating=4 * WIDTH)
            self.gate_fine = regard.create("attention_gate", WIDTH, gating=2 * WIDTH)
        self.gated = gated

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        fine = self.fine(self.stem(x))
        middle = self.middle(F.max_pool2d(fine, 2))
        up = self.coarse(F.max_pool2d(middle, 2))
        skip = self.gate_middle(middle, up) if self.gated else middle
        up = self.merge_middle(torch.cat([skip, F.interpolate(up, scale_factor=2.0)], dim=1))
        skip = self.gate_fine(fine, up) if self.gated else fine
        up = self.merge_fine(torch.cat([skip, F.interpolate(up, scale_factor=2.0)], dim=1))
        return (self.classify(up),)


class Encoder(nn.Module):
    """A map of 14 pixels a side, and a head that says the class of each."""

    def __init__(self, arm: str) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(layer(1, WIDTH, 5, stride=2), layer(WIDTH, WIDTH), nn.MaxPool2d(2)),
            *(layer(WIDTH, 2 * WIDTH), layer(2 * WIDTH, 2 * WIDTH)),
            *(layer(2 * WIDTH, 4 * WIDTH), layer(4 * WIDTH, 4 * WIDTH)),
        )
        self.head: nn.Module
        if arm == "plain head":
            self.head = nn.Sequential(layer(4 * WIDTH, 2 * WIDTH), nn.Dropout2d(0.1), nn.Conv2d(2 * WIDTH, CLASSES, 1))
        else:
            self.head = regard.create("danet_head", 4 * WIDTH, classes=CLASSES, reduction=2)
        if arm.endswith("attention off"):  # gamma is what both attentions are multiplied by; it starts at 0
            self.head.position.gamma.requires_grad_(False)
            self.head.channel.gamma.requires_grad_(False)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        scores = self.head(self.body(x))
        return scores if isinstance(scores, tuple) else (scores,)


def build(arm: str) -> nn.Module:
    model = UNet(arm == "unet + gates") if arm in SKIPS else Encoder(arm)
    return model.to(memory_format=torch.channels_last)


def pixels(part: int, count: int) -> tuple[Tensor, Tensor]:
    """Images, (N, 1, 56, 56), of part 0 (training) or 2 (test), and every pixel's class: 0, or the item's from 1."""
    data = images("cluttered")
    chosen = np.flatnonzero(data.parts == part)[: count // 10 if quick() else count]
    truth = data.masks[chosen] * (data.labels[chosen] + 1)[:, None, None]
    return torch.tensor(data.pixels[chosen] / np.float32(255)), torch.tensor(truth)


def kept(arm: str) -> Path:
    """Where the weights of the first seed lie, for the figure."""
    return RUNS / f"segmentation{'-quick' * quick()}-{slug(arm)}.pt"


def enlarged(scores: Tensor) -> Tensor:
    return F.interpolate(scores, size=(56, 56), mode="bilinear")


@torch.inference_mode()
def predict(model: nn.Module, x: Tensor) -> Tensor:
    """The class of every pixel, (N, 56, 56), by the first of the model's answers."""
    model.eval()
    return torch.cat([enlarged(model(batch)[0]).argmax(1) for batch in x.split(BATCH)])


def train(arm: str, seed: int) -> float:
    """Mean over the classes of intersection over union, on the test images."""
    torch.manual_seed(seed)
    model = build(arm)
    x, truth = pixels(0, TRAINING)
    epochs = 1 if quick() else EPOCHS
    optimiser = torch.optim.AdamW(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 5e-3, epochs * -(-len(x) // BATCH))
    order = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for batch in torch.randperm(len(x), generator=order).split(BATCH):
            # the head's three answers are trained together, with equal weight, as its authors do
            loss = sum(F.cross_entropy(enlarged(scores), truth[batch]) for scores in model(x[batch]))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    if seed == 0:
        torch.save(model.state_dict(), kept(arm))
    x, truth = pixels(2, TEST)
    confusion = torch.bincount((CLASSES * truth + predict(model, x)).flatten(), minlength=CLASSES**2)
    confusion = confusion.reshape(CLASSES, CLASSES)
    both = confusion.diag()
    return (both / (confusion.sum(0) + confusion.sum(1) - both)).mean().item()
