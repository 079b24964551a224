"""Maps out of taps: what the mechanisms of a model look at."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn

from regard.borrowing import is_compiled
from regard.errors import UserError
from regard.tap import Tap, taps


@dataclass(frozen=True)
class Map:
    """What one tap saw in one call.

    Attributes:
        name: dotted name of the tap.
        kind: what it speaks of, and with it its shape: see `regard.tap.Tap`.
        value: detached, as the mechanism applied it.
    """

    name: str
    kind: str
    value: Tensor

    def __repr__(self) -> str:
        return f"Map({self.name!r}, {self.kind!r}, {tuple(self.value.shape)})"


@contextmanager
def record(model: nn.Module, *, kinds: Collection[str] | None = None) -> Iterator[list[Map]]:
    """Collect the maps of every tap inside a model while the block runs.

    Afterwards the model is as it was, also after an exception.

    Args:
        model: with taps in it.
        kinds: collect only these, see `regard.tap.Tap`; maps between all positions are then not even built.

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
            if kinds is not None and tap.kind not in kinds:
                continue

            def keep(tap: Tap, args: tuple[Tensor], value: Tensor, name: str = name) -> None:
                maps.append(Map(name, tap.kind, value.detach()))

            handles.append(tap.register_forward_hook(keep))
        yield maps
    finally:
        for handle in handles:
            handle.remove()
