"""`recalibrate` on the CPU in C++: one call that reads the map twice and writes it once."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from regard.ops.excite.cpu import excite_backward
from regard.ops.gradients import differentiate, must_be_plain
from regard.ops.kernels import cpu
from regard.ops.kernels.plan import Request, arrange, order
from regard.ops.recalibrate import reference
from regard.ops.recalibrate.call import Weights, planned, recalibrated


def why_not(x: Tensor, *rest: Any) -> str | None:
    given = [tensor for tensor in rest[:6] if tensor is not None]
    if not all(tensor.is_cpu for tensor in (x, *given)):
        return "needs tensors on the CPU"
    if any(tensor.dtype not in (torch.float32, torch.bfloat16) for tensor in given):
        return "needs weights in float32 or bfloat16"
    if x.dim() < 3:
        return f"needs a map of pixels, got the shape {tuple(x.shape)}"
    kernel, down, down_bias, up, up_bias, strength = rest[:6]
    channels = x.shape[1]
    wanted: list[tuple[Tensor | None, tuple[int, ...]]] = []
    if kernel is not None:
        wanted.append((kernel, (1, 1, kernel.shape[-1] // 2 * 2 + 1)))
    if down is not None:
        wanted += [(down, (len(down), channels)), (up, (channels, len(down)))]
        wanted += [(down_bias, (len(down),)), (up_bias, (channels,))]
    wanted.append((strength, (1,)))
    if any(tensor is not None and tensor.shape != shape for tensor, shape in wanted):
        return f"needs weights for {channels} channels"
    gate = x[(slice(None), slice(None), *[slice(1)] * (x.dim() - 2))]
    axes = tuple(range(2, x.dim()))
    return (
        cpu.why_not(x) or cpu.cannot_reduce(x, [Request(axes, ("sum",))]) or cpu.cannot_weigh(x, (gate,), False, None)
    )


def run(x: Tensor, *rest: Any) -> Tensor:
    weights, fades = rest[:6], rest[6]
    if torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in (x, *weights)):
        return _Recalibrate.apply(fades, x, *weights)
    return recalibrated(x, weights, fades, keep=False)[0]


def prepare(x: Tensor, *rest: Any) -> Callable[..., Tensor] | None:
    weights, fades = rest[:6], rest[6]
    if not all(tensor is None or (tensor.dtype == torch.float32 and tensor.is_contiguous()) for tensor in weights):
        return None
    call = planned(x, weights, fades, keep=False)
    return lambda x, *rest: call(x, rest[:6])[0]


class _Recalibrate(Function):
    @staticmethod
    def forward(ctx: Any, fades: bool, x: Tensor, *weights: Tensor | None) -> Tensor:
        y, kept, activations = recalibrated(x, weights, fades, keep=True)
        ctx.fades = fades
        ctx.save_for_backward(x, kept, activations, *weights)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, kept, activations, *weights = ctx.saved_tensors
        if must_be_plain(dy):
            return None, *_differentiate_reference(x, weights, ctx.fades, dy)
        kernel, down, _, up, _, strength = weights
        _, needs_x, *needed = ctx.needs_input_grad
        s, gate, applied = kept[0], kept[1], kept[-1]
        (sums,) = cpu.reduce(x, [Request(tuple(range(2, x.dim())), ("sum",))], dy)
        dgate, dstrength = sums["sum"].view(gate.shape), None
        if strength is not None:
            if needed[-1]:
                dstrength = (dgate * (gate - 1 if ctx.fades else gate)).sum().view(strength.shape)
            dgate = dgate * strength.float()
        if kernel is not None:
            ds, dkernel = _convolve_backward(dgate, gate, s, kernel, needed[0])
            dweights = [dkernel, None, None, None, None, dstrength]
        else:
            ds, *dlayers = excite_backward(dgate, gate, activations, (s,), down.float(), up.float(), needed[1:5])
            dweights = [None, *dlayers, dstrength]
        dx = _map_gradient(x, dy, applied, ds) if needs_x else None
        pairs = zip(dweights, weights, strict=True)
        return None, dx, *[d if d is None or weight is None else d.to(weight.dtype) for d, weight in pairs]


def _convolve_backward(
    dgate: Tensor, gate: Tensor, s: Tensor, kernel: Tensor, needs_kernel: bool
) -> tuple[Tensor, Tensor | None]:
    """The gradients of the means and of the kernel."""
    d = torch.ops.aten.sigmoid_backward(dgate, gate).view(len(s), 1, 1, -1)
    ds, dkernel = cpu.convolve_backward(s.view(d.shape), kernel.float().unsqueeze(2), d, (True, needs_kernel))
    assert ds is not None
    return ds, None if dkernel is None else dkernel.view(kernel.shape)


def _map_gradient(x: Tensor, dy: Tensor, applied: Tensor, ds: Tensor) -> Tensor:
    """What comes back through the gate's product, and through the means."""
    small = (*applied.shape, *[1] * (x.dim() - 2))
    term = (ds.reshape(applied.shape) / prod(x.shape[2:])).view(small)
    return cpu.affine(arrange(dy, order(x)), (applied.view(small),), terms=((term,),))


def _differentiate_reference(x: Tensor, weights: Weights, fades: bool, dy: Tensor) -> tuple[Tensor | None, ...]:
    given = {at: tensor for at, tensor in enumerate((x, *weights)) if tensor is not None}

    def run(*tensors: Tensor) -> tuple[Tensor]:
        present = dict(zip(given, tensors, strict=True))
        kernel, down, down_bias, up, up_bias, strength = map(present.get, range(1, 7))
        return (reference.run(present[0], kernel, down, down_bias, up, up_bias, strength, fades),)

    gradients = dict(zip(given, differentiate(run, [*given.values()], (dy,)), strict=True))
    return tuple(map(gradients.get, range(7)))
