"""How kernels are launched: the size of a tile, what the compiler is told, and small tensors laid out for it."""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd, prod
from typing import Any

from torch import Tensor

MANY = 512  # programs that keep a large GPU busy
LEAST, MOST = 1024, 8192  # numbers of a tile
ROW = 64  # numbers of a tile along the last axis, at the least: shorter rows waste what memory hands out at once


def bits_along(sizes: Sequence[int], steps: Sequence[Sequence[int]]) -> list[int]:
    """For each small tensor the axes along which it has as many numbers as the map, as bits."""
    return [sum((step[axis] != 0 or sizes[axis] == 1) << axis for axis in range(4)) for step in steps]


def power(number: int) -> int:
    """The next power of two."""
    return 1 << (number - 1).bit_length()


def blocks_of(sizes: Sequence[int], kept: Sequence[int] = ()) -> list[int]:
    """How large a tile is along each axis.

    It grows along the axis that saves most rows of results, the last one where none does, and stays so small that there
    are programs for every part of a large GPU.
    """
    tile = MOST
    while tile > LEAST and prod(sizes) < MANY * tile:
        tile //= 2
    whole, blocks = [1, *map(power, sizes[1:])], [1, 1, 1, min(power(sizes[3]), ROW)]
    reduced = [[axis for axis in range(4) if not bits >> axis & 1] for bits in kept]

    def saved(axis: int) -> float:
        return sum(1 / prod(blocks[at] for at in along) for along in reduced if axis in along)

    while prod(blocks) < tile and (growing := [axis for axis in (3, 2, 1) if blocks[axis] < whole[axis]]):
        blocks[max(growing, key=saved)] *= 2
    return blocks


def compiler_options(sizes: Sequence[int], walks: Sequence[Sequence[int]], blocks: Sequence[int]) -> dict[str, Any]:
    """What the compiler is told: the tile, its threads, and what divides the length and the start of every row."""
    starts = [walk[axis] for walk in walks for axis in range(3) if sizes[axis] > 1]
    return {
        **dict(zip("PQR", blocks[1:], strict=True)),
        "ALIGN": gcd(sizes[3], *starts, 16),
        "num_warps": min(16, max(1, prod(blocks) // 512)),
        "enable_fp_fusion": True,
    }


def dense(small: Tensor, axes: tuple[int, ...]) -> Tensor:
    """A small tensor, dense in the order of the map's axes."""
    return small.contiguous() if axes == tuple(range(len(axes))) else small.permute(axes).contiguous()
