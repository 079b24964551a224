"""How many times the lower bound a pure gate may take, and whether it does."""

from __future__ import annotations

import math
from collections.abc import Sequence

from regard.costs.records import Record, as_used, best
from regard.registry.cards import cards

LARGE, SMALL = 2**22, 2**20  # numbers of a map; on smaller ones the calls cost more than the memory
CUDA = 1.3
MAPS = 1.1  # kept for the backward pass

GOALS = {
    ("large", "inference"): 1.2,
    ("large", "training"): 1.5,
    ("small", "inference"): 1.5,
    ("small", "training"): 2.2,
}
"""By the size of the map and the pass; a mechanism that reads its map more often registers goals of its own."""
GATES = ("se", "eca", "cbam", "sge", "shuffle", "coordinate", "gc", "simam", "gct", "srm", "triplet")


def goal(record: Record) -> float | None:
    """How many times the lower bound a pure gate may take, or None where nothing was set."""
    name, numbers = record["name"], math.prod(record["shape"])
    size = "large" if numbers >= LARGE else "small" if numbers >= SMALL else ""
    if name not in GATES or not size:
        return None
    return CUDA if record["device"] != "cpu" else (cards()[name].goals or GOALS).get((size, record["pass"]))


def verdict(records: Sequence[Record]) -> str:
    """The goal of one mechanism, and in words by how much it is missed."""
    ours = as_used(records)
    limit = ours and goal(ours)
    if not ours or not limit:
        return ""
    median = ours["over_floor"][1]
    return f"<= {limit:g}" + (f", missed by {median / limit - 1:.0%}" if median > limit else "")


def faster(records: Sequence[Record]) -> list[Record]:
    """Of the best of other libraries, eager and compiled, those whose median lies below the quartiles of ours."""
    ours = as_used(records)
    others = [best(records, compiled=compiled) for compiled in (False, True)]
    return [other for other in others if ours and other and other["over_floor"][1] < ours["over_floor"][0]]
