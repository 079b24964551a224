"""The kernels of `reduce`: what every request finds in a tile, and rows of such results combined."""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from regard.ops.kernels.triton.tiles import beside, inside_of, load, place_of, product_of, tile_of, within

NOWHERE = tl.constexpr(2**31 - 1)


class Results(NamedTuple):
    """Memory for the results of a request, or for many rows of such results."""

    sum: Tensor | None = None
    squares: Tensor | None = None
    max: Tensor | None = None
    place: Tensor | None = None
    mean: Tensor | None = None
    deviations: Tensor | None = None
    counted: Tensor | None = None


@triton.jit
def _sum(value: tl.tensor, KEPT: tl.constexpr) -> tl.tensor:
    """The sum of a tile along the axes that are not kept."""
    if not KEPT & 8:
        value = tl.sum(value, 2, keep_dims=True)
    if not KEPT & 4:
        value = tl.sum(value, 1, keep_dims=True)
    if not KEPT & 2:
        value = tl.sum(value, 0, keep_dims=True)
    return value


@triton.jit
def _max(value: tl.tensor, KEPT: tl.constexpr) -> tl.tensor:
    """The maximum of a tile along the axes that are not kept, which passes NaN over."""
    if not KEPT & 8:
        value = tl.max(value, 2, keep_dims=True)
    if not KEPT & 4:
        value = tl.max(value, 1, keep_dims=True)
    if not KEPT & 2:
        value = tl.max(value, 0, keep_dims=True)
    return value


@triton.jit
def _top(value: tl.tensor, inside: tl.tensor, KEPT: tl.constexpr) -> tl.tuple:
    """The maximum as torch takes it, a NaN above everything, and which numbers of the tile equal it."""
    nan = value != value
    some = _max((nan & inside).to(tl.int32), KEPT) > 0
    best = _max(tl.where(inside, value, float("-inf")), KEPT)
    return tl.where(some, float("nan"), best), inside & tl.where(some, nan, value == best)


@triton.jit
def _first(place: tl.tensor, held: tl.tensor, KEPT: tl.constexpr) -> tl.tensor:
    """The least place among those that are held."""
    return -_max(tl.where(held, -place, -NOWHERE), KEPT)


@triton.jit
def _answer(
    value: tl.tensor,
    inside: tl.tensor,
    results: tl.tuple,
    tile: tl.tuple,
    at: tl.tuple,
    size: tl.tuple,
    KEPT: tl.constexpr,
    P: tl.constexpr,
    Q: tl.constexpr,
    R: tl.constexpr,
) -> None:
    """What one request finds in a tile, written to the row that has the tile's number along what is reduced."""
    row = tl.zeros([], tl.int64)
    length = tl.full([], 1, tl.int64)
    if KEPT & 1:
        length *= size[0]
    else:
        row += tile[0]
    if KEPT & 2:
        length *= size[1]
    else:
        row = row * tl.cdiv(size[1], P) + tile[1]
    if KEPT & 4:
        length *= size[2]
    else:
        row = row * tl.cdiv(size[2], Q) + tile[2]
    if KEPT & 8:
        length *= size[3]
    else:
        row = row * tl.cdiv(size[3], R) + tile[3]
    to, there = beside(row * length, at, size, KEPT), inside_of(at, size, KEPT)
    if results.sum is not None:
        tl.store(results.sum + to, _sum(value, KEPT), mask=there)
    if results.squares is not None:
        tl.store(results.squares + to, _sum(value * value, KEPT), mask=there)
    if results.max is not None:
        best, held = _top(value, inside, KEPT)
        tl.store(results.max + to, best, mask=there)
        if results.place is not None:
            tl.store(results.place + to, _first(place_of(at, size), held, KEPT), mask=there)
    if results.mean is not None:
        count = _sum(inside.to(tl.float32), KEPT)
        mean = _sum(value, KEPT) / tl.maximum(count, 1)
        deviation = tl.where(inside, value - mean, 0)
        tl.store(results.mean + to, mean, mask=there)
        tl.store(results.deviations + to, _sum(deviation * deviation, KEPT), mask=there)
        if results.counted is not None:
            tl.store(results.counted + to, count, mask=there)


@triton.jit
def reduce_tile(
    x: tl.tensor,
    other: tl.tensor,
    places: tl.tensor,
    factors: tl.tuple,
    results: tl.tuple,
    size: tl.tuple,
    x_stride: tl.tuple,
    other_stride: tl.tuple,
    KEPT: tl.constexpr,
    FACTORS: tl.constexpr,
    PLACES: tl.constexpr,
    ALIGN: tl.constexpr,
    P: tl.constexpr,
    Q: tl.constexpr,
    R: tl.constexpr,
) -> None:
    """What every request finds in one tile.

    Traffic: reads each map once, with `places` only what stands there. A request that needs more than one tile writes
    one number for as many as it reduces in a tile; `combine_rows` reads those.
    """
    tile, at = tile_of(size, P, Q, R)
    inside = inside_of(at, size, 15, ALIGN)
    read = inside
    if places is not None:
        read = inside & (load(places, at, size, PLACES) == place_of(at, size))
    whole = tl.load(within(x, at, x_stride, ALIGN), mask=read, other=0).to(tl.float32)
    if other is not None:
        whole *= tl.load(within(other, at, other_stride, ALIGN), mask=read, other=0).to(tl.float32)
    for k in tl.static_range(len(KEPT)):
        # a factor may be infinite, and where nothing was read stands 0
        value = tl.where(read, whole * product_of(factors[k], at, size, FACTORS[k]), 0)
        _answer(value, inside, results[k], tile, at, size, KEPT[k], P, Q, R)


@triton.jit
def combine_rows(rows: tl.tuple, results: tl.tuple, size: tl.tuple, C: tl.constexpr, N: tl.constexpr) -> None:
    """Of C rows of results one.

    Traffic: reads the rows, which together are a small part of the map, and writes one for each C.
    """
    tile, (_, _, c, n) = tile_of(size, 1, C, N)
    at = (0, 0, c.to(tl.int64), n)
    to, there = beside(tile[2].to(tl.int64) * size[3], at, size, 8), inside_of(at, size, 8)
    if results.sum is not None:
        tl.store(results.sum + to, _sum(load(rows.sum, at, size, 12), 8), mask=there)
    if results.squares is not None:
        tl.store(results.squares + to, _sum(load(rows.squares, at, size, 12), 8), mask=there)
    if results.max is not None:
        best, held = _top(load(rows.max, at, size, 12), inside_of(at, size, 12), 8)
        tl.store(results.max + to, best, mask=there)
        if results.place is not None:
            tl.store(results.place + to, _first(load(rows.place, at, size, 12), held, 8), mask=there)
    if results.mean is not None:
        counts, means = load(rows.counted, at, size, 12), load(rows.mean, at, size, 12)
        count = _sum(counts, 8)
        mean = _sum(counts * means, 8) / tl.maximum(count, 1)
        apart = counts * (means - mean) * (means - mean)
        tl.store(results.mean + to, mean, mask=there)
        tl.store(results.deviations + to, _sum(load(rows.deviations, at, size, 12) + apart, 8), mask=there)
        if results.counted is not None:
            tl.store(results.counted + to, count, mask=there)
