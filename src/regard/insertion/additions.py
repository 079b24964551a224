"""Additions: which sums of two maps end a residual block."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from regard.insertion.origins import Origin, Sum


@dataclass
class OpenCall:
    """A module that is running.

    Attributes:
        name, entered: of the module, and when.
        inputs: bits of the maps that came in.
        before: bits of these and of all they were computed from.
        layers: on the way to them.
    """

    name: str
    entered: int
    inputs: int = 0
    before: int = 0
    layers: int = 0


@dataclass(frozen=True)
class Addition:
    """The sum at the end of a residual block.

    Attributes:
        block: the module that adds.
        branch: what it adds to its shortcut.
        ends: whether the branch ends with the output of a module.
    """

    block: OpenCall
    branch: Origin
    ends: bool


class Additions:
    """Those of one pass, in their order.

    Attributes:
        weighted: bits of all that layers gave.
    """

    def __init__(self) -> None:
        self.weighted = 0
        self._all: list[Addition] = []
        self._projected: dict[int, Addition] = {}  # when the block was entered -> the last with such a shortcut
        self._joined: set[int] = set()  # when the modules were entered whose sums are parts that are joined

    def __iter__(self) -> Iterator[Addition]:
        return (addition for addition in self._all if addition.block.entered not in self._joined)

    def see(self, addition: Addition, shortcut: Origin) -> bool:
        """See two maps added; whether one is computed from the other or both from their block's one input."""
        block, branch = addition.block, addition.branch
        if branch.ancestors & shortcut.bit:
            self._projected.pop(block.entered, None)
            self._all.append(addition)
            return True
        if branch.ancestors & block.inputs and (shortcut.bit & block.inputs or self._is_projected(addition, shortcut)):
            self._projected[block.entered] = addition
            return True
        return False

    def _is_projected(self, addition: Addition, shortcut: Origin) -> bool:
        """Whether a shortcut was computed in the block from the one map that came in: what takes several merges them,
        and is no block. Of several such additions in one block only the last can be the residual one."""
        block, branch = addition.block, addition.branch
        if block.inputs.bit_count() != 1 or not shortcut.ancestors & block.inputs:
            return False
        apart = not branch.ancestors & shortcut.ancestors & self.weighted & ~block.before
        return apart and branch.layers > max(shortcut.layers, block.layers + 1)

    def leave(self, block: OpenCall, output: Origin | None) -> None:
        """A module ends: if it gives a sum with a shortcut that was projected, that was the end of a block."""
        addition = self._projected.pop(block.entered, None)
        if addition and output and output.sum and output.sum.entered == block.entered:
            self._all.append(addition)

    def join(self, sums: Iterable[Sum | None]) -> None:
        """See what is joined side by side: several sums of one module are parts of a map, and end no block."""
        entered = [total.entered for total in {*sums} if total]
        self._joined.update(number for number in entered if entered.count(number) > 1)
