"""What a benchmark notes of one contestant, and which records speak for whom."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

SCHEMA = {"name": "regard.bench", "version": 1}
TRAFFIC = {"inference": 3, "training": 7}  # reads and writes of the map in the lower bound
OWN = "its own"  # the layout of an op's case
MEASURED = ("seconds", "over_floor", "of_copy_bandwidth", "maps_kept", "peak_maps", "agreement", "refused")
"""What a record holds beside the setting and the contestant; "floor" stands for the lower bound."""

Record = dict[str, Any]


def whose(record: Record) -> str:
    """Ours, a library's, or the lower bound's, which files call "floor"."""
    return "lower bound" if record["source"] == "floor" else record["source"]


def best(records: Iterable[Record], *, compiled: bool) -> Record | None:
    """The fastest module of another library that ran."""
    others = [r for r in records if r["source"] != "ours" and r["compiled"] == compiled and r["over_floor"]]
    return min(others, key=lambda record: record["over_floor"][1], default=None)


def as_used(records: Iterable[Record]) -> Record | None:
    """Ours as a user runs it, which the goals speak of."""
    ours = [r for r in records if r["source"] == "ours" and not r["compiled"] and r["over_floor"]]
    return next((r for r in ours if r["implementation"] == "auto"), ours[0] if ours else None)


def by_name(records: Iterable[Record]) -> dict[str, list[Record]]:
    """The records of each mechanism."""
    rows: dict[str, list[Record]] = {}
    for record in records:
        rows.setdefault(record["name"], []).append(record)
    return rows
