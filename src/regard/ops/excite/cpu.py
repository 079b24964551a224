"""`excite` on the CPU in C++: each weight is read once, and nothing is written but the gate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from regard.ops.excite import reference
from regard.ops.excite.call import excited, prepared
from regard.ops.gradients import differentiate, must_be_plain
from regard.ops.kernels import cpu

INPUTS = 4  # tensors that were squeezed, at most


def why_not(
    squeezed: tuple[Tensor, ...], down: Tensor, down_bias: Tensor | None, up: Tensor, up_bias: Tensor | None
) -> str | None:
    weights = [weight for weight in (down, down_bias, up, up_bias) if weight is not None]
    if any(not tensor.is_cpu for tensor in (*squeezed, *weights)):
        return "needs tensors on the CPU"
    if len({tensor.dtype for tensor in (*squeezed, *weights)}) > 1 or torch.is_autocast_enabled("cpu"):
        return "needs tensors of one dtype"
    if not 1 <= len(squeezed) <= INPUTS:
        return f"takes up to {INPUTS} squeezed tensors, got {len(squeezed)}"
    hidden, channels = down.shape
    fits = up.shape == (channels, hidden) and {s.shape for s in squeezed} == {(len(squeezed[0]), channels)}
    biases = (down_bias, hidden), (up_bias, channels)
    if not fits or any(bias is not None and bias.shape != (width,) for bias, width in biases):
        return "needs a layer that narrows the channels, and one that widens them again"
    return cpu.why_not_plain(squeezed[0]) or cpu.why_not_plain(down)


def run(
    squeezed: tuple[Tensor, ...], down: Tensor, down_bias: Tensor | None, up: Tensor, up_bias: Tensor | None
) -> Tensor:
    tensors = (*squeezed, down, down_bias, up, up_bias)
    if torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors):
        return _Excite.apply(down, down_bias, up, up_bias, *squeezed)
    return excited(squeezed, down, down_bias, up, up_bias, None)


class _Excite(Function):
    @staticmethod
    def forward(
        ctx: Any, down: Tensor, down_bias: Tensor | None, up: Tensor, up_bias: Tensor | None, *squeezed: Tensor
    ) -> Tensor:
        activations = down.new_empty(len(squeezed), len(squeezed[0]), len(down), dtype=torch.float32)
        gate = excited(squeezed, down, down_bias, up, up_bias, activations)
        ctx.save_for_backward(gate, activations, down, down_bias, up, up_bias, *squeezed)
        return gate

    @staticmethod
    def backward(ctx: Any, dgate: Tensor) -> tuple[Tensor | None, ...]:
        gate, activations, down, down_bias, up, up_bias, *squeezed = ctx.saved_tensors
        if must_be_plain(dgate):
            return _differentiate_reference(squeezed, down, down_bias, up, up_bias, dgate)
        needed, dtype = ctx.needs_input_grad, gate.dtype
        dgate, gate, down, up, *squeezed = (tensor.float() for tensor in (dgate, gate, down, up, *squeezed))
        dsqueezed, *dweights = excite_backward(dgate, gate, activations, squeezed, down, up, needed)
        gradients = (*dweights, *(dsqueezed.chunk(len(squeezed)) if any(needed[4:]) else [None] * len(squeezed)))
        return gradients if dtype == torch.float32 else tuple(d if d is None else d.to(dtype) for d in gradients)


def excite_backward(
    dgate: Tensor,
    gate: Tensor,
    activations: Tensor,
    squeezed: Sequence[Tensor],
    down: Tensor,
    up: Tensor,
    needed: Sequence[bool],
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """The gradients of what was squeezed, one below the other, and of the weights and biases that are needed.

    All in float32; `needed` stands for down, its bias, up, its bias.
    """
    d = torch.ops.aten.sigmoid_backward(dgate, gate)
    dup = d.t() @ activations.sum(0) if needed[2] else None
    dup_bias = d.sum(0) * len(squeezed) if needed[3] else None
    hidden = (d @ up).expand_as(activations)
    hidden = torch.ops.aten.threshold_backward(hidden, activations, 0).flatten(0, 1)
    ddown = hidden.t() @ (squeezed[0] if len(squeezed) == 1 else torch.cat([*squeezed])) if needed[0] else None
    ddown_bias = hidden.sum(0) if needed[1] else None
    return hidden @ down, ddown, ddown_bias, dup, dup_bias


def _differentiate_reference(
    squeezed: Sequence[Tensor],
    down: Tensor,
    down_bias: Tensor | None,
    up: Tensor,
    up_bias: Tensor | None,
    dgate: Tensor,
) -> tuple[Tensor | None, ...]:
    given = {at: tensor for at, tensor in enumerate((down, down_bias, up, up_bias, *squeezed)) if tensor is not None}

    def run(*tensors: Tensor) -> tuple[Tensor]:
        present = dict(zip(given, tensors, strict=True))
        inputs = [present[at] for at in range(4, 4 + len(squeezed))]
        return (reference.run(inputs, present[0], present.get(1), present[2], present.get(3)),)

    gradients = dict(zip(given, differentiate(run, [*given.values()], (dgate,)), strict=True))
    return tuple(map(gradients.get, range(4 + len(squeezed))))


def prepare(
    squeezed: tuple[Tensor, ...], down: Tensor, down_bias: Tensor | None, up: Tensor, up_bias: Tensor | None
) -> Callable[..., Tensor] | None:
    given = (*squeezed, down, down_bias, up, up_bias)
    if down.dtype != torch.float32 or not all(tensor is None or tensor.is_contiguous() for tensor in given):
        return None
    return prepared(squeezed, down, down_bias, up, up_bias)
