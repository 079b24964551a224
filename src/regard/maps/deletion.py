"""Deletion and insertion: what becomes of a class's probability when the regions that a map shows are blurred."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from regard.maps.targets import logits_of
from regard.networks.replica import borrowed

STEPS = 20


@dataclass(frozen=True)
class Curves:
    """The probability of the class while pixels are deleted or inserted, the map's highest first, as a share of that
    on the whole picture.

    Attributes:
        deletion, insertion: (B, steps + 1), from no pixel to all.
        chance: (2, B, steps + 1), the same for pixels in random order.
    """

    deletion: np.ndarray
    insertion: np.ndarray
    chance: np.ndarray

    @property
    def all(self) -> dict[str, np.ndarray]:
        """The four by their names."""
        both = {"deletion": self.deletion, "insertion": self.insertion}
        return both | {f"random {name}": curve for name, curve in zip(both, self.chance, strict=True)}

    @property
    def areas(self) -> dict[str, float]:
        """Under each curve, mean over the images: deletion is good when low, insertion when high."""
        return {name: float(((curve[:, 1:] + curve[:, :-1]) / 2).mean()) for name, curve in self.all.items()}

    @property
    def gain(self) -> float:
        """The area between insertion and deletion, less that for pixels in random order."""
        areas = self.areas
        return areas["insertion"] - areas["deletion"] - (areas["random insertion"] - areas["random deletion"])


def deletion_insertion(
    model: nn.Module,
    images: Tensor,
    maps: Tensor,
    target: int | Sequence[int] | Tensor | None = None,
    *,
    steps: int = STEPS,
    batch: int = 32,
    chance: np.ndarray | None = None,
) -> Curves:
    """Blur the picture in the order of a map, or sharpen a blurred one, and follow the probability of the class.

    Source:   Petsiuk et al. 2018, RISE, arXiv 1806.07421. What is deleted is blurred, which looks less strange to a
              network than grey.

    Args:
        model: gives (B, classes).
        images: (B, C, H, W), as the model takes them.
        maps: (B, h, w) or (B, 1, h, w).
        target: a class, or one for each image; None takes the class that each image is given.
        steps: at which the probability is read.
        batch: images at a time.
        chance: of an earlier call for the same images, target and steps, which is then not computed again.
    """
    mapped, random = _ranks(maps, images)
    blurred = _blurred(images)
    with torch.inference_mode(), borrowed(model) as replica:

        def probabilities(pictures: Tensor) -> Tensor:
            return torch.cat([logits_of(replica(part)).float().softmax(1) for part in pictures.split(batch)])

        full = probabilities(images)
        classes = full.argmax(1) if target is None else torch.as_tensor(target, device=full.device).expand(len(full))
        chosen = classes.unsqueeze(1)
        first = full.gather(1, chosen)

        def curve(ranks: Tensor, there: Tensor, away: Tensor) -> np.ndarray:
            pictures = _replaced(ranks, there, away, steps)
            shares = [(probabilities(picture).gather(1, chosen) / first).squeeze(1) for picture in pictures]
            return torch.stack(shares, 1).cpu().numpy()

        both = (blurred, images), (images, blurred)
        deletion, insertion = (curve(mapped, *pair) for pair in both)
        if chance is None:
            chance = np.stack([curve(random, *pair) for pair in both])
    return Curves(deletion, insertion, chance)


def _ranks(maps: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
    """The place of every pixel (B, H * W) in the order of a map, highest first, and in a random order."""
    maps = maps.reshape(len(images), 1, *maps.shape[-2:]).float()
    values = F.interpolate(maps, images.shape[2:], mode="bilinear").flatten(1)
    generator = torch.Generator().manual_seed(0)
    random = torch.stack([torch.randperm(values.shape[1], generator=generator) for _ in images]).to(values.device)
    # equal values in random order: not all of them from the upper left
    order = random.gather(1, values.gather(1, random).argsort(dim=1, descending=True, stable=True))
    return order.argsort(1), random.argsort(1)


def _blurred(images: Tensor) -> Tensor:
    size = max(3, min(images.shape[2:]) // 4 | 1)
    for _ in range(3):  # nearly a Gaussian
        padded = F.pad(images, [size // 2] * 4, mode="replicate")
        images = F.avg_pool2d(padded, size, stride=1)
    return images


def _replaced(ranks: Tensor, there: Tensor, away: Tensor, steps: int) -> Iterator[Tensor]:
    """The pictures `away` with more and more pixels of `there`, by their ranks (B, H * W)."""
    for step in range(steps + 1):
        early = ranks < round(step / steps * ranks.shape[1])
        yield torch.where(early.view(len(ranks), 1, *there.shape[2:]), there, away)
