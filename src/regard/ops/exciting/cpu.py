"""`excite` on the CPU in C++: each weight is read once, and nothing is written but the gate."""

from __future__ import annotations

from collections.abc import Callable
from ctypes import Structure, addressof, c_int32, c_int64, c_void_p

import torch
from torch import Tensor

from regard.ops.kernels import cpu
from regard.ops.kernels.library import call, function

MOST = 4  # tensors that were squeezed


def why_not(
    squeezed: tuple[Tensor, ...], down: Tensor, down_bias: Tensor | None, up: Tensor, up_bias: Tensor | None
) -> str | None:
    weights = [weight for weight in (down, down_bias, up, up_bias) if weight is not None]
    if any(not tensor.is_cpu for tensor in (*squeezed, *weights)):
        return "needs tensors on the CPU"
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (*squeezed, *weights)):
        return "records no gradients"
    if any(tensor.dtype != torch.float32 for tensor in (*squeezed, *weights)) or torch.is_autocast_enabled("cpu"):
        return "needs float32"
    if not 1 <= len(squeezed) <= MOST:
        return f"takes up to {MOST} squeezed tensors, got {len(squeezed)}"
    hidden, channels = down.shape
    fits = up.shape == (channels, hidden) and {s.shape for s in squeezed} == {(len(squeezed[0]), channels)}
    biases = (down_bias, hidden), (up_bias, channels)
    if not fits or any(bias is not None and bias.shape != (width,) for bias, width in biases):
        return "needs a layer that narrows the channels, and one that widens them again"
    return cpu.why_not_plain(squeezed[0]) or cpu.why_not_plain(down)


def run(
    squeezed: tuple[Tensor, ...], down: Tensor, down_bias: Tensor | None, up: Tensor, up_bias: Tensor | None
) -> Tensor:
    gate = squeezed[0].new_empty(squeezed[0].shape)
    tensors = [None if tensor is None else tensor.contiguous() for tensor in (*squeezed, down, down_bias, up, up_bias)]
    plan = _plan(squeezed, down, down_bias, up_bias)
    call("excite", plan, [gate.data_ptr(), *(tensor.data_ptr() for tensor in tensors if tensor is not None)])
    return gate


def prepare(
    squeezed: tuple[Tensor, ...], down: Tensor, down_bias: Tensor | None, up: Tensor, up_bias: Tensor | None
) -> Callable[..., Tensor] | None:
    given = (*squeezed, down, down_bias, up, up_bias)
    if not all(tensor is None or tensor.is_contiguous() for tensor in given):
        return None
    plan, excite, shape = _plan(squeezed, down, down_bias, up_bias), function("excite"), tuple(squeezed[0].shape)
    address = addressof(plan)
    pointers_to = c_void_p * (1 + sum(tensor is not None for tensor in given))

    def run(
        squeezed: tuple[Tensor, ...],
        down: Tensor,
        down_bias: Tensor | None,
        up: Tensor,
        up_bias: Tensor | None,
        plan: _Excite = plan,  # kept
    ) -> Tensor:
        gate = torch.empty(shape, dtype=torch.float32, device=cpu.CPU)
        pointers = [gate.data_ptr()]
        for tensor in (*squeezed, down, down_bias, up, up_bias):
            if tensor is not None:
                pointers.append(tensor.data_ptr())
        excite(address, pointers_to(*pointers))
        return gate

    return run


# --- the call into C++ -----------------------------------------------------------------------------------------------


class _Excite(Structure):
    _fields_ = [("threads", c_int32), ("inputs", c_int32), ("batch", c_int64), ("channels", c_int64)]
    _fields_ += [("hidden", c_int64), ("gate", c_void_p), ("squeezed", c_void_p * MOST)]
    _fields_ += [(name, c_void_p) for name in ("down", "down_bias", "up", "up_bias")]


def _plan(squeezed: tuple[Tensor, ...], down: Tensor, down_bias: Tensor | None, up_bias: Tensor | None) -> _Excite:
    """Pointers are numbered in the order of the call: the gate, what was squeezed, then the weights that there are."""
    hidden, channels = down.shape
    plan = _Excite(torch.get_num_threads(), len(squeezed), len(squeezed[0]), channels, hidden)
    numbers = iter(range(1, 10))
    plan.gate = next(numbers)
    for at in range(len(squeezed)):
        plan.squeezed[at] = next(numbers)
    plan.down = next(numbers)
    plan.down_bias = None if down_bias is None else next(numbers)
    plan.up = next(numbers)
    plan.up_bias = None if up_bias is None else next(numbers)
    return plan
