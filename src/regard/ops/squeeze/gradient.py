"""`squeeze` with its gradient, for any kernels; see `regard.ops.tape`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from regard.ops.gradients import Gradients, differentiate, must_be_plain
from regard.ops.kernels.plan import Request, broadcast_along, order
from regard.ops.squeeze import reference
from regard.ops.tape import Kernels, Pieces, Tape

Dims = tuple[tuple[int, ...], ...]
KEPT = {"max": "place", "var": "mean", "lp": "lp"}  # by kind, what its gradient needs of what was found


class Options(NamedTuple):
    """What of a squeeze is no tensor.

    Attributes:
        kernels: by which it is done.
        dims, kinds: see `ops.squeeze`.
        behind: the tape of the squeeze that passed the map on.
    """

    kernels: Kernels
    dims: Dims
    kinds: tuple[str, ...]
    behind: Tape | None


def squeeze(
    kernels: Kernels, x: Tensor, dims: Dims, kinds: tuple[str, ...], gates: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    """`ops.squeeze` by these kernels. The map that comes back is for `gate` and another `squeeze` alone."""
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, *gates)):
        return _Squeeze.apply(Options(kernels, dims, kinds, tape_behind(x)), x, *gates)
    answers = _squeezed(kernels, x, dims, kinds, gates, places=False)
    return x, *[answer[kind].to(x.dtype) for answer in answers for kind in kinds]


def tape_behind(x: Tensor) -> Tape | None:
    """The tape of the squeeze that passed this map on, if one did."""
    node: Any = x.grad_fn
    passed_on = isinstance(node, _Squeeze._backward_cls) and x.output_nr == 0
    return node.tape if passed_on else None


def requests(dims: Dims, kinds: tuple[str, ...], gates: tuple[Tensor, ...], places: bool) -> list[Request]:
    """What a kernel is asked for so that it can answer for these kinds."""
    return [Request(axes, names, gates) for axes in dims for names in _kernel_kinds(kinds, places)]


@cache
def _kernel_kinds(kinds: tuple[str, ...], places: bool) -> list[tuple[str, ...]]:
    plain = {
        "sum": not {"avg", "sum"}.isdisjoint(kinds) and "var" not in kinds,
        "max": "max" in kinds,
        "place": "max" in kinds and places,
    }
    groups = [
        tuple(name for name, wanted in plain.items() if wanted),
        ("moments",) * ("var" in kinds),
        ("squares",) * ("lp" in kinds),
    ]
    return [names for names in groups if names]


def _squeezed(
    kernels: Kernels, x: Tensor, dims: Dims, kinds: tuple[str, ...], gates: tuple[Tensor, ...], places: bool
) -> list[dict[str, Tensor]]:
    """For each of `dims` what the kernel gave, the kinds among it."""
    wanted = requests(dims, kinds, gates, places)
    results = iter(kernels.reduce(x, wanted))
    answers = []
    for axes in dims:
        count = _count(x.shape, axes)
        answer: dict[str, Tensor] = {}
        for _ in range(len(wanted) // len(dims)):
            answer |= next(results)
        if "var" in kinds:
            answer["var"], answer["avg"] = answer["deviations"] / count, answer["mean"]
            answer["sum"] = answer["mean"] * count
        elif "avg" in kinds:
            answer["avg"] = answer["sum"] / count
        if "lp" in kinds:
            answer["lp"] = answer["squares"].sqrt()
        answers.append(answer)
    return answers


def _count(shape: Sequence[int], axes: tuple[int, ...]) -> int:
    """How many numbers are squeezed into one."""
    return prod([shape[axis] for axis in axes])


class _Squeeze(Function):
    @staticmethod
    def forward(ctx: Any, options: Options, x: Tensor, *gates: Tensor) -> tuple[Tensor, ...]:
        kernels, dims, kinds, _ = options
        answers = _squeezed(kernels, x, dims, kinds, gates, places=True)
        ctx.options, ctx.tape = options, Tape(ctx)
        ctx.set_materialize_grads(False)
        ctx.kept = [name for kind, name in KEPT.items() if kind in kinds]
        ctx.shape, ctx.axes, ctx.gates = x.shape, order(x), len(gates)
        ctx.reads_x = bool(gates or ctx.kept)
        ctx.save_for_backward(
            x if ctx.reads_x else x.new_zeros(()), *gates, *[answer[name] for answer in answers for name in ctx.kept]
        )
        return x, *[answer[kind].to(x.dtype) for answer in answers for kind in kinds]

    @staticmethod
    def backward(ctx: Any, dx: Tensor | None, *dstats: Tensor | None) -> Gradients:
        """dx is what comes for the map that was passed on."""
        x, *saved = ctx.saved_tensors
        gates, kept = tuple(saved[: ctx.gates]), saved[ctx.gates :]
        if must_be_plain(dx, *dstats):
            return None, *_differentiate_reference(ctx, x, gates, dx, dstats)
        _, needs_x, *needs_gates = ctx.needs_input_grad
        pieces = ctx.tape.take()
        if dx is not None:
            pieces.maps.append((dx, (), False))
        dgates = _add_statistics(ctx, x, gates, kept, dstats, pieces, any(needs_gates))
        if needs_x and ctx.options.behind is not None:
            ctx.options.behind.leave(pieces)
        elif needs_x:
            # where x was not kept, its dtype and shape are all that is asked for
            return None, pieces.write(ctx.options.kernels, x if ctx.reads_x else x.expand(ctx.shape), ctx.axes), *dgates
        return None, None, *dgates


def _differentiate_reference(
    ctx: Any, x: Tensor, gates: tuple[Tensor, ...], dx: Tensor | None, dstats: Sequence[Tensor | None]
) -> Gradients:
    """The gradients of the map and of the gates."""
    _, dims, kinds, _ = ctx.options
    like = x if ctx.reads_x else x.new_zeros(ctx.shape)
    more, *dgates = differentiate(lambda x, *gates: reference.run(x, dims, kinds, gates)[1:], (like, *gates), dstats)
    return more if dx is None else dx if more is None else dx + more, *dgates


def _add_statistics(
    ctx: Any,
    x: Tensor,
    gates: tuple[Tensor, ...],
    kept: Sequence[Tensor],
    dstats: Sequence[Tensor | None],
    pieces: Pieces,
    needs_gates: bool,
) -> list[Tensor | None]:
    """Add what every statistic makes of the map's gradient to its pieces, and give the gradients of the gates."""
    kernels, dims, kinds, _ = ctx.options
    given, names = iter(dstats), ctx.kept
    totals: list[Tensor | None] = [None] * len(gates)
    linear = len(pieces.terms)
    for at, axes in enumerate(dims):
        count, saved = _count(ctx.shape, axes), dict(zip(names, kept[at * len(names) :], strict=False))
        for kind in kinds:
            d = next(given)
            if d is None:
                continue
            d = d.float()
            PIECES[kind](pieces, d, count, saved, gates)
            if kind == "max" and needs_gates:
                _add_up(totals, kernels.gather(x, saved["place"], d, gates))
    coefficients = [term[0] for term in pieces.terms[linear:]]
    if coefficients and needs_gates:
        _add_up_sums(kernels, x, coefficients, gates, totals)
    return [None if d is None else d.to(gate.dtype) for d, gate in zip(totals, gates, strict=True)]


def _add_up_sums(
    kernels: Kernels, x: Tensor, coefficients: Sequence[Tensor], gates: tuple[Tensor, ...], totals: list[Any]
) -> None:
    """Add to the gradients of the gates what comes of means and sums."""
    wanted = [
        Request(broadcast_along(gate, x.shape), ("sum",), (coefficient, *gates[:at], *gates[at + 1 :]))
        for coefficient in coefficients
        for at, gate in enumerate(gates)
    ]
    sums = [result["sum"] for result in kernels.reduce(x, wanted)]
    for first in range(0, len(sums), len(gates)):
        _add_up(totals, sums[first : first + len(gates)])


def _add_up(totals: list[Any], more: Sequence[Tensor]) -> None:
    for at, d in enumerate(more):
        totals[at] = d if totals[at] is None else totals[at] + d


# What each kind adds to the pieces of the map's gradient: of its own gradient, of how many numbers it was made, of what
# was kept, and of the gates.
Saved = dict[str, Tensor]
Gates = tuple[Tensor, ...]


def _mean_pieces(pieces: Pieces, d: Tensor, count: int, saved: Saved, gates: Gates) -> None:
    pieces.terms.append((d / count, *gates))


def _sum_pieces(pieces: Pieces, d: Tensor, count: int, saved: Saved, gates: Gates) -> None:
    pieces.terms.append((d, *gates))


def _max_pieces(pieces: Pieces, d: Tensor, count: int, saved: Saved, gates: Gates) -> None:
    pieces.picks.append((saved["place"], d, gates))


def _variance_pieces(pieces: Pieces, d: Tensor, count: int, saved: Saved, gates: Gates) -> None:
    pieces.weights.append((d * (2 / count), saved["mean"]))


def _norm_pieces(pieces: Pieces, d: Tensor, count: int, saved: Saved, gates: Gates) -> None:
    pieces.weights.append((torch.where(saved["lp"] == 0, 0, d / saved["lp"]), None))


PIECES: dict[str, Callable[[Pieces, Tensor, int, Saved, Gates], None]] = {
    "avg": _mean_pieces,
    "sum": _sum_pieces,
    "max": _max_pieces,
    "var": _variance_pieces,
    "lp": _norm_pieces,
}
