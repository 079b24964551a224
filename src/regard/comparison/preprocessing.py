"""What becomes of the pixels of an image before a network sees them."""

from __future__ import annotations

import numpy as np
import torch

from regard.comparison.data import Images


def normalisation(images: Images, index: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, as fractions of 1, over at most 2,000 of the indexed images."""
    chosen = index[np.linspace(0, len(index) - 1, min(len(index), 2000)).astype(np.int64)]
    channels = images.pixels.shape[1]
    counts = np.zeros((channels, 256))
    for i in chosen:
        for channel in range(channels):
            counts[channel] += np.bincount(images.pixels[i, channel].ravel(), minlength=256)
    shares = counts / counts.sum(axis=1, keepdims=True)
    values = np.arange(256) / 255
    means = shares @ values
    deviations = np.sqrt((shares * (values - means[:, None]) ** 2).sum(axis=1))
    # a channel of one value everywhere is divided by one step, not by zero
    return tuple(means.tolist()), tuple(np.maximum(deviations, 1 / 255).tolist())


def augment(
    pixels: torch.Tensor, size: int, generator: torch.Generator, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """Crop each image at a random place and mirror every other one at random.

    The crops are cut on the CPU, so that every device sees the same and only they travel to it.

    Args:
        pixels: uint8 (B, C, S, S), S >= size, on the CPU. Where S == size, a black border of size // 28 is added first,
            so that there is something to crop.
        size: the side of the crop in pixels.
        generator: on the CPU.
        device: where the result goes.

    Returns:
        (B, C, size, size) in 0..1, float32.
    """
    if pixels.shape[-1] == size:
        pixels = torch.nn.functional.pad(pixels, [size // 28] * 4)
    count, room = len(pixels), pixels.shape[-1] - size
    top, left = torch.randint(0, room + 1, (2, count), generator=generator).tolist()
    mirrored = (torch.rand(count, generator=generator) < 0.5).tolist()
    crops = torch.empty(*pixels.shape[:2], size, size, dtype=torch.uint8)
    # whole windows in a loop: an index for every pixel takes five times as long
    for crop, image, y, x, mirror in zip(crops.numpy(), pixels.numpy(), top, left, mirrored, strict=True):
        window = image[:, y : y + size, x : x + size]
        crop[:] = window[:, :, ::-1] if mirror else window
    return crops.to(device).float().div_(255)


def centre(pixels: torch.Tensor, size: int) -> torch.Tensor:
    """The middle of each image, for evaluation: uint8 (B, C, S, S) to float32 (B, C, size, size) in 0..1."""
    margin = (pixels.shape[-1] - size) // 2
    return pixels[..., margin : margin + size, margin : margin + size].float().div_(255)
