"""`scatter` and `gather`: the gradients of maxima, at the places where they stood."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from regard.ops.kernels.plan import Request, broadcast_along, merge, order
from regard.ops.kernels.triton.launch import bits_along, dense
from regard.ops.kernels.triton.reduce import reduce_at
from regard.ops.kernels.triton.tiles import beside, within


@triton.jit
def scatter_values(
    y: tl.tensor,
    places: tl.tensor,
    values: tl.tensor,
    factors: tl.tuple,
    size: tl.tuple,
    stride: tl.tuple,
    each: tl.tensor,
    FACTORS: tl.constexpr,
    N: tl.constexpr,
) -> None:
    """Adds N values to a map, each at a place of its own; an image has `each` values.

    Traffic: reads and writes as many numbers of the map as there are values.
    """
    v = tl.program_id(0) * N + tl.arange(0, N)[None, None, :]
    inside = v < size[0] * each
    place = tl.load(places + v, mask=inside, other=0)
    at = ((v // each).to(tl.int64), place // size[3] // size[2], place // size[3] % size[2], place % size[3])
    value = tl.load(values + v, mask=inside, other=0).to(tl.float32)
    for k in tl.static_range(len(FACTORS)):
        value *= tl.load(beside(factors[k], at, size, FACTORS[k]), mask=inside, other=0).to(tl.float32)
    to = within(y, at, stride, 1)
    tl.store(to, tl.load(to, mask=inside, other=0).to(tl.float32) + value, mask=inside)


def scatter(y: Tensor, places: Tensor, values: Tensor, factors: Sequence[Tensor] = ()) -> None:
    """Add a value to the map at the place of each maximum, times the factors there: see `cpu.scatter`."""
    axes = order(y)
    sizes, stride, along = _plan_scatter(
        tuple(y.shape), axes, y.stride(), tuple(tuple(factor.shape) for factor in factors)
    )
    smalls = tuple(dense(factor, axes) for factor in factors)
    each, n = values.numel() // sizes[0], 256
    with torch.cuda.device_of(y):
        scatter_values[(triton.cdiv(values.numel(), n),)](
            y, places, dense(values, axes), smalls, sizes, stride, each, along, n, enable_fp_fusion=True
        )


@lru_cache(maxsize=4096)
def _plan_scatter(
    shape: tuple[int, ...], axes: tuple[int, ...], stride: tuple[int, ...], factors: tuple[tuple[int, ...], ...]
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    sizes, (walk,), steps = merge(shape, axes, [stride], factors)
    return tuple(sizes), tuple(walk), tuple(bits_along(sizes, steps))


def gather(x: Tensor, places: Tensor, values: Tensor, factors: Sequence[Tensor]) -> list[Tensor]:
    """The gradients of the factors by which a map was multiplied before its maxima were taken: see `cpu.gather`.

    A sum over the map of what is a maximum, so that it has one order. Traffic: reads as many numbers of the map as
    there are maxima.
    """
    requests = [
        Request(broadcast_along(factor, x.shape), ("sum",), (values, *factors[:at], *factors[at + 1 :]))
        for at, factor in enumerate(factors)
    ]
    return [result["sum"] for result in reduce_at(x, requests, None, places)]
