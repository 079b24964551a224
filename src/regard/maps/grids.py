"""Grids: which tensors of a pass are maps of the pictures that came in, and how their tokens hold them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from regard.base.axes import went
from regard.base.functions import FORMS, REGROUPINGS, TURNS, Call, tensors
from regard.insertion.layout import Layout
from regard.layers.tap import Query
from regard.maps.notes import Notes

REGISTERS = (0, 1, 2, 4, 5, 8)  # tokens in front of those of the pixels: class, distillation, registers


class Grids:
    """What the shapes of a pass tell.

    Attributes:
        batch: number of the pictures that came in; 0 where there were none.
        sides: theirs.
    """

    beginnings = TURNS | {"linear"}  # what is followed though nothing is known of its operands

    def __init__(self, notes: Notes) -> None:
        self.notes = notes
        self.batch, self.sides = 0, (1, 1)
        self._made: dict[tuple[int, ...], int] = {}  # sides of every map that was made of them -> when, last
        self._clock = 0
        self._turned: set[int] = set()  # numbers of tokens that were made of maps whose columns come before their rows
        self.after = {
            **dict.fromkeys((*FORMS, "mean", "sum", "amax"), self.on_form),
            **dict.fromkeys(REGROUPINGS, self.on_regrouping),
            **dict.fromkeys(TURNS, self.on_turn),
            "linear": self.on_layer,
        }

    def begin(self, inputs: Any) -> None:
        """Pictures may come in."""
        pictures = [tensor for tensor in tensors(inputs) if tensor.dim() == 4]
        if pictures:
            self.batch, *_, height, width = max((tensor.shape for tensor in pictures), key=lambda shape: shape[0])
            self.sides = (height, width)

    def see(self, shape: torch.Size) -> None:
        """A tensor of four axes was made, which may be a map with its channels first or last."""
        self._clock += 1
        self._made[shape[1:3]] = self._made[shape[2:]] = self._clock

    def on_layer(self, call: Call) -> None:
        if isinstance(call.result, Tensor) and call.result.dim() > 2:
            self.notes.of(call.result).channels_last = True

    def on_form(self, call: Call) -> None:
        """What is done to the result of a layer leaves its channels on the last axis."""
        note = self.notes.by_id(id(call.operands[0])) if call.operands else None
        held = note and note.channels_last and isinstance(call.result, Tensor)
        if held and call.result.dim() == call.operands[0].dim() > 2:
            self.notes.of(call.result).channels_last = True

    def on_turn(self, call: Call) -> None:
        """Columns may come before rows, and channels behind the pixels."""
        x = call.args[0] if call.args else None
        if not isinstance(x, Tensor) or isinstance(x, nn.Parameter) or x.dim() != 4:
            return
        note = self.notes.get(x)
        rows, columns = (1, 2) if note and note.channels_last else (2, 3)
        row, column, channel = (went(call, axis)[0] for axis in (rows, columns, 1))
        if row is not None and column is not None and (row > column) != bool(note and note.turned):
            self.notes.of(call.result).turned = x.shape[rows] * x.shape[columns]
        if channel == 3 and rows == 2:
            self.notes.of(call.result).channels_last = True

    def on_regrouping(self, call: Call) -> None:
        """Tokens of a map whose columns were turned into rows do not follow each other row by row."""
        self.on_form(call)
        note = self.notes.get(call.operands[0]) if call.operands else None
        if note and note.turned and isinstance(call.result, Tensor):
            if note.turned in call.result.shape[1:]:
                self._turned.add(note.turned)
            else:
                self.notes.of(call.result).turned = note.turned

    def alike(self, sides: Sequence[int]) -> bool:
        """Whether these are the picture's, smaller in one proportion."""
        (height, width), (rows, columns) = self.sides, sides
        return rows > 1 and columns > 1 and abs(rows * width - columns * height) <= max(height, width)

    def of(self, tokens: int) -> Layout | None:
        """How so many tokens hold the pictures that came in."""
        height, width = self.sides
        for prefix in REGISTERS:
            rows = round(math.sqrt(max(0, tokens - prefix) * height / width))
            columns = round(rows * width / height)
            fits = rows > 1 and columns > 1 and rows * columns == tokens - prefix and tokens not in self._turned
            if fits and (rows, columns) in self._made:  # 64 may as well be channels, which look at one another
                return Layout("tokens", prefix, (rows, columns))
        return None

    def when(self, layout: Layout) -> int:
        """When a map of these sides was made last."""
        return self._made[layout.grid]

    def rows(self, queries: Sequence[Query] | None, tokens: int) -> list[int] | None:
        """Numbers of the tokens that are asked for; None where all are, or none is known.

        Args:
            queries: numbers of tokens, or places as shares of the sides.
            tokens: how many there are.
        """
        if queries is None:
            return None
        layout, numbers = self.of(tokens), []
        for query in queries:
            if isinstance(query, int):
                numbers.append(min(query, tokens - 1))
            elif layout:
                row, column = (min(side - 1, int(at * side)) for at, side in zip(query, layout.grid, strict=True))
                numbers.append(layout.prefix + row * layout.grid[1] + column)
        return numbers or None
