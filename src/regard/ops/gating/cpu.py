"""`gate` on the CPU by the kernels in C++: the map is read once and written once, however many gates it has."""

from functools import lru_cache

import torch
from torch import Tensor

from regard.ops import gradients
from regard.ops.kernels import cpu


def why_not(x: Tensor, gates: tuple[Tensor, ...], mean: bool, shift: Tensor | None) -> str | None:
    smalls = gates if shift is None else (*gates, shift)
    if not (x.is_cpu and all(small.is_cpu for small in smalls)):
        return f"needs tensors on the CPU, got {', '.join(str(tensor.device) for tensor in (x, *smalls))}"
    shapes = tuple(small.shape for small in smalls)
    return _why_not(x.shape, x.stride(), x.dtype, shapes, len(gates), mean)


# asked before every call, so that the answer is kept for every combination of shapes
@lru_cache(maxsize=4096)
def _why_not(
    shape: torch.Size,
    stride: tuple[int, ...],
    dtype: torch.dtype,
    shapes: tuple[torch.Size, ...],
    gates: int,
    mean: bool,
) -> str | None:
    if any(len(small) != len(shape) or (small == shape and shape.numel() > 1) for small in shapes):
        return "needs gates of the map's rank that are smaller than the map"
    x = torch.empty_strided(shape, stride, dtype=dtype, device="meta")
    smalls = [torch.empty(small, device="meta") for small in shapes]
    return cpu.why_not(x) or cpu.cannot_weigh(x, smalls[:gates], mean, smalls[gates] if smalls[gates:] else None)


def run(x: Tensor, gates: tuple[Tensor, ...], mean: bool, shift: Tensor | None) -> Tensor:
    return gradients.gate(cpu, x, gates, mean, shift)
