"""`squeeze` on a GPU by the kernels in Triton: the map is read once, whatever is asked for."""

import os

from torch import Tensor

from regard.ops.squeeze import gradient

KINDS = ("avg", "sum", "max", "var", "lp")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # then the kernels run anywhere, very slowly


def why_not(
    x: Tensor, dims: tuple[tuple[int, ...], ...], kinds: tuple[str, ...], gates: tuple[Tensor, ...]
) -> str | None:
    if not (x.is_cuda or INTERPRETED):
        return f"needs a tensor on a GPU, got {x.device.type}"
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        return f"has no {unknown[0]}"
    if gates and not {"var", "lp"}.isdisjoint(kinds):
        return "takes no gates with var or lp"
    if any(gate.device != x.device or gate.dim() != x.dim() for gate in gates):
        return f"needs gates on {x.device}, of the map's rank"
    try:
        from regard.ops.kernels import triton
    except ImportError:
        return "needs the package triton"
    return triton.why_not(x) or triton.cannot_reduce(x, gradient.requests(dims, kinds, gates, places=True))


def run(
    x: Tensor, dims: tuple[tuple[int, ...], ...], kinds: tuple[str, ...], gates: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    from regard.ops.kernels import triton

    return gradient.squeeze(triton, x, dims, kinds, gates)
