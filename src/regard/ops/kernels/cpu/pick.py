"""`scatter` and `gather`: the gradients of maxima, at the places where they stood."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from regard.ops.kernels import interface
from regard.ops.kernels.cpu.operands import Operands
from regard.ops.kernels.library import call
from regard.ops.kernels.plan import empty, lay, merge, order

Shape = tuple[int, ...]


class PickSpec(NamedTuple):
    """All that a plan of `scatter` or `gather` depends on.

    Attributes:
        shape, stride: of the map.
        axes: of the map, from the slowest to the fastest.
        bfloat16: whether its numbers are of that dtype, or float32.
        values: the shape of the maxima.
        factors: shapes.
        gradients: whether gradients of the factors are asked for, and not the map's.
        threads: that work.
    """

    shape: Shape
    stride: tuple[int, ...]
    axes: tuple[int, ...]
    bfloat16: bool
    values: Shape
    factors: tuple[Shape, ...]
    gradients: bool
    threads: int


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
    plan = _planned(
        PickSpec(
            map.shape,
            map.stride(),
            axes,
            map.dtype == torch.bfloat16,
            values.shape,
            tuple([factor.shape for factor in factors]),
            gradients is not None,
            torch.get_num_threads(),
        )
    )
    tensors = [map, lay(values, axes), places, *[lay(factor, axes) for factor in factors], *(gradients or ())]
    call("pick", plan, [tensor.data_ptr() for tensor in tensors])


@lru_cache(maxsize=4096)
def _planned(spec: PickSpec) -> interface.Pick:
    sizes, walks, strides = merge(spec.shape, spec.axes, [spec.stride], [spec.values, *spec.factors])
    plan, operands = interface.Pick(spec.bfloat16, spec.threads, len(spec.factors)), Operands([*walks, *strides])
    plan.size[:] = sizes
    if spec.gradients:
        plan.x = operands.next()
    else:
        plan.y = operands.next()
    plan.value, plan.place = operands.next(), operands.pointer()
    for at in range(len(spec.factors)):
        plan.factor[at] = operands.next()
    for at in range(len(spec.factors) if spec.gradients else 0):
        plan.gradient[at] = operands.pointer()
    return plan
