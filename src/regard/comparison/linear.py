"""What pixels alone say: softmax regression, the line that a network that has learnt lies above."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from regard.comparison import data
from regard.comparison.endpoints import log_loss, right

STRENGTHS = (1.0, 0.1, 0.03, 0.01, 0.003, 1e-3, 1e-4, 1e-5)  # of the L2 penalty
STEPS = 40  # of L-BFGS, for each strength
SIDE = 32  # of the images, in pixels, at most
MOST_IMAGES = 20_000  # to train on
# images x numbers of an image x classes, at most; a step takes two such products, some hundredths of a second
WORK = 2e8


def measure(question: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The content of linear.json: softmax regression on the pixels of the first seed's training images.

    Plain L-BFGS on the mean cross-entropy plus half the squared weights times a strength, from the strongest penalty
    on, each from where the one before ended, until the log-loss on the validation images rises; the best is taken, and
    the test images are used once. There is nothing random in it. A number of steps, not a clock, bounds the time: to
    some ten seconds of one core, for which large images are averaged down and of very many an even share is taken.
    """
    begun = time.perf_counter()
    images = data.load(folder / "data")
    split = images.split(question["seed"])
    train = split.train[_evenly(len(split.train), MOST_IMAGES)]
    side, most = size(len(train), images.pixels.shape[1], len(images.classes), question["size"])
    train = train[_evenly(len(train), most)]
    x = _pixels(images, train, question["size"], side)
    mean = x.mean(0)
    scale = (x - mean).square().mean().sqrt().clamp_min(1e-6)
    x = (x - mean) / scale
    val, test = ((_pixels(images, part, question["size"], side) - mean) / scale for part in (split.val, split.test))
    labels = torch.from_numpy(images.labels[train])
    weight = torch.zeros(len(images.classes), x.shape[1], requires_grad=True)
    bias = torch.zeros(len(images.classes), requires_grad=True)
    best: dict[str, Any] = {"val_log_loss": float("inf")}
    for strength in STRENGTHS:
        _fit(x, labels, weight, bias, strength)
        logits = F.linear(val, weight, bias).detach().numpy()
        if (loss := log_loss(logits, images.labels[split.val])) >= best["val_log_loss"]:
            break
        best = {
            "val_log_loss": loss,
            "val_top1": float(right(logits, images.labels[split.val]).mean()),
            "l2": strength,
            "logits": F.linear(test, weight, bias).detach().numpy(),
        }
    logits, truth = best.pop("logits"), images.labels[split.test]
    return {
        "fingerprint": images.fingerprint,
        "seed": question["seed"],
        "side": side,
        "train_images": len(train),
        "test_images": len(truth),
        "top1": float(right(logits, truth).mean()),
        "log_loss": log_loss(logits, truth),
        **best,
        "chance": float(np.bincount(truth).max() / len(truth)),
        "seconds": time.perf_counter() - begun,
    }


def size(images: int, channels: int, classes: int, side: int) -> tuple[int, int]:
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
        F.adaptive_avg_pool2d(data.centre(torch.from_numpy(images.pixels[batch]), size), side).flatten(1)
        for batch in np.array_split(index, max(1, len(index) // 1000))
    ]
    return torch.cat(batches)


def _fit(x: Tensor, labels: Tensor, weight: Tensor, bias: Tensor, strength: float) -> None:
    optimiser = torch.optim.LBFGS([weight, bias], max_iter=STEPS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = F.cross_entropy(F.linear(x, weight, bias), labels) + strength / 2 * weight.square().sum()
        loss.backward()
        return loss

    optimiser.step(closure)
