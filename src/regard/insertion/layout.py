"""How a tensor holds a map: which axis is the channels', and where the picture's pixels are."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from regard.base.errors import UserError

LAYOUTS = ("channels_first", "channels_last", "tokens")


@dataclass(frozen=True)
class Layout:
    """How a tensor holds a map (B, C, \\*spatial).

    Attributes:
        word: ``"channels_first"`` (B, C, \\*spatial); ``"channels_last"`` (B, \\*spatial, C); ``"tokens"`` (B, N, C),
            N being the pixels row by row, behind tokens that belong to no pixel.
        prefix: number of those, such as a class token; only in tokens.
        grid: the sides of the map; only in tokens.
    """

    word: str
    prefix: int = 0
    grid: tuple[int, ...] = ()

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape (B, C, \\*spatial) of the map that a tensor of this shape holds."""
        if self.word == "channels_first":
            return shape
        return (shape[0], shape[-1], *(self.grid if self.word == "tokens" else shape[1:-1]))

    def map(self, x: Tensor) -> Tensor:
        """The map (B, C, \\*spatial) that a tensor in this layout holds, as a view.

        Raises:
            UserError: as `through` does.
        """
        if self.word == "channels_first":
            return x
        if self.word == "channels_last":
            return x.movedim(-1, 1)
        pixels = x[:, self.prefix :]
        return pixels.unflatten(1, self._sides(pixels.shape[1])).movedim(-1, 1)

    def through(self, mechanism: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """Send the map through a mechanism; tokens that belong to no pixel pass beside it.

        Args:
            mechanism: (B, C, \\*spatial) -> the same shape.
            x: in this layout; the result is in the same.

        Raises:
            UserError: other tokens than the layout was made for, in a number from which their grid cannot be told.
        """
        if self.word == "channels_first":
            return mechanism(x)
        if self.word == "channels_last":
            return mechanism(self.map(x)).movedim(1, -1)
        pixels = mechanism(self.map(x)).movedim(1, -1).flatten(1, -2)
        return torch.cat([x[:, : self.prefix], pixels], 1) if self.prefix else pixels

    def _sides(self, number: int) -> tuple[int, ...]:
        """The sides of a map of so many pixels, in the proportions of the grid."""
        if number == math.prod(self.grid):
            return self.grid
        scale = (number / math.prod(self.grid)) ** (1 / len(self.grid))
        sides = tuple(round(side * scale) for side in self.grid)
        if math.prod(sides) != number or not number:
            listed = " x ".join(map(str, self.grid))
            raise UserError(
                f"{number} tokens are no map in the proportions of {listed}, for which the mechanism was attached: "
                "attach again with an example of this size"
            )
        return sides
