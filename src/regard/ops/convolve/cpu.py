"""`convolve` on the CPU in C++: every channel is read once, and no matrix of patches is built."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from regard.ops.convolve import reference
from regard.ops.gradients import differentiate, must_be_plain
from regard.ops.kernels import cpu


def why_not(x: Tensor, weight: Tensor) -> str | None:
    if not (x.is_cpu and weight.is_cpu):
        return f"needs tensors on the CPU, got {x.device} and {weight.device}"
    if x.dim() not in (3, 4) or weight.dim() != x.dim():
        return f"needs maps of one or two spatial axes, got {x.dim() - 2}"
    if weight.shape[0] != 1 or weight.shape[1] != x.shape[1] or not all(side % 2 for side in weight.shape[2:]):
        return f"needs one result and odd sides, got a kernel of {tuple(weight.shape)}"
    if weight.dtype != x.dtype:
        return f"needs one dtype, got {x.dtype} and {weight.dtype}"
    if torch.is_autocast_enabled("cpu"):
        return "under autocast"
    return cpu.why_not_plain(x) or cpu.why_not_plain(weight)


def run(x: Tensor, weight: Tensor) -> Tensor:
    if x.dim() == 3:
        return _Convolve.apply(x.unsqueeze(2), weight.unsqueeze(2)).squeeze(2)
    return _Convolve.apply(x, weight)


def prepare(x: Tensor, weight: Tensor) -> Callable[[Tensor, Tensor], Tensor] | None:
    if x.dtype != torch.float32 or not (x.is_contiguous() and weight.is_contiguous()):
        return None
    return cpu.prepare_convolve(x, weight)


class _Convolve(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return cpu.convolve(x.float(), weight.float()).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        if must_be_plain(dy):
            return differentiate(lambda x, weight: (reference.run(x, weight),), (x, weight), (dy,))
        dx, dweight = cpu.convolve_backward(x.float(), weight.float(), dy.float(), ctx.needs_input_grad)
        return None if dx is None else dx.to(x.dtype), None if dweight is None else dweight.to(weight.dtype)
