"""The kernels in Triton: what those in C++ compute, on a GPU.

A map is X[n0][n1][n2][n3] in the order of memory; `at` and `size` count along these axes. A program holds a tile of one
image, P x Q x R numbers, in registers; the last tile of an axis hangs over its end. A small tensor beside the map is
dense and has numbers along some of the axes: bit d of a mask (ALONG, KEPT, ...) says whether along axis d. Sums are
taken in float32. Nothing is added atomically, so that repeated calls agree to the bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, lru_cache
from math import gcd, prod
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from regard.ops.kernels.plan import Cannot, Request, arrange, broadcast_along, empty, merge, order

MANY = 512  # programs that keep a large GPU busy
LEAST, MOST = 1024, 8192  # numbers of a tile
ROW = 64  # numbers of a tile along the last axis, at the least: shorter rows waste what memory hands out at once
NOWHERE = tl.constexpr(2**31 - 1)


@cache
def _missing(device: torch.device) -> str | None:
    if tuple(int(part) for part in triton.__version__.split(".")[:2]) < (3, 3):
        return f"needs Triton 3.3 or newer, got {triton.__version__}"
    if device.type == "cuda" and torch.version.cuda and torch.cuda.get_device_capability(device) < (8, 0):
        return "needs a GPU of compute capability 8.0 or higher"
    return None


def why_not(x: Tensor) -> str | None:
    """Why no kernel reads this map, or None."""
    if x.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"needs float32, bfloat16 or float16, got {x.dtype}"
    if x.dim() < 2 or not order(x):
        return f"needs a map that is dense along some axis beside the batch, got strides {x.stride()}"
    span = sum(side * stride for side, stride in zip(x.shape[1:], x.stride()[1:], strict=True))
    if x.numel() == 0 or span >= 2**31:
        return f"needs images of between 1 and 2^31 numbers, got the shape {tuple(x.shape)}"
    return _missing(x.device)


# --- tiles -----------------------------------------------------------------------------------------------------------


@triton.jit
def _tile(size: tl.tuple, P: tl.constexpr, Q: tl.constexpr, R: tl.constexpr) -> tl.tuple:
    """Which tile a program has, counted along each axis, and where its numbers are along each axis."""
    program = tl.program_id(0)
    ps, qs, rs = tl.cdiv(size[1], P), tl.cdiv(size[2], Q), tl.cdiv(size[3], R)
    tile = (program // (ps * qs * rs), program // (qs * rs) % ps, program // rs % qs, program % rs)
    p = tile[1] * P + tl.arange(0, P)[:, None, None]
    q = tile[2] * Q + tl.arange(0, Q)[None, :, None]
    r = tile[3] * R + tl.arange(0, R)[None, None, :]
    return tile, (tile[0].to(tl.int64), p, q, r)


@triton.jit
def _inside(at: tl.tuple, size: tl.tuple, ALONG: tl.constexpr, ALIGN: tl.constexpr = 1) -> tl.tensor:
    """Which numbers of a tile there are."""
    inside = tl.full([1, 1, 1], True, tl.int1)
    if ALONG & 2:
        inside = inside & (at[1] < size[1])
    if ALONG & 4:
        inside = inside & (at[2] < size[2])
    if ALONG & 8:
        row = at[3] < size[3]
        if ALIGN > 1:  # then so many neighbours are inside together, and are read together
            row = tl.max_constancy(row, [1, 1, ALIGN])
        inside = inside & row
    return inside


@triton.jit
def _place(at: tl.tuple, size: tl.tuple) -> tl.tensor:
    """The numbers of a tile, counted from the start of their image."""
    return (at[1] * size[2] + at[2]) * size[3] + at[3]


@triton.jit
def _within(data: tl.tensor, at: tl.tuple, stride: tl.tuple, ALIGN: tl.constexpr) -> tl.tensor:
    """Pointers to a tile of a map whose rows start at multiples of ALIGN."""
    p = tl.multiple_of(at[1] * stride[1], [ALIGN, ALIGN, ALIGN])
    q = tl.multiple_of(at[2] * stride[2], [ALIGN, ALIGN, ALIGN])
    return data + at[0] * stride[0] + (p + q + at[3] * stride[3])


@triton.jit
def _beside(data: tl.tensor, at: tl.tuple, size: tl.tuple, ALONG: tl.constexpr) -> tl.tensor:
    """Pointers to those numbers of a small tensor that stand beside a tile."""
    offset = tl.zeros([1, 1, 1], tl.int32)
    step = 1
    if ALONG & 8:
        offset = offset + at[3]
        step = size[3]
    if ALONG & 4:
        offset = offset + at[2] * step
        step *= size[2]
    if ALONG & 2:
        offset = offset + at[1] * step
        step *= size[1]
    if ALONG & 1:
        data += at[0] * step
    return data + offset


@triton.jit
def _load(data: tl.tensor, at: tl.tuple, size: tl.tuple, ALONG: tl.constexpr) -> tl.tensor:
    """A small tensor beside a tile."""
    return tl.load(_beside(data, at, size, ALONG), mask=_inside(at, size, ALONG), other=0)


@triton.jit
def _product(smalls: tl.tuple, at: tl.tuple, size: tl.tuple, ALONG: tl.constexpr) -> tl.tensor:
    """Small tensors beside a tile, multiplied."""
    product = tl.full([1, 1, 1], 1, tl.float32)
    for k in tl.static_range(len(ALONG)):
        product = product * _load(smalls[k], at, size, ALONG[k]).to(tl.float32)
    return product


# --- reduce ----------------------------------------------------------------------------------------------------------


class Found(NamedTuple):
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
    found: tl.tuple,
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
    to, there = _beside(row * length, at, size, KEPT), _inside(at, size, KEPT)
    if found.sum is not None:
        tl.store(found.sum + to, _sum(value, KEPT), mask=there)
    if found.squares is not None:
        tl.store(found.squares + to, _sum(value * value, KEPT), mask=there)
    if found.max is not None:
        best, held = _top(value, inside, KEPT)
        tl.store(found.max + to, best, mask=there)
        if found.place is not None:
            tl.store(found.place + to, _first(_place(at, size), held, KEPT), mask=there)
    if found.mean is not None:
        count = _sum(inside.to(tl.float32), KEPT)
        mean = _sum(value, KEPT) / tl.maximum(count, 1)
        deviation = tl.where(inside, value - mean, 0)
        tl.store(found.mean + to, mean, mask=there)
        tl.store(found.deviations + to, _sum(deviation * deviation, KEPT), mask=there)
        if found.counted is not None:
            tl.store(found.counted + to, count, mask=there)


@triton.jit
def _reduce(
    x: tl.tensor,
    other: tl.tensor,
    places: tl.tensor,
    factors: tl.tuple,
    found: tl.tuple,
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
    one number for as many as it reduces in a tile; `_combine` reads those.
    """
    tile, at = _tile(size, P, Q, R)
    inside = _inside(at, size, 15, ALIGN)
    read = inside
    if places is not None:
        read = inside & (_load(places, at, size, PLACES) == _place(at, size))
    whole = tl.load(_within(x, at, x_stride, ALIGN), mask=read, other=0).to(tl.float32)
    if other is not None:
        whole *= tl.load(_within(other, at, other_stride, ALIGN), mask=read, other=0).to(tl.float32)
    for k in tl.static_range(len(KEPT)):
        # a factor may be infinite, and where nothing was read stands 0
        value = tl.where(read, whole * _product(factors[k], at, size, FACTORS[k]), 0)
        _answer(value, inside, found[k], tile, at, size, KEPT[k], P, Q, R)


@triton.jit
def _combine(rows: tl.tuple, found: tl.tuple, size: tl.tuple, C: tl.constexpr, N: tl.constexpr) -> None:
    """Of C rows of results one.

    Traffic: reads the rows, which together are a small part of the map, and writes one for each C.
    """
    tile, (_, _, c, n) = _tile(size, 1, C, N)
    at = (0, 0, c.to(tl.int64), n)
    to, there = _beside(tile[2].to(tl.int64) * size[3], at, size, 8), _inside(at, size, 8)
    if found.sum is not None:
        tl.store(found.sum + to, _sum(_load(rows.sum, at, size, 12), 8), mask=there)
    if found.squares is not None:
        tl.store(found.squares + to, _sum(_load(rows.squares, at, size, 12), 8), mask=there)
    if found.max is not None:
        best, held = _top(_load(rows.max, at, size, 12), _inside(at, size, 12), 8)
        tl.store(found.max + to, best, mask=there)
        if found.place is not None:
            tl.store(found.place + to, _first(_load(rows.place, at, size, 12), held, 8), mask=there)
    if found.mean is not None:
        counts, means = _load(rows.counted, at, size, 12), _load(rows.mean, at, size, 12)
        count = _sum(counts, 8)
        mean = _sum(counts * means, 8) / tl.maximum(count, 1)
        apart = counts * (means - mean) * (means - mean)
        tl.store(found.mean + to, mean, mask=there)
        tl.store(found.deviations + to, _sum(_load(rows.deviations, at, size, 12) + apart, 8), mask=there)
        if found.counted is not None:
            tl.store(found.counted + to, count, mask=there)


def reduce(x: Tensor, requests: Sequence[Request], other: Tensor | None = None) -> list[dict[str, Tensor]]:
    """Read a map, or two of them multiplied, once, and say what stands along some axes: see `cpu.reduce`."""
    return _find(x, requests, other, None)


def cannot_reduce(x: Tensor, requests: Sequence[Request]) -> str | None:
    """Why `reduce` cannot answer, or None."""
    axes = order(x)
    for request in requests:
        reduced = [axis for axis in axes if axis in request.dims and x.shape[axis] > 1]
        if "place" in request.kinds and (0 in reduced or reduced != sorted(reduced)):
            return "takes the maximum not over images, and over channels and pixels together of contiguous maps only"
    try:
        _plan_reduce(tuple(x.shape), axes, x.stride(), None, _shapes(requests), None)
    except Cannot as reason:
        return str(reason)
    return None


def _shapes(requests: Sequence[Request]) -> tuple[Any, ...]:
    return tuple((dims, kinds, tuple(tuple(factor.shape) for factor in factors)) for dims, kinds, factors in requests)


def _find(
    x: Tensor, requests: Sequence[Request], other: Tensor | None, places: Tensor | None
) -> list[dict[str, Tensor]]:
    axes = order(x)
    if other is not None:
        other = arrange(other, axes)
    plan = _plan_reduce(
        tuple(x.shape),
        axes,
        x.stride(),
        None if other is None else other.stride(),
        _shapes(requests),
        None if places is None else tuple(places.shape),
    )
    factors = tuple(tuple(_dense(factor, axes) for factor in request.factors) for request in requests)
    results = [_room(r.kinds, shape, axes, x.device) for r, shape in zip(requests, plan.shapes, strict=True)]
    found = tuple(it if rows == 1 else _rows(it, rows) for it, rows in zip(results, plan.rows, strict=True))
    with torch.cuda.device_of(x):
        _reduce[plan.grid](x, other, places, factors, found, *plan.arguments, **plan.options)
        for rows, many, result in zip(plan.rows, found, results, strict=True):
            _join(rows, many, result)
    return [{kind: one for kind, one in result._asdict().items() if one is not None} for result in results]


def _room(kinds: Sequence[str], shape: Sequence[int], axes: tuple[int, ...], device: torch.device) -> Found:
    """Memory for results of these kinds."""
    names = ("mean", "deviations") if "moments" in kinds else kinds
    dtypes = {name: torch.int32 if name == "place" else torch.float32 for name in names}
    return Found(**{name: empty(shape, axes, dtype, device) for name, dtype in dtypes.items()})


def _rows(result: Found, rows: int) -> Found:
    """Memory for so many rows of such results."""
    wanted = result._replace(counted=result.mean)
    return Found(*(None if one is None else one.new_empty((rows, one.numel())) for one in wanted))


def _join(rows: int, many: Found, result: Found) -> None:
    """Combine rows of results until one is left."""
    length = next(one.numel() for one in result if one is not None)
    while rows > 1:
        n = min(_power(length), 32)
        c = min(_power(rows), 2 * LEAST // n)
        fewer = triton.cdiv(rows, c)
        into = result if fewer == 1 else _rows(result, fewer)
        _combine[(fewer * triton.cdiv(length, n),)](many, into, (1, 1, rows, length), c, n, enable_fp_fusion=True)
        rows, many = fewer, into


class _Plan(NamedTuple):
    """How `_reduce` is launched: what depends on shapes alone."""

    shapes: list[list[int]]  # of the results
    rows: list[int]  # of results that each request finds
    grid: tuple[int]
    arguments: tuple[Any, ...]
    options: dict[str, Any]


@lru_cache(maxsize=4096)
def _plan_reduce(
    shape: tuple[int, ...],
    axes: tuple[int, ...],
    stride: tuple[int, ...],
    other: tuple[int, ...] | None,
    requests: tuple[Any, ...],
    places: tuple[int, ...] | None,
) -> _Plan:
    shapes = [[1 if axis in dims else side for axis, side in enumerate(shape)] for dims, _, _ in requests]
    smalls = [*shapes, *(factor for _, _, factors in requests for factor in factors), *([places] if places else [])]
    sizes, walks, steps = merge(shape, axes, [stride, other or stride], smalls)
    along = iter(_along(sizes, steps))
    kept = tuple(next(along) for _ in requests)
    factors = tuple(tuple(next(along) for _ in factors) for _, _, factors in requests)
    blocks = _blocks(sizes, kept)
    tiles = [triton.cdiv(size, block) for size, block in zip(sizes, blocks, strict=True)]
    rows = [prod(tiles[axis] for axis in range(4) if not bits >> axis & 1) for bits in kept]
    options = _options(sizes, walks, blocks) | {"KEPT": kept, "FACTORS": factors, "PLACES": next(along, 0)}
    return _Plan(shapes, rows, (prod(tiles),), (tuple(sizes), *map(tuple, walks)), options)


def _along(sizes: Sequence[int], steps: Sequence[Sequence[int]]) -> list[int]:
    """For each small tensor the axes along which it has as many numbers as the map, as bits."""
    return [sum((step[axis] != 0 or sizes[axis] == 1) << axis for axis in range(4)) for step in steps]


def _power(number: int) -> int:
    """The next power of two."""
    return 1 << (number - 1).bit_length()


def _blocks(sizes: Sequence[int], kept: Sequence[int] = ()) -> list[int]:
    """How large a tile is along each axis.

    It grows along the axis that saves most rows of results, the last one where none does, and stays so small that there
    are programs for every part of a large GPU.
    """
    tile = MOST
    while tile > LEAST and prod(sizes) < MANY * tile:
        tile //= 2
    whole, blocks = [1, *map(_power, sizes[1:])], [1, 1, 1, min(_power(sizes[3]), ROW)]
    reduced = [[axis for axis in range(4) if not bits >> axis & 1] for bits in kept]

    def saved(axis: int) -> float:
        return sum(1 / prod(blocks[at] for at in along) for along in reduced if axis in along)

    while prod(blocks) < tile and (growing := [axis for axis in (3, 2, 1) if blocks[axis] < whole[axis]]):
        blocks[max(growing, key=saved)] *= 2
    return blocks


def _options(sizes: Sequence[int], walks: Sequence[Sequence[int]], blocks: Sequence[int]) -> dict[str, Any]:
    """What the compiler is told: the tile, its threads, and what divides the length and the start of every row."""
    starts = [walk[axis] for walk in walks for axis in range(3) if sizes[axis] > 1]
    return {
        **dict(zip("PQR", blocks[1:], strict=True)),
        "ALIGN": gcd(sizes[3], *starts, 16),
        "num_warps": min(16, max(1, prod(blocks) // 512)),
        "enable_fp_fusion": True,
    }


def _dense(small: Tensor, axes: tuple[int, ...]) -> Tensor:
    """A small tensor, dense in the order of the map's axes."""
    return small.contiguous() if axes == tuple(range(len(axes))) else small.permute(axes).contiguous()


# --- affine ----------------------------------------------------------------------------------------------------------


@triton.jit
def _affine(
    y: tl.tensor,
    map: tl.tensor,
    x: tl.tensor,
    weight: tl.tensor,
    about: tl.tensor,
    factors: tl.tuple,
    terms: tl.tuple,
    picks: tl.tuple,
    size: tl.tuple,
    y_stride: tl.tuple,
    map_stride: tl.tuple,
    x_stride: tl.tuple,
    FACTORS: tl.constexpr,
    TERMS: tl.constexpr,
    PICKS: tl.constexpr,
    SCALES: tl.constexpr,
    WEIGHT: tl.constexpr,
    MEAN: tl.constexpr,
    ALIGN: tl.constexpr,
    P: tl.constexpr,
    Q: tl.constexpr,
    R: tl.constexpr,
) -> None:
    """One tile of a map times its factors, plus another map times its weight, plus small tensors, some at places.

    Traffic: reads each map once and writes one.
    """
    _, at = _tile(size, P, Q, R)
    inside = _inside(at, size, 15, ALIGN)
    value = tl.load(_within(map, at, map_stride, ALIGN), mask=inside, other=0).to(tl.float32)
    if MEAN:
        total = tl.zeros([1, 1, 1], tl.float32)
        for k in tl.static_range(len(FACTORS)):
            total = total + _load(factors[k], at, size, FACTORS[k]).to(tl.float32)
        value *= total / len(FACTORS)
    else:
        value *= _product(factors, at, size, FACTORS)
    for k in tl.static_range(len(TERMS)):
        value += _product(terms[k], at, size, TERMS[k])
    for k in tl.static_range(len(PICKS)):
        picked = inside & (_load(picks[k][0], at, size, PICKS[k]) == _place(at, size))
        more = _load(picks[k][1], at, size, PICKS[k]) * _product(picks[k][2], at, size, SCALES[k])
        value += tl.where(picked, more, 0)
    if x is not None:
        added = tl.load(_within(x, at, x_stride, ALIGN), mask=inside, other=0).to(tl.float32)
        if about is not None:
            added -= _load(about, at, size, WEIGHT).to(tl.float32)
        if weight is not None:
            added *= _load(weight, at, size, WEIGHT).to(tl.float32)
        value += added
    tl.store(_within(y, at, y_stride, ALIGN), value, mask=inside)


def affine(
    map: Tensor,
    factors: Sequence[Tensor] = (),
    *,
    mean: bool = False,
    terms: Sequence[Sequence[Tensor]] = (),
    x: Tensor | None = None,
    weight: Tensor | None = None,
    about: Tensor | None = None,
    picks: Sequence[tuple[Tensor, Tensor, Sequence[Tensor]]] = (),
    out: Tensor | None = None,
) -> Tensor:
    """A map times its factors, plus another map times a weight, plus small terms, in one pass: see `cpu.affine`."""
    axes = order(map)
    y = empty(map.shape, axes, map.dtype, map.device) if out is None else out
    if x is not None:
        x = arrange(x, axes)
    grid, arguments, options = _plan_affine(
        tuple(map.shape),
        axes,
        (y.stride(), map.stride(), map.stride() if x is None else x.stride()),
        tuple(tuple(factor.shape) for factor in factors),
        tuple(tuple(tuple(factor.shape) for factor in term) for term in terms),
        None if weight is None else tuple(weight.shape),
        tuple((tuple(values.shape), tuple(tuple(scale.shape) for scale in scales)) for _, values, scales in picks),
    )
    if weight is not None and about is not None:
        about = _dense(about.expand_as(weight), axes)
    weight = None if weight is None else _dense(weight, axes)
    smalls = tuple(_dense(factor, axes) for factor in factors)
    products = tuple(tuple(_dense(factor, axes) for factor in term) for term in terms)
    maxima = tuple((at, _dense(d, axes), tuple(_dense(scale, axes) for scale in scales)) for at, d, scales in picks)
    mean = mean and len(factors) > 1
    with torch.cuda.device_of(map):
        _affine[grid](y, map, x, weight, about, smalls, products, maxima, *arguments, MEAN=mean, **options)
    return y


def cannot_weigh(x: Tensor, gates: Sequence[Tensor], mean: bool, shift: Tensor | None) -> str | None:
    """Why a map cannot be weighed by these gates, and their gradients be found, or None."""
    axes, shape = order(x), tuple(x.shape)
    shapes = tuple(tuple(gate.shape) for gate in gates)
    terms = () if shift is None else ((tuple(shift.shape),),)
    others = [() if mean else (*shapes[:at], *shapes[at + 1 :]) for at in range(len(gates))]
    requests = tuple((broadcast_along(gate, shape), ("sum",), more) for gate, more in zip(gates, others, strict=True))
    try:
        _plan_affine(shape, axes, (x.stride(),) * 3, shapes, terms, None, ())
        _plan_reduce(shape, axes, x.stride(), x.stride(), requests, None)
    except Cannot as reason:
        return str(reason)
    return None


@lru_cache(maxsize=4096)
def _plan_affine(
    shape: tuple[int, ...],
    axes: tuple[int, ...],
    strides: tuple[tuple[int, ...], ...],
    factors: tuple[tuple[int, ...], ...],
    terms: tuple[tuple[tuple[int, ...], ...], ...],
    weight: tuple[int, ...] | None,
    picks: tuple[tuple[tuple[int, ...], tuple[tuple[int, ...], ...]], ...],
) -> tuple[tuple[int], tuple[Any, ...], dict[str, Any]]:
    smalls = [*factors, *(small for term in terms for small in term), *(values for values, _ in picks)]
    smalls += [*(scale for _, scales in picks for scale in scales), *([] if weight is None else [weight])]
    sizes, walks, steps = merge(shape, axes, strides, smalls)
    along = iter(_along(sizes, steps))
    blocks = _blocks(sizes)
    options = _options(sizes, walks, blocks) | {
        "FACTORS": tuple(next(along) for _ in factors),
        "TERMS": tuple(tuple(next(along) for _ in term) for term in terms),
        "PICKS": tuple(next(along) for _ in picks),
        "SCALES": tuple(tuple(next(along) for _ in scales) for _, scales in picks),
        "WEIGHT": next(along, 0),
    }
    programs = prod(triton.cdiv(size, block) for size, block in zip(sizes, blocks, strict=True))
    return (programs,), (tuple(sizes), *(tuple(walk) for walk in walks)), options


# --- scatter and gather ----------------------------------------------------------------------------------------------


@triton.jit
def _scatter(
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
        value *= tl.load(_beside(factors[k], at, size, FACTORS[k]), mask=inside, other=0).to(tl.float32)
    to = _within(y, at, stride, 1)
    tl.store(to, tl.load(to, mask=inside, other=0).to(tl.float32) + value, mask=inside)


def scatter(y: Tensor, places: Tensor, values: Tensor, factors: Sequence[Tensor] = ()) -> None:
    """Add a value to the map at the place of each maximum, times the factors there: see `cpu.scatter`."""
    axes = order(y)
    sizes, stride, along = _plan_scatter(
        tuple(y.shape), axes, y.stride(), tuple(tuple(factor.shape) for factor in factors)
    )
    smalls = tuple(_dense(factor, axes) for factor in factors)
    each, n = values.numel() // sizes[0], 256
    with torch.cuda.device_of(y):
        _scatter[(triton.cdiv(values.numel(), n),)](
            y, places, _dense(values, axes), smalls, sizes, stride, each, along, n, enable_fp_fusion=True
        )


@lru_cache(maxsize=4096)
def _plan_scatter(
    shape: tuple[int, ...], axes: tuple[int, ...], stride: tuple[int, ...], factors: tuple[tuple[int, ...], ...]
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    sizes, (walk,), steps = merge(shape, axes, [stride], factors)
    return tuple(sizes), tuple(walk), tuple(_along(sizes, steps))


def gather(x: Tensor, places: Tensor, values: Tensor, factors: Sequence[Tensor]) -> list[Tensor]:
    """The gradients of the factors by which a map was multiplied before its maxima were taken: see `cpu.gather`.

    A sum over the map of what is a maximum, so that it has one order. Traffic: reads as many numbers of the map as
    there are maxima.
    """
    requests = [
        Request(broadcast_along(factor, x.shape), ("sum",), (values, *factors[:at], *factors[at + 1 :]))
        for at, factor in enumerate(factors)
    ]
    return [found["sum"] for found in _find(x, requests, None, places)]
