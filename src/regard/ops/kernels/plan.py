"""How a map lies in memory, and how small tensors lie beside it: what every kernel needs to know before it starts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

AXES = 4  # a kernel walks over at most so many


class Request(NamedTuple):
    """What `reduce` is asked for: of the map times `factors`, along `dims`.

    Attributes:
        dims: axes of the map that are reduced.
        kinds: ``("sum",)``, ``("sum", "max")``, ``("max", "place")``, ``("sum", "max", "place")``, ``("max",)``,
            ``("squares",)``, ``("sum", "squares")`` or ``("moments",)``: mean and sum of squared deviations.
        factors: tensors that broadcast to the map.
    """

    dims: tuple[int, ...]
    kinds: tuple[str, ...]
    factors: tuple[Tensor, ...] = ()


class Cannot(Exception):
    """No kernel fits; the message says why."""


def order(x: Tensor) -> tuple[int, ...]:
    """The axes of a map from the slowest to the fastest, the batch first; none where the fastest is not dense."""
    return _order(x.shape, x.stride())


@lru_cache(maxsize=4096)
def _order(shape: Sequence[int], strides: Sequence[int]) -> tuple[int, ...]:
    natural = tuple(range(len(shape)))
    for axes in (natural, (0, *sorted(natural[1:], key=lambda axis: -strides[axis]))):
        steps = [strides[axis] for axis in axes if shape[axis] > 1]
        if steps == sorted(steps, reverse=True) and (not steps or steps[-1] == 1):
            return axes
    return ()


def broadcast_along(small: Tensor, shape: Sequence[int]) -> tuple[int, ...]:
    """The axes of a map along which a tensor beside it has one number."""
    return tuple(axis for axis, side in enumerate(small.shape) if side < shape[axis])


def empty(shape: Sequence[int], axes: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A dense tensor of a shape whose axes lie in memory as told."""
    return torch.empty_strided(shape, steps(shape, axes), dtype=dtype, device=device)


def steps(shape: Sequence[int], axes: tuple[int, ...]) -> tuple[int, ...]:
    """The strides of a dense tensor of a shape whose axes lie in memory as told."""
    strides, step = [0] * len(shape), 1
    for axis in reversed(axes):
        strides[axis] = step
        step *= shape[axis]
    return tuple(strides)


def arrange(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    """The same map in the order of these axes: itself where it lies so."""
    return x if order(x) == axes else empty(x.shape, axes, x.dtype, x.device).copy_(x)


def lay(small: Tensor, axes: tuple[int, ...]) -> Tensor:
    """A small tensor in float32, dense in the order of the map's axes."""
    if small.dtype != torch.float32:
        small = small.float()
    return small.contiguous() if axes == tuple(range(len(axes))) else small.permute(axes).contiguous()


def merge(
    shape: Sequence[int], axes: tuple[int, ...], maps: Iterable[Sequence[int]], smalls: Iterable[Sequence[int]]
) -> tuple[list[int], list[list[int]], list[list[int]]]:
    """Join neighbouring axes that all tensors treat alike; the batch stays by itself.

    Args:
        shape: of the map.
        axes: its `order`.
        maps: strides of each tensor of the map's shape.
        smalls: shape of each dense tensor that broadcasts to the map.

    Returns:
        4 sizes: of the batch, and of the other axes from the slowest to the fastest, with 1 in front; the 4 strides of
        each map; the 4 strides of each small tensor, 0 where it is broadcast.

    Raises:
        Cannot: more than three axes are left beside the batch.
    """
    maps, smalls = [list(strides) for strides in maps], [list(small) for small in smalls]
    dense = []
    for small in smalls:
        steps, step = [0] * len(axes), 1
        for axis in reversed(axes):
            steps[axis] = step if small[axis] > 1 else 0
            step *= small[axis]
        dense.append(steps)
    sizes: list[int] = []
    columns: list[list[int]] = []
    for axis in axes[1:]:
        if shape[axis] == 1:
            continue
        column = [strides[axis] for strides in (*maps, *dense)]
        if sizes and all(slow == fast * shape[axis] for slow, fast in zip(columns[-1], column, strict=True)):
            sizes[-1] *= shape[axis]
            columns[-1] = column
        else:
            sizes.append(shape[axis])
            columns.append(column)
    if len(sizes) >= AXES:
        raise Cannot(f"the tensors vary along {len(sizes)} axes beside the batch that cannot be joined, at most 3 may")
    if not sizes:
        sizes, columns = [1], [[1] * len(maps) + [0] * len(dense)]
    missing = AXES - 1 - len(sizes)
    sizes = [shape[0], *[1] * missing, *sizes]
    batch = [strides[axes[0]] for strides in (*maps, *dense)]
    columns = [batch, *[[0] * len(batch)] * missing, *columns]
    rows = [list(row) for row in zip(*columns, strict=True)]
    return sizes, rows[: len(maps)], rows[len(maps) :]
