"""`gate` on a GPU by the kernels in Triton: the map is read once and written once, however many gates it has."""

import os

from torch import Tensor

from regard.ops.gate import gradient

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # then the kernels run anywhere, very slowly


def why_not(x: Tensor, gates: tuple[Tensor, ...], mean: bool, shift: Tensor | None) -> str | None:
    if not (x.is_cuda or INTERPRETED):
        return f"needs a tensor on a GPU, got {x.device.type}"
    smalls = (*gates, *(() if shift is None else (shift,)))
    if any(tensor.device != x.device for tensor in smalls):
        return f"needs everything on {x.device}"
    reason = gradient.cannot_gate(x, smalls)
    if reason is not None:
        return reason
    try:
        from regard.ops.kernels import triton
    except ImportError:
        return "needs the package triton"
    return triton.why_not(x) or triton.cannot_weigh(x, gates, mean, shift)


def run(x: Tensor, gates: tuple[Tensor, ...], mean: bool, shift: Tensor | None) -> Tensor:
    from regard.ops.kernels import triton

    return gradient.gate(triton, x, gates, mean, shift)
