"""The shapes that a mechanism's signature stands for."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

from regard.registry.info import Info

if TYPE_CHECKING:
    from torch import Tensor


def shapes(
    known: Info, channels: int, *, batch: int = 2, size: tuple[int, ...] = (7, 9), **options: Any
) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """The shapes that a mechanism's signature stands for, of its inputs and of its outputs.

    A signature reads ``(B, C, *spatial), (B, gating, *coarse) -> same``: B is the batch, C the channels, ``*spatial``
    the size, ``*coarse`` half of it, H and W its two sides, an option's name its value (C where that is None), any
    other letter a number of the caller's choice, and a word beside a word their product; ``same`` is the first input.

    Args:
        known: the mechanism.
        channels, batch, size: sizes to fill in.
        options: those that differ from their defaults.

    Example:
        >>> import regard
        >>> shapes(regard.info("se"), 8)
        ([(2, 8, 7, 9)], [(2, 8, 7, 9)])
    """
    chosen = {name: channels if value is None else value for name, value in {**known.options, **options}.items()}
    free = {letter: 3 + place for place, letter in enumerate("KLQV")}
    numbers = free | chosen | {"B": batch, "C": channels, "H": size[0], "W": size[-1]}
    sizes = {"*spatial": size, "*coarse": tuple(-(-side // 2) for side in size)}

    def read(text: str) -> list[tuple[int, ...]]:
        groups = [[axis.strip() for axis in group.split(",")] for group in re.findall(r"\(([^)]*)\)", text)]
        return [
            tuple(n for axis in group for n in sizes.get(axis) or [math.prod(numbers[word] for word in axis.split())])
            for group in groups
        ]

    takes, _, gives = known.signature.partition(" -> ")
    inputs = read(takes)
    return inputs, inputs[:1] if gives == "same" else read(gives)


def example_inputs(known: Info, channels: int = 20, **others: Any) -> tuple[Tensor, ...]:
    """Random inputs of the shapes that a mechanism takes; see `shapes` for the other arguments."""
    import torch

    return tuple(torch.randn(shape) for shape in shapes(known, channels, **others)[0])
