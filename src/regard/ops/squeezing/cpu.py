"""`squeeze` on the CPU by the kernels in C++: the map is read once, whatever is asked for."""

from torch import Tensor

from regard.ops import gradients
from regard.ops.kernels import cpu

KINDS = ("avg", "sum", "max", "var", "lp")


def why_not(
    x: Tensor, dims: tuple[tuple[int, ...], ...], kinds: tuple[str, ...], gates: tuple[Tensor, ...]
) -> str | None:
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        return f"has no {unknown[0]}"
    if len(gates) > 2:
        return f"takes at most two gates, got {len(gates)}"
    if gates and not {"var", "lp"}.isdisjoint(kinds):
        return "takes no gates with var or lp"
    if len(dims) > 1 and not {"var", "lp"}.isdisjoint(kinds):
        return "takes var and lp along one set of axes only"
    if any(gate.device.type != "cpu" or gate.dim() != x.dim() for gate in gates):
        return "needs gates on the CPU, of the map's rank"
    return cpu.why_not(x) or cpu.cannot_reduce(x, gradients.requests(dims, kinds, gates, places=True))


def run(
    x: Tensor, dims: tuple[tuple[int, ...], ...], kinds: tuple[str, ...], gates: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    return gradients.squeeze(cpu, x, dims, kinds, gates)
