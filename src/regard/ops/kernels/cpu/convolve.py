"""`convolve`: a convolution of a few channels to one, and its gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from ctypes import addressof, c_void_p

import torch
from torch import Tensor

from regard.ops.kernels import interface
from regard.ops.kernels.cpu.tensors import CPU
from regard.ops.kernels.library import call, function


def convolve(x: Tensor, weight: Tensor) -> Tensor:
    """A convolution with one result, as large as the map.

    Args:
        x: (B, I, H, W), float32.
        weight: (1, I, odd, odd), float32.
    """
    x, weight = x.contiguous(), weight.contiguous()
    y = x.new_empty((len(x), 1, *x.shape[2:]))
    plan = plan_convolve(x.shape, weight.shape, torch.get_num_threads())
    plan.y = 3
    call("convolve", plan, (x.data_ptr(), weight.data_ptr(), y.data_ptr()))
    return y


def prepare_convolve(x: Tensor, weight: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """`convolve` for all maps and weights that look like these, contiguous, of one or two spatial axes."""
    shape = (len(x), 1, *x.shape[2:])
    plan = plan_convolve(x.shape, weight.shape, torch.get_num_threads())
    plan.y = 3
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
    plan = plan_convolve(x.shape, weight.shape, torch.get_num_threads())
    plan.dy, plan.dx, plan.dweight = 3, 4, 5
    tensors = (x, weight, dy, dx, dweight)
    call("convolve_backward", plan, [0 if tensor is None else tensor.data_ptr() for tensor in tensors])
    return dx, None if dweight is None else dweight.sum(0, keepdim=True)


def plan_convolve(x: Sequence[int], weight: Sequence[int], threads: int) -> interface.Convolve:
    """A plan for these shapes, of one or two spatial axes, with the map as pointer 1 and the weight as pointer 2."""
    line = (1,) * (4 - len(x))
    plan = interface.Convolve(threads, x[1], x[0], 0, *line, *x[2:], *line, *weight[2:])
    plan.x, plan.weight = 1, 2
    return plan
