"""Telling: what attention was seen goes to whoever watches, with the name of the module that applied it."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from regard.insertion.layout import Layout
from regard.maps.running import Running

Tell = Callable[[str, str, Tensor, Layout | None, bool], None]


class Teller:
    """Args:
        running: of the model's modules.
        tell: called with the dotted name of the module, the kind, the values, how keys hold the picture's pixels and
            whether they are those of windows.
        kinds: tell of these only; None is all.

    Attributes:
        dropped: modules whose products look like attention of no kind that is known.
    """

    def __init__(self, running: Running, tell: Tell, kinds: frozenset[str] | None) -> None:
        self.running, self.kinds = running, kinds
        self.dropped: dict[str, None] = {}
        self._tell = tell

    def wants(self, kind: str) -> bool:
        return self.kinds is None or kind in self.kinds

    def tell(self, kind: str, value: Tensor, layout: Layout | None = None, windows: bool = False) -> None:
        """Of values that nobody else writes into."""
        if self.wants(kind) and (module := self.running.name) is not None:
            self._tell(module, kind, value.detach(), layout, windows)

    def drop(self) -> None:
        if (module := self.running.name) is not None:
            self.dropped[module] = None
