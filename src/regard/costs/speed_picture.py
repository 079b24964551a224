"""What a benchmark found, as a picture: time over the lower bound, a panel for each pass and shape."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from regard.costs.goals import goal
from regard.costs.records import Record, as_used, best, by_name
from regard.costs.speed_table import times, title_of

# colours that differ for every kind of colour vision, and shapes that differ without any; from the top of a row
MARKS = {
    "ours": {"marker": "o", "color": "#0072B2"},
    "ours, compiled": {"marker": "D", "color": "#56B4E9", "mfc": "white"},
    "best other library": {"marker": "s", "color": "#D55E00", "mfc": "white"},
    "best other library, compiled": {"marker": "^", "color": "#009E73", "mfc": "white"},
}
LOWER_BOUND, GOAL = "the lower bound: what memory alone costs", "the goal for ours"
TICKS = (0.5, 1, 2, 5, 10, 20, 50, 100)


def picture(records: Sequence[Record]) -> Figure:
    """Time over the lower bound of every mechanism: a row of panels for each pass, a column for each shape."""
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
        axes.set_xlabel("time over the lower bound", fontsize=9)
    where = title_of(shown[0]).partition(f"{times(shown[0]['shape'])} ")[2]
    figure.suptitle(f"Further left is faster ({where}; images × channels × height × width)", fontsize=10)
    _add_legend(figure)
    return figure


def _add_legend(figure: Figure) -> None:
    """One for all panels, in the order of `MARKS`."""
    handles: dict[str, Any] = {}
    for axes in figure.axes:
        handles |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    labels = [label for label in (*MARKS, LOWER_BOUND, GOAL) if label in handles]
    chosen = [handles[label] for label in labels]
    figure.legend(handles=chosen, labels=labels, loc="outside lower center", ncols=3, frameon=False, fontsize=9)


def _draw(axes: Axes, rows: dict[str, list[Record]], names: Sequence[str]) -> None:
    axes.axvline(1, color="black", linewidth=1.2, label=LOWER_BOUND)
    for name, records in rows.items():
        ours, place = as_used(records), names.index(name)
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
    _style(axes, names)


def _style(axes: Axes, names: Sequence[str]) -> None:
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
