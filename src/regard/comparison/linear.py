"""What pixels alone say: softmax regression, the line that a network that has learnt lies above."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor
from torch.nn import functional as F

from regard.comparison import data, preprocessing
from regard.comparison.endpoints import log_loss, right

STRENGTHS = (1.0, 0.1, 0.01, 0.003, 1e-3, 1e-4, 1e-5)  # of the L2 penalty
STEPS = 40  # of L-BFGS, for each strength
SIDE = 32  # of the images, in pixels, at most
MOST_IMAGES = 20_000  # to train on
# images x numbers of an image x classes, at most; a step takes two such products, some hundredths of a second
WORK = 2e8


def measure(images: data.Images, seed: int, size: int) -> dict[str, Any]:
    """The content of linear.json: softmax regression on the pixels of one seed's training images.

    Plain L-BFGS on the mean cross-entropy plus half the squared weights times a strength, from the strongest penalty
    on, each from where the one before ended, until the log-loss on the validation images rises; the best is taken, and
    the test images are used once. There is nothing random in it, and one thread computes it, so that it repeats. A
    number of steps, not a clock, bounds the time: to some ten seconds, for which large images are averaged down and of
    very many an even share is taken.

    Args:
        images: of the comparison.
        seed: whose split is taken.
        size: side of the images as the network sees them.
    """
    begun, threads = time.perf_counter(), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = _measure(images, seed, size)
    finally:
        torch.set_num_threads(threads)
    return found | {"seconds": time.perf_counter() - begun}


def _measure(images: data.Images, seed: int, size: int) -> dict[str, Any]:
    split, classes = images.split(seed), len(images.classes)
    train = split.train[_evenly(len(split.train), MOST_IMAGES)]
    side, most = bounded(len(train), images.pixels.shape[1], classes, size)
    train = train[_evenly(len(train), most)]
    x = _pixels(images, train, size, side)
    mean = x.mean(0)
    scale = (x - mean).square().mean().sqrt().clamp_min(1e-6)
    x = (x - mean) / scale
    val, test = ((_pixels(images, part, size, side) - mean) / scale for part in (split.val, split.test))
    labels = torch.from_numpy(images.labels[train])
    weights = torch.zeros(classes, x.shape[1] + 1)
    best: dict[str, Any] = {"val_log_loss": float("inf")}
    for strength in STRENGTHS:
        weights = _fitted(x, labels, weights, strength)
        logits = _answer(val, weights).numpy()
        if (loss := log_loss(logits, images.labels[split.val])) >= best["val_log_loss"]:
            break
        best = {
            "val_log_loss": loss,
            "val_top1": float(right(logits, images.labels[split.val]).mean()),
            "l2": strength,
            "weights": weights,
        }
    logits, truth = _answer(test, best.pop("weights")).numpy(), images.labels[split.test]
    return {
        "fingerprint": images.fingerprint,
        "seed": seed,
        "side": side,
        "train_images": len(train),
        "test_images": len(truth),
        "top1": float(right(logits, truth).mean()),
        "log_loss": log_loss(logits, truth),
        **best,
        "chance": float(np.bincount(truth).max() / len(truth)),
    }


def bounded(images: int, channels: int, classes: int, side: int) -> tuple[int, int]:
    """The side to which images are averaged down, and how many of them are taken, so that `WORK` is kept."""
    per_pixel = channels * classes
    side = min(side, SIDE, max(8, int((WORK / (images * per_pixel)) ** 0.5)))
    return side, max(classes, min(images, int(WORK / (side * side * per_pixel))))


def _evenly(count: int, most: int) -> np.ndarray:
    """Places of so many among `count`, evenly spread."""
    return np.linspace(0, count - 1, min(count, most)).astype(np.int64)


def _pixels(images: data.Images, index: np.ndarray, size: int, side: int) -> Tensor:
    """The middle of each image as the network sees it, averaged down: float32 (N, channels * side * side) in 0..1."""
    batches = [
        F.adaptive_avg_pool2d(preprocessing.centre(torch.from_numpy(images.pixels[batch]), size), side).flatten(1)
        for batch in np.array_split(index, max(1, len(index) // 1000))
    ]
    return torch.cat(batches)


def _answer(x: Tensor, weights: Tensor) -> Tensor:
    """Logits (N, C) of weights (C, D + 1), the last of which are added to all."""
    return F.linear(x, weights[:, :-1], weights[:, -1])


def _fitted(x: Tensor, labels: Tensor, start: Tensor, strength: float) -> Tensor:
    rows = torch.arange(len(x))

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weights = torch.from_numpy(flat).float().view_as(start)
        logits = _answer(x, weights)
        value = F.cross_entropy(logits, labels) + strength / 2 * weights[:, :-1].square().sum()
        error = logits.softmax(1)
        error[rows, labels] -= 1
        error /= len(x)
        slope = torch.cat([error.T @ x + strength * weights[:, :-1], error.sum(0)[:, None]], 1)
        return value.item(), slope.double().flatten().numpy()

    found = minimize(loss, start.double().flatten().numpy(), jac=True, method="L-BFGS-B", options={"maxiter": STEPS})
    return torch.from_numpy(found.x).float().view_as(start)
