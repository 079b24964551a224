"""The reference implementation of `squeeze`: plain torch, any device, dtype and rank."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.jit import is_tracing  # type: ignore[attr-defined]

KINDS = ("avg", "sum", "max", "var", "lp", "lse")


def run(
    x: Tensor, dims: Sequence[tuple[int, ...]], kinds: Sequence[str], gates: Sequence[Tensor] = ()
) -> tuple[Tensor, ...]:
    gated = x
    for gate in gates:
        gated = gated * gate.to(x.dtype)
    return x, *(_squeeze(gated, axes, kind) for axes in dims for kind in kinds)


def _squeeze(x: Tensor, dims: tuple[int, ...], kind: str) -> Tensor:
    if kind == "avg":
        return x.mean(dims, keepdim=True)
    if kind == "sum":
        return x.sum(dims, keepdim=True)
    if kind == "max":
        # the same values, several times as fast; a trace is compared with one that was made without gradients
        if is_tracing() or not (x.requires_grad and torch.is_grad_enabled()):
            return x.amax(dims, keepdim=True)
        # one axis after the other, the last one first: among equal maxima the first in memory order gets the whole
        # gradient, as in max pooling; `amax` would share it among them
        for dim in sorted(dims, reverse=True):
            x = x.max(dim, keepdim=True).values
        return x
    if kind == "var":
        return x.var(dims, correction=0, keepdim=True)
    if kind == "lp":
        return torch.linalg.vector_norm(x, dim=dims, keepdim=True)
    if kind == "lse":
        return x.logsumexp(dims, keepdim=True)
    raise ValueError(f"squeeze kind {kind!r}: the kinds are {', '.join(KINDS)}")
