"""Marks: which tensors are gates, or weights between tokens: what a sigmoid or a softmax made, however it is moved."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from regard.base.axes import went
from regard.base.functions import FORMS, LISTED, PRODUCTS, QUOTIENTS, SPREADS, SUMS, TURNS, Call, tensors
from regard.maps.notes import Mark, Notes

BOUNDS = {"sigmoid", "hardsigmoid", "tanh", "relu6", "hardtanh"}
SOFTMAXES = {"softmax", "gumbel_softmax"}
SCALES = PRODUCTS | QUOTIENTS


class Marks:
    """Sets the mark of every gate and of all weights."""

    beginnings = BOUNDS | SOFTMAXES | LISTED | {"clamp", "add"}  # what is followed though nothing is known

    def __init__(self, notes: Notes) -> None:
        self.notes = notes
        self.after = {
            **dict.fromkeys(BOUNDS, self.on_bound),
            "clamp": self.on_clamp,
            **dict.fromkeys(SOFTMAXES, self.on_softmax),
            **dict.fromkeys(TURNS, self.on_turn),
            **dict.fromkeys(FORMS, self.on_form),
            **dict.fromkeys(LISTED, self.on_concatenation),
            "linear": self.on_layer,
            "add": self.on_addition,
        }

    def forget(self, value: object) -> None:
        """A gate of which somebody else has told already."""
        for tensor in tensors(value):
            if note := self.notes.get(tensor):
                note.mark = None

    def on_bound(self, call: Call) -> None:
        self._squash(call, "bound", None)

    def on_clamp(self, call: Call) -> None:
        if sum(bound is not None for bound in (*call.operands[1:], *call.kwargs.values())) > 1:  # on both sides
            self.on_bound(call)

    def on_softmax(self, call: Call) -> None:
        dim = call.kwargs.get("dim", call.option(1 if call.word == "softmax" else 4, "dim", -1))
        rank = call.result.dim()
        self._squash(call, "softmax", dim - rank if dim is not None and dim >= 0 else dim)

    def _squash(self, call: Call, by: str, dim: int | None) -> None:
        x = call.operands[0] if call.operands else None
        if isinstance(call.result, Tensor) and isinstance(x, Tensor):
            roots, channels_last = self._roots(x), self.notes.of(x).channels_last
            self.notes.of(call.result).mark = Mark(by, dim, roots, channels_last)

    def _roots(self, tensor: Tensor) -> frozenset[int]:
        note = self.notes.of(tensor)
        return note.roots or frozenset({note.number})

    def on_turn(self, call: Call) -> None:
        x = call.args[0] if call.args else None
        mark = self.notes.mark(x)
        if mark is None or isinstance(x, nn.Parameter):
            return
        if mark.dim is not None:
            axis, rank = went(call, call.args[0].dim() + mark.dim)
            mark = replace(mark, dim=None if axis is None else axis - rank)
        self.notes.of(call.result).mark = mark

    def on_form(self, call: Call) -> None:
        """A gate or weights in another form, or moved by a number."""
        marked = self.notes.marked(call.operands)
        if not marked:
            return  # mostly
        given = [x for x in call.operands if isinstance(x, Tensor)]
        if len(marked) == len(given) == 2:
            self._join(call, given[0], given[1])
        elif len(marked) == 1 and (len(given) == 1 or self._continues(call, marked[0], given)):
            self._pass_on(call, marked[0])

    def _pass_on(self, call: Call, gate: Tensor) -> None:
        gates = self.notes[gate].mark
        for tensor in tensors(call.result):
            mark = gates
            if mark and mark.by == "softmax" and tensor.dim() != gate.dim() and call.word != "dropout":
                mark = replace(mark, dim=_moved(call.word, mark.dim, gate, tensor))
            self.notes.of(tensor).mark = replace(mark, spread=True) if mark and call.word in SPREADS else mark

    def _continues(self, call: Call, gate: Tensor, given: list[Tensor]) -> bool:
        """Whether a gate or weights stay such beside another tensor: with a number, a mask, or what is smaller."""
        if call.word == "expand_as":
            return True
        (other,) = (x for x in given if x is not gate) if len(given) == 2 else (gate,)
        if not isinstance(call.result, Tensor) or call.result.shape != gate.shape:
            return False
        mark = self.notes.mark(gate)
        smaller = other.numel() < gate.numel() and mark and mark.by == "softmax"
        return other.numel() == 1 or other.dtype == torch.bool or (bool(smaller) and call.word in SCALES)

    def _join(self, call: Call, left: Tensor, right: Tensor) -> None:
        """One gate of two, or weights that are mixed or weighed by gates."""
        first, second, result = self.notes.mark(left), self.notes.mark(right), call.result
        if first is None or second is None or not isinstance(result, Tensor):
            return
        if first.by == second.by == "bound" and call.word not in QUOTIENTS:
            last = first.channels_last or second.channels_last
            self.notes.of(result).mark = replace(first, roots=first.roots | second.roots, channels_last=last)
        elif first.by == second.by and call.word in SUMS and first.dim == second.dim and result.shape == left.shape:
            self.notes.of(result).mark = first
        elif first.by != second.by and call.word in SCALES:
            weights, mark = (left, first) if first.by == "softmax" else (right, second)
            if result.shape == weights.shape:
                self.notes.of(result).mark = mark

    def on_concatenation(self, call: Call) -> None:
        """Gates side by side are a gate."""
        given = tensors(call.operands)
        marks = [self.notes.mark(x) for x in given]
        bounds = [mark for mark in marks if mark and mark.by == "bound"]
        if bounds and len(bounds) == len(given):
            roots = frozenset().union(*(mark.roots for mark in bounds))
            self.notes.of(call.result).mark = replace(bounds[0], roots=roots)

    def on_layer(self, call: Call) -> None:
        """Heads whose weights are mixed by a layer."""
        mark = self.notes.mark(call.operands[0])
        if mark and mark.by == "softmax" and mark.dim not in (None, -1):
            self.notes.of(call.result).mark = mark

    def on_addition(self, call: Call) -> None:
        """A gate or weights, moved; and what is moved by a number has the roots that it had."""
        self.on_form(call)
        given = [x for x in call.operands if isinstance(x, Tensor)]
        if len(given) == 1 and isinstance(call.result, Tensor):
            note = self.notes.of(call.result)
            if note.mark is None:
                note.roots = self._roots(given[0])


def _moved(name: str, dim: int | None, before: Tensor, after: Tensor) -> int | None:
    """Where the axis of a softmax is in another form of it, counted from the end; None where that is not known."""
    if dim is None:
        return None
    if before.shape[dim:] == after.shape[dim:] and after.dim() >= -dim:
        return dim
    # an axis of one was added behind, or taken away
    if name == "unsqueeze" and before.shape[dim:] == after.shape[dim - 1 : -1] and after.shape[-1] == 1:
        return dim - 1
    return None
