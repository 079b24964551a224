"""Where on the picture every number of a tensor lies, followed through whatever moves numbers about.

Transformers hold their maps as tokens, windows, heads and unrolled blocks of these. Whether a tensor is a picture,
and which one, is told by doing the same moves with the numbers of the pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from regard.base.functions import CONVOLUTIONS, MOVES, POOLINGS, REGROUPINGS, RESIZES, Call, tensors

Known = Callable[[Tensor], "Positions | None"]


@dataclass(frozen=True, eq=False)  # each is itself alone
class Positions:
    """The pixel of every number in a tensor.

    Attributes:
        index: int32, of the tensor's shape: the pixel's number, row by row; -1 for what belongs to none.
        sides: of the picture.
    """

    index: Tensor
    sides: tuple[int, ...]

    @cached_property
    def core(self) -> Tensor:
        """The index with one entry along every axis it is expanded over, such as the channels."""
        core = self.index
        for axis, (size, stride) in enumerate(zip(core.shape, core.stride(), strict=True)):
            if stride == 0 and size > 1:
                core = core.narrow(axis, 0, 1)
        return core

    def stretched(self, axis: int, shape: torch.Size) -> Positions:
        """Of a tensor that has another number of entries along one axis, all at the place of the first."""
        return Positions(self.index.narrow(axis, 0, 1).expand(shape), self.sides)

    def varies(self, axis: int) -> bool:
        core = self.core
        if core.shape[axis] < 2:
            return False
        first = core.narrow(axis, 0, 1)
        # mostly the second entry tells it already
        return bool((core.narrow(axis, 1, 1) != first).any()) or bool((core != first).any())

    def picture(self, axis: int) -> tuple[int, tuple[int, ...]] | None:
        """How many numbers lead that belong to no pixel, and the sides of the picture behind them.

        None where the tensor is no picture, or another one for every image.

        Args:
            axis: the channels'. With one other axis beside the batch the pixels may follow each other row by row.
        """
        index = self.index.select(axis, 0)
        if index.shape[0] > 1 and not torch.equal(index, index[:1].expand_as(index)):
            return None
        index, prefix = index[0], 0
        if index.dim() == 1 and len(self.sides) > 1:
            prefix = int((index >= 0).long().argmax())
            index = index[prefix:]
        coordinates = [index // math.prod(self.sides[place + 1 :]) % side for place, side in enumerate(self.sides)]
        sides = tuple(len(coordinate.unique()) for coordinate in coordinates)
        if (index < 0).any() or math.prod(sides) != index.numel():
            return None
        if index.dim() > 1 and tuple(index.shape) != sides:
            return None
        for place, coordinate in enumerate(coordinates):
            rows = coordinate.reshape(sides).movedim(place, -1).reshape(-1, sides[place])
            if not (torch.equal(rows, rows[:1].expand_as(rows)) and bool((rows[0].diff() > 0).all())):
                return None
        return prefix, sides


def whole(shape: torch.Size) -> Positions:
    """Of a picture (B, C, \\*sides)."""
    sides = tuple(shape[2:])
    numbers = torch.arange(math.prod(sides), dtype=torch.int32, device="cpu")
    return Positions(numbers.reshape(sides).expand(shape), sides)


def follow(call: Call, main: Positions | None, known: Known) -> list[Positions | None]:
    """The positions of each tensor in the result of a call; None where they cannot be told.

    Args:
        call: of a function of torch, with its result.
        main: positions of the tensor that it continues.
        known: those of any tensor.
    """
    results = tensors(call.result)
    if call.word in MOVES:
        try:
            return _moved(call, results, known)
        except (RuntimeError, TypeError, IndexError, ValueError):  # what cannot be done with whole numbers
            return [None] * len(results)
    rule = RULES.get(call.word, _kept)
    return [rule(call, tensor.shape, main, known) for tensor in results]


def _moved(call: Call, results: list[Tensor], known: Known) -> list[Positions | None]:
    """The same move, done with the numbers of the pixels."""
    options = dict(call.kwargs)
    moved, *rest = call.args or [options.pop("input", options.pop("tensors", None))]
    if call.word == "pad":
        rest, options["value"] = rest[:2], -1
    shapes = [result.shape for result in results]
    if not isinstance(moved, Tensor):
        parts = [known(tensor) or _none(tensor.shape) for tensor in moved]
        # a class token has been through other pictures
        pictures = {positions.sides for positions in parts if (positions.core >= 0).any()}
        if len(pictures) != 1:
            return [None] * len(results)
        (sides,) = pictures
        indices = tensors(call.function([positions.index for positions in parts], *rest, **options))
    elif (positions := known(moved)) is None:
        return [None] * len(results)
    else:
        sides = positions.sides
        if call.word in REGROUPINGS:
            indices = [_regrouped(positions, shape) for shape in shapes]
        elif call.word == "roll" and len(rest) < 2 and not options.get("dims"):  # all axes as one row
            indices = [call.function(positions.index, *rest, **options)]
        else:
            indices = _done(lambda index: call.function(index, *rest, **options), positions, shapes)
    return [
        Positions(index, sides) if index.shape == shape else None for index, shape in zip(indices, shapes, strict=True)
    ]


def _done(move: Callable[[Tensor], Any], positions: Positions, shapes: list[torch.Size]) -> list[Tensor]:
    """What a move makes of an index, with one channel for all of them where it leaves these alone.

    What cuts them or adds to them has another shape then, or cannot be done.
    """
    try:
        moved = tensors(move(positions.core))
        return [index.expand(shape) for index, shape in zip(moved, shapes, strict=True)]
    except (RuntimeError, TypeError, IndexError, ValueError):
        return tensors(move(positions.index))


def _none(shape: torch.Size) -> Positions:
    return Positions(torch.tensor(-1, dtype=torch.int32, device="cpu").expand(shape), ())


def _regrouped(positions: Positions, shape: torch.Size) -> Tensor:
    """The index in another shape of as many entries; what it is expanded over stays so."""
    index, core, small = positions.index, positions.core, list(shape)
    if not shape.numel() or shape.numel() != index.numel():
        return index.reshape(shape)
    before = after = 0
    while before < index.dim() and after < len(shape):
        # the fewest axes on both sides that hold as many entries
        start, first = before, after
        before, after = before + 1, after + 1
        while (old := math.prod(index.shape[start:before])) != (new := math.prod(shape[first:after])):
            before, after = before + (old < new), after + (old > new)
        if core.shape[start:before].numel() == 1:
            small[first:after] = [1] * (after - first)
        elif core.shape[start:before] != index.shape[start:before]:
            core = core.expand(*core.shape[:start], *index.shape[start:before], *core.shape[before:])
    return core.reshape(small).expand(shape)


# of what is computed, from the tensor that it continues


def _kept(call: Call, shape: torch.Size, main: Positions | None, known: Known) -> Positions | None:
    return main if main and main.index.shape == shape else None


def _new_map(call: Call, shape: torch.Size, main: Positions | None, known: Known) -> Positions | None:
    if main and main.index.dim() == len(shape) and main.index.shape[2:] == shape[2:]:
        return main.stretched(1, shape)
    return whole(shape) if len(shape) > 2 else None


def _layer(call: Call, shape: torch.Size, main: Positions | None, known: Known) -> Positions | None:
    """Of pixels that are merged the first one stands for all."""
    if main is None or main.index.dim() != len(shape) or main.index.shape[:-1] != shape[:-1]:
        return None
    return main if main.index.shape == shape else main.stretched(-1, shape)


def _matrix_product(call: Call, shape: torch.Size, main: Positions | None, known: Known) -> Positions | None:
    """Rows of the result lie where those of the left factor lie, columns where those of the right one lie."""
    left, right = (known(factor) if isinstance(factor, Tensor) else None for factor in call.operands[:2])
    if left and left.index.shape[:-1] == shape[:-1] and left.varies(-2):
        return left.stretched(-1, shape)
    if right and right.index.shape[:-2] == shape[:-2] and right.index.shape[-1] == shape[-1] and right.varies(-1):
        return right.stretched(-2, shape)
    return None


def _attention(call: Call, shape: torch.Size, main: Positions | None, known: Known) -> Positions | None:
    query = known(call.args[0]) if call.args else None
    return query.stretched(-1, shape) if query and query.index.shape[:-1] == shape[:-1] else None


def _mixture(call: Call, shape: torch.Size, main: Positions | None, known: Known) -> Positions | None:
    return None


RULES = {
    **dict.fromkeys(CONVOLUTIONS | POOLINGS | RESIZES, _new_map),
    **dict.fromkeys(("matmul", "bmm"), _matrix_product),
    **dict.fromkeys(("einsum", "baddbmm"), _mixture),
    "linear": _layer,
    "scaled_dot_product_attention": _attention,
}
