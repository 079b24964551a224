"""Origin: where a tensor of a dry run comes from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from regard.insertion.positions import Positions


@dataclass(frozen=True)
class Made:
    """A call of a module, and the map that it gave; empty where it gave none."""

    module: str
    entered: int
    map: tuple[int, ...] = ()


class Unit(NamedTuple):
    """A spatial convolution with the norm and the activation behind it, as another layer goes on from them."""

    convolution: Made
    norm: Made
    activation: Made


class Sum(NamedTuple):
    """The end of an addition: when the module was entered that adds, and a number of its own."""

    entered: int
    number: int


@dataclass
class Origin:
    """Where a tensor comes from: on the way back from it to the input.

    Attributes:
        depth: number of operations on the longest way.
        layers: number of convolutions and matrix products among them.
        bit: of this tensor, in sets of tensors that are whole numbers.
        ancestors: bits of all tensors that it was computed from.
        channels: the axis that holds them, where that is known.
        positions: the pixel of each of its numbers, where that is known.
        module: the last that gave a tensor.
        source: the last that has parameters, changed the form of the map, or gave a tuple; None behind a pooling, and
            behind the sum of two ways, which is the end of neither.
        pooled: the source before the last pooling, where nothing with parameters came since.
        convolution: the last spatial one since the last layer.
        unit: of the convolution before that layer.
        width: ``"pointwise"`` where the last convolution was 1x1 and added channels; ``"depthwise"`` where one followed
            that.
        sum: the last addition, where no layer followed it.
    """

    bit: int
    depth: int = 0
    layers: int = 0
    ancestors: int = 0
    channels: int | None = None
    positions: Positions | None = None
    module: Made | None = None
    source: Made | None = None
    pooled: Made | None = None
    convolution: Made | None = None
    unit: Unit | None = None
    width: str = ""
    sum: Sum | None = None
