"""The tile of a map that a program holds, and how it and small tensors beside it are read.

A map is X[n0][n1][n2][n3] in the order of memory; `at` and `size` count along these axes. A program holds a tile of one
image, P x Q x R numbers, in registers; the last tile of an axis hangs over its end. A small tensor beside the map is
dense and has numbers along some of the axes: bit d of a mask (ALONG, KEPT, ...) says whether along axis d.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def tile_of(size: tl.tuple, P: tl.constexpr, Q: tl.constexpr, R: tl.constexpr) -> tl.tuple:
    """Which tile a program has, counted along each axis, and where its numbers are along each axis."""
    program = tl.program_id(0)
    ps, qs, rs = tl.cdiv(size[1], P), tl.cdiv(size[2], Q), tl.cdiv(size[3], R)
    tile = (program // (ps * qs * rs), program // (qs * rs) % ps, program // rs % qs, program % rs)
    p = tile[1] * P + tl.arange(0, P)[:, None, None]
    q = tile[2] * Q + tl.arange(0, Q)[None, :, None]
    r = tile[3] * R + tl.arange(0, R)[None, None, :]
    return tile, (tile[0].to(tl.int64), p, q, r)


@triton.jit
def inside_of(at: tl.tuple, size: tl.tuple, ALONG: tl.constexpr, ALIGN: tl.constexpr = 1) -> tl.tensor:
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
def place_of(at: tl.tuple, size: tl.tuple) -> tl.tensor:
    """The numbers of a tile, counted from the start of their image."""
    return (at[1] * size[2] + at[2]) * size[3] + at[3]


@triton.jit
def within(data: tl.tensor, at: tl.tuple, stride: tl.tuple, ALIGN: tl.constexpr) -> tl.tensor:
    """Pointers to a tile of a map whose rows start at multiples of ALIGN."""
    p = tl.multiple_of(at[1] * stride[1], [ALIGN, ALIGN, ALIGN])
    q = tl.multiple_of(at[2] * stride[2], [ALIGN, ALIGN, ALIGN])
    return data + at[0] * stride[0] + (p + q + at[3] * stride[3])


@triton.jit
def beside(data: tl.tensor, at: tl.tuple, size: tl.tuple, ALONG: tl.constexpr) -> tl.tensor:
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
def load(data: tl.tensor, at: tl.tuple, size: tl.tuple, ALONG: tl.constexpr) -> tl.tensor:
    """A small tensor beside a tile."""
    return tl.load(beside(data, at, size, ALONG), mask=inside_of(at, size, ALONG), other=0)


@triton.jit
def product_of(smalls: tl.tuple, at: tl.tuple, size: tl.tuple, ALONG: tl.constexpr) -> tl.tensor:
    """Small tensors beside a tile, multiplied."""
    product = tl.full([1, 1, 1], 1, tl.float32)
    for k in tl.static_range(len(ALONG)):
        product = product * load(smalls[k], at, size, ALONG[k]).to(tl.float32)
    return product
