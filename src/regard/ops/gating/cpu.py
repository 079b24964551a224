"""`gate` on the CPU by the kernels in C++: the map is read once and written once, however many gates it has."""

from torch import Tensor

from regard.ops import gradients
from regard.ops.kernels import cpu


def why_not(x: Tensor, gates: tuple[Tensor, ...], mean: bool, shift: Tensor | None) -> str | None:
    smalls = (*gates, *(() if shift is None else (shift,)))
    if any(small.device.type != "cpu" for small in smalls):
        return "needs gates on the CPU"
    if any(small.dim() != x.dim() or small.numel() == x.numel() > 1 for small in smalls):
        return "needs gates of the map's rank that are smaller than the map"
    return cpu.why_not(x) or cpu.cannot_weigh(x, gates, mean, shift)


def run(x: Tensor, gates: tuple[Tensor, ...], mean: bool, shift: Tensor | None) -> Tensor:
    return gradients.gate(cpu, x, gates, mean, shift)
