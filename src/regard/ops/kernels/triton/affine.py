"""`affine`: a map times its factors, plus other maps and small terms, read once and written once."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import prod
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from regard.ops.kernels.plan import arrange, empty, merge, order
from regard.ops.kernels.triton.launch import bits_along, blocks_of, compiler_options, dense
from regard.ops.kernels.triton.tiles import inside_of, load, place_of, product_of, tile_of, within

Shape = tuple[int, ...]
Launch = tuple[tuple[int], tuple[Any, ...], dict[str, Any]]
"""Grid, arguments and options."""


class AffineSpec(NamedTuple):
    """All that a plan of `affine` depends on.

    Attributes:
        shape: of every map.
        axes: of the map, from the slowest to the fastest.
        strides: of the result, of the map, and of the map that is added.
        factors: shapes.
        terms: shapes of the factors of each.
        weight: shape.
        picks: the shape of the values of each, and the shapes of its factors.
    """

    shape: Shape
    axes: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]
    factors: tuple[Shape, ...] = ()
    terms: tuple[tuple[Shape, ...], ...] = ()
    weight: Shape | None = None
    picks: tuple[tuple[Shape, tuple[Shape, ...]], ...] = ()


@triton.jit
def affine_tile(
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
    _, at = tile_of(size, P, Q, R)
    inside = inside_of(at, size, 15, ALIGN)
    value = tl.load(within(map, at, map_stride, ALIGN), mask=inside, other=0).to(tl.float32)
    if MEAN:
        total = tl.zeros([1, 1, 1], tl.float32)
        for k in tl.static_range(len(FACTORS)):
            total = total + load(factors[k], at, size, FACTORS[k]).to(tl.float32)
        value *= total / len(FACTORS)
    else:
        value *= product_of(factors, at, size, FACTORS)
    for k in tl.static_range(len(TERMS)):
        value += product_of(terms[k], at, size, TERMS[k])
    for k in tl.static_range(len(PICKS)):
        picked = inside & (load(picks[k][0], at, size, PICKS[k]) == place_of(at, size))
        more = load(picks[k][1], at, size, PICKS[k]) * product_of(picks[k][2], at, size, SCALES[k])
        value += tl.where(picked, more, 0)
    if x is not None:
        added = tl.load(within(x, at, x_stride, ALIGN), mask=inside, other=0).to(tl.float32)
        if about is not None:
            added -= load(about, at, size, WEIGHT).to(tl.float32)
        if weight is not None:
            added *= load(weight, at, size, WEIGHT).to(tl.float32)
        value += added
    tl.store(within(y, at, y_stride, ALIGN), value, mask=inside)


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
    grid, arguments, options = plan_affine(
        AffineSpec(
            map.shape,
            axes,
            (y.stride(), map.stride(), map.stride() if x is None else x.stride()),
            tuple(factor.shape for factor in factors),
            tuple(tuple(factor.shape for factor in term) for term in terms),
            None if weight is None else weight.shape,
            tuple((values.shape, tuple(scale.shape for scale in scales)) for _, values, scales in picks),
        )
    )
    if weight is not None and about is not None:
        about = dense(about.expand_as(weight), axes)
    weight = None if weight is None else dense(weight, axes)
    smalls = tuple(dense(factor, axes) for factor in factors)
    products = tuple(tuple(dense(factor, axes) for factor in term) for term in terms)
    maxima = tuple((at, dense(d, axes), tuple(dense(scale, axes) for scale in scales)) for at, d, scales in picks)
    mean = mean and len(factors) > 1
    with torch.cuda.device_of(map):
        affine_tile[grid](y, map, x, weight, about, smalls, products, maxima, *arguments, MEAN=mean, **options)
    return y


@lru_cache(maxsize=4096)
def plan_affine(spec: AffineSpec) -> Launch:
    """How the kernel is launched.

    Raises:
        Cannot: more than the kernel takes.
    """
    smalls = [*spec.factors, *(small for term in spec.terms for small in term), *(values for values, _ in spec.picks)]
    smalls += [scale for _, scales in spec.picks for scale in scales]
    smalls += [] if spec.weight is None else [spec.weight]
    sizes, walks, steps = merge(spec.shape, spec.axes, spec.strides, smalls)
    along = iter(bits_along(sizes, steps))
    blocks = blocks_of(sizes)
    options = compiler_options(sizes, walks, blocks) | {
        "FACTORS": tuple(next(along) for _ in spec.factors),
        "TERMS": tuple(tuple(next(along) for _ in term) for term in spec.terms),
        "PICKS": tuple(next(along) for _ in spec.picks),
        "SCALES": tuple(tuple(next(along) for _ in scales) for _, scales in spec.picks),
        "WEIGHT": next(along, 0),
    }
    programs = prod(triton.cdiv(size, block) for size, block in zip(sizes, blocks, strict=True))
    return (programs,), (tuple(sizes), *map(tuple, walks)), options
