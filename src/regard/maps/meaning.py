"""`judge`: whether a map means anything, in figures of what it varies with, what the network loses with it, and whether
it finds the object."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from regard.base.arrays import array
from regard.base.errors import UserError
from regard.maps.deletion import Curves
from regard.maps.figures import FIGURES


@dataclass(frozen=True)
class Meaning:
    """Figures of the maps of one layer of a network, on several images; what cannot be told is None.

    Attributes:
        spread: 95th less 5th percentile, or the standard deviation where that is more (a map of one place), over the
            mean absolute value, of the median image.
        entropy: of a map taken as shares of its sum, over that of an even map: 1 says nothing of where, near 0 one
            place; of the median image.
        between_images: share of the maps' variance that is between images: 0 where every image has the same map.
        by_class: of channels, the share of the variance between images that is between their classes; 0 is chance.
        edges: rank correlation with the strength of the picture's edges, median.
        random_weights: rank correlation with the maps of the same network with randomised weights, median.
        matters: insertion less deletion, both as areas under their curves, less the same for pixels in random order.
        pointing: share of the images whose highest value lies on the object.
        on_object: share of the maps' sum that lies on the object, mean; chance is `object_area`.
        object_area: the object's share of the picture, mean.
    """

    spread: float
    entropy: float
    between_images: float | None = None
    by_class: float | None = None
    edges: float | None = None
    random_weights: float | None = None
    matters: float | None = None
    pointing: float | None = None
    on_object: float | None = None
    object_area: float | None = None

    @property
    def figures(self) -> dict[str, float]:
        """What could be told."""
        return {name: value for name in FIGURES if (value := getattr(self, name)) is not None}

    @property
    def words(self) -> list[str]:
        """What a reader must know before reading anything into the colours; empty where there is nothing."""
        warnings = [FIGURES[name].warning for name, value in self.figures.items() if FIGURES[name].warns(value)]
        return warnings[:1] if FIGURES["spread"].warns(self.spread) else warnings

    def __str__(self) -> str:
        """The figures in a line."""
        return ", ".join(
            f"{name.replace('_', ' ')} {round(value, 2) + 0.0:.2f}" for name, value in self.figures.items()
        )


def judge(
    maps: Any,
    images: Any = None,
    *,
    masks: Any = None,
    random: Any = None,
    classes: Sequence[int] | None = None,
    curves: Curves | None = None,
) -> Meaning:
    """Say in figures whether maps carry information, before anybody reads a meaning into their colours.

    Args:
        maps: (K, ...): one map for each of K images, of pixels (K, h, w) or (K, 1, h, w), or of channels (K, n).
        images: (K, C, H, W) of any range, for `edges`; only for maps of pixels.
        masks: (K, H, W), true on the object, for `pointing`, `on_object` and `object_area`; likewise.
        random: maps of the first images, or all, of the same layer with other weights, see
            `regard.maps.randomisation`.
        classes: (K,) of the images; only for channels.
        curves: of the same maps, from `regard.maps.deletion`.

    Raises:
        UserError: the numbers of maps, images and masks differ, or a map holds NaN or infinity.
    """
    values = _checked(maps, images, masks, random, classes)
    flat = values.reshape(len(values), -1)
    figures = {"spread": _spread(flat), "entropy": float(np.median([_entropy(row) for row in flat]))}
    if len(flat) > 1:
        figures["between_images"] = _between_images(flat)
    if images is not None and values.ndim == 3:
        figures["edges"] = rank_correlation(flat, edge_strength(images, values.shape[1:]))
    if masks is not None and values.ndim == 3:
        figures |= _on_object(values, array(masks) > 0)
    if random is not None:
        figures["random_weights"] = rank_correlation(values[: len(random)], random)
    if classes is not None and values.ndim == 2 and (effect := class_effect(values, classes)):
        figures["by_class"] = effect[0]
    if curves is not None:
        figures["matters"] = curves.gain
    return Meaning(**figures)


def _checked(maps: Any, images: Any, masks: Any, random: Any, classes: Any) -> np.ndarray:
    """The maps as float64 (K, ...), where the other arguments of `judge` fit them."""
    values = array(maps).astype(np.float64)
    if values.ndim == 4 and values.shape[1] == 1:
        values = values[:, 0]
    for what, given in (("images", images), ("masks", masks), ("classes", classes)):
        if given is not None and len(given) != len(values):
            raise UserError(f"judge: there are {len(values)} maps and {len(given)} {what}; give one for each map")
    if random is not None and len(random) > len(values):
        raise UserError(f"judge: there are {len(values)} maps, and {len(random)} of random weights")
    if not np.isfinite(values).all():
        raise UserError("judge: a map holds NaN or infinity; look at the network that made it")
    return values


def _spread(flat: np.ndarray) -> float:
    low, high = np.percentile(flat, (5, 95), axis=1)
    size = np.abs(flat).mean(axis=1)
    reach = np.maximum(high - low, flat.std(axis=1))
    return float(np.median(np.divide(reach, size, out=np.zeros_like(size), where=size > 0)))


def _entropy(row: np.ndarray) -> float:
    row = row - min(0.0, float(row.min()))
    if len(row) < 2 or row.sum() <= 0:
        return 1.0
    shares = row[row > 0] / row.sum()
    return float(-(shares * np.log(shares)).sum() / math.log(len(row)))


def _between_images(flat: np.ndarray) -> float:
    between, within = flat.var(axis=0).mean(), flat.mean(axis=0).var()
    return float(between / (between + within)) if between + within > 0 else 0.0


def rank_correlation(maps: Any, others: Any) -> float:
    """Rank correlation of maps with others of the same images, median."""
    pairs = zip(array(maps), array(others), strict=True)
    return float(np.median([_correlation(one.ravel(), other.ravel()) for one, other in pairs]))


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Of the ranks; 0 where one of them is constant."""
    from scipy.stats import rankdata

    a, b = rankdata(a), rankdata(b)
    return float(np.corrcoef(a, b)[0, 1]) if a.std() > 0 and b.std() > 0 else 0.0


def edge_strength(images: Any, sides: tuple[int, ...]) -> np.ndarray:
    """(K, h, w): how strong the edges of the picture are, on the pixels of a map."""
    grey = torch.as_tensor(array(images)).mean(1, keepdim=True)
    smooth, steps = torch.tensor([1.0, 2, 1], dtype=grey.dtype), torch.tensor([-1.0, 0, 1], dtype=grey.dtype)
    kernels = torch.stack([torch.outer(smooth, steps), torch.outer(steps, smooth)]).unsqueeze(1)
    strength = F.conv2d(F.pad(grey, (1, 1, 1, 1), mode="replicate"), kernels).norm(dim=1, keepdim=True)
    return array(F.adaptive_avg_pool2d(strength, (sides[0], sides[1])).squeeze(1))


def class_effect(values: np.ndarray, classes: Sequence[int]) -> tuple[float, np.ndarray] | None:
    """How much channel gates follow the class: the share of the variance over images that is between classes, less
    what chance gives (epsilon squared), of all channels together and of each.

    Args:
        values: (K, C).
        classes: (K,).

    Returns:
        The share and the shares (C,); None unless there are two classes, and two images of one of them.
    """
    present, which = np.unique(np.asarray(classes), return_inverse=True)
    free = len(values) - len(present)
    if len(present) < 2 or free < 1:
        return None
    means = np.stack([values[which == number].mean(0) for number in range(len(present))])
    inside = ((values - means[which]) ** 2).sum(0) / free
    total = ((values - values.mean(0)) ** 2).sum(0) / (len(values) - 1)
    shares = 1 - np.divide(inside, total, out=np.ones_like(inside), where=total > 0)
    return (float(1 - inside.sum() / total.sum()) if total.sum() > 0 else 0.0), shares


def _on_object(values: np.ndarray, masks: np.ndarray) -> dict[str, float]:
    """The pointing game (Zhang et al. 2018) and the energy on the object (Wang et al. 2020)."""
    large = F.interpolate(torch.as_tensor(values).unsqueeze(1), masks.shape[1:], mode="bilinear").squeeze(1).numpy()
    peaks = large.reshape(len(large), -1).argmax(1)
    large = large - np.minimum(0, large.min((1, 2), keepdims=True))
    total = large.sum((1, 2))
    shares = np.divide((large * masks).sum((1, 2)), total, out=masks.mean((1, 2)), where=total > 0)
    return {
        "pointing": float(masks.reshape(len(masks), -1)[np.arange(len(masks)), peaks].mean()),
        "on_object": float(shares.mean()),
        "object_area": float(masks.mean()),
    }
