"""The kernels in C++, called through a plain C interface."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from ctypes import addressof, c_int64, c_void_p
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from regard.ops.kernels import interface
from regard.ops.kernels.library import call, function, missing
from regard.ops.kernels.plan import AXES, Cannot, Request, arrange, broadcast_along, empty, lay, merge, order, steps

BITS = {"sum": 1, "max": 2, "place": 4, "squares": 8, "moments": 16}
RESULTS = {  # what each kind fills: the name of the result, and of its place in the plan
    "sum": {"sum": "sum"},
    "max": {"max": "max"},
    "place": {"place": "place"},
    "squares": {"squares": "squares"},
    "moments": {"mean": "sum", "deviations": "squares"},
}

# bytes of a result from which on it is written past the caches, and bytes of a row that make it worth while
PAST_THE_CACHE = 16 << 20
LONG_ROW = 1024

CPU = torch.device("cpu")  # whatever the default device is


def why_not(x: Tensor) -> str | None:
    """Why no kernel reads this map, were it on the CPU, or None."""
    if x.dim() < 2 or not order(x):
        return f"needs a map that is dense along some axis beside the batch, got strides {x.stride()}"
    return why_not_plain(x)


def why_not_plain(x: Tensor) -> str | None:
    """Why no kernel takes this tensor, were it on the CPU, however it lies in memory, or None."""
    if x.dtype not in (torch.float32, torch.bfloat16):
        return f"needs float32 or bfloat16, got {x.dtype}"
    if not 0 < x.numel() < 2**31:
        return f"needs between 1 and 2^31 numbers, got {x.numel()}"
    return missing()


def past_the_cache(x: Tensor, row: int) -> bool:
    """Whether a result of this map's size, in rows of so many numbers, is written past the caches."""
    length = row * x.element_size()
    return x.numel() * x.element_size() >= PAST_THE_CACHE and (length >= LONG_ROW or length % 64 == 0)


class _Slots:
    """Numbers for the pointers of a plan, in the order in which a call lists them."""

    def __init__(self) -> None:
        self.count = 0

    def next(self) -> int:
        self.count += 1
        return self.count


def _operand(slots: _Slots, stride: Sequence[int]) -> interface.Operand:
    return interface.Operand(slots.next(), (c_int64 * 4)(*stride))


# --- reduce ----------------------------------------------------------------------------------------------------------


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
    if other is not None:
        other = arrange(other, axes)
    key = tuple((r.dims, r.kinds, tuple(tuple(f.shape) for f in r.factors)) for r in requests)
    plan, shapes = _plan_reduce(
        tuple(x.shape),
        x.stride(),
        axes,
        x.dtype == torch.bfloat16,
        None if other is None else other.stride(),
        key,
        torch.get_num_threads(),
    )
    pointers = [x.data_ptr()]
    if other is not None:
        pointers.append(other.data_ptr())
    kept, results = [], []
    for request, shape in zip(requests, shapes, strict=True):
        for factor in request.factors:
            small = lay(factor, axes)
            kept.append(small)
            pointers.append(small.data_ptr())
        found = {}
        for kind in request.kinds:
            for name in RESULTS[kind]:
                found[name] = empty(shape, axes, torch.int32 if name == "place" else torch.float32, x.device)
                pointers.append(found[name].data_ptr())
        results.append(found)
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
    if not all(_laid(factor, axes) for factor in factors):
        return None
    key = tuple((r.dims, r.kinds, tuple(tuple(f.shape) for f in r.factors)) for r in requests)
    plan, shapes = plan_reduce(
        tuple(x.shape), x.stride(), axes, x.dtype == torch.bfloat16, None, key, torch.get_num_threads()
    )
    for request, count in zip(plan.request, counts, strict=False):
        request.count = count
    wanted = [[(shape, steps(shape, axes))] * len(r.kinds) for r, shape in zip(requests, shapes, strict=True)]
    run, address = function("reduce"), addressof(plan)
    pointers_to = c_void_p * (1 + sum(len(factors) + len(results) for results in wanted))

    def reduce(
        x: Tensor, factors: Sequence[Tensor], plan: interface.Reduce = plan
    ) -> list[Tensor]:  # which keeps the plan
        pointers, found = [x.data_ptr()], []
        for results in wanted:
            for factor in factors:
                pointers.append(factor.data_ptr())
            for shape, strides in results:
                y = torch.empty_strided(shape, strides, dtype=torch.float32, device=CPU)
                found.append(y)
                pointers.append(y.data_ptr())
        run(address, pointers_to(*pointers))
        return found

    return reduce


def _laid(small: Tensor, axes: tuple[int, ...]) -> bool:
    return lay(small, axes).data_ptr() == small.data_ptr()


def cannot_reduce(x: Tensor, requests: Sequence[Request]) -> str | None:
    """Why `reduce` cannot answer, or None."""
    axes = order(x)
    key = tuple((r.dims, r.kinds, tuple(tuple(f.shape) for f in r.factors)) for r in requests)
    for request in requests:
        reduced = [axis for axis in axes if axis in request.dims and x.shape[axis] > 1]
        if "place" in request.kinds and 0 in reduced:
            return "takes no maximum over images"
        if "place" in request.kinds and reduced != sorted(reduced):
            return "takes the maximum over channels and pixels together of contiguous maps only"
    try:
        _plan_reduce(tuple(x.shape), x.stride(), axes, x.dtype == torch.bfloat16, None, key, torch.get_num_threads())
    except Cannot as reason:
        return str(reason)
    return None


def plan_reduce(*args: Any) -> tuple[interface.Reduce, list[list[int]]]:
    """A plan of one's own, to be changed; see `_plan_reduce`."""
    return _plan_reduce.__wrapped__(*args)


@lru_cache(maxsize=4096)
def _plan_reduce(
    shape: tuple[int, ...],
    stride: tuple[int, ...],
    axes: tuple[int, ...],
    bfloat16: bool,
    other: tuple[int, ...] | None,
    requests: tuple[Any, ...],
    threads: int,
) -> tuple[interface.Reduce, list[list[int]]]:
    shapes = [[1 if axis in dims else side for axis, side in enumerate(shape)] for dims, _, _ in requests]
    smalls = [small for wanted, (_, _, factors) in zip(shapes, requests, strict=True) for small in (*factors, wanted)]
    sizes, walked, strides = merge(shape, axes, [stride, other or stride], smalls)
    if len(requests) > 6:
        raise Cannot(f"at most 6 requests at once, got {len(requests)}")
    plan, slots, walks = interface.Reduce(bfloat16, threads, len(requests)), _Slots(), iter(strides)
    plan.size[:] = sizes
    plan.x = _operand(slots, walked[0])
    if other:
        plan.other = _operand(slots, walked[1])
    for into, wanted, (_, kinds, factors) in zip(plan.request, shapes, requests, strict=False):
        into.kinds, into.factors = sum(BITS[kind] for kind in kinds), len(factors)
        steps = [next(walks) for _ in factors]
        if len(factors) > 3 or sum(step[3] != 0 for step in steps) > (2 if kinds == ("sum",) else 1):
            raise Cannot("too many factors vary along the fastest axis")
        for place, step in enumerate(steps):
            into.factor[place] = _operand(slots, step)
        into.stride[:] = next(walks)
        into.numel, into.count = 1, 1
        for side in wanted:
            into.numel *= side
        for kind in kinds:
            for name in RESULTS[kind].values():
                setattr(into, name, slots.next())
        reduced = [axis for axis in range(AXES) if sizes[axis] > 1 and not into.stride[axis]]
        if "moments" in kinds and reduced not in ([], [2], [3]):
            raise Cannot("a variance along axes that are not neighbours in memory")
    return plan, shapes


# --- affine ----------------------------------------------------------------------------------------------------------


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
    """A map times its factors, plus another map times a weight, plus small terms, in one pass.

    Args:
        map: (B, C, *spatial).
        factors: broadcast to the map; it is multiplied by their product.
        mean: by their mean instead.
        terms: products of one or two small tensors, added.
        x: another map, added; times `weight`, which broadcasts to it, where there is one.
        about: of the shape of `weight`, taken off `x` before that; 0 otherwise.
        picks: places of maxima as `reduce` gave them, what is added there, and the factors by which it is multiplied.
        out: where to write; may be `map` itself.
    """
    axes = order(map)
    y = empty(map.shape, axes, map.dtype, map.device) if out is None else out
    if x is not None:
        x = arrange(x, axes)
    plan = _plan_affine(
        tuple(map.shape),
        axes,
        map.stride(),
        y.stride(),
        None if x is None else x.stride(),
        map.dtype == torch.bfloat16,
        tuple(tuple(factor.shape) for factor in factors),
        mean,
        tuple(tuple(tuple(factor.shape) for factor in term) for term in terms),
        None if weight is None else tuple(weight.shape),
        tuple((tuple(values.shape), tuple(tuple(factor.shape) for factor in scales)) for _, values, scales in picks),
        out is None and y.numel() * y.element_size() >= PAST_THE_CACHE,
        torch.get_num_threads(),
    )
    smalls = [lay(small, axes) for small in factors]
    if weight is not None:
        less = torch.zeros_like(weight) if about is None else about.expand_as(weight)
        smalls += [lay(weight, axes), lay(less, axes)]
    smalls += [lay(small, axes) for term in terms for small in term]
    for places, values, scales in picks:
        smalls += [places, lay(values, axes), *(lay(scale, axes) for scale in scales)]
    tensors = [y, map, *([x] if x is not None else []), *smalls]
    call("affine", plan, [tensor.data_ptr() for tensor in tensors])
    return y


def prepare_affine(
    x: Tensor, factors: Sequence[Tensor], mean: bool, terms: Sequence[Sequence[Tensor]]
) -> Callable[[Tensor, Sequence[Tensor]], Tensor] | None:
    """`affine` for all maps that look like this one: a function of the map and its smalls.

    The smalls are the factors, then those of each term. None where one of them must be laid out anew.
    """
    axes = order(x)
    smalls = (*factors, *(small for term in terms for small in term))
    if not all(_laid(small, axes) for small in smalls):
        return None
    shape, strides = tuple(x.shape), steps(x.shape, axes)
    plan = plan_affine(
        shape,
        axes,
        x.stride(),
        strides,
        None,
        x.dtype == torch.bfloat16,
        tuple(tuple(factor.shape) for factor in factors),
        mean,
        tuple(tuple(tuple(small.shape) for small in term) for term in terms),
        None,
        (),
        x.numel() * x.element_size() >= PAST_THE_CACHE,
        torch.get_num_threads(),
    )
    run, address, dtype = function("affine"), addressof(plan), x.dtype
    pointers_to = c_void_p * (2 + len(smalls))

    def affine(x: Tensor, smalls: Sequence[Tensor], plan: interface.Affine = plan) -> Tensor:
        y = torch.empty_strided(shape, strides, dtype=dtype, device=CPU)
        pointers = [y.data_ptr(), x.data_ptr()]
        for small in smalls:
            pointers.append(small.data_ptr())
        run(address, pointers_to(*pointers))
        return y

    return affine


def cannot_weigh(x: Tensor, gates: Sequence[Tensor], mean: bool, shift: Tensor | None) -> str | None:
    """Why a map cannot be weighed by these gates, and their gradients be found, or None."""
    axes = order(x)
    shape, stride, bfloat16, threads = tuple(x.shape), x.stride(), x.dtype == torch.bfloat16, torch.get_num_threads()
    shapes = tuple(tuple(gate.shape) for gate in gates)
    terms = () if shift is None else ((tuple(shift.shape),),)
    others = [() if mean else (*shapes[:at], *shapes[at + 1 :]) for at in range(len(gates))]
    along = [broadcast_along(gate, shape) for gate in gates]
    requests = tuple((dims, ("sum",), factors) for dims, factors in zip(along, others, strict=True))
    try:
        _plan_affine(shape, axes, stride, stride, None, bfloat16, shapes, mean, terms, None, (), False, threads)
        _plan_reduce(shape, stride, axes, bfloat16, stride, requests, threads)
    except Cannot as reason:
        return str(reason)
    return None


def plan_affine(*args: Any) -> interface.Affine:
    """A plan of one's own; see `_plan_affine`."""
    return _plan_affine.__wrapped__(*args)


@lru_cache(maxsize=4096)
def _plan_affine(
    shape: tuple[int, ...],
    axes: tuple[int, ...],
    stride: tuple[int, ...],
    y: tuple[int, ...],
    x: tuple[int, ...] | None,
    bfloat16: bool,
    factors: tuple[tuple[int, ...], ...],
    mean: bool,
    terms: tuple[tuple[tuple[int, ...], ...], ...],
    weight: tuple[int, ...] | None,
    picks: tuple[tuple[tuple[int, ...], tuple[tuple[int, ...], ...]], ...],
    stream: bool,
    threads: int,
) -> interface.Affine:
    maps = [y, stride, *([x] if x is not None else [])]
    smalls = [*factors, *([weight] if weight is not None else []), *(small for term in terms for small in term)]
    smalls += [small for values, scales in picks for small in (values, *scales)]
    sizes, walks, steps = merge(shape, axes, maps, smalls)
    row = sizes[3] * (2 if bfloat16 else 4)
    stream = stream and (row >= LONG_ROW or row % 64 == 0)
    slots, step = _Slots(), iter(steps)
    plan = interface.Affine(bfloat16, threads, len(factors), mean and len(factors) > 1, len(terms), stream)
    plan.size[:] = sizes
    plan.y, plan.map = _operand(slots, walks[0]), _operand(slots, walks[1])
    if x is not None:
        plan.x = _operand(slots, walks[2])
    vectors = 0
    if len(factors) > 3 or len(terms) > 4:
        raise Cannot("at most 3 factors and 4 terms")
    for place in range(len(factors)):
        plan.factor[place] = _operand(slots, next(step))
        vectors += plan.factor[place].stride[3] != 0
    if weight is not None:
        along = next(step)
        plan.weight, plan.about, plan.weighted = _operand(slots, along), _operand(slots, along), 1
    added = 0
    for place, term in enumerate(terms):
        if len(term) > 2:
            raise Cannot("a term of more than 2 factors")
        plan.term[place].factors = len(term)
        varying = 0
        for at in range(len(term)):
            plan.term[place].factor[at] = _operand(slots, next(step))
            varying += plan.term[place].factor[at].stride[3] != 0
        if varying > 1:
            raise Cannot("a term with two factors that vary along the fastest axis")
        added += varying
    if vectors > 2 or added > 2:
        raise Cannot("too many factors or terms vary along the fastest axis")
    if (plan.mean or picks) and x is not None:
        raise Cannot("a mean of factors, or maxima, beside another map")
    if len(picks) > 3 or any(len(scales) > 2 for _, scales in picks):
        raise Cannot("at most 3 maxima with 2 factors each")
    own = 0
    plan.picks = len(picks)
    for into, (_, scales) in zip(plan.pick, picks, strict=False):
        into.factors, into.place = len(scales), slots.next()
        into.value = _operand(slots, next(step))
        for at in range(len(scales)):
            into.factor[at] = _operand(slots, next(step))
            if into.factor[at].stride[3] and into.value.stride[3]:
                raise Cannot("maxima times a factor that varies along the fastest axis")
        own += into.value.stride[3] == 0
    if own > 1 or len(picks) - own > 2:
        raise Cannot("more than one maximum along the fastest axis, or two along others")
    return plan


# --- pick ------------------------------------------------------------------------------------------------------------


def scatter(y: Tensor, places: Tensor, values: Tensor, factors: Sequence[Tensor] = ()) -> None:
    """Add a value to the map at the place of each maximum, times the factors there.

    Args:
        y: (B, C, *spatial), dense; it is written to.
        places: int32, as `reduce` gave them.
        values: of the same shape.
        factors: broadcast to the map.
    """
    _pick(y, places, values, factors, None)


def gather(x: Tensor, places: Tensor, values: Tensor, factors: Sequence[Tensor]) -> list[Tensor]:
    """The gradients of the factors by which a map was multiplied before its maxima were taken.

    Args:
        x: (B, C, *spatial), the map.
        places: int32, as `reduce` gave them.
        values: the gradients of the maxima.
        factors: broadcast to the map.
    """
    axes = order(x)
    gradients = [empty(factor.shape, axes, torch.float32, x.device).zero_() for factor in factors]
    _pick(x, places, values, factors, gradients)
    return gradients


def _pick(
    map: Tensor, places: Tensor, values: Tensor, factors: Sequence[Tensor], gradients: Sequence[Tensor] | None
) -> None:
    axes = order(map)
    plan = _plan_pick(
        tuple(map.shape),
        axes,
        map.stride(),
        map.dtype == torch.bfloat16,
        tuple(values.shape),
        tuple(tuple(factor.shape) for factor in factors),
        gradients is not None,
        torch.get_num_threads(),
    )
    tensors = [map, lay(values, axes), places, *(lay(factor, axes) for factor in factors), *(gradients or ())]
    call("pick", plan, [tensor.data_ptr() for tensor in tensors])


@lru_cache(maxsize=4096)
def _plan_pick(
    shape: tuple[int, ...],
    axes: tuple[int, ...],
    stride: tuple[int, ...],
    bfloat16: bool,
    values: tuple[int, ...],
    factors: tuple[tuple[int, ...], ...],
    gradients: bool,
    threads: int,
) -> interface.Pick:
    sizes, (walk,), steps = merge(shape, axes, [stride], [values, *factors])
    slots, plan = _Slots(), interface.Pick(bfloat16, threads, len(factors))
    plan.size[:] = sizes
    if gradients:
        plan.x = _operand(slots, walk)
    else:
        plan.y = _operand(slots, walk)
    plan.value = _operand(slots, steps[0])
    plan.place = slots.next()
    for at, step in enumerate(steps[1:]):
        plan.factor[at] = _operand(slots, step)
    for at in range(len(factors) if gradients else 0):
        plan.gradient[at] = slots.next()
    return plan


# --- convolve --------------------------------------------------------------------------------------------------------


def convolve(x: Tensor, weight: Tensor) -> Tensor:
    """A convolution with one result, as large as the map.

    Args:
        x: (B, I, H, W), float32.
        weight: (1, I, odd, odd), float32.
    """
    x, weight = x.contiguous(), weight.contiguous()
    y = x.new_empty((len(x), 1, *x.shape[2:]))
    plan = interface.Convolve(torch.get_num_threads(), x.shape[1], len(x), 0, *x.shape[2:], *weight.shape[2:])
    plan.x, plan.weight, plan.y = 1, 2, 3
    call("convolve", plan, [tensor.data_ptr() for tensor in (x, weight, y)])
    return y


def prepare_convolve(x: Tensor, weight: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """`convolve` for all maps and weights that look like these, contiguous, of one or two spatial axes."""
    shape, one = (len(x), 1, *x.shape[2:]), (1,) * (4 - x.dim())
    sides = *one, *x.shape[2:], *one, *weight.shape[2:]
    plan = interface.Convolve(torch.get_num_threads(), x.shape[1], len(x), 0, *sides)
    plan.x, plan.weight, plan.y = 1, 2, 3
    run, address, pointers_to = function("convolve"), addressof(plan), c_void_p * 3

    def convolve(x: Tensor, weight: Tensor, plan: interface.Convolve = plan) -> Tensor:  # which keeps the plan
        y = torch.empty(shape, dtype=torch.float32, device=CPU)
        run(address, pointers_to(x.data_ptr(), weight.data_ptr(), y.data_ptr()))
        return y

    return convolve


def convolve_backward(
    x: Tensor, weight: Tensor, dy: Tensor, needed: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of the map and of the weight, where they are needed."""
    x, weight, dy = x.contiguous(), weight.contiguous(), dy.contiguous()
    dx = torch.empty_like(x) if needed[0] else None
    dweight = x.new_empty((len(x), *weight.shape[1:])) if needed[1] else None
    plan = interface.Convolve(torch.get_num_threads(), x.shape[1], len(x), 0, *x.shape[2:], *weight.shape[2:])
    plan.x, plan.weight, plan.dy = 1, 2, 3
    plan.dx, plan.dweight = 4, 5
    given = (x, weight, dy, dx, dweight)
    call("convolve_backward", plan, [0 if tensor is None else tensor.data_ptr() for tensor in given])
    return dx, None if dweight is None else dweight.sum(0, keepdim=True)
