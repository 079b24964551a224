"""Gates: what a sigmoid or a softmax made and what then multiplies a map."""

from __future__ import annotations

import torch
from torch import Tensor

from regard.base.functions import PRODUCTS, QUOTIENTS, Call
from regard.insertion.layout import Layout
from regard.maps.batches import Batches
from regard.maps.grids import Grids
from regard.maps.notes import Mark, Notes
from regard.maps.telling import Teller


class Gates:
    """Tells of every gate in the moment it is applied."""

    def __init__(self, notes: Notes, batches: Batches, grids: Grids, teller: Teller) -> None:
        self.notes, self.batches, self.grids, self.teller = notes, batches, grids, teller
        self.before = {
            **dict.fromkeys(PRODUCTS, self.on_product),
            **dict.fromkeys(QUOTIENTS, self.on_quotient),
            "addcmul": self.on_added_product,
        }

    def on_product(self, call: Call) -> None:
        self._multiply(*call.operands[:2])

    def on_added_product(self, call: Call) -> None:
        self._multiply(*call.operands[1:3])

    def on_quotient(self, call: Call) -> None:
        """What a gate divides is gated in no way that is known."""
        mark = self.notes.mark
        if len(call.operands) > 1 and mark(call.operands[1]) and not mark(call.operands[0]):
            self.teller.drop()

    def _multiply(self, left: object = None, right: object = None) -> None:
        if not (isinstance(left, Tensor) and isinstance(right, Tensor)):
            return
        marks = self.notes.mark(left), self.notes.mark(right)
        if not any(marks) or (all(marks) and left.numel() == right.numel()):
            return  # neither is the gate of the other
        gate, x = (left, right) if marks[0] else (right, left)
        if all(marks):  # a bounded activation may well be weighed
            gate, x = sorted((left, right), key=Tensor.numel)
        mark, other = self.notes.mark(gate), self.notes.mark(x)
        if mark is None or (other and (other.by, mark.by) == ("softmax", "bound")):
            return  # weights that are weighed are weights
        if gate.dim() <= x.dim() and self.notes.of(x).number not in mark.roots:
            self._apply(gate, x, mark, is_map=other is None)

    def _apply(self, gate: Tensor, x: Tensor, mark: Mark, is_map: bool) -> None:
        with torch.no_grad():
            images = self.batches.of(x)
            gate = _plain(gate, x, mark.spread)
            if images and images.axis and images.before * images.after == 1:
                gate, x = gate.movedim(images.axis, 0), x.movedim(images.axis, 0)
            gate, x = self._channels_first(gate, x, mark)
        kind = _kind(gate, x, mark) if images else ""
        if kind:
            self.teller.tell(kind, gate.clone())  # what is multiplied in place afterwards is no gate any more
        elif x.dim() > 2 and gate.numel() > 1 and x.numel() >= gate.numel() and is_map:
            self.teller.drop()

    def _channels_first(self, gate: Tensor, x: Tensor, mark: Mark) -> tuple[Tensor, Tensor]:
        """A gate and its map with the channels before the pixels, of whatever layout they are.

        Told by which sides are a picture's. Where two of them could be: what a layer on the last axis made gates
        channels that lie there, and no gate is one of columns alone.
        """
        last = mark.channels_last or not any(side > 1 for side in gate.shape[1:-1])
        if x.dim() == 4 and mark.by == "bound":
            here, there = self.grids.alike(x.shape[2:]), self.grids.alike(x.shape[1:3])
            if (there and (last or not here)) or (mark.channels_last and not here):
                return gate.movedim(-1, 1), x.movedim(-1, 1)
        elif x.dim() == 3 and mark.by == "bound":
            layout = self.grids.of(x.shape[1])
            if layout and (last or not self.grids.of(x.shape[2])):
                pixels = Layout("tokens", 0, layout.grid)
                gate, x = (t if t.shape[1] == 1 else t[:, layout.prefix :] for t in (gate, x))
                return (gate.movedim(-1, 1).unsqueeze(-1) if gate.shape[1] == 1 else pixels.map(gate)), pixels.map(x)
        return gate, x


def _plain(gate: Tensor, x: Tensor, spread: bool) -> Tensor:
    """A gate without the axes along which it was expanded, or `spread` in another way."""
    gate = gate.view(*[1] * (x.dim() - gate.dim()), *gate.shape) if gate.dim() < x.dim() else gate
    for axis, stride in enumerate(gate.stride()):
        if axis and gate.shape[axis] > 1:
            first = gate.narrow(axis, 0, 1)
            if stride == 0 or (spread and torch.equal(first.expand_as(gate), gate)):
                gate = first
    return gate


def _kind(gate: Tensor, x: Tensor, mark: Mark) -> str:
    """What a gate speaks of when it multiplies a map; empty where that is no attention to a map."""
    if x.dim() < 3 or gate.numel() == 1:
        return ""
    whole = tuple(side == full for side, full in zip(gate.shape, x.shape, strict=True))
    if any(side not in (1, full) for side, full in zip(gate.shape, x.shape, strict=True)):
        return ""
    channels, spatial = whole[1], [w for w, full in zip(whole[2:], x.shape[2:], strict=True) if full > 1]
    if mark.by == "softmax" and x.dim() == 5 and gate.shape[1] > 1:
        return "branch"
    if not any(spatial):
        return "channel" if channels and gate.shape[1] > 1 else ""
    if x.dim() < 4:
        return ""
    if all(spatial):
        return "element" if channels and gate.shape[1] > 1 else "spatial"
    return "axis"
