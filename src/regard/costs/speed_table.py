"""What a benchmark found, as text: a table for each setting, and how time grows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from regard.base.tables import aligned
from regard.costs.goals import MAPS, faster, goal, verdict
from regard.costs.records import OWN, Record, as_used, best, by_name, whose
from regard.costs.timing import noisy


def said(record: Record) -> str:
    """A record in a few words, for those who wait."""
    value = record.get("over_floor") or record.get("slope")
    return f"{_who(record)} {value[1]:.2f}" if value else f"{_who(record)} {record['refused']}"


def conditions(record: Record) -> tuple[Any, ...]:
    return (
        *(record[key] for key in ("pass", "dtype", "layout", "device", "threads")),
        *([] if record["layout"] == OWN else record["shape"]),
    )


def title_of(record: Record) -> str:
    where = f"{record['threads']} thread{'s' * (record['threads'] != 1)}" if record["device"] == "cpu" else "cuda"
    shape = "" if record["layout"] == OWN else f" {times(record['shape'])}"
    return f"{record['pass']}{shape} {record['dtype']}, {record['layout']}, {where}"


def times(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def _who(record: Record) -> str:
    name = whose(record) if record["source"] != "ours" else record["implementation"]
    return f"{name} compiled" if record.get("compiled") else name


def spread(values: Sequence[float]) -> str:
    """Median and quartiles."""
    low, median, high = values
    return f"{median:.2f} ({low:.2f}-{high:.2f})"


def table(records: Sequence[Record]) -> str:
    """A row for each mechanism; of other libraries the fastest."""
    ours = list(dict.fromkeys(_who(record) for record in records if record["source"] == "ours"))
    modes = sorted({record["compiled"] for record in records if record["source"] != "ours"})
    first, rows = records[0], []
    for name, row in by_name(records).items():
        chosen = as_used(row) or row[0]
        cells = {"": f"{name} {times(row[0]['shape'])}" if row[0]["layout"] == OWN else name}
        cells |= {who: _cell(next(r for r in row if r["source"] == "ours" and _who(r) == who)) for who in ours}
        for compiled in modes:
            other = best(row, compiled=compiled)
            title = "best other library" + ", compiled" * compiled
            cells[title] = f"{other['source']} {_cell(other)}" if other else "-"
        if first["pass"] == "training":
            cells["kept"] = "-" if chosen["maps_kept"] is None else f"{chosen['maps_kept']:.2f}"
            if modes:
                other = best(row, compiled=False)
                cells["best other keeps"] = f"{other['maps_kept']:.2f}" if other else "-"
        if first["device"] != "cpu":
            cells["of copy bandwidth"] = f"{chosen['of_copy_bandwidth'] or math.nan:.0%}"
        rows.append(cells | {"goal": verdict(row)})
    return "\n".join(aligned([list(rows[0]), *(list(cells.values()) for cells in rows)]))


def _cell(record: Record) -> str:
    if record["over_floor"]:
        return spread(record["over_floor"])
    return "wrong" if record["refused"].startswith("wrong") else "-"


def notes(records: Sequence[Record]) -> list[str]:
    lines = [f"{r['name']}, {_who(r)}: {r['refused']}" for r in records if r["refused"]]
    rows = by_name(records)
    others = [
        f"{name} ({_who(other)} {other['over_floor'][1]:.2f})" for name, row in rows.items() for other in faster(row)
    ]
    ours = {name: as_used(row) for name, row in rows.items()}
    greedy = [name for name, record in ours.items() if record and goal(record) and (record["maps_kept"] or 0) > MAPS]
    restless = [name for name, row in rows.items() if noisy(row[0]["floor_seconds"])]
    for sentence, listed in (
        ("another library is faster", others),
        (f"keeps more than {MAPS} maps", greedy),
        ("the machine was busy, the lower bound spreads by more than 10%", restless),
    ):
        if listed:
            lines.append(f"{sentence}: {', '.join(listed)}")
    return [f"  {line}" for line in lines]


def scaling(slopes: Sequence[Record]) -> str:
    """For each setting a row for whoever was swept, and a column for each axis."""
    axes = list(dict.fromkeys(slope["axis"] for slope in slopes))
    parts = [
        "How time grows: slope of its logarithm over that of the size, median (quartiles of the rounds). In proportion "
        "to the\nmap is 1 along batch and channels, and 2 along the side."
    ]
    groups: dict[str, dict[str, dict[str, str]]] = {}
    for slope in slopes:
        rows = groups.setdefault(f"{slope['name']}, {title_of(slope)}", {})
        rows.setdefault(_who(slope), {})[slope["axis"]] = spread(slope["slope"])
    for title, rows in groups.items():
        cells = [[who, *(row.get(axis, "-") for axis in axes)] for who, row in rows.items()]
        parts.append(f"{title}\n" + "\n".join(aligned([["", *axes], *cells])))
    return "\n\n".join(parts)
