"""`recalibrate` on the CPU in C++: one call that reads the map twice and writes it once."""

from __future__ import annotations

from collections.abc import Callable
from ctypes import addressof, c_void_p
from functools import lru_cache
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from regard.ops.excite import cpu as exciting
from regard.ops.gradients import differentiate, must_be_plain
from regard.ops.kernels import cpu, interface
from regard.ops.kernels.library import function
from regard.ops.kernels.plan import Request, arrange, order, steps
from regard.ops.recalibrate import reference

Weights = tuple[Tensor | None, ...]  # kernel, down, down_bias, up, up_bias, strength


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
    return _forward(x, weights, fades, keep=False)[0]


def prepare(x: Tensor, *rest: Any) -> Callable[..., Tensor] | None:
    weights, fades = rest[:6], rest[6]
    if not all(tensor is None or (tensor.dtype == torch.float32 and tensor.is_contiguous()) for tensor in weights):
        return None
    call = _planned(x, weights, fades, keep=False)
    return lambda x, *rest: call(x, rest[:6])[0]


class _Recalibrate(Function):
    @staticmethod
    def forward(ctx: Any, fades: bool, x: Tensor, *weights: Tensor | None) -> Tensor:
        y, kept, activations = _forward(x, weights, fades, keep=True)
        ctx.fades = fades
        ctx.save_for_backward(x, kept, activations, *weights)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, kept, activations, *weights = ctx.saved_tensors
        if must_be_plain(dy):
            return None, *_differentiate_reference(x, weights, ctx.fades, dy)
        kernel, down, _, up, _, strength = weights
        needed = ctx.needs_input_grad
        s, gate, applied = kept[0], kept[1], kept[-1]
        ones = [1] * (x.dim() - 2)
        found: list[Tensor | None] = [None] * 6
        ds: Tensor | None
        (sums,) = cpu.reduce(x, [Request(tuple(range(2, x.dim())), ("sum",))], dy)
        dgate = sums["sum"].view(gate.shape)
        if strength is not None:
            if needed[7]:
                moved = gate - 1 if ctx.fades else gate
                found[5] = (dgate * moved).sum().view(strength.shape)
            dgate = dgate * strength.float()
        if kernel is not None:
            d = torch.ops.aten.sigmoid_backward(dgate, gate).view(len(x), 1, 1, -1)
            ds, dkernel = cpu.convolve_backward(s.view(d.shape), kernel.float().unsqueeze(2), d, (True, needed[2]))
            found[0] = None if dkernel is None else dkernel.view(kernel.shape)
        else:
            ds, *found[1:5] = exciting.backward(dgate, gate, activations, (s,), down.float(), up.float(), needed[3:7])
        dx = None
        if needed[1]:
            assert ds is not None
            term = (ds.reshape(gate.shape) / prod(x.shape[2:])).view(*gate.shape, *ones)
            dy = arrange(dy, order(x))
            dx = cpu.affine(dy, (applied.view(*gate.shape, *ones),), terms=((term,),))
        pairs = zip(found, weights, strict=True)
        return None, dx, *(d if d is None or w is None else d.to(w.dtype) for d, w in pairs)


def _differentiate_reference(x: Tensor, weights: Weights, fades: bool, dy: Tensor) -> tuple[Tensor | None, ...]:
    given = {at: tensor for at, tensor in enumerate((x, *weights)) if tensor is not None}

    def run(*tensors: Tensor) -> tuple[Tensor]:
        present = dict(zip(given, tensors, strict=True))
        kernel, down, down_bias, up, up_bias, strength = map(present.get, range(1, 7))
        return (reference.run(present[0], kernel, down, down_bias, up, up_bias, strength, fades),)

    found = dict(zip(given, differentiate(run, [*given.values()], (dy,)), strict=True))
    return tuple(map(found.get, range(7)))


# --- the call into C++ -----------------------------------------------------------------------------------------------


def _forward(x: Tensor, weights: Weights, fades: bool, keep: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """The result; means, gates and gates as they are applied, (2 or 3, B, C); activations of the hidden layer."""
    laid = tuple(None if tensor is None else tensor.float().contiguous() for tensor in weights)
    return _planned(x, laid, fades, keep)(x, laid)


def _planned(x: Tensor, weights: Weights, fades: bool, keep: bool) -> Callable[..., Any]:
    return _plan(
        tuple(x.shape),
        x.stride(),
        order(x),
        x.dtype,
        tuple(None if tensor is None else tensor.shape for tensor in weights),
        fades,
        keep,
        torch.get_num_threads(),
    )


@lru_cache(maxsize=4096)
def _plan(
    shape: tuple[int, ...],
    stride: tuple[int, ...],
    axes: tuple[int, ...],
    dtype: torch.dtype,
    weights: tuple[tuple[int, ...] | None, ...],
    fades: bool,
    keep: bool,
    threads: int,
) -> Callable[..., Any]:
    """A function of a map and its weights, float32 and contiguous, that calls the kernel."""
    kernel, down, down_bias, _, up_bias, strength = weights
    batch, channels = shape[:2]
    pixels, bfloat16, strides = prod(shape[2:]), dtype == torch.bfloat16, steps(shape, axes)
    small, dims = (batch, channels, *[1] * (len(shape) - 2)), tuple(range(2, len(shape)))
    stream = prod(shape) * dtype.itemsize >= cpu.PAST_THE_CACHE
    plan = interface.Recalibrate(threads, fades, kernel is None, 0, batch * channels)
    plan.affine = cpu.plan_affine(
        shape, axes, stride, strides, None, bfloat16, (small,), False, (), None, (), stream, threads
    )
    plan.reduce, _ = cpu.plan_reduce(shape, stride, axes, bfloat16, None, ((dims, ("sum",), ()),), threads)
    plan.reduce.request[0].count = pixels
    if kernel is not None:
        plan.convolve = interface.Convolve(threads, 1, batch, 0, 1, channels, 1, kernel[-1])
        plan.convolve.x, plan.convolve.weight, plan.convolve.y = 1, 2, 3
        between = 3
    else:
        assert down is not None
        biases = down_bias is not None, up_bias is not None
        plan.excite = exciting.plan(threads, 1, (batch, channels), down[0], *biases, keep)
        between = 4 + sum(biases) + keep
    # the pointers: y, x, what is applied; x, s; those of the plan between; gate and strength
    plan.applied, plan.gate = 3, 6 + between
    plan.strength = None if strength is None else 7 + between
    rows, size = 2 + (strength is not None), batch * channels * 4
    pointers_to = c_void_p * (6 + between + (strength is not None))
    call, address = function("recalibrate"), addressof(plan)

    def recalibrate(
        x: Tensor, weights: Weights, plan: interface.Recalibrate = plan
    ) -> tuple[Tensor, Tensor, Tensor | None]:  # which keeps the plan
        kernel, down, down_bias, up, up_bias, strength = weights
        y = torch.empty_strided(shape, strides, dtype=dtype, device=cpu.CPU)
        kept = torch.empty((rows, batch, channels), dtype=torch.float32, device=cpu.CPU)
        activations = None
        s, at = kept.data_ptr(), x.data_ptr()
        gate = s + size
        pointers = [y.data_ptr(), at, s + (rows - 1) * size, at, s]
        if kernel is not None:
            pointers += s, kernel.data_ptr(), gate
        else:
            pointers += gate, s
            pointers += [tensor.data_ptr() for tensor in (down, down_bias, up, up_bias) if tensor is not None]
            if keep and down is not None:
                activations = torch.empty((1, batch, len(down)), dtype=torch.float32, device=cpu.CPU)
                pointers.append(activations.data_ptr())
        pointers.append(gate)
        if strength is not None:
            pointers.append(strength.data_ptr())
        call(address, pointers_to(*pointers))
        return y, kept, activations

    return recalibrate
