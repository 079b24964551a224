"""`affine`: a map times its factors, plus other maps and small terms, read once and written once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from ctypes import addressof, c_void_p
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from regard.ops.kernels import interface
from regard.ops.kernels.cpu.operands import Operands, varies
from regard.ops.kernels.cpu.tensors import CPU, PAST_THE_CACHE, is_laid, worth_while
from regard.ops.kernels.library import call, function
from regard.ops.kernels.plan import Cannot, arrange, empty, lay, merge, order, steps

Shape = tuple[int, ...]


class AffineSpec(NamedTuple):
    """All that a plan of `affine` depends on.

    Attributes:
        shape: of every map.
        axes: of the map, from the slowest to the fastest.
        map, y, x: strides of the map, of the result, and of the map that is added.
        bfloat16: whether the maps' numbers are of that dtype, or float32.
        threads: that work.
        factors: shapes.
        mean: whether the map is multiplied by their mean.
        terms: shapes of the factors of each.
        weight: shape.
        picks: the shape of the values of each, and the shapes of its factors.
        stream: whether the result is large enough to be written past the caches.
    """

    shape: Shape
    axes: tuple[int, ...]
    map: tuple[int, ...]
    y: tuple[int, ...]
    bfloat16: bool
    threads: int
    factors: tuple[Shape, ...] = ()
    mean: bool = False
    terms: tuple[tuple[Shape, ...], ...] = ()
    x: tuple[int, ...] | None = None
    weight: Shape | None = None
    picks: tuple[tuple[Shape, tuple[Shape, ...]], ...] = ()
    stream: bool = False

    @property
    def maps(self) -> list[tuple[int, ...]]:
        """The strides of all maps, in the order of the call."""
        return [self.y, self.map, *([] if self.x is None else [self.x])]

    @property
    def smalls(self) -> list[Shape]:
        """The shapes of all small tensors, in the order of the call; a weight stands for what is taken off, too."""
        smalls = [*self.factors, *([] if self.weight is None else [self.weight])]
        smalls += [small for term in self.terms for small in term]
        return smalls + [small for values, scales in self.picks for small in (values, *scales)]


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
    spec = AffineSpec(
        map.shape,
        axes,
        map.stride(),
        y.stride(),
        map.dtype == torch.bfloat16,
        torch.get_num_threads(),
        factors=tuple([factor.shape for factor in factors]),
        mean=mean,
        terms=tuple([tuple([factor.shape for factor in term]) for term in terms]),
        x=None if x is None else x.stride(),
        weight=None if weight is None else weight.shape,
        picks=tuple([(values.shape, tuple([scale.shape for scale in scales])) for _, values, scales in picks]),
        stream=out is None and y.numel() * y.element_size() >= PAST_THE_CACHE,
    )
    smalls = [lay(small, axes) for small in factors]
    if weight is not None:
        less = torch.zeros_like(weight) if about is None else about.expand_as(weight)
        smalls += [lay(weight, axes), lay(less, axes)]
    smalls += [lay(small, axes) for term in terms for small in term]
    for places, values, scales in picks:
        smalls += [places, lay(values, axes), *[lay(scale, axes) for scale in scales]]
    tensors = [y, map, *smalls] if x is None else [y, map, x, *smalls]
    call("affine", cached_affine_plan(spec), [tensor.data_ptr() for tensor in tensors])
    return y


def prepare_affine(
    x: Tensor, factors: Sequence[Tensor], mean: bool, terms: Sequence[Sequence[Tensor]]
) -> Callable[[Tensor, Sequence[Tensor]], Tensor] | None:
    """`affine` for all maps that look like this one: a function of the map and its smalls.

    The smalls are the factors, then those of each term. None where one of them must be laid out anew.
    """
    axes = order(x)
    smalls = (*factors, *(small for term in terms for small in term))
    if not all(is_laid(small, axes) for small in smalls):
        return None
    shape, strides = tuple(x.shape), steps(x.shape, axes)
    plan = plan_affine(
        AffineSpec(
            shape,
            axes,
            x.stride(),
            strides,
            x.dtype == torch.bfloat16,
            torch.get_num_threads(),
            factors=tuple(factor.shape for factor in factors),
            mean=mean,
            terms=tuple(tuple(small.shape for small in term) for term in terms),
            stream=x.numel() * x.element_size() >= PAST_THE_CACHE,
        )
    )
    run, address, dtype = function("affine"), addressof(plan), x.dtype
    pointers_to = c_void_p * (2 + len(smalls))

    def affine(x: Tensor, smalls: Sequence[Tensor], plan: interface.Affine = plan) -> Tensor:  # which keeps the plan
        y = torch.empty_strided(shape, strides, dtype=dtype, device=CPU)
        pointers = [y.data_ptr(), x.data_ptr()]
        for small in smalls:
            pointers.append(small.data_ptr())
        run(address, pointers_to(*pointers))
        return y

    return affine


def plan_affine(spec: AffineSpec) -> interface.Affine:
    """A plan of one's own, which may be changed.

    Raises:
        Cannot: more than the kernel takes.
    """
    sizes, walks, strides = merge(spec.shape, spec.axes, spec.maps, spec.smalls)
    stream = spec.stream and worth_while(sizes[3] * (2 if spec.bfloat16 else 4))
    mean = spec.mean and len(spec.factors) > 1
    plan = interface.Affine(spec.bfloat16, spec.threads, len(spec.factors), mean, len(spec.terms), stream)
    plan.size[:] = sizes
    operands = Operands([*walks, *strides])
    plan.y, plan.map = operands.next(), operands.next()
    if spec.x is not None:
        plan.x = operands.next()
    if len(spec.factors) > 3 or len(spec.terms) > 4:
        raise Cannot("at most 3 factors and 4 terms")
    for place in range(len(spec.factors)):
        plan.factor[place] = operands.next()
    if spec.weight is not None:
        (plan.weight, plan.about), plan.weighted = operands.next_two(), 1
    varying = sum(_plan_term(into, len(term), operands) for into, term in zip(plan.term, spec.terms, strict=False))
    if sum(map(varies, plan.factor)) > 2 or varying > 2:
        raise Cannot("too many factors or terms vary along the fastest axis")
    if (mean or spec.picks) and spec.x is not None:
        raise Cannot("a mean of factors, or maxima, beside another map")
    _plan_picks(plan, spec, operands)
    return plan


def _plan_term(into: interface.Term, factors: int, operands: Operands) -> bool:
    """Whether the term varies along the fastest axis."""
    if factors > 2:
        raise Cannot("a term of more than 2 factors")
    into.factors = factors
    for at in range(factors):
        into.factor[at] = operands.next()
    if all(map(varies, into.factor)):
        raise Cannot("a term with two factors that vary along the fastest axis")
    return any(map(varies, into.factor))


def _plan_picks(plan: interface.Affine, spec: AffineSpec, operands: Operands) -> None:
    if len(spec.picks) > 3 or any(len(scales) > 2 for _, scales in spec.picks):
        raise Cannot("at most 3 maxima with 2 factors each")
    plan.picks = len(spec.picks)
    along = 0  # maxima along the fastest axis
    for into, (_, scales) in zip(plan.pick, spec.picks, strict=False):
        into.factors, into.place = len(scales), operands.pointer()
        into.value = operands.next()
        for at in range(len(scales)):
            into.factor[at] = operands.next()
            if varies(into.factor[at]) and varies(into.value):
                raise Cannot("maxima times a factor that varies along the fastest axis")
        along += not varies(into.value)
    if along > 1 or len(spec.picks) - along > 2:
        raise Cannot("more than one maximum along the fastest axis, or two along others")


cached_affine_plan = lru_cache(maxsize=4096)(plan_affine)
