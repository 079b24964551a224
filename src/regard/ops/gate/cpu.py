"""`gate` on the CPU by the kernels in C++: the map is read once and written once, however many gates it has."""

from collections.abc import Callable

from torch import Tensor

from regard.ops.gate import gradient
from regard.ops.kernels import cpu


def why_not(x: Tensor, gates: tuple[Tensor, ...], mean: bool, shift: Tensor | None) -> str | None:
    smalls = gates if shift is None else (*gates, shift)
    if not (x.is_cpu and all(tensor.is_cpu for tensor in smalls)):
        return f"needs tensors on the CPU, got {', '.join(str(tensor.device) for tensor in (x, *smalls))}"
    return gradient.cannot_gate(x, smalls) or cpu.why_not(x) or cpu.cannot_weigh(x, gates, mean, shift)


def run(x: Tensor, gates: tuple[Tensor, ...], mean: bool, shift: Tensor | None) -> Tensor:
    return gradient.gate(cpu, x, gates, mean, shift)


def prepare(x: Tensor, gates: tuple[Tensor, ...], mean: bool, shift: Tensor | None) -> Callable[..., Tensor] | None:
    terms = () if shift is None else ((shift,),)
    affine = cpu.prepare_affine(x, gates, mean, terms)
    if affine is None:
        return None
    return lambda x, gates, mean, shift: affine(x, gates if shift is None else (*gates, shift))
