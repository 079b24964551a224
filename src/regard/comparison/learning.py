"""Has the baseline learnt enough for a difference to mean something? Each function gives a sentence, or None if so.

Accuracies, margin and chance are fractions; sentences have percent and percentage points.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev

LONGER = "train longer (--epochs) or with another learning rate (--learning-rate)"


def near_chance(accuracies: Sequence[float], chance: float, test_images: int, margin: float) -> str | None:
    """What is wrong where the baseline is no better than naming the largest class.

    Near is what lies less than the margin above chance, or less than two standard errors of so many test images.

    Args:
        accuracies: of the baseline on the test images, one for each seed.
        chance: the share of the largest class among the test images.
        test_images: how many there are.
        margin: a difference not worth having.
    """
    noise = 2 * math.sqrt(chance * (1 - chance) / test_images)
    if not accuracies or fmean(accuracies) - chance >= max(margin, noise):
        return None
    return (
        f"the network without attention, none, is right on {_percent(fmean(accuracies))} of the test images, and"
        " whoever always names the largest class"
        f" on {_percent(chance)}, so nothing has been learnt: look at the labels, and {LONGER}."
    )


def below_linear(accuracies: Sequence[float], linear: float, test_images: int) -> str | None:
    """What is wrong where the baseline is behind a linear model on the pixels.

    Behind is what is missing by two standard errors of so many test images or more.

    Args:
        accuracies: of the baseline on the test images, one for each seed.
        linear: that of the linear model.
        test_images: how many there are.
    """
    noise = 2 * math.sqrt(linear * (1 - linear) / test_images)
    if not accuracies or fmean(accuracies) > linear - noise:
        return None
    return (
        f"the network without attention, none, is right on {_percent(fmean(accuracies))} of the test images, and a"
        " linear model on the pixels on"
        f" {_percent(linear)}: {LONGER}."
    )


def climb(curve: Sequence[float], start: float) -> float:
    """By how much accuracy rose in the last quarter of a training, a fraction; between epochs on straight lines.

    Args:
        curve: validation accuracy after each epoch.
        start: before the first.
    """
    points = [start, *curve]
    place = 0.75 * len(curve)
    below = int(place)
    return curve[-1] - (points[below] + (place - below) * (points[below + 1] - points[below]))


def rise(curves: Sequence[Sequence[float]], start: float) -> tuple[float, float] | None:
    """The mean of `climb` over seeds, and its standard error, 0 for one seed; None without a curve."""
    rises = [climb(curve, start) for curve in curves if curve]
    if not rises:
        return None
    return fmean(rises), stdev(rises) / math.sqrt(len(rises)) if len(rises) > 1 else 0.0


def ended(curves: Sequence[Sequence[float]], margin: float, start: float = 0.0) -> bool:
    """Whether the rise in the last quarter is not above the margin by its own standard error or more."""
    mean, error = rise(curves, start) or (0.0, 0.0)
    return mean - error <= margin


def still_climbing(curves: Sequence[Sequence[float]], margin: float, start: float = 0.0) -> str | None:
    """What is wrong where validation accuracy still rose by more than the margin in the last quarter of training.

    Args:
        curves: validation accuracy of the baseline after each epoch, one curve for each seed.
        margin: a difference not worth having.
        start: the accuracy before the first epoch: chance.
    """
    found = rise(curves, start)
    if found is None or ended(curves, margin, start):
        return None
    spread = f", standard error {100 * found[1]:.1f}" if len(curves) > 1 else ""
    return (
        f"the validation accuracy of none still rose by {100 * found[0]:.1f} points in the last quarter of training"
        f"{spread}; the margin is {100 * margin:g}: train longer (--epochs)."
    )


def one_image(test_images: int, margin: float) -> str | None:
    """What is wrong where one test image is worth more than the margin."""
    if test_images * margin >= 1:
        return None
    needed = math.ceil(round(1 / margin, 6))
    return (
        f"One of {test_images:,} test images is worth {100 / test_images:.2g} points, more than the margin of "
        f"{100 * margin:g}: take {needed:,} test images or more, or a larger --margin."
    )


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f} %"
