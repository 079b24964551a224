"""A spatial transformer at work: items of clothing, rotated, scaled and shifted, classified with and without one."""

from __future__ import annotations

import io

import matplotlib.pyplot as plt
import torch
from common import arguments, images, measure, quick, table, write_page
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

import regard
from regard.comparison import data
from regard.mechanisms.stn import sample

ARMS = ("none", "wider", "stn")
SIDE, ITEM = 48, 28  # pixels along each side: of the image, and of the item in it
TURN, SMALLEST, LARGEST, SHIFT = 60, 0.7, 1.3, 8  # degrees either way, scales, pixels either way
EPOCHS, BATCH = 10, 128
RATE, LOCALISATION_RATE = 3e-3, 3e-4  # the localisation network is trained more slowly than the trunk


def displaced(items: Tensor, generator: torch.Generator) -> Tensor:
    """Every item rotated, scaled and shifted at random on a larger image: uint8 (B, 1, 28, 28) -> (B, 1, 48, 48)."""
    angle, scale, right, down = torch.rand(4, len(items), generator=generator)
    angle = torch.deg2rad(TURN * (2 * angle - 1))
    zoom = SIDE / ITEM / (SMALLEST + (LARGEST - SMALLEST) * scale)  # places of the image to places of the item
    cosine, sine = zoom * angle.cos(), zoom * angle.sin()
    x, y = (SHIFT / (SIDE / 2) * (2 * shift - 1) for shift in (right, down))
    theta = torch.stack([cosine, sine, -(cosine * x + sine * y), -sine, cosine, sine * x - cosine * y], dim=1)
    return sample(items.float() / 255, theta.view(-1, 2, 3), size=(SIDE, SIDE))


def block(channels: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, out, 3, 2, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU())


def build(arm: str, seed: int) -> nn.Sequential:
    """A small CNN; "stn" puts a transformer in front of it, "wider" spends as many parameters on the CNN itself."""
    torch.manual_seed(seed)
    a, b, c = (20, 40, 76) if arm == "wider" else (16, 32, 64)
    trunk = nn.Sequential(
        block(1, a), block(a, b), block(b, c), nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(9 * c, 10)
    )
    front = regard.create("stn", 1) if arm == "stn" else nn.Identity()
    return nn.Sequential(front, trunk).to(memory_format=torch.channels_last)


def trained(arm: str, seed: int) -> nn.Sequential:
    """One run: the seed gives the weights of the trunk, the order of the images and how each is displaced."""
    fashion = images("fashion")
    index = fashion.split(seed).train[: 256 if quick() else None]
    model = build(arm, seed)
    groups = [
        {"params": model[0].parameters(), "lr": LOCALISATION_RATE},
        {"params": model[1].parameters(), "lr": RATE},
    ]
    optimiser = torch.optim.AdamW([group for group in groups if group["params"]], weight_decay=0.01)
    epochs = 1 if quick() else EPOCHS
    rates = [group["lr"] for group in optimiser.param_groups]
    steps = epochs * -(-len(index) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rates, steps, pct_start=0.15)
    for epoch in range(epochs):
        generator = data.stream(seed, epoch, "displace")
        for batch in torch.from_numpy(data.order(index, seed, epoch)).split(BATCH):
            x = displaced(torch.from_numpy(fashion.pixels[batch]), generator)
            loss = F.cross_entropy(model(x), torch.from_numpy(fashion.labels[batch]))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    return model.eval()
