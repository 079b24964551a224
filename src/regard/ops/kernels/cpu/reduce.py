"""`reduce`: a map is read once, whatever is asked for of what stands along its axes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from ctypes import addressof, c_void_p
from functools import lru_cache
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from regard.ops.kernels import interface
from regard.ops.kernels.cpu.operands import Operands, varies
from regard.ops.kernels.cpu.tensors import CPU, is_laid
from regard.ops.kernels.library import call, function
from regard.ops.kernels.plan import AXES, Cannot, Request, arrange, empty, lay, merge, order, steps

BITS = {"sum": 1, "max": 2, "place": 4, "squares": 8, "moments": 16}
RESULTS = {  # what each kind fills: the name of the result, and of its place in the plan
    "sum": {"sum": "sum"},
    "max": {"max": "max"},
    "place": {"place": "place"},
    "squares": {"squares": "squares"},
    "moments": {"mean": "sum", "deviations": "squares"},
}

Shape = tuple[int, ...]
RequestSpec = tuple[tuple[int, ...], tuple[str, ...], tuple[Shape, ...]]
"""A `Request`, with the shapes of its factors in their place."""


class ReduceSpec(NamedTuple):
    """All that a plan of `reduce` depends on.

    Attributes:
        shape, stride: of the map.
        axes: of the map, from the slowest to the fastest.
        bfloat16: whether its numbers are of that dtype, or float32.
        requests: what is asked for.
        threads: that work.
        other: the strides of the map by which it is multiplied.
    """

    shape: Shape
    stride: tuple[int, ...]
    axes: tuple[int, ...]
    bfloat16: bool
    requests: tuple[RequestSpec, ...]
    threads: int
    other: tuple[int, ...] | None = None


def reduce(x: Tensor, requests: Sequence[Request], other: Tensor | None = None) -> list[dict[str, Tensor]]:
    """Read a map, or two of them multiplied, once, and say what stands along some axes.

    Args:
        x: (B, C, *spatial).
        requests: what is asked for.
        other: multiplies the map; every request is then ("sum",).

    Returns:
        For each request its results by kind ("mean" and "deviations" for moments), float32 (places: int32), with 1 at
        every reduced axis.
    """
    axes = order(x)
    pointers = [x.data_ptr()]
    if other is not None:
        other = arrange(other, axes)
        pointers.append(other.data_ptr())
    plan, shapes = cached_reduce_plan(_spec(x, axes, requests, None if other is None else other.stride()))
    kept, results = [], []
    for request, shape in zip(requests, shapes, strict=True):
        for factor in request.factors:
            small = lay(factor, axes)
            kept.append(small)
            pointers.append(small.data_ptr())
        named = {}
        for kind in request.kinds:
            for name in RESULTS[kind]:
                named[name] = empty(shape, axes, torch.int32 if name == "place" else torch.float32, x.device)
                pointers.append(named[name].data_ptr())
        results.append(named)
    call("reduce", plan, pointers)
    return results


def prepare_reduce(
    x: Tensor, requests: Sequence[Request], counts: Sequence[int]
) -> Callable[[Tensor, Sequence[Tensor]], list[Tensor]] | None:
    """`reduce` for all maps and factors that look like these, each sum divided by its count.

    Args:
        x: see `reduce`.
        requests: see `reduce`; all have the same factors.
        counts: one for each request.

    Returns:
        A function of a map and factors that gives the results alone, in the order in which they are asked for; None
        where the factors must be laid out anew.
    """
    axes, factors = order(x), requests[0].factors
    if not all(is_laid(factor, axes) for factor in factors):
        return None
    plan, shapes = plan_reduce(_spec(x, axes, requests))
    for request, count in zip(plan.request, counts, strict=False):
        request.count = count
    wanted = [[(shape, steps(shape, axes))] * len(r.kinds) for r, shape in zip(requests, shapes, strict=True)]
    run, address = function("reduce"), addressof(plan)
    pointers_to = c_void_p * (1 + sum(len(factors) + len(results) for results in wanted))

    def reduce(
        x: Tensor, factors: Sequence[Tensor], plan: interface.Reduce = plan
    ) -> list[Tensor]:  # which keeps the plan
        pointers, answers = [x.data_ptr()], []
        for results in wanted:
            for factor in factors:
                pointers.append(factor.data_ptr())
            for shape, strides in results:
                y = torch.empty_strided(shape, strides, dtype=torch.float32, device=CPU)
                answers.append(y)
                pointers.append(y.data_ptr())
        run(address, pointers_to(*pointers))
        return answers

    return reduce


def cannot_reduce(x: Tensor, requests: Sequence[Request]) -> str | None:
    """Why `reduce` cannot answer, or None."""
    axes = order(x)
    for request in requests:
        reduced = [axis for axis in axes if axis in request.dims and x.shape[axis] > 1]
        if "place" in request.kinds and 0 in reduced:
            return "takes no maximum over images"
        if "place" in request.kinds and reduced != sorted(reduced):
            return "takes the maximum over channels and pixels together of contiguous maps only"
    try:
        cached_reduce_plan(_spec(x, axes, requests))
    except Cannot as reason:
        return str(reason)
    return None


def _spec(
    x: Tensor, axes: tuple[int, ...], requests: Sequence[Request], other: tuple[int, ...] | None = None
) -> ReduceSpec:
    specs = tuple([(r.dims, r.kinds, tuple([factor.shape for factor in r.factors])) for r in requests])
    return ReduceSpec(x.shape, x.stride(), axes, x.dtype == torch.bfloat16, specs, torch.get_num_threads(), other)


def plan_reduce(spec: ReduceSpec) -> tuple[interface.Reduce, list[list[int]]]:
    """A plan of one's own, which may be changed, and the shapes of what is found.

    Raises:
        Cannot: more than the kernel takes.
    """
    shapes = [[1 if axis in dims else side for axis, side in enumerate(spec.shape)] for dims, _, _ in spec.requests]
    smalls = [
        small for shape, (_, _, factors) in zip(shapes, spec.requests, strict=True) for small in (*factors, shape)
    ]
    maps = [spec.stride] if spec.other is None else [spec.stride, spec.other]
    sizes, walks, strides = merge(spec.shape, spec.axes, maps, smalls)
    if len(shapes) > 6:
        raise Cannot(f"at most 6 requests at once, got {len(shapes)}")
    plan, operands = interface.Reduce(spec.bfloat16, spec.threads, len(shapes)), Operands([*walks, *strides])
    plan.size[:] = sizes
    plan.x = operands.next()
    if spec.other is not None:
        plan.other = operands.next()
    for into, request, shape in zip(plan.request, spec.requests, shapes, strict=False):
        _plan_request(into, request, prod(shape), sizes, operands)
    return plan, shapes


def _plan_request(
    into: interface.Request, request: RequestSpec, numel: int, sizes: Sequence[int], operands: Operands
) -> None:
    _, kinds, shapes = request
    factors = [operands.next() for _ in shapes]
    if len(factors) > 3 or sum(map(varies, factors)) > (2 if kinds == ("sum",) else 1):
        raise Cannot("too many factors vary along the fastest axis")
    into.kinds, into.factors = sum(BITS[kind] for kind in kinds), len(factors)
    for place, factor in enumerate(factors):
        into.factor[place] = factor
    into.stride[:] = operands.stride()
    into.numel, into.count = numel, 1
    for kind in kinds:
        for name in RESULTS[kind].values():
            setattr(into, name, operands.pointer())
    reduced = [axis for axis in range(AXES) if sizes[axis] > 1 and not into.stride[axis]]
    if "moments" in kinds and reduced not in ([], [2], [3]):
        raise Cannot("a variance along axes that are not neighbours in memory")


cached_reduce_plan = lru_cache(maxsize=4096)(plan_reduce)
