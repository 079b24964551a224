"""`selfgate` on the CPU in C++: a channel is read once from memory, and then found in the caches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from regard.ops.gradients import differentiate, must_be_plain
from regard.ops.kernels import cpu, interface, library
from regard.ops.selfgate import reference

Parameters = tuple[Tensor | None, ...]


class Options(NamedTuple):
    """What of a self-gate is no tensor; see `ops.selfgate`."""

    fades: bool
    energy: float | None
    epsilon: float
    shuffle: bool


def why_not(
    x: Tensor,
    slope: Tensor | None,
    level: Tensor | None,
    bias: Tensor | None,
    strength: Tensor | None,
    fades: bool,
    energy: float | None,
    epsilon: float,
    shuffle: bool,
    watch: Callable[[Tensor], Tensor] | None,
) -> str | None:
    if watch is not None:
        return "the gate is watched"
    vectors = [vector for vector in (slope, level, bias) if vector is not None]
    if any(small.device.type != "cpu" for small in (*vectors, *(() if strength is None else (strength,)))):
        return "needs parameters on the CPU"
    if len({vector.shape for vector in vectors}) > 1:
        return f"needs parameters of one length, got {', '.join(str(len(vector)) for vector in vectors)}"
    if x.dim() < 3:
        return f"needs a map of pixels, got the shape {tuple(x.shape)}"
    return cpu.why_not_plain(x)


def run(
    x: Tensor,
    slope: Tensor | None,
    level: Tensor | None,
    bias: Tensor | None,
    strength: Tensor | None,
    fades: bool,
    energy: float | None,
    epsilon: float,
    shuffle: bool,
    watch: Callable[[Tensor], Tensor] | None,
) -> Tensor:
    x = x if x.movedim(1, -1).is_contiguous() else x.contiguous()
    parameters = (slope, level, bias, strength)
    if torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in (x, *parameters)):
        return _SelfGate.apply(Options(fades, energy, epsilon, shuffle), x, *parameters)
    return _forward(x, parameters, Options(fades, energy, epsilon, shuffle))[0]


class _SelfGate(Function):
    @staticmethod
    def forward(ctx: Any, options: Options, x: Tensor, *parameters: Tensor | None) -> Tensor:
        y, stats = _forward(x, parameters, options)
        ctx.options = options
        ctx.save_for_backward(x, stats, *parameters)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, stats, *parameters = ctx.saved_tensors
        if must_be_plain(dy):
            return None, *_differentiate_reference(x, parameters, ctx.options, dy)
        dy = dy if dy.stride() == x.stride() else torch.empty_like(x).copy_(dy)
        dx, sums = torch.empty_like(x), x.new_empty(4, *x.shape[:2], dtype=torch.float32)
        period = _period(x, parameters)
        _call(x, parameters, ctx.options, period, y=dx, stats=stats, dy=dy, sums=sums)
        gradients: list[Tensor | None] = [None] * 4
        if any(ctx.needs_input_grad[2:]):
            totals = sums.view(4, -1, period).sum(1)
            for at, parameter in enumerate(parameters):
                if parameter is not None:
                    total = totals[at] if at < 3 else totals[at].sum().view(parameter.shape)
                    gradients[at] = total.to(parameter.dtype)
        return None, dx, *gradients


def _differentiate_reference(
    x: Tensor, parameters: Parameters, options: Options, dy: Tensor
) -> tuple[Tensor | None, ...]:
    given = {at: tensor for at, tensor in enumerate((x, *parameters)) if tensor is not None}

    def run(*tensors: Tensor) -> tuple[Tensor]:
        present = dict(zip(given, tensors, strict=True))
        x, slope, level, bias, strength = map(present.get, range(5))
        assert x is not None
        return (reference.run(x, slope, level, bias, strength, *options, None),)

    gradients = dict(zip(given, differentiate(run, [*given.values()], (dy,)), strict=True))
    return tuple(map(gradients.get, range(5)))


def _period(x: Tensor, parameters: Parameters) -> int:
    return next((len(vector) for vector in parameters[:3] if vector is not None), x.shape[1])


def _forward(x: Tensor, parameters: Parameters, options: Options) -> tuple[Tensor, Tensor]:
    """The result, and mean and sum of squared deviations: (2, B, C)."""
    y, stats = torch.empty_like(x), x.new_empty(2, *x.shape[:2], dtype=torch.float32)
    _call(x, parameters, options, _period(x, parameters), y=y, stats=stats)
    return y, stats


def _call(x: Tensor, parameters: Parameters, options: Options, period: int, **tensors: Tensor) -> None:
    fades, energy, epsilon, shuffle = options
    batch, channels = x.shape[:2]
    last = not x.is_contiguous()
    pixels = x.numel() // (batch * channels)
    stream = cpu.past_the_cache(x, channels if last else pixels)
    plan = interface.SelfGate(
        x.dtype == torch.bfloat16, torch.get_num_threads(), last, shuffle, stream, energy is not None, fades
    )
    plan.energy, plan.epsilon = energy or 0, epsilon
    plan.batch, plan.channels, plan.pixels, plan.period = batch, channels, pixels, period
    smalls = [None if parameter is None else parameter.float().contiguous() for parameter in parameters]
    plan.x = x.data_ptr()
    plan.slope, plan.level, plan.bias, plan.strength = (
        small if small is None else small.data_ptr() for small in smalls
    )
    for name, tensor in tensors.items():
        setattr(plan, name, tensor.data_ptr())
    library.call("selfgate", plan)
