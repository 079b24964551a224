"""`squeeze` on the CPU by the kernels in C++: the map is read once, whatever is asked for."""

from collections.abc import Callable
from math import prod

import torch
from torch import Tensor

from regard.ops.kernels import cpu
from regard.ops.kernels.plan import Request
from regard.ops.squeeze import gradient

KINDS = ("avg", "sum", "max", "var", "lp")


def why_not(
    x: Tensor, dims: tuple[tuple[int, ...], ...], kinds: tuple[str, ...], gates: tuple[Tensor, ...]
) -> str | None:
    if not (x.is_cpu and all(gate.is_cpu for gate in gates)):
        return f"needs tensors on the CPU, got {', '.join(str(tensor.device) for tensor in (x, *gates))}"
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        return f"has no {unknown[0]}"
    if len(gates) > 2:
        return f"takes at most two gates, got {len(gates)}"
    if gates and not {"var", "lp"}.isdisjoint(kinds):
        return "takes no gates with var or lp"
    if len(dims) > 1 and not {"var", "lp"}.isdisjoint(kinds):
        return "takes var and lp along one set of axes only"
    if any(gate.dim() != x.dim() for gate in gates):
        return "needs gates of the map's rank"
    return cpu.why_not(x) or cpu.cannot_reduce(x, gradient.requests(dims, kinds, gates, places=True))


def run(
    x: Tensor, dims: tuple[tuple[int, ...], ...], kinds: tuple[str, ...], gates: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    return gradient.squeeze(cpu, x, dims, kinds, gates)


def prepare(
    x: Tensor, dims: tuple[tuple[int, ...], ...], kinds: tuple[str, ...], gates: tuple[Tensor, ...]
) -> Callable[..., tuple[Tensor, ...]] | None:
    if x.dtype != torch.float32 or not {"avg", "sum", "max"}.issuperset(kinds) or {"avg", "sum"}.issubset(kinds):
        return None
    names = tuple("sum" if kind == "avg" else kind for kind in kinds)
    counts = [prod(x.shape[axis] for axis in axes) if "avg" in kinds else 1 for axes in dims]
    reduce = cpu.prepare_reduce(x, [Request(axes, names, gates) for axes in dims], counts)
    return reduce and (lambda x, dims, kinds, gates: (x, *reduce(x, gates)))
