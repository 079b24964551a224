"""`reduce`: a map is read once, whatever is asked for of what stands along its axes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import prod
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from regard.ops.kernels.plan import Cannot, Request, arrange, empty, merge, order
from regard.ops.kernels.triton import launch
from regard.ops.kernels.triton.launch import bits_along, blocks_of, compiler_options, dense, power
from regard.ops.kernels.triton.reduce_kernel import Results, combine_rows, reduce_tile

Shape = tuple[int, ...]
RequestSpec = tuple[tuple[int, ...], tuple[str, ...], tuple[Shape, ...]]
"""A `Request`, with the shapes of its factors in their place."""


class ReduceSpec(NamedTuple):
    """All that a plan of `reduce` depends on.

    Attributes:
        shape, stride: of the map.
        axes: of the map, from the slowest to the fastest.
        requests: what is asked for.
        other: the strides of the map by which it is multiplied.
        places: the shape of the places at which alone it is read.
    """

    shape: Shape
    stride: tuple[int, ...]
    axes: tuple[int, ...]
    requests: tuple[RequestSpec, ...]
    other: tuple[int, ...] | None = None
    places: Shape | None = None


def reduce(x: Tensor, requests: Sequence[Request], other: Tensor | None = None) -> list[dict[str, Tensor]]:
    """Read a map, or two of them multiplied, once, and say what stands along some axes: see `cpu.reduce`."""
    return reduce_at(x, requests, other, None)


def reduce_at(
    x: Tensor, requests: Sequence[Request], other: Tensor | None, places: Tensor | None
) -> list[dict[str, Tensor]]:
    """`reduce`, of what stands at these places alone where they are given."""
    axes = order(x)
    if other is not None:
        other = arrange(other, axes)
    plan = plan_reduce(
        ReduceSpec(
            x.shape,
            x.stride(),
            axes,
            tuple(map(_spec_of, requests)),
            other=None if other is None else other.stride(),
            places=None if places is None else places.shape,
        )
    )
    factors = tuple(tuple(dense(factor, axes) for factor in request.factors) for request in requests)
    results = [_room(r.kinds, shape, axes, x.device) for r, shape in zip(requests, plan.shapes, strict=True)]
    partial = tuple(it if rows == 1 else _rows(it, rows) for it, rows in zip(results, plan.rows, strict=True))
    with torch.cuda.device_of(x):
        reduce_tile[plan.grid](x, other, places, factors, partial, *plan.arguments, **plan.options)
        for rows, many, result in zip(plan.rows, partial, results, strict=True):
            _join(rows, many, result)
    return [{kind: tensor for kind, tensor in result._asdict().items() if tensor is not None} for result in results]


def cannot_reduce(x: Tensor, requests: Sequence[Request]) -> str | None:
    """Why `reduce` cannot answer, or None."""
    axes = order(x)
    for request in requests:
        reduced = [axis for axis in axes if axis in request.dims and x.shape[axis] > 1]
        if "place" in request.kinds and (0 in reduced or reduced != sorted(reduced)):
            return "takes the maximum not over images, and over channels and pixels together of contiguous maps only"
    try:
        plan_reduce(ReduceSpec(x.shape, x.stride(), axes, tuple(map(_spec_of, requests))))
    except Cannot as reason:
        return str(reason)
    return None


def _spec_of(request: Request) -> RequestSpec:
    return request.dims, request.kinds, tuple(factor.shape for factor in request.factors)


def _room(kinds: Sequence[str], shape: Sequence[int], axes: tuple[int, ...], device: torch.device) -> Results:
    """Memory for results of these kinds."""
    names = ("mean", "deviations") if "moments" in kinds else kinds
    dtypes = {name: torch.int32 if name == "place" else torch.float32 for name in names}
    return Results(**{name: empty(shape, axes, dtype, device) for name, dtype in dtypes.items()})


def _rows(result: Results, rows: int) -> Results:
    """Memory for so many rows of such results."""
    wanted = result._replace(counted=result.mean)
    return Results(*(None if tensor is None else tensor.new_empty((rows, tensor.numel())) for tensor in wanted))


def _join(rows: int, many: Results, result: Results) -> None:
    """Combine rows of results until one is left."""
    length = next(tensor.numel() for tensor in result if tensor is not None)
    while rows > 1:
        n = min(power(length), 32)
        c = min(power(rows), 2 * launch.LEAST // n)
        fewer = triton.cdiv(rows, c)
        into = result if fewer == 1 else _rows(result, fewer)
        combine_rows[(fewer * triton.cdiv(length, n),)](many, into, (1, 1, rows, length), c, n, enable_fp_fusion=True)
        rows, many = fewer, into


class Plan(NamedTuple):
    """How `_reduce` is launched: what depends on shapes alone.

    Attributes:
        shapes: of the results.
        rows: of results that each request finds.
        grid, arguments, options: of the launch.
    """

    shapes: list[list[int]]
    rows: list[int]
    grid: tuple[int]
    arguments: tuple[Any, ...]
    options: dict[str, Any]


@lru_cache(maxsize=4096)
def plan_reduce(spec: ReduceSpec) -> Plan:
    """How a map is read.

    Raises:
        Cannot: more than the kernel takes.
    """
    shapes = [[1 if axis in dims else side for axis, side in enumerate(spec.shape)] for dims, _, _ in spec.requests]
    smalls = [*shapes, *(factor for _, _, factors in spec.requests for factor in factors)]
    smalls += [] if spec.places is None else [spec.places]
    sizes, walks, steps = merge(spec.shape, spec.axes, [spec.stride, spec.other or spec.stride], smalls)
    along = iter(bits_along(sizes, steps))
    kept = tuple(next(along) for _ in spec.requests)
    factors = tuple(tuple(next(along) for _ in factors) for _, _, factors in spec.requests)
    blocks = blocks_of(sizes, kept)
    tiles = [triton.cdiv(size, block) for size, block in zip(sizes, blocks, strict=True)]
    rows = [prod(tiles[axis] for axis in range(4) if not bits >> axis & 1) for bits in kept]
    options = compiler_options(sizes, walks, blocks) | {"KEPT": kept, "FACTORS": factors, "PLACES": next(along, 0)}
    return Plan(shapes, rows, (prod(tiles),), (tuple(sizes), *map(tuple, walks)), options)
