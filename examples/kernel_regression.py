"""Attention before attention: guess a function from noisy values, weighed by how near they were measured."""

from __future__ import annotations

import io

import matplotlib.pyplot as plt
import torch
from common import arguments, measure, quick, table, write_page
from matplotlib.colors import PowerNorm
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

import regard
from regard.mechanisms.kernel_regression import KernelRegression

ARMS = ("average", "fixed width", "rule of thumb", "learnt width")
COLOURS = ("#999999", "#0072B2", "#D55E00", "#009E73")  # told apart by colour-blind readers too
KNOWN, NOISE, END = 60, 0.5, 6.0  # how many noisy values are known, their standard deviation, and where the axis ends


def truth(x: Tensor) -> Tensor:
    return torch.sin(2 * x) + x / 3


def known(seed: int) -> tuple[Tensor, Tensor]:
    """Places and noisy values, (1, KNOWN, 1) each: the keys and values of attention."""
    generator = torch.Generator().manual_seed(seed)
    keys = END * torch.rand(1, KNOWN, 1, generator=generator).sort(dim=1).values
    return keys, truth(keys) + NOISE * torch.randn(keys.shape, generator=generator)


def fit(arm: str, keys: Tensor, values: Tensor) -> KernelRegression:
    """All arms are one mechanism, a Gaussian of width 1 / w; they differ in where w comes from."""
    regression = regard.create("kernel_regression", 1, parametric=True)
    if arm == "average":
        torch.nn.init.zeros_(regression.w)  # infinitely wide: every known value weighs the same
    if arm == "rule of thumb":  # Silverman's width for a density, the statisticians' first guess
        torch.nn.init.constant_(regression.w, KNOWN**0.2 / (1.06 * keys.std()))
    if arm == "learnt width":
        learn(regression, keys, values)
    return regression


def learn(regression: KernelRegression, keys: Tensor, values: Tensor) -> None:
    """Each known value is guessed from all others: with its own key among them it would simply look at itself."""
    others = ~torch.eye(KNOWN, dtype=torch.bool)
    other_keys, other_values = (x.expand(KNOWN, -1, -1)[others].view(KNOWN, KNOWN - 1, 1) for x in (keys, values))
    optimiser = torch.optim.Adam(regression.parameters(), lr=0.1)
    for _ in range(5 if quick() else 150):
        guesses = regression(keys.transpose(0, 1), other_keys, other_values)
        optimiser.zero_grad()
        F.mse_loss(guesses, values.transpose(0, 1)).backward()
        optimiser.step()


def train(arm: str, seed: int) -> float:
    """The share of the function's ups and downs that the fit explains: 1 - its error / the error of the average."""
    keys, values = known(seed)
    queries = torch.linspace(0, END, 500).view(1, -1, 1)
    with torch.no_grad():
        average = F.mse_loss(values.mean().expand_as(queries), truth(queries))
    fitted = fit(arm, keys, values)
    with torch.no_grad():
        error = F.mse_loss(fitted(queries, keys, values), truth(queries))
    return round(1 - (error / average).item(), 5)


def draw(seed: int) -> Image.Image:
    """The fits of one seed above, and below what each query looked at."""
    keys, values = known(seed)
    queries = torch.linspace(0, END, 200).view(1, -1, 1)
    figure = plt.figure(figsize=(9, 6.6), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=(1.2, 1))
    fits = above.subplots()
    fits.plot(queries.flatten(), truth(queries).flatten(), "k--", lw=1.5, label="the function")
    fits.plot(keys.flatten(), values.flatten(), "ko", ms=4, mfc="none", label="known values")
    panels = below.subplots(1, len(ARMS), sharey=True)
    scale = PowerNorm(0.5, vmin=0, vmax=0.3)  # the same for all panels; the root lets small weights be seen
    for arm, colour, panel in zip(ARMS, COLOURS, panels, strict=True):
        regression = fit(arm, keys, values)
        with torch.no_grad(), regard.record(regression) as maps:
            guesses = regression(queries, keys, values)
        fits.plot(queries.flatten(), guesses.flatten(), color=colour, lw=2, label=arm)
        shown = panel.imshow(
            maps[0].value[0], aspect="auto", extent=(0.5, KNOWN + 0.5, END, 0), cmap="viridis", norm=scale
        )
        inverse = regression.w.item()
        panel.set_title(f"{arm}: {1 / inverse:.2f}" if inverse else arm, fontsize=10)
        panel.set_xlabel("known value, left to right")
    panels[0].set_ylabel("query x")
    below.colorbar(shown, ax=panels, label="weight", ticks=[0, 0.02, 0.1, 0.2, 0.3])
    below.suptitle("The weights: a row for each query, a column for each known value", fontsize=10)
    fits.set(xlabel="x", ylabel="y", xlim=(0, END))
    above.legend(ncols=6, fontsize=9, loc="outside upper center", handlelength=1.5, columnspacing=1.2)
    with io.BytesIO() as buffer:
        figure.savefig(buffer, dpi=100)
        return Image.open(buffer).convert("RGB")


TEXT = """
Kernel regression guesses the value of a function at a place it was never asked about (the query) as a mean of known
values, each weighed by how near its place (the key) lies. That is attention with the distance in place of the dot
product, fifty years older.

{known} noisy values of sin 2x + x / 3 are known at random places between 0 and {end:g} (noise of standard deviation
{noise}; {seeds} seeds, each with its own places and noise). All arms are `regard.create("kernel_regression", 1)` with
a Gaussian kernel and differ only in its width: *average* has an infinite one (average pooling), *fixed width* (1) is
non-parametric attention, *rule of thumb* takes Silverman's width from the number and spread of the places, *learnt
width* is parametric attention: one parameter, trained by guessing each known value from the others (150 steps of Adam).
The score is the share of the function's ups and downs that the fit explains, 1 - (its mean squared error) / (that of
the average), on 500 even places of the function without noise; 100 % is perfect, the average has 0 % by definition.

{table}

The figure shows the first seed. Above, the fits; below, the weights as a picture. The average looks everywhere alike,
whatever the query. The fixed width looks at much too wide a neighbourhood and flattens the waves. The learnt width is
the narrowest: a sharp diagonal, so each query looks at the few values next to it.

How much is gained over the fixed width says little by itself: 1 is an arbitrary number in the units of x, and for a
slower function it might have been the best one. The rule of thumb is the fairer opponent. Not tried: other kernels,
several dimensions, widths that vary along the axis, and choosing the width by trying many.
"""


def main() -> None:
    asked = arguments(__doc__, seeds=20)
    scores = measure("kernel_regression", train, ARMS, range(asked.seeds))
    text = TEXT.format(
        known=KNOWN, end=END, noise=NOISE, seeds=asked.seeds,
        table=table(scores, against="fixed width", what="explained"),
    )  # fmt: skip
    alt = "Four fits of a noisy function, and their weights between queries and known values as four pictures"
    write_page("kernel_regression", "Kernel regression: attention before attention", text, draw(seed=0), alt)


if __name__ == "__main__":
    main()
