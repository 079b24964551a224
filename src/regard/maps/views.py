"""Recorded maps as they can be drawn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from regard.insertion.layout import Layout
from regard.maps.recording import Map


def views(maps: Sequence[Map], query: tuple[float, float] = (0.5, 0.5)) -> Iterator[Map]:
    """Recorded maps as they can be drawn, on the CPU: the gates along the axes of one mechanism multiply, so they are
    one map; of weights between positions there is the view from one place, whether pixels or tokens are weighed.

    Args:
        maps: recorded with ``queries=[query]``, or with all.
        query: the place (row, column) as shares of the sides.
    """
    for recorded in joined_axes(maps):
        value = recorded.value
        if recorded.kind == "position" and value.dim() == 6:  # a mechanism that builds all of them anyway
            row, column = (min(side - 1, int(at * side)) for at, side in zip(query, value.shape[2:4], strict=True))
            value = value[:, :, row, column].unsqueeze(2)
        value = value.float().cpu()
        if recorded.kind == "position" and value.dim() == 5:
            yield Map(recorded.name, "token", value.flatten(3), Layout("tokens", 0, tuple(value.shape[3:])))
        else:
            yield replace(recorded, value=value)


def joined_axes(maps: Sequence[Map]) -> Iterator[Map]:
    """The gates along the axes of one mechanism multiply, so they are one map."""
    axes: dict[str, Map] = {}
    for recorded in maps:
        if recorded.kind != "axis":
            yield recorded
            continue
        where = recorded.name.rpartition(".")[0] if recorded.name.rpartition(".")[2].isdigit() else recorded.name
        before = axes.get(where)
        sides = [i for i in range(2, recorded.value.dim()) if recorded.value.shape[i] > 1]
        if before is None or (sides and all(before.value.shape[i] > 1 for i in sides)):
            axes[where] = Map(where, "axis", recorded.value)
        else:
            axes[where] = Map(where, "axis", before.value * recorded.value)
    yield from axes.values()
