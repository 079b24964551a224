"""Whether a map can be weighed by its gates, and their gradients be found, which takes both `affine` and `reduce`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from regard.ops.kernels.cpu.affine import AffineSpec, cached_affine_plan
from regard.ops.kernels.cpu.reduce import ReduceSpec, cached_reduce_plan
from regard.ops.kernels.plan import Cannot, broadcast_along, order


def cannot_weigh(x: Tensor, gates: Sequence[Tensor], mean: bool, shift: Tensor | None) -> str | None:
    """Why a map cannot be weighed by these gates, and their gradients be found, or None."""
    axes, stride = order(x), x.stride()
    bfloat16, threads = x.dtype == torch.bfloat16, torch.get_num_threads()
    shapes = tuple(gate.shape for gate in gates)
    terms = () if shift is None else ((shift.shape,),)
    others = [() if mean else (*shapes[:at], *shapes[at + 1 :]) for at in range(len(gates))]
    requests = tuple((broadcast_along(gate, x.shape), ("sum",), more) for gate, more in zip(gates, others, strict=True))
    try:
        cached_affine_plan(AffineSpec(x.shape, axes, stride, stride, bfloat16, threads, shapes, mean, terms))
        cached_reduce_plan(ReduceSpec(x.shape, stride, axes, bfloat16, requests, threads, other=stride))
    except Cannot as reason:
        return str(reason)
    return None
