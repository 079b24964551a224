"""`squeeze` on the CPU by the kernels in C++: the map is read once, whatever is asked for."""

from functools import lru_cache

import torch
from torch import Tensor

from regard.ops import gradients
from regard.ops.kernels import cpu

KINDS = ("avg", "sum", "max", "var", "lp")


def why_not(
    x: Tensor, dims: tuple[tuple[int, ...], ...], kinds: tuple[str, ...], gates: tuple[Tensor, ...]
) -> str | None:
    if not (x.is_cpu and all(gate.is_cpu for gate in gates)):
        return f"needs tensors on the CPU, got {', '.join(str(tensor.device) for tensor in (x, *gates))}"
    shapes = tuple(gate.shape for gate in gates)
    return _why_not(x.shape, x.stride(), x.dtype, dims, kinds, shapes)


# asked before every call, so that the answer is kept for every combination of shapes
@lru_cache(maxsize=4096)
def _why_not(
    shape: torch.Size,
    stride: tuple[int, ...],
    dtype: torch.dtype,
    dims: tuple[tuple[int, ...], ...],
    kinds: tuple[str, ...],
    shapes: tuple[torch.Size, ...],
) -> str | None:
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        return f"has no {unknown[0]}"
    if len(shapes) > 2:
        return f"takes at most two gates, got {len(shapes)}"
    if shapes and not {"var", "lp"}.isdisjoint(kinds):
        return "takes no gates with var or lp"
    if len(dims) > 1 and not {"var", "lp"}.isdisjoint(kinds):
        return "takes var and lp along one set of axes only"
    if any(len(gate) != len(shape) for gate in shapes):
        return "needs gates of the map's rank"
    x = torch.empty_strided(shape, stride, dtype=dtype, device="meta")
    gates = tuple(torch.empty(gate, device="meta") for gate in shapes)
    return cpu.why_not(x) or cpu.cannot_reduce(x, gradients.requests(dims, kinds, gates, places=True))


def run(
    x: Tensor, dims: tuple[tuple[int, ...], ...], kinds: tuple[str, ...], gates: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    return gradients.squeeze(cpu, x, dims, kinds, gates)
