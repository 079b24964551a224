"""Attention over time: in which direction does the item move? One frame cannot tell."""

from __future__ import annotations

import io
import math

import numpy as np
import torch
from common import arguments, costs, images, kept, measure, quick, table, write_page
from matplotlib import pyplot as plt
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

import regard

FRAMEWISE = ["one frame", "frames", "frames + non-local", "frames + tam"]
CONVOLVED = ["temporal convolution", "temporal convolution + non-local"]
FRAMES, SIDE, ITEM, DIRECTIONS, SPEED = 8, 32, 14, 16, 2.0  # sides in pixels, speed in pixels per frame
WIDTH, STEPS, BATCH, TEST = 16, 250, 32, 1000
QUERY = (3, 4, 4)  # frame, row and column on the map of 8 x 8, on the moving item of the clip that is drawn


class Clipwise(nn.Module):
    """A module for clips, (N, C, T, H, W), at work in a network for frames, (N T, C, H, W)."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x.unflatten(0, (-1, FRAMES)).transpose(1, 2))
        return y.transpose(1, 2).flatten(0, 1).contiguous(memory_format=torch.channels_last)


def temporal_convolution(channels: int) -> Clipwise:
    """Mix every channel with itself in the frame before and after, by three weights that are the same for all clips."""
    return Clipwise(nn.Conv3d(channels, channels, (3, 1, 1), padding=(1, 0, 0), groups=channels, bias=False))


class Network(nn.Module):
    """Look at every frame by itself, on maps of 16 and 8 pixels a side, and average over pixels and frames.

    Only what stands in `early`, `late` and `last` sees more than one frame.
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
            self.early, self.late = temporal_convolution(WIDTH), temporal_convolution(2 * WIDTH)
        if arm.endswith("non-local"):
            self.last = Clipwise(regard.create("non_local", 2 * WIDTH))

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
    """Clips, (count, T, H, W), and the direction of each, in sixteenths of a turn from right to down.

    One item moves straight on over a picture that wraps at its edges; another stands still, and a third is somewhere
    else in every frame. All places are drawn from the whole picture, so no frame by itself tells the direction.
    """
    direction = torch.randint(DIRECTIONS, (count,), generator=generator)
    angle = direction[:, None] * (2 * math.pi / DIRECTIONS)
    moving = SPEED * torch.arange(FRAMES)[:, None] * torch.stack([angle.sin(), angle.cos()], dim=2)
    jumping = SIDE * torch.rand(count, FRAMES, 2, generator=generator)
    clips = torch.zeros(count, FRAMES, SIDE, SIDE)
    for path in (moving, torch.zeros_like(moving), jumping):
        shape = items[torch.randint(len(items), (count, 1), generator=generator)]
        start = SIDE * torch.rand(count, 1, 2, generator=generator)
        y, x = ((start + path).floor().long()[..., None] + torch.arange(ITEM)).remainder(SIDE).unbind(2)
        clip, frame = torch.arange(count)[:, None, None, None], torch.arange(FRAMES)[:, None, None]
        place = (clip, frame, y[..., None], x[:, :, None])
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
        torch.save(model.state_dict(), kept("video", arm))
    model.eval()
    clips, direction = film(items(2), 50 if quick() else TEST, torch.Generator().manual_seed(0))
    with torch.inference_mode():
        answers = torch.cat([model(batch[:, seen]) for batch in clips.split(BATCH)])
    return (answers.argmax(1) == direction).float().mean().item()


def kernels(model: nn.Module, clips: Tensor) -> list[np.ndarray]:
    """The weights of the frame before, the frame itself and the next, (lines, 3), of both places in the network."""
    if isinstance(model.early, Clipwise):
        return [place.inner.weight.detach().flatten(1).numpy() for place in (model.early, model.late)]
    with torch.inference_mode(), regard.record(model, kinds={"kernel"}) as maps:
        model(clips)
    return [map.value.flatten(0, 1)[:: map.value.shape[1] // 4].numpy() for map in maps]


def attended(model: nn.Module, clips: Tensor) -> Tensor:
    """The weights of non_local, (N, T, 8, 8, T, 8, 8): of every query's frame, row and column over all positions."""
    with torch.inference_mode(), regard.record(model, kinds={"position"}) as maps:
        model(clips)
    return maps[0].value[:, 0]


def draw(models: dict[str, nn.Module], clips: Tensor, direction: Tensor) -> Image.Image:
    """A clip, where non_local looks from one of its pixels, and how tam and a convolution mix neighbouring frames."""
    figure = plt.figure(figsize=(9, 5.2), layout="constrained")
    above, below = figure.subfigures(2, 1)
    cells = above.subplots(2, FRAMES)
    weights = attended(models[CONVOLVED[1]], clips[:1])[0][QUERY]
    for t in range(FRAMES):
        picture = (clips[0, t] * 255).byte().numpy()
        cells[0, t].imshow(picture, cmap="gray")
        limits = 0, weights.max().item()
        cells[1, t].imshow(regard.overlay(picture, weights[t], alpha=0.75, smooth=False, limits=limits))
        cells[0, t].set_title(f"frame {t + 1}", fontsize=9)
    cell = SIDE / weights.shape[-1]
    corner = (QUERY[2] * cell - 0.5, QUERY[1] * cell - 0.5)
    for row in (0, 1):
        cells[row, QUERY[0]].add_patch(plt.Rectangle(corner, cell, cell, fill=False, color="#E69F00", lw=2))
    cells[0, 0].set_ylabel("a clip", fontsize=9)
    cells[1, 0].set_ylabel("non_local", fontsize=9)
    turn = direction[0] * (2 * math.pi / DIRECTIONS)
    arrow = {"arrowstyle": "->", "color": "#56B4E9", "lw": 2}
    cells[0, 0].annotate("", (15.5 + 12 * turn.cos(), 15.5 + 12 * turn.sin()), (15.5, 15.5), arrowprops=arrow)
    for axis in cells.flat:
        axis.set(xticks=[], yticks=[])

    panels = below.subplots(1, 4)
    for first, arm in ((0, "frames + tam"), (2, "temporal convolution")):
        for panel, lines, place in zip(panels[first:], kernels(models[arm], clips), ("early", "late"), strict=False):
            panel.plot(lines.T, color="#0072B2", alpha=0.3, lw=1)
            panel.set_title(f"{'tam' if first == 0 else 'convolution'}, {place}", fontsize=9)
            panel.set_xticks(range(3), ["before", "same", "next"], fontsize=8)
            panel.axhline(0, color="0.6", lw=0.8)
            panel.tick_params("y", labelsize=8)
    panels[0].set_ylabel("weight of the frame", fontsize=9)
    with io.BytesIO() as buffer:
        figure.savefig(buffer, dpi=100)
        return Image.open(buffer).convert("RGB")


TEXT = """
*A short training: what follows says who was ahead after some minutes, not who would be ahead in the end.*

Clips of {frames} frames of {side} x {side} pixels. One item of Fashion-MNIST moves straight on, {speed} pixels per
frame, in one of {directions} directions: the direction is the class. A second item stands still, and a third is at
another place in every frame. The picture wraps at its edges and all places are drawn from the whole of it, so every
frame by itself looks the same for all directions. Chance is {chance} %.

All arms share one small CNN, which looks at every frame by itself and averages over pixels and frames; *one frame* is
given only the first. What lets frames meet stands in two places (tam, temporal convolution: behind the first and third
of its four convolutions) or in one (non-local: before the last). Each trains on {steps} batches of {batch} new clips
made of training items, with {seeds} seeds; in one seed all arms have the same trunk and see the same clips. The score
is the share of right answers on {test:,} clips of test items.

{costs}

## Frames that only meet through attention

{framewise}

Played backwards a clip has the opposite direction, but the same frames. `frames` and `frames + non-local` give the same
answer for both: the average over frames does not know their order, nor does `non_local`, to which all positions in
space and time are a set. So neither can be right more than half of the time, however long it trains. `tam` knows before
from after: an uneven kernel leaves a fading trail behind what moves, and a trail in one frame can be read by the
convolution that follows.

## Against a convolution over time

The same trunk with a plain convolution over three frames, channel by channel, in the two places of tam: three weights
per channel that are the same for every clip and may be negative. It tells `tam`, whose kernels are positive and made
for each clip, from what any mixing of neighbouring frames gives. And as it knows the order of frames, `non_local`
behind it compares positions that know in which direction they change.

{convolved}

Differences and verdicts are paired by seed, against `frames` and against `temporal convolution`. "Better" and "worse"
hold at 5 %, corrected for the arms of each table.

## What the figure shows

Above, a test clip (the arrow is its direction) and, bright where large, how `non_local` behind the temporal convolution
weighs all positions in all frames for the one query in the orange square. Of the weights of all queries of {drawn} test
clips, {own} % lie in the query's own frame; even weights would leave {even} % there. For the query drawn, the largest
weight is {largest} times the even one. Below, the weights with which neighbouring frames are mixed: on the left a line
for each of four channels in each of {drawn} clips, on the right one for each channel. All networks are the first
seed's.

Not tried: longer training, kernels of more than three frames, tam in residual blocks and with the pretrained weights
its authors start from, positions in time added to the input of non_local, other speeds.
"""


def shape(arm: str) -> Tensor:
    return torch.zeros(1, 1 if arm == "one frame" else FRAMES, SIDE, SIDE)


def main() -> None:
    asked = arguments(__doc__, seeds=7)
    scores = measure("video", train, FRAMEWISE + CONVOLVED, range(asked.seeds))
    models = {arm: Network(arm).eval() for arm in FRAMEWISE + CONVOLVED}
    for arm, model in models.items():
        model.load_state_dict(torch.load(kept("video", arm)))

    clips, direction = film(items(2), 20, torch.Generator().manual_seed(17))  # its first item stays off the edges
    weights = attended(models[CONVOLVED[1]], clips)
    own = torch.stack([weights[:, t, :, :, t].sum((-2, -1)) for t in range(FRAMES)]).mean().item()
    text = TEXT.format(
        frames=FRAMES, side=SIDE, speed=f"{SPEED:g}", directions=DIRECTIONS, chance=100 / DIRECTIONS, steps=STEPS,
        batch=BATCH, seeds=asked.seeds, test=TEST, costs=costs(models, shape), drawn=len(clips), own=f"{100 * own:.1f}",
        even=f"{100 / FRAMES:.1f}", largest=f"{weights[0][QUERY].max().item() * weights[0][QUERY].numel():.1f}",
        framewise=table({arm: scores[arm] for arm in FRAMEWISE}, against="frames", what="accuracy"),
        convolved=table(
            {arm: scores[arm] for arm in ["frames + tam", *CONVOLVED]}, against=CONVOLVED[0], what="accuracy"
        ),
    )  # fmt: skip
    alt = "A clip, where non_local looks in it from one pixel, and kernels over time of tam and of a convolution."
    write_page("video", "Attention over time", text, draw(models, clips, direction), alt)


if __name__ == "__main__":
    main()
