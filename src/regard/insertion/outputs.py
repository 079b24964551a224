"""Output: what a module gave, and how it holds a map."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from regard.insertion.layout import Layout
from regard.insertion.origins import Origin


@dataclass(frozen=True)
class Output:
    """What a module gave in one call.

    Attributes:
        shape: of the tensor; empty where it is none, or cannot hold a map.
        layout: how it holds a map; None where it holds none, or the dry run cannot tell how.
        words: what it is, for a sentence.
        followed: whether its pixels were followed this far.
    """

    shape: tuple[int, ...]
    layout: Layout | None
    words: str
    followed: bool = False

    @property
    def map(self) -> tuple[int, ...]:
        """(B, C, *spatial), empty where there is no map."""
        return self.layout.shape(self.shape) if self.layout else ()

    @property
    def kind(self) -> tuple[Layout | None, int, tuple[int, ...]]:
        """What must be the same in every call that one mechanism serves: layout, axes and channels."""
        return self.layout, len(self.shape), self.map[1:2]


def describe(tensor: Tensor, origin: Origin, word: str | None, pictures: bool) -> Output:
    """What a tensor is.

    Args:
        tensor, origin: and where it comes from.
        word: of the layout where neither its channels nor its pixels are known.
        pictures: whether the pixels of any tensor are known.
    """
    shape = tuple(tensor.shape)
    words = f"a tensor of shape {shape}"
    if not tensor.is_floating_point() or not 3 <= tensor.dim() <= 5:
        return Output((), None, f"{words}, {str(tensor.dtype).removeprefix('torch.')}")
    ends = (1, tensor.dim() - 1)
    axes = [axis for axis in ends if origin.channels == axis] or [axis for axis in ends if origin.positions]
    for axis in axes:
        picture = origin.positions.picture(axis) if origin.positions else None
        if picture and tensor.dim() == 3 and axis == 2 and len(picture[1]) > 1:
            return Output(shape, Layout("tokens", *picture), words)
        # tokens whose pixels are not known are those of no map, where the network has maps
        if picture or not (origin.positions or (tensor.dim() == 3 and pictures)):
            return Output(shape, Layout("channels_first" if axis == 1 else "channels_last"), words)
    return Output(shape, None if axes else layout_of(word, shape), words, bool(origin.positions))


def layout_of(word: str | None, shape: tuple[int, ...]) -> Layout | None:
    """What a word says of a tensor of this shape; tokens are then the pixels of a square, behind a few others."""
    if word != "tokens":
        return Layout(word) if word else None
    side = math.isqrt(shape[1])
    return Layout("tokens", shape[1] - side * side, (side, side)) if len(shape) == 3 else None
