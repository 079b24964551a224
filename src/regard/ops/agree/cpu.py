"""`agree` on the CPU in C++: a group of channels (channels last: an image) is read once from memory."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from regard.ops.agree import reference
from regard.ops.gradients import differentiate, must_be_plain
from regard.ops.kernels import cpu, interface, library


class Options(NamedTuple):
    """What of an agreement is no tensor; see `ops.agree`."""

    fades: bool
    unbiased: bool
    epsilon: float


def why_not(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    strength: Tensor | None,
    fades: bool,
    unbiased: bool,
    epsilon: float,
    watch: Callable[[Tensor], Tensor] | None,
) -> str | None:
    if watch is not None:
        return "the mask is watched"
    if any(small is not None and small.device.type != "cpu" for small in (weight, bias, strength)):
        return "needs parameters on the CPU"
    if x.dim() < 3:
        return f"needs a map of pixels, got the shape {tuple(x.shape)}"
    return cpu.why_not_plain(x)


def run(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    strength: Tensor | None,
    fades: bool,
    unbiased: bool,
    epsilon: float,
    watch: Callable[[Tensor], Tensor] | None,
) -> Tensor:
    x = x if x.movedim(1, -1).is_contiguous() else x.contiguous()
    tensors = (x, weight, bias, strength)
    if torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors):
        return _Agree.apply(Options(fades, unbiased, epsilon), *tensors)
    return _forward(x, weight, bias, strength, Options(fades, unbiased, epsilon))[0]


class _Agree(Function):
    @staticmethod
    def forward(ctx: Any, options: Options, x: Tensor, weight: Tensor, bias: Tensor, strength: Tensor | None) -> Tensor:
        y, means, scales = _forward(x, weight, bias, strength, options)
        ctx.options = options
        ctx.save_for_backward(x, weight, bias, strength, means, scales)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, strength, means, scales = ctx.saved_tensors
        if must_be_plain(dy):
            options: Options = ctx.options
            given = [tensor for tensor in (x, weight, bias, strength) if tensor is not None]

            def run(x: Tensor, weight: Tensor, bias: Tensor, strength: Tensor | None = None) -> tuple[Tensor]:
                return (reference.run(x, weight, bias, strength, *options, None),)

            return None, *differentiate(run, given, (dy,)), *[None] * (4 - len(given))
        sums = x.new_empty(3, len(x), len(weight), dtype=torch.float32)
        dy = dy if dy.stride() == x.stride() else torch.empty_like(x).copy_(dy)
        dx = _call(x, weight, bias, strength, ctx.options, means=means, scales=scales, dy=dy, sums=sums)
        dweight, dbias, dstrength = sums.sum(1)
        faded = None if strength is None else dstrength.sum().view(strength.shape).to(strength.dtype)
        return None, dx, dweight.to(weight.dtype), dbias.to(bias.dtype), faded


def _forward(
    x: Tensor, weight: Tensor, bias: Tensor, strength: Tensor | None, options: Options
) -> tuple[Tensor, Tensor, Tensor]:
    """The result, the mean of every channel, and mean and standard deviation of every group's agreement."""
    means = x.new_empty(x.shape[:2], dtype=torch.float32)
    scales = x.new_empty(2, len(x), len(weight), dtype=torch.float32)
    return _call(x, weight, bias, strength, options, means=means, scales=scales), means, scales


def _call(
    x: Tensor, weight: Tensor, bias: Tensor, strength: Tensor | None, options: Options, **tensors: Tensor
) -> Tensor:
    """The result, or the gradient of x, laid out as x."""
    fades, unbiased, epsilon = options
    batch, channels, pixels = *x.shape[:2], prod(x.shape[2:])
    last = not x.is_contiguous()
    stream = cpu.past_the_cache(x, channels if last else pixels)
    plan = interface.Agree(x.dtype == torch.bfloat16, torch.get_num_threads(), stream, unbiased, epsilon, last, fades)
    plan.batch, plan.groups, plan.width, plan.pixels = batch, len(weight), channels // len(weight), pixels
    smalls = [None if small is None else small.float().contiguous() for small in (weight, bias, strength)]
    plan.weight, plan.bias, plan.strength = (None if small is None else small.data_ptr() for small in smalls)
    y = torch.empty_like(x)
    for name, tensor in {"x": x, "y": y, **tensors}.items():
        setattr(plan, name, tensor.data_ptr())
    library.call("agree", plan)
    return y
