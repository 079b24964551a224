"""Images as the network of one run takes them: in batches, normalised, on its device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from regard.comparison import draws, preprocessing
from regard.comparison.data import Images
from regard.comparison.question import Question

FIRST = 64  # images at most from which gates and constants start


@dataclass(frozen=True)
class Loader:
    """The images of a comparison, as a network takes them.

    Attributes:
        images: all of them.
        question: what is asked.
        normalise: see `normaliser`.
    """

    images: Images
    question: Question
    normalise: Callable[[Tensor], Tensor]

    def training(self, index: np.ndarray, seed: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """(images, labels) of one epoch, batch by batch, in its order and with its crops."""
        size, device = self.question.size, self.question.device
        crops = draws.stream(seed, epoch, "augmentation")
        for batch in batches(draws.order(index, seed, epoch), self.question.batch):
            pixels = self._pixels(batch)
            if self.question.augmentation == "none":
                x = preprocessing.centre(pixels.to(device), size)
            else:
                x = preprocessing.augment(pixels, size, crops, device)
            yield self.normalise(x), torch.from_numpy(self.images.labels[batch]).to(device)

    def evaluation(self, index: np.ndarray) -> Iterator[Tensor]:
        """The middle of the images, batch by batch, in the order given."""
        for batch in batches(index, 2 * self.question.batch):
            pixels = self._pixels(batch).to(self.question.device)
            yield self.normalise(preprocessing.centre(pixels, self.question.size))

    def first(self, index: np.ndarray, seed: int) -> Tensor:
        """The first training images of a seed, as the model sees them in evaluation: the same for every arm."""
        size = self.question.size
        chosen = draws.order(index, seed, 0)[: min(FIRST, max(8, 2**20 // (3 * size**2)))]
        return self.normalise(preprocessing.centre(self._pixels(chosen), size))

    def _pixels(self, index: np.ndarray) -> Tensor:
        return torch.from_numpy(self.images.pixels[index])


def normaliser(
    mean: Sequence[float],
    std: Sequence[float],
    device: str | torch.device,
    layout: torch.memory_format = torch.channels_last,
) -> Callable[[Tensor], Tensor]:
    """What takes (B, C, H, W) in 0..1 to mean 0 and deviation 1 of each channel, in a memory layout.

    Args:
        mean, std: of each channel.
        device: where the images are.
        layout: of the result.
    """
    shift = torch.tensor(mean, device=device).view(1, -1, 1, 1)
    scale = torch.tensor(std, device=device).view(1, -1, 1, 1)
    # numbers by whole channels first, then the layout: three numbers in a row are no work for vectors
    return lambda x: (x - shift).div_(scale).contiguous(memory_format=layout)


def batches(index: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """The indices in pieces; a last batch of one image, which leaves batch norms nothing to average, joins the one
    before."""
    ends = list(range(size, len(index), size))
    if ends and len(index) - ends[-1] == 1:
        ends.pop()
    yield from np.split(index, ends)
