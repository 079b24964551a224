"""Attention in segmentation: gates on the skips of a U-Net, and dual attention as the head of a plain encoder."""

from __future__ import annotations

import io

import numpy as np
import torch
from common import arguments, costs, images, kept, measure, quick, table, write_page
from matplotlib import pyplot as plt
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

import regard

SKIPS = ["unet", "unet + gates"]
HEADS = ["plain head", "danet head, attention off", "danet head"]
TRAINING, TEST, BATCH = 4000, 1000, 64  # images, of 56 pixels a side
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
    """A map of 14 pixels a side, and a head that says the class of each; stretched to 28."""

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
        answers = scores if isinstance(scores, tuple) else (scores,)
        return tuple(F.interpolate(answer, scale_factor=2.0, mode="bilinear") for answer in answers)


def build(arm: str) -> nn.Module:
    model = UNet(arm == "unet + gates") if arm in SKIPS else Encoder(arm)
    return model.to(memory_format=torch.channels_last)


def pixels(part: int, count: int) -> tuple[Tensor, Tensor]:
    """Images, (N, 1, 56, 56), of part 0 (training) or 2 (test), and the class of every second pixel, (N, 28, 28).

    Class 0 is the background, the items follow from 1.
    """
    data = images("cluttered")
    chosen = np.flatnonzero(data.parts == part)[: count // 20 if quick() else count]
    truth = data.masks[chosen, ::2, ::2] * (data.labels[chosen] + 1)[:, None, None]
    return torch.tensor(data.pixels[chosen] / np.float32(255)), torch.tensor(truth)


@torch.inference_mode()
def predict(model: nn.Module, x: Tensor) -> Tensor:
    """The class of every second pixel, (N, 28, 28), by the first of the model's answers."""
    return torch.cat([model(batch)[0].argmax(1) for batch in x.split(BATCH)])


def train(arm: str, seed: int) -> float:
    """Mean over the classes of intersection over union, on the test images."""
    torch.manual_seed(seed)
    model = build(arm)
    x, truth = pixels(0, TRAINING)
    epochs, rate = (8, 3e-3) if arm in SKIPS else (4, 5e-3)
    epochs = 1 if quick() else epochs
    optimiser = torch.optim.AdamW(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, epochs * -(-len(x) // BATCH))
    order = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for batch in torch.randperm(len(x), generator=order).split(BATCH):
            # the head's three answers are trained together, with equal weight, as its authors do
            loss = sum(F.cross_entropy(scores, truth[batch]) for scores in model(x[batch]))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    if seed == 0:
        torch.save(model.state_dict(), kept("segmentation", arm))
    model.eval()
    x, truth = pixels(2, TEST)
    confusion = torch.bincount((CLASSES * truth + predict(model, x)).flatten(), minlength=CLASSES**2)
    confusion = confusion.reshape(CLASSES, CLASSES)
    both = confusion.diag()
    return (both / (confusion.sum(0) + confusion.sum(1) - both)).mean().item()


@torch.inference_mode()
def open_at(model: nn.Module, x: Tensor) -> Tensor:
    """How far the finer gate is open at every second pixel, (N, 28, 28)."""
    with regard.record(model) as maps:
        model(x)
    return maps[-1].value[:, 0]


def coloured(image: Tensor, truth: Tensor, answer: Tensor) -> np.ndarray:
    """Every second pixel in grey, (28, 28, 3), with the colours that say where the answer is right."""
    picture = (image[0, ::2, ::2, None] * 110).byte().expand(-1, -1, 3).numpy().copy()
    picture[((truth > 0) & (answer == 0)).numpy()] = MISSED
    picture[((answer > 0) & (answer != truth)).numpy()] = WRONG
    picture[((answer > 0) & (answer == truth)).numpy()] = RIGHT
    return picture


def draw(models: dict[str, nn.Module], x: Tensor, truth: Tensor) -> Image.Image:
    names = images("cluttered").classes
    columns = ["image", "truth", *SKIPS, "the finer gate", *HEADS]
    figure, axes = plt.subplots(len(x), len(columns), figsize=(11, 1.55 * len(x)), layout="constrained")
    answers = {"truth": truth} | {arm: predict(model, x) for arm, model in models.items()}
    gate = open_at(models["unet + gates"], x)
    for row, cells in enumerate(axes):
        for column, axis in zip(columns, cells, strict=True):
            picture = (x[row, 0] * 255).byte().numpy()
            if column in answers:
                answer = answers[column][row]
                picture = coloured(x[row], truth[row], answer)
                found = torch.bincount(answer[answer > 0], minlength=CLASSES)
                axis.set_xlabel(names[found.argmax() - 1] if found.any() else "nothing", fontsize=8, labelpad=2)
            elif column == "the finer gate":
                picture = np.asarray(regard.overlay(picture, gate[row], alpha=0.75, limits=(0, 1)))
            axis.imshow(picture, cmap="gray")
            axis.set(xticks=[], yticks=[])
            if row == 0:
                axis.set_title(column.replace(", ", ",\n"), fontsize=9)
    with io.BytesIO() as buffer:
        figure.savefig(buffer, dpi=82)
        return Image.open(buffer).convert("RGB")


TEXT = """
*A short training: what follows says who was ahead after some minutes, not who would be ahead in the end.*

Each image of Cluttered Fashion shows one item among pieces of other items. The task is the class of every second pixel
along each side: one of ten items, or background, to which the pieces belong too. So a network must find the one whole
item and tell what it is. The score is intersection over union, averaged over the eleven classes, on {test:,} test
images.

All arms train on the same {training:,} images of 56 x 56 pixels in batches of {batch}, the U-Nets for 8 epochs and the
heads for 4, with {seeds} seeds; in one seed all arms of a table have the same trunk and the same order of images. That
is short: longer training would probably raise every arm.

{costs}

## Gates on the skip connections

A small U-Net on maps of 28, 14 and 7 pixels a side, without and with `attention_gate` on both of its skip connections.

{skips}

At first both trained for 4 epochs too, at a higher learning rate. That was unstable: seven seeds gave 27 to 45 %
without gates and 19 to 47 % with them, with gates the lower in six. The plain U-Net, on other seeds, then chose the
longer training for both.

## A head with dual attention

One encoder with a map of 14 pixels a side at its end, and three heads: a plain one of two convolutions; `danet_head`,
its three answers trained together with equal weight as its authors do, the first one scored; and the same head with
both of its attentions multiplied by 0 for good, which tells what attention gives from what the larger head gives.

{heads}

Differences and verdicts are paired by seed, against `unet` and against `danet head, attention off`. "Better" and
"worse" hold at 5 %, corrected for the arms of each table.

## What the figure shows

Test images, and the answers of the first seed's networks. Blue: an item's pixel with its right class. Orange: a pixel
with a wrong item's class, or background taken for an item. White: an item's pixel that was missed. Below each answer
stands the item most of its pixels were taken for. The gate is dark at 0 and bright yellow at 1. On all test images the
finer gate is {on_item:.2f} in the mean on items, {on_piece:.2f} on pieces and {on_nothing:.2f} where there is nothing.
The learnt strengths (gamma) of the head's position and channel attention are {position:.2f} and {channel:.2f}; they
start at 0, where the attention does nothing.

Not tried: longer training, larger networks, other losses, gates without their last convolution, and position attention
on finer maps, where it costs more.
"""


def main() -> None:
    asked = arguments(__doc__, seeds=7)
    scores = measure("segmentation", train, SKIPS + HEADS, range(asked.seeds))
    models = {arm: build(arm).eval() for arm in SKIPS + HEADS}
    for arm, model in models.items():
        model.load_state_dict(torch.load(kept("segmentation", arm)))

    x, truth = pixels(2, TEST)
    gate, dual = open_at(models["unet + gates"], x), models["danet head"].head
    item, empty = truth > 0, (truth == 0) & (x[:, 0, ::2, ::2] == 0)
    text = TEXT.format(
        test=TEST, training=TRAINING, batch=BATCH, seeds=asked.seeds,
        costs=costs(models, lambda _: torch.zeros(1, 1, 56, 56)),
        skips=table({arm: scores[arm] for arm in SKIPS}, against="unet", what="mean IoU"),
        heads=table({arm: scores[arm] for arm in HEADS}, against="danet head, attention off", what="mean IoU"),
        on_item=gate[item].mean(), on_piece=gate[~item & ~empty].mean(), on_nothing=gate[empty].mean(),
        position=dual.position.gamma.item(), channel=dual.channel.gamma.item(),
    )  # fmt: skip
    alt = "Test images, the true pixels of the item, what five networks answered, and a gate of the U-Net"
    shown = slice(0, 50, 10)
    write_page("segmentation", "Attention in segmentation", text, draw(models, x[shown], truth[shown]), alt)


if __name__ == "__main__":
    main()
