"""Whether a map can be weighed by its gates, and their gradients be found, which takes both `affine` and `reduce`."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from regard.ops.kernels.plan import Cannot, broadcast_along, order
from regard.ops.kernels.triton.affine import AffineSpec, plan_affine
from regard.ops.kernels.triton.reduce import ReduceSpec, plan_reduce


def cannot_weigh(x: Tensor, gates: Sequence[Tensor], mean: bool, shift: Tensor | None) -> str | None:
    """Why a map cannot be weighed by these gates, and their gradients be found, or None."""
    axes, stride = order(x), x.stride()
    shapes = tuple(gate.shape for gate in gates)
    terms = () if shift is None else ((shift.shape,),)
    others = [() if mean else (*shapes[:at], *shapes[at + 1 :]) for at in range(len(gates))]
    requests = tuple((broadcast_along(gate, x.shape), ("sum",), more) for gate, more in zip(gates, others, strict=True))
    try:
        plan_affine(AffineSpec(x.shape, axes, (stride,) * 3, shapes, terms))
        plan_reduce(ReduceSpec(x.shape, stride, axes, requests, other=stride))
    except Cannot as reason:
        return str(reason)
    return None
