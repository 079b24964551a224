"""What a benchmark found: as JSON, as tables against the goals, as a picture."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from regard.base.files import whole, write_text
from regard.base.tables import aligned
from regard.costs.timing import noisy
from regard.registry.cards import cards

SCHEMA = {"name": "regard.bench", "version": 1}
TRAFFIC = {"inference": 3, "training": 7}  # reads and writes of the map in the floor
GATES = ("se", "eca", "cbam", "sge", "shuffle", "coordinate", "gc", "simam", "gct", "srm", "triplet")
LARGE, SMALL = 2**22, 2**20  # numbers of a map; on smaller ones the calls cost more than the memory
GOALS = {
    ("large", "inference"): 1.2,
    ("large", "training"): 1.5,
    ("small", "inference"): 1.5,
    ("small", "training"): 2.2,
}
CUDA = 1.3
MAPS = 1.1  # kept for the backward pass
LEGEND = """\
Times over the floor: median (quartiles). Floor of inference: sum the map, copy it; of training: that,
sum the map again, sum and copy the gradient. Kept: maps that wait for the backward pass."""
OWN = "its own"  # the layout of an op's case

Record = dict[str, Any]


@dataclass(frozen=True)
class Speed:
    """The answer of `bench`.

    Attributes:
        found: schema, machine, settings, records, scaling; see `to_json`.
    """

    found: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Plain values only. A record is one of ours or of a peer in one race; spreads are lower quartile, median,
        upper quartile, and what was not measured is None."""
        return self.found

    @property
    def records(self) -> list[Record]:
        return self.found["records"]

    @property
    def wrong(self) -> list[Record]:
        """Ours that do not agree with the reference."""
        return [record for record in self.records if record["agreement"] and not record["agreement"]["agrees"]]

    def races(self) -> list[list[Record]]:
        """The records that share all but the mechanism, in the order in which they were measured."""
        groups: dict[tuple[Any, ...], list[Record]] = {}
        for record in self.records:
            groups.setdefault(_conditions(record), []).append(record)
        return list(groups.values())

    def save(self, folder: Path) -> list[Path]:
        """Write bench.json and bench.svg into a folder."""
        text = json.dumps(self.to_json(), indent=1)
        paths = [write_text(folder / "bench.json", text + "\n")]
        if any(record["seconds"] for record in self.records):
            paths.append(self.draw(folder / "bench.svg"))
        return paths

    def draw(self, path: Path) -> Path:
        """Write the picture: time over the floor, a panel for each pass and shape; in the first dtype, layout, device
        and number of threads that were measured."""
        with whole(path) as temporary:
            picture(self.records).savefig(temporary, format=path.suffix[1:], metadata={"Date": None})
        return path

    def __str__(self) -> str:
        machine = self.found["machine"]
        parts = [
            f"{machine['gpu'] or machine['cpu']}, {machine['capability']}, torch {machine['torch']}, load "
            f"{machine['load_before']:.1f} before and {machine['load_after']:.1f} after\n{LEGEND}"
        ]
        for records in self.races():
            first = records[0]
            title = f"{_title(first)}: floor {1e3 * first['floor_seconds'][1]:.3g} ms, copy "
            parts.append(
                "\n".join([f"{title}{first['copy_gb_per_second']:.3g} GB/s", _table(records), *_notes(records)])
            )
        if self.found["scaling"]:
            parts.append(_scaling(self.found["scaling"]))
        return "\n\n".join(parts)


def said(record: Record) -> str:
    """A record in a few words, for those who wait."""
    value = record.get("over_floor") or record.get("slope")
    return f"{_who(record)} {value[1]:.2f}" if value else f"{_who(record)} {record['refused']}"


def goal(record: Record) -> float | None:
    """How many times the floor a pure gate may take, or None where nothing was set."""
    name, numbers = record["name"], math.prod(record["shape"])
    size = "large" if numbers >= LARGE else "small" if numbers >= SMALL else ""
    if name not in GATES or not size:
        return None
    if record["device"] != "cpu":
        return CUDA
    return (cards()[name].goals or GOALS).get((size, record["pass"]))


def best(records: Iterable[Record], *, compiled: bool) -> Record | None:
    """The fastest peer that ran."""
    peers = [r for r in records if r["source"] != "ours" and r["compiled"] == compiled and r["over_floor"]]
    return min(peers, key=lambda record: record["over_floor"][1], default=None)


def judged(records: Iterable[Record]) -> Record | None:
    """Ours as a user runs it, which the goals speak of."""
    ours = [r for r in records if r["source"] == "ours" and not r["compiled"] and r["over_floor"]]
    return next((r for r in ours if r["implementation"] == "auto"), ours[0] if ours else None)


def by_name(records: Iterable[Record]) -> dict[str, list[Record]]:
    """The records of each mechanism."""
    rows: dict[str, list[Record]] = {}
    for record in records:
        rows.setdefault(record["name"], []).append(record)
    return rows


def verdict(records: Sequence[Record]) -> str:
    """The goal of one mechanism, and in words by how much it is missed."""
    ours = judged(records)
    limit = ours and goal(ours)
    if not ours or not limit:
        return ""
    median = ours["over_floor"][1]
    return f"<= {limit:g}" + (f", missed by {median / limit - 1:.0%}" if median > limit else "")


def faster(records: Sequence[Record]) -> list[Record]:
    """Of the best peer, eager and compiled, those whose median lies below the quartiles of ours."""
    ours = judged(records)
    peers = [best(records, compiled=compiled) for compiled in (False, True)]
    return [peer for peer in peers if ours and peer and peer["over_floor"][1] < ours["over_floor"][0]]


# ---- As text


def _conditions(record: Record) -> tuple[Any, ...]:
    return (
        *(record[key] for key in ("pass", "dtype", "layout", "device", "threads")),
        *([] if record["layout"] == OWN else record["shape"]),
    )


def _title(record: Record) -> str:
    where = f"{record['threads']} thread{'s' * (record['threads'] != 1)}" if record["device"] == "cpu" else "cuda"
    shape = "" if record["layout"] == OWN else f" {_times(record['shape'])}"
    return f"{record['pass']}{shape} {record['dtype']}, {record['layout']}, {where}"


def _times(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def _who(record: Record) -> str:
    name = record["source"] if record["source"] != "ours" else record["implementation"]
    return f"{name} compiled" if record.get("compiled") else name


def spread(values: Sequence[float]) -> str:
    """Median and quartiles."""
    low, median, high = values
    return f"{median:.2f} ({low:.2f}-{high:.2f})"


def _table(records: Sequence[Record]) -> str:
    """A row for each mechanism; of the peers the fastest."""
    ours = list(dict.fromkeys(_who(record) for record in records if record["source"] == "ours"))
    modes = sorted({record["compiled"] for record in records if record["source"] != "ours"})
    first, rows = records[0], []
    for name, row in by_name(records).items():
        chosen = judged(row) or row[0]
        cells = {"": f"{name} {_times(row[0]['shape'])}" if row[0]["layout"] == OWN else name}
        cells |= {who: _cell(next(r for r in row if r["source"] == "ours" and _who(r) == who)) for who in ours}
        for compiled in modes:
            peer = best(row, compiled=compiled)
            cells[f"best peer{', compiled' * compiled}"] = f"{peer['source']} {_cell(peer)}" if peer else "-"
        if first["pass"] == "training":
            cells["kept"] = "-" if chosen["maps_kept"] is None else f"{chosen['maps_kept']:.2f}"
            if modes:
                peer = best(row, compiled=False)
                cells["best peer keeps"] = f"{peer['maps_kept']:.2f}" if peer else "-"
        if first["device"] != "cpu":
            cells["of copy bandwidth"] = f"{chosen['of_copy_bandwidth'] or math.nan:.0%}"
        rows.append(cells | {"goal": verdict(row)})
    return "\n".join(aligned([list(rows[0]), *(list(cells.values()) for cells in rows)]))


def _cell(record: Record) -> str:
    if record["over_floor"]:
        return spread(record["over_floor"])
    return "wrong" if record["refused"].startswith("wrong") else "-"


def _notes(records: Sequence[Record]) -> list[str]:
    lines = [f"{r['name']}, {_who(r)}: {r['refused']}" for r in records if r["refused"]]
    rows = by_name(records)
    peers = [f"{name} ({_who(peer)} {peer['over_floor'][1]:.2f})" for name, row in rows.items() for peer in faster(row)]
    ours = {name: judged(row) for name, row in rows.items()}
    greedy = [name for name, record in ours.items() if record and goal(record) and (record["maps_kept"] or 0) > MAPS]
    restless = [name for name, row in rows.items() if noisy(row[0]["floor_seconds"])]
    for sentence, listed in (
        ("a peer is faster", peers),
        (f"keeps more than {MAPS} maps", greedy),
        ("the machine was busy, the floor spreads by more than 10%", restless),
    ):
        if listed:
            lines.append(f"{sentence}: {', '.join(listed)}")
    return [f"  {line}" for line in lines]


def _scaling(slopes: Sequence[Record]) -> str:
    """For each race a row for whoever was swept, and a column for each axis."""
    axes = list(dict.fromkeys(slope["axis"] for slope in slopes))
    parts = [
        "How time grows: slope of its logarithm over that of the size, median (quartiles of the rounds). In proportion "
        "to the\nmap is 1 along batch and channels, and 2 along the side."
    ]
    groups: dict[str, dict[str, dict[str, str]]] = {}
    for slope in slopes:
        rows = groups.setdefault(f"{slope['name']}, {_title(slope)}", {})
        rows.setdefault(_who(slope), {})[slope["axis"]] = spread(slope["slope"])
    for title, rows in groups.items():
        cells = [[who, *(row.get(axis, "-") for axis in axes)] for who, row in rows.items()]
        parts.append(f"{title}\n" + "\n".join(aligned([["", *axes], *cells])))
    return "\n\n".join(parts)


# ---- As a picture

# colours that differ for every kind of colour vision, and shapes that differ without any; from the top of a row
MARKS = {
    "ours": {"marker": "o", "color": "#0072B2"},
    "ours, compiled": {"marker": "D", "color": "#56B4E9", "mfc": "white"},
    "best other library": {"marker": "s", "color": "#D55E00", "mfc": "white"},
    "best other library, compiled": {"marker": "^", "color": "#009E73", "mfc": "white"},
}
TICKS = (0.5, 1, 2, 5, 10, 20, 50, 100)


def picture(records: Sequence[Record]) -> Figure:
    """Time over the floor of every mechanism: a row of panels for each pass, a column for each shape."""
    timed = [record for record in records if record["over_floor"]]
    common = ("dtype", "layout", "device", "threads")
    shown = [record for record in timed if all(record[key] == timed[0][key] for key in common)]
    passes = list(dict.fromkeys(record["pass"] for record in shown))
    shapes = list(dict.fromkeys(tuple(record["shape"]) for record in shown))
    names = list(by_name(shown))[::-1]
    size = (1.2 + 3.3 * len(shapes), 1.4 + len(passes) * (0.7 + 0.36 * len(names)))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(len(passes), len(shapes), squeeze=False, sharey=True, sharex=True)
    for row, pass_ in zip(panels, passes, strict=True):
        for axes, shape in zip(row, shapes, strict=True):
            panel = [record for record in shown if (record["pass"], tuple(record["shape"])) == (pass_, shape)]
            _draw(axes, by_name(panel), names)
            axes.set_title(f"{pass_}, {' × '.join(map(str, shape))}", fontsize=10)
    values = [bound for record in shown for bound in record["over_floor"]]
    panels[0, 0].set_xlim(0.8 * min(1, *values), 1.25 * max(values))
    for axes in panels[-1]:
        axes.set_xlabel("time over the floor", fontsize=9)
    where = _title(shown[0]).partition(f"{_times(shown[0]['shape'])} ")[2]
    figure.suptitle(f"Further left is faster ({where}; images × channels × height × width)", fontsize=10)
    handles: dict[str, Any] = {}
    for axes in panels.flat:
        handles |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    order = [label for label in (*MARKS, FLOOR, GOAL) if label in handles]
    chosen = [handles[label] for label in order]
    figure.legend(handles=chosen, labels=order, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


FLOOR, GOAL = "the floor: what memory alone costs", "the goal for ours"


def _draw(axes: Axes, rows: dict[str, list[Record]], names: Sequence[str]) -> None:
    axes.axvline(1, color="black", linewidth=1.2, label=FLOOR)
    for name, records in rows.items():
        ours, place = judged(records), names.index(name)
        compiled = [r for r in records if r["source"] == "ours" and r["compiled"] and r["over_floor"]]
        chosen = (ours, next(iter(compiled), None), best(records, compiled=False), best(records, compiled=True))
        for step, ((label, mark), record) in enumerate(zip(MARKS.items(), chosen, strict=True)):
            if record:
                low, median, high = record["over_floor"]
                height = place + 0.27 - 0.18 * step
                axes.hlines(height, low, high, color=mark["color"], linewidth=1.5)
                axes.plot(median, height, linestyle="", markersize=5, label=label, **mark)  # type: ignore[arg-type]
        limit = ours and goal(ours)
        if limit:
            axes.vlines(limit, place - 0.42, place + 0.42, color="black", linestyle=":", label=GOAL)
    axes.set_xscale("log")
    axes.set_xticks(TICKS, [f"{tick:g}" for tick in TICKS])
    axes.minorticks_off()
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.grid(axis="x", color="#e3e3e3", linewidth=0.6)
    for boundary in range(1, len(names)):
        axes.axhline(boundary - 0.5, color="#e3e3e3", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(left=False)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
