"""Hard attention at work: name an item among clutter from four small glimpses, at places learnt from reward."""

from __future__ import annotations

import io

import matplotlib.pyplot as plt
import torch
from common import arguments, images, measure, quick, table, write_page
from matplotlib.patches import Rectangle
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

import regard
from regard import costing
from regard.comparison import data
from regard.mechanisms.glimpse import Glimpse

ARMS = ("random", "scan", "learnt", "cnn")
IMAGE, SIDE, WIDER, GLIMPSES = 56, 8, 24, 4  # pixels: an image, the fine and the coarse patch; and glimpses of an image
SCAN = torch.tensor([[0.0, 0.0], [-0.4, -0.4], [0.4, -0.4], [0.0, 0.4]])  # places x, y from -1 to 1
EPOCHS, BATCH = 20, 64
RATE, POLICY_RATE = 1e-3, 3e-4
FIRST_SPREAD, LAST_SPREAD = 0.4, 0.1  # of the places around the policy's mean, at the start and end of training


def build(arm: str, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    if arm == "cnn":
        return nn.Sequential(
            *(nn.Conv2d(1, 4, 3, 2, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU()),
            *(nn.Conv2d(4, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()),
            *(nn.Conv2d(16, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU()),
            *(nn.Flatten(), nn.Linear(32 * 7 * 7, 10), nn.LogSoftmax(dim=1)),
        )
    widths = {"hidden": 128, "what": 128, "where": 128}
    return regard.create("glimpse", 1, side=SIDE, scales=2, factor=WIDER // SIDE, glimpses=GLIMPSES, **widths)


def places(arm: str, count: int, generator: torch.Generator) -> Tensor:
    """Where the arms that do not learn it look, (count, GLIMPSES, 2): like the learnt ones, at the centre first."""
    if arm == "scan":
        return SCAN.expand(count, -1, -1)
    drawn = 2 * torch.rand(count, GLIMPSES, 2, generator=generator) - 1
    drawn[:, 0] = 0
    return drawn


def answer(arm: str, model: nn.Module, x: Tensor, generator: torch.Generator) -> Tensor:
    """Log-probabilities, (B, 10)."""
    if arm in ("random", "scan"):
        return model(x, places(arm, len(x), generator))
    return model(x)


def trained(arm: str, seed: int) -> nn.Module:
    """One run: the seed gives the weights, the order of the images, their crops, and the places that are drawn."""
    cluttered = images("cluttered")
    index = cluttered.split(seed).train[: 256 if quick() else None]
    model = build(arm, seed)
    policy = list(model.policy.parameters()) if isinstance(model, Glimpse) else []
    others = [parameter for parameter in model.parameters() if all(parameter is not p for p in policy)]
    optimiser = torch.optim.Adam([{"params": others, "lr": RATE}, {"params": policy, "lr": POLICY_RATE}])
    epochs = 1 if quick() else EPOCHS
    steps = epochs * -(-len(index) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, [RATE, POLICY_RATE], steps, pct_start=0.1)
    for epoch in range(epochs):
        crops, drawn = data.stream(seed, epoch, "crops"), data.stream(seed, epoch, "places")
        for batch in torch.from_numpy(data.order(index, seed, epoch)).split(BATCH):
            x = data.augment(torch.from_numpy(cluttered.pixels[batch]), IMAGE, crops).contiguous()
            labels = torch.from_numpy(cluttered.labels[batch])
            if arm == "learnt":
                model.std = FIRST_SPREAD + (LAST_SPREAD - FIRST_SPREAD) * schedule.last_epoch / steps
                noise = torch.randn(GLIMPSES, len(x), 2, generator=drawn)
                loss = model.play(x, labels, start=torch.zeros(len(x), 2), noise=noise).loss
            else:
                loss = F.nll_loss(answer(arm, model, x, drawn), labels)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    return model.eval()


def test_images() -> tuple[Tensor, Tensor, Tensor]:
    """The test images, (N, 1, 56, 56), their labels, and masks of the items, (N, 56, 56)."""
    cluttered = images("cluttered")
    index = cluttered.split(0).test[:: 10 if quick() else 1]
    x = data.centre(torch.from_numpy(cluttered.pixels[index]), IMAGE)
    return x, torch.from_numpy(cluttered.labels[index]), torch.from_numpy(cluttered.masks[index])


def train(arm: str, seed: int) -> float:
    """Test accuracy of one run."""
    model = trained(arm, seed)
    x, labels, _ = test_images()
    with torch.inference_mode():
        right = answer(arm, model, x, data.stream(seed, 0, "places in the test images")).argmax(1) == labels
    return right.float().mean().item()
