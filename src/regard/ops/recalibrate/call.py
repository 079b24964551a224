"""The one call into C++ of `recalibrate`, planned for all maps and weights that look alike."""

from __future__ import annotations

from collections.abc import Callable
from ctypes import addressof, c_void_p
from functools import lru_cache
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from regard.ops.excite.call import ExciteSpec, plan_excite
from regard.ops.kernels import cpu, interface
from regard.ops.kernels.library import function
from regard.ops.kernels.plan import order, steps

Weights = tuple[Tensor | None, ...]
"""kernel, down, down_bias, up, up_bias, strength; see `reference.run`."""
Shape = tuple[int, ...]


class RecalibrateSpec(NamedTuple):
    """All that a call depends on.

    Attributes:
        shape, stride: of the map.
        axes: of the map, from the slowest to the fastest.
        dtype: of the map.
        weights: shapes, None for a weight that there is not.
        fades: whether the strength fades the gate in, or scales it.
        keep: whether the activations of the hidden layer are kept.
        threads: that work.
    """

    shape: Shape
    stride: tuple[int, ...]
    axes: tuple[int, ...]
    dtype: torch.dtype
    weights: tuple[Shape | None, ...]
    fades: bool
    keep: bool
    threads: int


def recalibrated(x: Tensor, weights: Weights, fades: bool, keep: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """The result; means, gates and gates as they are applied, (2 or 3, B, C); activations of the hidden layer."""
    laid = tuple([None if weight is None else weight.float().contiguous() for weight in weights])
    return planned(x, laid, fades, keep)(x, laid)


def planned(x: Tensor, weights: Weights, fades: bool, keep: bool) -> Callable[..., Any]:
    """`recalibrated`, for all maps and weights that look like these: a function of both."""
    shapes = tuple([None if weight is None else weight.shape for weight in weights])
    return _plan(RecalibrateSpec(x.shape, x.stride(), order(x), x.dtype, shapes, fades, keep, torch.get_num_threads()))


@lru_cache(maxsize=4096)
def _plan(spec: RecalibrateSpec) -> Callable[..., Any]:
    """A function of a map and its weights, float32 and contiguous, that calls the kernel."""
    plan, pointers, dtype, keep = _struct(spec), _pointers(spec), spec.dtype, spec.keep
    batch, channels = spec.shape[:2]
    shape, strides = spec.shape, steps(spec.shape, spec.axes)
    rows, size = 3 if spec.weights[-1] is not None else 2, batch * channels * 4
    pointers_to = c_void_p * pointers
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


def _between(spec: RecalibrateSpec) -> int:
    """How many pointers the plan that makes the gate has."""
    kernel, _, down_bias, _, up_bias, _ = spec.weights
    if kernel is not None:
        return 3
    return 4 + (down_bias is not None) + (up_bias is not None) + spec.keep


def _pointers(spec: RecalibrateSpec) -> int:
    """How many there are: y, x, what is applied; x, s; those of the plan between; gate and strength."""
    return 6 + _between(spec) + (spec.weights[-1] is not None)


def _struct(spec: RecalibrateSpec) -> interface.Recalibrate:
    kernel, down, down_bias, _, up_bias, strength = spec.weights
    shape, axes, threads = spec.shape, spec.axes, spec.threads
    batch, channels = shape[:2]
    small, pixels = (batch, channels, *[1] * (len(shape) - 2)), tuple(range(2, len(shape)))
    bfloat16 = spec.dtype == torch.bfloat16
    stream = prod(shape) * spec.dtype.itemsize >= cpu.PAST_THE_CACHE
    plan = interface.Recalibrate(threads, spec.fades, kernel is None, 0, batch * channels)
    plan.affine = cpu.plan_affine(
        cpu.AffineSpec(shape, axes, spec.stride, steps(shape, axes), bfloat16, threads, factors=(small,), stream=stream)
    )
    requests = ((pixels, ("sum",), ()),)
    plan.reduce, _ = cpu.plan_reduce(cpu.ReduceSpec(shape, spec.stride, axes, bfloat16, requests, threads))
    plan.reduce.request[0].count = prod(shape[2:])
    if kernel is not None:
        plan.convolve = cpu.plan_convolve((batch, 1, channels), kernel, threads)
        plan.convolve.y = 3
    else:
        assert down is not None
        biases = down_bias is not None, up_bias is not None
        plan.excite = plan_excite(ExciteSpec(threads, 1, (batch, channels), down[0], *biases, spec.keep))
    plan.applied, plan.gate = 3, 6 + _between(spec)
    plan.strength = None if strength is None else plan.gate + 1
    return plan
