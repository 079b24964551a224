"""The one call into C++ of `excite`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from ctypes import addressof, c_void_p
from itertools import count
from typing import NamedTuple

import torch
from torch import Tensor

from regard.ops.kernels import cpu, interface
from regard.ops.kernels.library import call, function


class ExciteSpec(NamedTuple):
    """All that a plan of `excite` depends on.

    Attributes:
        threads: that work.
        inputs: tensors that were squeezed.
        shape: (B, C), of each of them.
        hidden: units of the hidden layer.
        down_bias, up_bias: whether there is one.
        keep: whether the activations of the hidden layer are kept.
    """

    threads: int
    inputs: int
    shape: Sequence[int]
    hidden: int
    down_bias: bool
    up_bias: bool
    keep: bool = False


def plan_excite(spec: ExciteSpec) -> interface.Excite:
    """Pointers are numbered in the order of the call: gate, what was squeezed, the weights that there are, and the
    activations where they are kept."""
    plan = interface.Excite(spec.threads, spec.inputs, *spec.shape, spec.hidden)
    numbers = count(1)
    plan.gate = next(numbers)
    for at in range(spec.inputs):
        plan.squeezed[at] = next(numbers)
    plan.down = next(numbers)
    plan.down_bias = next(numbers) if spec.down_bias else None
    plan.up = next(numbers)
    plan.up_bias = next(numbers) if spec.up_bias else None
    plan.activations = next(numbers) if spec.keep else None
    return plan


def excited(
    squeezed: Sequence[Tensor],
    down: Tensor,
    down_bias: Tensor | None,
    up: Tensor,
    up_bias: Tensor | None,
    activations: Tensor | None,
) -> Tensor:
    """The gate; the activations of the hidden layer are written where there is room for them."""
    gate = down.new_empty(squeezed[0].shape, dtype=torch.float32)
    weights = [weight for weight in (down, down_bias, up, up_bias) if weight is not None]
    given = [tensor.float().contiguous() for tensor in (*squeezed, *weights)]
    present = [gate, *given, *(() if activations is None else (activations,))]
    plan = plan_excite(_spec(squeezed, down, down_bias, up_bias, activations is not None))
    call("excite", plan, [tensor.data_ptr() for tensor in present])
    return gate.to(down.dtype)


def prepared(
    squeezed: Sequence[Tensor], down: Tensor, down_bias: Tensor | None, up: Tensor, up_bias: Tensor | None
) -> Callable[..., Tensor]:
    """The gate, for all tensors that look like these, float32 and contiguous."""
    plan, excite = plan_excite(_spec(squeezed, down, down_bias, up_bias)), function("excite")
    address, shape = addressof(plan), tuple(squeezed[0].shape)
    pointers_to = c_void_p * (3 + len(squeezed) + (down_bias is not None) + (up_bias is not None))

    def run(
        squeezed: tuple[Tensor, ...],
        down: Tensor,
        down_bias: Tensor | None,
        up: Tensor,
        up_bias: Tensor | None,
        plan: interface.Excite = plan,  # kept
    ) -> Tensor:
        gate = torch.empty(shape, dtype=torch.float32, device=cpu.CPU)
        pointers = [gate.data_ptr()]
        for tensor in (*squeezed, down, down_bias, up, up_bias):
            if tensor is not None:
                pointers.append(tensor.data_ptr())
        excite(address, pointers_to(*pointers))
        return gate

    return run


def _spec(
    squeezed: Sequence[Tensor], down: Tensor, down_bias: Tensor | None, up_bias: Tensor | None, keep: bool = False
) -> ExciteSpec:
    biases = down_bias is not None, up_bias is not None
    return ExciteSpec(torch.get_num_threads(), len(squeezed), squeezed[0].shape, len(down), *biases, keep)
