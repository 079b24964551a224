"""Small charts of what has no place on a picture: gates of channels, branches, weights over time, curves of a check."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from regard.pictures.picture import Picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# told apart by colour, and in grey by their lines
STYLES: list[dict[str, Any]] = [
    {"color": "#0072b2", "linestyle": "-"},
    {"color": "#d55e00", "linestyle": "--"},
    {"color": "#000000", "linestyle": ":"},
    {"color": "#009e73", "linestyle": "-."},
    {"color": "#b5559a", "linestyle": (0, (4, 1, 1, 1, 1, 1))},
    {"color": "#7a6200", "linestyle": (0, (1, 2))},
]
SMALL = 7  # size of text


@dataclass(frozen=True)
class Chart(Picture):
    """Drawn by matplotlib."""

    figure: Figure

    def image(self) -> Image.Image:
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        canvas = FigureCanvasAgg(self.figure)
        canvas.draw()
        return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())

    def svg(self) -> str:
        import matplotlib

        buffer = io.StringIO()
        with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "regard"}):
            self.figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
        return buffer.getvalue()


def gates(values: Any, size: int, *, usual: Any = None) -> Chart:
    """What each channel is multiplied by, the most open one first.

    Args:
        values: (C,).
        size: height in pixels.
        usual: (C,) the mean of all pictures, drawn in grey; the channels are then in its order.
    """
    values = np.ravel(values)
    order = np.argsort(values if usual is None else np.ravel(usual))[::-1]
    chart, axes = _chart(size, "channels, most open first" if usual is None else "channels; grey: mean of all pictures")
    axes.set_ylim(min(0, values.min()), max(1, values.max()))
    axes.fill_between(range(len(order)), (values if usual is None else np.ravel(usual))[order], step="mid", color="0.8")
    axes.step(range(len(order)), values[order], where="mid", color="black", linewidth=1 if usual is None else 0.6)
    return chart


def by_class(means: Mapping[str, np.ndarray], size: int) -> Chart:
    """The mean gate of every channel for each class, the channel that is most open on the whole first.

    Args:
        means: class -> (C,).
        size: height in pixels.
    """
    chart, axes = _chart(size, "channels, most open first")
    order = np.argsort(np.mean(list(means.values()), axis=0))[::-1]
    for (name, values), style in zip(means.items(), STYLES, strict=False):
        axes.plot(values[order], label=name, linewidth=0.9, **style)
    axes.set_ylim(min(0, *map(np.min, means.values())), max(1, *map(np.max, means.values())))
    axes.legend(fontsize=SMALL - 1, frameon=False, loc="lower left")
    return chart


def shares(values: Any, size: int) -> Chart:
    """How much each branch counts: (branches,) or, of channels, (branches, ...), of which the mean is drawn."""
    values = np.reshape(values, (len(values), -1)).mean(1)
    chart, axes = _chart(size, "branches, mean of their channels")
    axes.bar(range(len(values)), values, color="0.6", edgecolor="black")
    axes.set_xticks(range(len(values)))
    return chart


def moments(values: Any, size: int) -> Chart:
    """Weights over time, (C, k): their mean over the channels."""
    values = np.asarray(values).mean(0)
    chart, axes = _chart(size, "time, mean of the channels")
    axes.plot(range(len(values)), values, "o-", color="black", linewidth=1, markersize=3)
    axes.set_ylim(min(0, 1.1 * values.min()), max(0, 1.1 * values.max()))
    axes.set_xticks(range(len(values)))
    return chart


def curves(lines: Mapping[str, Sequence[float]], size: int, *, over: str, ends: tuple[str, str] | None = None) -> Chart:
    """Shares that change from the left to the right.

    Args:
        lines: what each is called -> its values, evenly spaced.
        size: height in pixels.
        over: what changes from left to right.
        ends: words at the first and at the last value.
    """
    chart, axes = _chart(size, over, whole=False)
    for (name, values), style in zip(lines.items(), STYLES, strict=False):
        axes.plot(np.linspace(0, 1, len(values)), values, label=name, linewidth=1.1, **style)
    low = min(map(min, lines.values()))
    axes.set_ylim(min(0, low), max(1, *map(max, lines.values())))
    if ends:
        axes.set_xticks([0, 1], ends)
    if len(lines) > 1:  # above the curves, which may run anywhere
        chart.figure.subplots_adjust(top=0.8)
        axes.legend(fontsize=SMALL - 1, frameon=False, loc="lower center", bbox_to_anchor=(0.45, 0.98), ncols=2)
    return chart


def _chart(size: int, over: str, *, whole: bool = True) -> tuple[Chart, Axes]:
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(1.4 * size / 100, size / 100), dpi=100)
    figure.subplots_adjust(0.15, 0.24, 0.97, 0.96)
    axes = figure.add_subplot()
    axes.set_xlabel(over, fontsize=SMALL)
    axes.tick_params(labelsize=SMALL)
    if whole:  # channels, branches, moments
        axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    axes.spines[["top", "right"]].set_visible(False)
    return Chart(figure), axes
