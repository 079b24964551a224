"""Squeeze and gate with their gradients, for any kernels: the gradient of a map is written once.

Between a squeeze and the gate that follows it (`ops.Joint`), ordinary autograd would write the gradient of the map in
pieces and add them up. Here the gate, and every squeeze but the first, leave theirs on a `Tape` as small tensors, and
the first squeeze, whose backward runs last by construction, writes the sum in one pass. A backward that is itself
differentiated, or meets tensors that no kernel may see, is that of the reference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from math import prod
from typing import Any, Protocol
from weakref import ref

import torch
from torch import Tensor
from torch.autograd import Function

from regard.ops.dispatch import not_plain
from regard.ops.gate import reference as gating
from regard.ops.kernels.plan import Cannot, Request, arrange, broadcast_along, order
from regard.ops.squeeze import reference as squeezing

Gradients = tuple[Tensor | None, ...]


class Kernels(Protocol):
    """What an implementation brings: see `regard.ops.kernels.cpu`."""

    reduce: Callable[..., list[dict[str, Tensor]]]
    affine: Callable[..., Tensor]
    scatter: Callable[..., None]
    gather: Callable[..., list[Tensor]]


class Tape:
    """What the gradient of a map is still made of, for each backward pass by itself: several may run at once.

    Args:
        node: of the squeeze.
    """

    def __init__(self, node: Any) -> None:
        self.node, self.held = ref(node), dict[int, Pieces]()

    def leave(self, pieces: Pieces) -> None:
        """For the squeeze, if this pass will come to it and take them up."""
        node: Any = self.node()
        if torch._C._will_engine_execute_node(node):
            self.held.setdefault(torch._C._current_graph_task_id(), Pieces()).extend(pieces)

    def take(self) -> Pieces:
        """Everything that this pass left."""
        return self.held.pop(torch._C._current_graph_task_id(), None) or Pieces()


@dataclass
class Pieces:
    """What a gradient of a map is made of.

    Attributes:
        maps: a gradient of the map's shape, the factors it is multiplied by, and whether by their mean.
        terms: products of small tensors.
        weights: small tensors by which the map itself is multiplied, less others or None.
        picks: places and gradients of maxima, and the factors of the map there.
    """

    maps: list[tuple[Tensor, tuple[Tensor, ...], bool]] = field(default_factory=list)
    terms: list[tuple[Tensor, ...]] = field(default_factory=list)
    weights: list[tuple[Tensor, Tensor | None]] = field(default_factory=list)
    picks: list[tuple[Tensor, Tensor, tuple[Tensor, ...]]] = field(default_factory=list)

    def extend(self, other: Pieces) -> None:
        for mine, theirs in zip(vars(self).values(), vars(other).values(), strict=True):
            mine.extend(theirs)

    def write(self, kernels: Kernels, x: Tensor, axes: tuple[int, ...]) -> Tensor:
        """The gradient of x, laid out in the order of these axes."""
        (first, factors, mean), *maps = self.maps or [(x.new_zeros(()).expand(x.shape), (), False)]
        first = arrange(first, axes)
        weighted: dict[str, Any] = {}
        terms, picks = [*self.terms], self.picks
        if self.weights:
            # about one mean, before anything is rounded: far from 0 the map and its mean are nearly the same
            about = next((small for _, small in self.weights if small is not None), None)
            weights = [weight for weight, _ in self.weights]
            weighted = {"x": x, "weight": sum(weights[1:], weights[0]), "about": about}
            if about is not None:
                terms += [(w * (about if m is None else about - m),) for w, m in self.weights if m is not about]
        try:
            y = kernels.affine(first, factors, mean=mean, terms=terms, picks=picks, **weighted)
            picks = []
        except Cannot:  # more than one pass takes
            y = kernels.affine(first, factors, mean=mean)
            if weighted:
                y = kernels.affine(y, out=y, **weighted)
            for term in terms:
                try:
                    y = kernels.affine(y, terms=[term], out=y)
                except Cannot:
                    y = kernels.affine(y, terms=[(prod(term[1:], start=term[0]),)], out=y)
        for another, factors, mean in maps:
            y = kernels.affine(kernels.affine(arrange(another, axes), factors, mean=mean), x=y, out=y)
        for places, values, factors in picks:
            kernels.scatter(y, places, values, factors)
        return y


# --- squeeze ---------------------------------------------------------------------------------------------------------


def squeeze(
    kernels: Kernels, x: Tensor, dims: tuple[tuple[int, ...], ...], kinds: tuple[str, ...], gates: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    """`ops.squeeze` by these kernels. The map that comes back is for `gate` and another `squeeze` alone."""
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, *gates)):
        return _Squeeze.apply(kernels, dims, kinds, _tape_behind(x), x, *gates)
    found = _squeezed(kernels, x, dims, kinds, gates, places=False)
    return x, *(answer[kind].to(x.dtype) for answer in found for kind in kinds)


def requests(
    dims: tuple[tuple[int, ...], ...], kinds: tuple[str, ...], gates: tuple[Tensor, ...], places: bool
) -> list[Request]:
    """What a kernel is asked for so that it can answer for these kinds."""
    return [Request(axes, names, gates) for axes in dims for names in _asked(kinds, places)]


@cache
def _asked(kinds: tuple[str, ...], places: bool) -> list[tuple[str, ...]]:
    plain = {
        "sum": not {"avg", "sum"}.isdisjoint(kinds) and "var" not in kinds,
        "max": "max" in kinds,
        "place": "max" in kinds and places,
    }
    asked = [
        tuple(name for name, wanted in plain.items() if wanted),
        ("moments",) * ("var" in kinds),
        ("squares",) * ("lp" in kinds),
    ]
    return [names for names in asked if names]


def _squeezed(
    kernels: Kernels,
    x: Tensor,
    dims: tuple[tuple[int, ...], ...],
    kinds: tuple[str, ...],
    gates: tuple[Tensor, ...],
    places: bool,
) -> list[dict[str, Tensor]]:
    """For each of `dims` what was found, the kinds among it."""
    wanted = requests(dims, kinds, gates, places)
    results = iter(kernels.reduce(x, wanted))
    answers = []
    for axes in dims:
        count = prod(x.shape[axis] for axis in axes)
        found: dict[str, Tensor] = {}
        for _ in range(len(wanted) // len(dims)):
            found |= next(results)
        if "var" in kinds:
            found["var"], found["avg"] = found["deviations"] / count, found["mean"]
            found["sum"] = found["mean"] * count
        elif "avg" in kinds:
            found["avg"] = found["sum"] / count
        if "lp" in kinds:
            found["lp"] = found["squares"].sqrt()
        answers.append(found)
    return answers


class _Squeeze(Function):
    @staticmethod
    def forward(
        ctx: Any,
        kernels: Kernels,
        dims: tuple[tuple[int, ...], ...],
        kinds: tuple[str, ...],
        behind: Tape | None,
        x: Tensor,
        *gates: Tensor,
    ) -> tuple[Tensor, ...]:
        found = _squeezed(kernels, x, dims, kinds, gates, places=True)
        ctx.kernels, ctx.dims, ctx.kinds, ctx.behind, ctx.tape = kernels, dims, kinds, behind, Tape(ctx)
        ctx.set_materialize_grads(False)
        needed = [name for kind, name in {"max": "place", "var": "mean", "lp": "lp"}.items() if kind in kinds]
        ctx.needed, ctx.shape, ctx.axes, ctx.gates = needed, x.shape, order(x), len(gates)
        ctx.reads_x = bool(gates or {"max", "var", "lp"} & {*kinds})
        ctx.save_for_backward(
            x if ctx.reads_x else x.new_zeros(()), *gates, *(answer[name] for answer in found for name in needed)
        )
        return x, *(answer[kind].to(x.dtype) for answer in found for kind in kinds)

    @staticmethod
    def backward(ctx: Any, dz: Tensor | None, *dstats: Tensor | None) -> Gradients:
        x, *rest = ctx.saved_tensors
        gates, rest = tuple(rest[: ctx.gates]), rest[ctx.gates :]
        saved = [dict(zip(ctx.needed, rest[i:], strict=False)) for i in range(0, len(rest), max(1, len(ctx.needed)))]
        saved = saved or [{} for _ in ctx.dims]
        nothing: Gradients = (None, None, None, None)
        if must_be_plain(dz, *dstats):
            like = x if ctx.reads_x else x.new_zeros(ctx.shape)
            dx, *dgates = differentiate(
                lambda x, *gates: squeezing.run(x, ctx.dims, ctx.kinds, gates)[1:], (like, *gates), dstats
            )
            return *nothing, dx if dz is None else dz if dx is None else dz + dx, *dgates
        pieces, found_gradients = ctx.tape.take(), [None] * len(gates)
        if dz is not None:
            pieces.maps.append((dz, (), False))
        given = iter(dstats)
        coefficients: list[tuple[Tensor, ...]] = []
        for axes, kept in zip(ctx.dims, saved, strict=True):
            count = prod(ctx.shape[axis] for axis in axes)
            for kind in ctx.kinds:
                d = next(given)
                if d is None:
                    continue
                d = d.float()
                if kind in ("avg", "sum"):
                    coefficients.append((d / count if kind == "avg" else d,))
                elif kind == "max":
                    pieces.picks.append((kept["place"], d, gates))
                    if any(ctx.needs_input_grad[5:]):
                        _add_up(found_gradients, ctx.kernels.gather(x, kept["place"], d, gates))
                elif kind == "var":
                    pieces.weights.append((d * (2 / count), kept["mean"]))
                else:
                    pieces.weights.append((torch.where(kept["lp"] == 0, 0, d / kept["lp"]), None))
        pieces.terms += [(*coefficient, *gates) for coefficient in coefficients]
        if coefficients and any(ctx.needs_input_grad[5:]):
            wanted = [
                Request(broadcast_along(gate, ctx.shape), ("sum",), (*coefficient, *gates[:at], *gates[at + 1 :]))
                for coefficient in coefficients
                for at, gate in enumerate(gates)
            ]
            sums = [found["sum"] for found in ctx.kernels.reduce(x, wanted)]
            for first in range(0, len(sums), len(gates)):
                _add_up(found_gradients, sums[first : first + len(gates)])
        dgates = [None if d is None else d.to(gate.dtype) for d, gate in zip(found_gradients, gates, strict=True)]
        if not ctx.needs_input_grad[4]:
            return *nothing, None, *dgates
        if ctx.behind is not None:
            ctx.behind.leave(pieces)
            return *nothing, None, *dgates
        if not ctx.reads_x:
            x = x.expand(ctx.shape)  # its dtype and shape are all that is asked for
        return *nothing, pieces.write(ctx.kernels, x, ctx.axes), *dgates


# --- gate ------------------------------------------------------------------------------------------------------------


def cannot_gate(x: Tensor, smalls: tuple[Tensor, ...]) -> str | None:
    """Why these cannot be gates (and shift) of a map, or None."""
    if any(small.dim() != x.dim() or small.numel() == x.numel() > 1 for small in smalls):
        return "needs gates of the map's rank that are smaller than the map"
    return None


def gate(kernels: Kernels, x: Tensor, gates: tuple[Tensor, ...], mean: bool, shift: Tensor | None) -> Tensor:
    """`ops.gate` by these kernels."""
    tensors = (x, *gates) if shift is None else (x, *gates, shift)
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return _Gate.apply(kernels, _tape_behind(x), mean, shift, x, *gates)
    return kernels.affine(x, gates, mean=mean, terms=() if shift is None else ((shift,),))


class _Gate(Function):
    @staticmethod
    def forward(
        ctx: Any,
        kernels: Kernels,
        behind: Tape | None,
        mean: bool,
        shift: Tensor | None,
        x: Tensor,
        *gates: Tensor,
    ) -> Tensor:
        ctx.kernels, ctx.behind, ctx.mean = kernels, behind, mean
        ctx.save_for_backward(x, shift, *gates)
        return kernels.affine(x, gates, mean=mean, terms=() if shift is None else ((shift,),))

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Gradients:
        x, shift, *gates = ctx.saved_tensors
        needed = ctx.needs_input_grad
        nothing: Gradients = (None, None, None)
        if must_be_plain(dy):
            shifts = () if shift is None else (shift,)
            dx, *rest = differentiate(
                lambda x, *smalls: (gating.run(x, smalls[: len(gates)], ctx.mean, *smalls[len(gates) :]),),
                (x, *gates, *shifts),
                (dy,),
            )
            return *nothing, rest[-1] if shifts else None, dx, *rest[: len(gates)]
        dgates: list[Tensor | None] = [None] * len(gates)
        wanted = {at: gate for at, gate in enumerate(gates) if needed[5 + at]}
        if wanted:
            others = {at: () if ctx.mean else tuple(g for k, g in enumerate(gates) if k != at) for at in wanted}
            requests = [Request(broadcast_along(gate, x.shape), ("sum",), others[at]) for at, gate in wanted.items()]
            for (at, gate), found in zip(wanted.items(), ctx.kernels.reduce(x, requests, dy), strict=True):
                dgates[at] = (found["sum"] / len(gates) if ctx.mean else found["sum"]).to(gate.dtype)
        dshift = None
        if needed[3]:
            axes = broadcast_along(shift, x.shape)
            dy = arrange(dy, order(x))
            dshift = ctx.kernels.reduce(dy, [Request(axes, ("sum",))])[0]["sum"].to(shift.dtype)
        if not needed[4]:
            return *nothing, dshift, None, *dgates
        pieces = Pieces(maps=[(dy, tuple(gates), ctx.mean)])
        if ctx.behind is not None:
            ctx.behind.leave(pieces)
            return *nothing, dshift, None, *dgates
        return *nothing, dshift, pieces.write(ctx.kernels, x, order(x)), *dgates


# --- what both need --------------------------------------------------------------------------------------------------


def _tape_behind(x: Tensor) -> Tape | None:
    """The tape of the squeeze that passed this map on, if one did."""
    node: Any = x.grad_fn
    passed_on = isinstance(node, _Squeeze._backward_cls) and x.output_nr == 0
    return node.tape if passed_on else None


def must_be_plain(*gradients: Tensor | None) -> bool:
    """Whether a backward is differentiated itself, or meets what no kernel may see."""
    return torch.is_grad_enabled() or not_plain(*gradients) is not None


def differentiate(
    run: Callable[..., Sequence[Tensor]], inputs: Sequence[Tensor], gradients: Sequence[Tensor | None]
) -> Gradients:
    """The reference's gradients of its inputs, which can be differentiated again where autograd records."""
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        # views, so that what depends on another input is not differentiated twice
        leaves = [x.view_as(x) if again and x.requires_grad else x.detach().requires_grad_() for x in inputs]
        outputs = run(*leaves)
        given = [(y, d) for y, d in zip(outputs, gradients, strict=True) if d is not None]
        if not given:
            return (None,) * len(leaves)
        ys, ds = zip(*given, strict=True)
        return torch.autograd.grad(ys, leaves, ds, create_graph=again, allow_unused=True)


def _add_up(totals: list[Any], more: Sequence[Tensor]) -> None:
    for at, d in enumerate(more):
        totals[at] = d if totals[at] is None else totals[at] + d
