"""Fashion-MNIST, a part of it, and Cluttered Fashion, which is made of it, as decoded images."""

from __future__ import annotations

import lzma
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from regard.comparison import storage
from regard.comparison.draws import draws
from regard.comparison.embedded import packaged
from regard.comparison.folders import SIZES, TEST, TRAIN

FASHION_CLASSES = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
FASHION_TRAINING, FASHION_TEST = 10_000, 10_000
GROUP = 2_000  # of Cluttered Fashion's first test images, whose pieces come from one another
PIECES, PIECE = 10, 9  # Cluttered Fashion: how many pieces of other items, and their side in pixels


def write_embedded(folder: Path, key: dict[str, Any]) -> None:
    count, side = FASHION_TRAINING + FASHION_TEST, SIZES["fashion"]
    stored = np.frombuffer(lzma.decompress(packaged().read_bytes()), np.uint8)
    pixels, labels = stored[:-count].reshape(count, side, side), stored[-count:].astype(np.int64)
    training = np.arange(count) < FASHION_TRAINING
    masks = None
    if key["source"] == "cluttered":
        # the pieces in a test image come from test images
        parts = np.split(pixels, [FASHION_TRAINING, FASHION_TRAINING + GROUP])
        cluttered = [_clutter(part, what) for part, what in zip(parts, ("train", "test", "more test"), strict=True)]
        pixels, masks = (np.concatenate(arrays) for arrays in zip(*cluttered, strict=True))
    if pixels.shape[-1] != key["side"]:
        pixels = _resized(pixels, key["side"])
        masks = _resized(masks * np.uint8(255), key["side"]) > 127 if masks is not None else None
    storage.save(folder / "images.npy", pixels[:, None])
    names = [f"train/{i}" for i in range(training.sum())] + [f"test/{i}" for i in range((~training).sum())]
    storage.finish(folder, key, FASHION_CLASSES, names, labels, np.where(training, TRAIN, TEST), masks=masks)


def _clutter(items: np.ndarray, what: str) -> tuple[np.ndarray, np.ndarray]:
    """Cluttered Fashion: each item at a random place on a larger image, among pieces of other items.

    Args:
        items: uint8 (N, s, s), black around the item.
        what: names the random stream.

    Returns:
        The images, uint8 (N, S, S), and where the item is, bool of the same shape.
    """
    count, side = items.shape[:2]
    room = SIZES["cluttered"]
    # one row for the item's place (y, x), then five for each piece: which item, from (y, x), to (y, x)
    rows = iter(draws((2 + 5 * PIECES) * count, what, "clutter").reshape(-1, count))

    def draw(choices: int) -> np.ndarray:
        return (next(rows) % np.uint64(choices)).astype(np.int64)

    def places(image: np.ndarray, within: int, edge: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The index of one square of `edge` pixels in each image of `within` pixels, at a place drawn for it."""
        top, left = (draw(within - edge + 1)[:, None] + np.arange(edge) for _ in range(2))
        return image[:, None, None], top[:, :, None], left[:, None, :]

    each = np.arange(count)
    canvas = np.zeros((count, room, room), np.uint8)
    for _ in range(PIECES):
        other = (each + 1 + draw(count - 1)) % count
        pieces = items[places(other, side, PIECE)]
        target = places(each, room, PIECE)
        canvas[target] = np.maximum(canvas[target], pieces)
    mask = np.zeros(canvas.shape, bool)
    target = places(each, room, side)
    mask[target] = items > 0
    canvas[target] = np.where(items > 0, items, canvas[target])
    return canvas, mask


def _resized(pixels: np.ndarray, side: int) -> np.ndarray:
    return np.stack([np.asarray(Image.fromarray(p).resize((side, side), Image.Resampling.LANCZOS)) for p in pixels])
