"""`gate` with its gradients, for any kernels; see `regard.ops.tape`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from regard.ops.gate import reference
from regard.ops.gradients import Gradients, differentiate, must_be_plain
from regard.ops.kernels.plan import Request, arrange, broadcast_along, order
from regard.ops.squeeze.gradient import tape_behind
from regard.ops.tape import Kernels, Pieces, Tape


class Options(NamedTuple):
    """What of a gate is no tensor.

    Attributes:
        kernels: by which it is done.
        mean: see `ops.gate`.
        behind: the tape of the squeeze that passed the map on.
    """

    kernels: Kernels
    mean: bool
    behind: Tape | None


def cannot_gate(x: Tensor, smalls: tuple[Tensor, ...]) -> str | None:
    """Why these cannot be gates (and shift) of a map, or None."""
    if any(small.dim() != x.dim() or small.numel() == x.numel() > 1 for small in smalls):
        return "needs gates of the map's rank that are smaller than the map"
    return None


def gate(kernels: Kernels, x: Tensor, gates: tuple[Tensor, ...], mean: bool, shift: Tensor | None) -> Tensor:
    """`ops.gate` by these kernels."""
    tensors = (x, *gates) if shift is None else (x, *gates, shift)
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return _Gate.apply(Options(kernels, mean, tape_behind(x)), x, shift, *gates)
    return kernels.affine(x, gates, mean=mean, terms=() if shift is None else ((shift,),))


class _Gate(Function):
    @staticmethod
    def forward(ctx: Any, options: Options, x: Tensor, shift: Tensor | None, *gates: Tensor) -> Tensor:
        ctx.options = options
        ctx.save_for_backward(x, shift, *gates)
        return options.kernels.affine(x, gates, mean=options.mean, terms=() if shift is None else ((shift,),))

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Gradients:
        x, shift, *gates = ctx.saved_tensors
        kernels, mean, behind = ctx.options
        if must_be_plain(dy):
            return None, *_differentiate_reference(x, shift, gates, mean, dy)
        _, needs_x, needs_shift, *needs_gates = ctx.needs_input_grad
        dx = dshift = None
        dgates = _gate_gradients(kernels, x, gates, mean, dy, needs_gates)
        if needs_shift:
            dy = arrange(dy, order(x))
            (sums,) = kernels.reduce(dy, [Request(broadcast_along(shift, x.shape), ("sum",))])
            dshift = sums["sum"].to(shift.dtype)
        if needs_x:
            pieces = Pieces(maps=[(dy, tuple(gates), mean)])
            if behind is None:
                dx = pieces.write(kernels, x, order(x))
            else:
                behind.leave(pieces)
        return None, dx, dshift, *dgates


def _gate_gradients(
    kernels: Kernels, x: Tensor, gates: Sequence[Tensor], mean: bool, dy: Tensor, needed: Sequence[bool]
) -> list[Tensor | None]:
    """The gradients of the gates, where they are needed."""
    gradients: list[Tensor | None] = [None] * len(gates)
    wanted = [at for at, needs in enumerate(needed) if needs]
    if not wanted:
        return gradients
    requests = []
    for at in wanted:
        others = () if mean else (*gates[:at], *gates[at + 1 :])
        requests.append(Request(broadcast_along(gates[at], x.shape), ("sum",), others))
    for at, result in zip(wanted, kernels.reduce(x, requests, dy), strict=True):
        gradients[at] = (result["sum"] / len(gates) if mean else result["sum"]).to(gates[at].dtype)
    return gradients


def _differentiate_reference(
    x: Tensor, shift: Tensor | None, gates: Sequence[Tensor], mean: bool, dy: Tensor
) -> Gradients:
    """The gradients of the map, of the shift and of the gates."""

    def run(x: Tensor, *smalls: Tensor) -> tuple[Tensor]:
        return (reference.run(x, smalls[: len(gates)], mean, *smalls[len(gates) :]),)

    smalls = gates if shift is None else (*gates, shift)
    dx, *dsmalls = differentiate(run, (x, *smalls), (dy,))
    dshift = None if shift is None else dsmalls[-1]
    return dx, dshift, *dsmalls[: len(gates)]
