"""Places: where on a map that is cut into windows somebody looks from, and what is seen from there."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Place:
    """One place of a map in every image, as windows hold it.

    Attributes:
        window, row: (B,); which window it is in, and which of its tokens it is.
        heads: axis of the heads in the values of all windows (\\*windows, N, width), which is among those in front.
        where: (B, N); the pixels of that window's tokens in their own image, and h * w for what was added.
        sides: of the map.
    """

    window: Tensor
    row: Tensor
    heads: int
    where: Tensor
    sides: tuple[int, int]

    @classmethod
    def of(
        cls, pixels: Tensor, heads: int, sides: tuple[int, int], batch: int, query: tuple[float, float]
    ) -> Place | None:
        """None where the place is in no window, or in several.

        Args:
            pixels: (windows, N), of the tokens.
            heads: the axis of the heads in the values.
            sides: of the map.
            batch: number of images.
            query: the place (row, column) as shares of the sides.
        """
        height, width = sides
        at = min(height - 1, int(query[0] * height)) * width + min(width - 1, int(query[1] * width))
        images = torch.arange(batch, device=pixels.device) * height * width
        window, row = torch.isin(pixels, images + at).nonzero(as_tuple=True)
        if len(window) != batch:
            return None
        order = pixels[window, row].argsort()  # that of the images
        window, row = window[order], row[order]
        mine = pixels[window]
        where = (mine % (height * width)).masked_fill(mine < 0, height * width)
        return cls(window, row, heads, where, sides)

    def tokens(self, values: Tensor) -> Tensor:
        """Those of its windows, (B, heads, N, width), of the values of all windows."""
        values = values.movedim(self.heads, -3)
        return values[self._windows(values.shape[:-3])]

    def token(self, values: Tensor) -> Tensor:
        """Its own, (B, heads, width), of the values of all windows."""
        values = values.movedim(self.heads, -3)
        return values[(*self._windows(values.shape[:-3]), slice(None), self.row)]

    def _windows(self, shape: torch.Size) -> tuple[Any, ...]:
        return (self.window,) if len(shape) == 1 else torch.unravel_index(self.window, shape)

    def view(self, seen: Tensor) -> Tensor:
        """What is seen from the place, on the whole map: 0 outside of its window.

        Args:
            seen: (B, heads, N).

        Returns:
            (B, heads, 1, h * w).
        """
        spread = seen.new_zeros(*seen.shape[:2], math.prod(self.sides) + 1)
        spread.scatter_add_(2, self.where.unsqueeze(1).expand_as(seen), seen)
        return spread[:, :, None, :-1]  # without what was added
