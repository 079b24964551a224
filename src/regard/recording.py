"""Maps out of taps: what the mechanisms of a model look at."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn

from regard.errors import UserError
from regard.survey import is_compiled
from regard.tap import Tap, taps


@dataclass(frozen=True)
class Map:
    """What one tap saw in one call.

    Attributes:
        name: dotted name of the tap.
        kind: ``"channel"`` (B, C, 1, ...), ``"spatial"`` (B, 1, *spatial) or ``"axis"`` (B, C, one axis long, else 1).
        value: detached, as the mechanism applied it.
    """

    name: str
    kind: str
    value: Tensor

    def __repr__(self) -> str:
        return f"Map({self.name!r}, {self.kind!r}, {tuple(self.value.shape)})"


@contextmanager
def record(model: nn.Module) -> Iterator[list[Map]]:
    """Collect the maps of every tap inside a model while the block runs.

    Afterwards the model is as it was, also after an exception.

    Yields:
        A list that grows by one `Map` for each tap and call, in the order of the calls.

    Raises:
        UserError: the model has no taps, or is compiled (torch would ignore the hooks).

    Example:
        >>> import regard, torch
        >>> se = regard.create("se", 16)
        >>> with regard.record(se) as maps:
        ...     y = se(torch.randn(2, 16, 4, 4))
        >>> maps[0].name, maps[0].value.shape
        ('gate', torch.Size([2, 16, 1, 1]))
    """
    if any(map(is_compiled, model.modules())):
        raise UserError("the model is compiled, and torch ignores hooks added after that: record on the model itself")
    found = list(taps(model))
    if not found:
        raise UserError("the model has no taps: attach a mechanism first")
    maps: list[Map] = []
    handles = []
    try:
        for name, tap in found:

            def keep(tap: Tap, args: tuple[Tensor], value: Tensor, name: str = name) -> None:
                maps.append(Map(name, tap.kind, value.detach()))

            handles.append(tap.register_forward_hook(keep))
        yield maps
    finally:
        for handle in handles:
            handle.remove()
