"""The charts of the report, drawn by matplotlib as SVG that takes the colours of the page around it.

A chart of the whole width is drawn twice, for wide and for narrow screens, since its text would shrink with it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

import matplotlib
from markupsafe import Markup, escape
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, MaxNLocator

from regard.comparison import learning
from regard.comparison.results import Comparison
from regard.comparison.verdict import Verdict
from regard.comparison.wording import interval, points, typeset
from regard.pictures.charts import Chart

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# drawn in the colours of a light page, each of which becomes the page's own
INK, SOFT, LINE, ACCENT, BAND, PAGE = "#1b1f24", "#565e67", "#d5d9d6", "#0b5c8f", "#e4e8e4", "#fcfcfa"
VARIABLES = {INK: "ink", SOFT: "soft", LINE: "line", ACCENT: "accent", BAND: "band", PAGE: "page"}
WIDE, NARROW, PANEL = 800, 350, 280  # pixels
STEPS = [1, 2, 2.5, 5, 10]  # between the marks of an axis
TEXT = 12.5  # pixels, on a screen of that width
BEYOND = 5.0  # points of accuracy that an axis is at least made longer by to show a level


@dataclass(frozen=True)
class Levels:
    """What every accuracy is held against, in percent.

    Attributes:
        shown: (level, words) of those that the axis reaches.
        below, above: in words, those beyond its ends.
    """

    shown: tuple[tuple[float, str], ...]
    below: str
    above: str

    def draw(self, axes: Axes) -> None:
        """Dotted lines with their words; an arrow for what lies beyond."""
        low, high = axes.get_ylim()
        for level, words in self.shown:
            axes.axhline(level, color=SOFT, linewidth=1.5, dashes=(0.7, 2.5), dash_capstyle="round", zorder=1)
            # curves rise to the right: what is low is named on the left above its line, what is high on the right below
            x, ha, va = (0.01, "left", "bottom") if 2 * level < low + high else (0.99, "right", "top")
            _say(axes, x, level, words, transform=axes.get_yaxis_transform(), ha=ha, va=va, zorder=5)
        if self.below:
            _say(axes, 0.99, 0.02, f"↓ {self.below}", transform=axes.transAxes, ha="right", va="bottom", zorder=5)
        if self.above:
            _say(axes, 0.01, 0.98, f"↑ {self.above}", transform=axes.transAxes, va="top", zorder=5)


def levels(comparison: Comparison, seen: Sequence[float]) -> tuple[Levels, tuple[float, float]]:
    """Chance and the linear model beside accuracies that are shown, in percent, and the ends of their axis.

    The axis is made longer for a level that is near; one that is far would press the accuracies together.
    """
    known = {"linear model on the pixels": comparison.linear, "chance": comparison.chance}
    named = [(100 * level, f"{name} {100 * level:.1f} %") for name, level in known.items() if level is not None]
    low, high = min(seen), max(seen)
    span = max(BEYOND, high - low)
    near = [level for level, _ in named if low - span <= level <= high + span]
    low, high = min([low, *near]), max([high, *near])
    shown = tuple((level, words) for level, words in named if low <= level <= high)
    below = ", ".join(words for level, words in named if level < low)
    above = ", ".join(words for level, words in named if level > high)
    room = 0.06 * (high - low) or 0.5
    return Levels(shown, below, above), (low - (3 if below else 1) * room, high + (3 if above else 1) * room)


def forest(verdicts: Sequence[Verdict], margin: float, key: str) -> Markup:
    """Every seed's difference, the mean and the interval of each arm, on one axis in percentage points."""
    judged = [verdict for verdict in verdicts if verdict.differences]
    if not judged:
        return Markup()
    told = [f"{v.arm}: {points(v.mean)} {interval(v) or '(no interval)'} percentage points." for v in judged]
    told.append(f"The margin is {100 * margin:g} points either side of zero.")

    def draw(axes: Axes) -> None:
        axes.axvspan(-100 * margin, 100 * margin, color=BAND, linewidth=0, zorder=0)
        axes.axvline(0, color=SOFT, linewidth=1.5, zorder=1)
        for row, verdict in enumerate(judged):
            _forest_row(axes, -row, verdict)
        seen = [100 * value for v in judged for value in (*v.differences, v.low, v.high) if math.isfinite(value)]
        reach = [*seen, -130 * margin, 130 * margin]
        room = 0.04 * (max(reach) - min(reach))
        axes.set_xlim(min(reach) - room, max(reach) + room)
        axes.set_ylim(0.5 - len(judged), 0.95)
        axes.set_yticks([])
        axes.xaxis.set_major_locator(MaxNLocator(_marks(axes), steps=STEPS))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: typeset(f"{value:+g}") if value else "0"))
        axes.grid(axis="x", color=LINE)
        words = f"±{100 * margin:g}: not worth having"
        _say(axes, 0, 1.01, words, transform=axes.get_xaxis_transform(), ha="center", va="bottom")

    against = verdicts[0].against
    title = f"Differences in accuracy against {against}"
    return _both(draw, 52 * len(judged) + 62, key, title, " ".join(told))


def _forest_row(axes: Axes, y: float, verdict: Verdict) -> None:
    known = interval(verdict)
    mean = 100 * verdict.mean
    if known:
        ends = [[mean - 100 * verdict.low], [100 * verdict.high - mean]]
        axes.errorbar(mean, y, xerr=ends, color=ACCENT, linewidth=2, capsize=5, capthick=2, zorder=2)
    dots = [100 * value for value in verdict.differences]
    axes.scatter(dots, [y] * len(dots), s=44, color=SOFT, alpha=0.35, linewidth=0, zorder=3)
    axes.scatter(dots, [y] * len(dots), s=44, facecolor="none", edgecolor=SOFT, linewidth=0.9, zorder=3)
    axes.scatter(mean, y, s=110, marker="D", color=ACCENT, edgecolor=PAGE, linewidth=1.5, zorder=4)
    words = typeset(f"{points(verdict.mean)} {known}" if known else f"{points(verdict.mean)}, no interval")
    beside = axes.get_yaxis_transform()
    name = _say(axes, 0, y + 0.2, verdict.arm, transform=beside, va="bottom", color=INK, weight="bold")
    axes.annotate(
        words, (1, 0), (8, 0), xycoords=name, textcoords="offset points", va="bottom", color=SOFT, fontsize=TEXT
    )


def costs(comparison: Comparison, key: str) -> Markup:
    """Each arm's accuracy against its time at inference, relative to none."""
    priced = comparison.cost["arms"] if comparison.cost else {}
    ratios = {arm: priced[arm].get("infer_ratio", (1.0, 1.0, 1.0)) for arm in comparison.arms if arm in priced}
    ratios["none"] = (1.0, 1.0, 1.0)
    scores = {arm: [100 * top1 for top1 in comparison.scores[arm].values()] for arm in ratios}
    ratios = {arm: ratio for arm, ratio in ratios.items() if scores[arm]}
    if not priced or len(ratios) < 2:
        return Markup()
    held, (low, high) = levels(comparison, [value for arm in ratios for value in scores[arm]])

    def draw(axes: Axes) -> None:
        for arm, (quick, middle, slow) in ratios.items():
            mean = fmean(scores[arm])
            axes.plot([quick, slow], [mean, mean], color=ACCENT, linewidth=2, zorder=2)
            axes.plot([middle, middle], [min(scores[arm]), max(scores[arm])], color=ACCENT, linewidth=2, zorder=2)
            face, edge = (PAGE, ACCENT) if arm == "none" else (ACCENT, PAGE)
            axes.scatter(middle, mean, s=120, color=face, edgecolor=edge, linewidth=2, zorder=3)
        ends = [value for ratio in ratios.values() for value in ratio]
        room = 0.06 * (max(ends) - min(ends)) or 0.1
        axes.set(xlim=(min(ends) - room, max(ends) + room), ylim=(low, high))
        held.draw(axes)
        axes.grid(axis="y", color=LINE)
        axes.xaxis.set_major_locator(MaxNLocator(_marks(axes), steps=STEPS))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} %"))
        axes.set_xlabel("time at inference, against none", color=SOFT, fontsize=TEXT, loc="right")
        _name_dots(axes, {arm: (ratio[1], fmean(scores[arm])) for arm, ratio in ratios.items()})

    told = [f"{words}." for words in (*(words for _, words in held.shown), held.below, held.above) if words]
    told += [f"{a}: {fmean(scores[a]):.2f} % at {r[1]:.2f} times the time of none." for a, r in ratios.items()]
    return _both(draw, 360, key, "Accuracy against time at inference", " ".join(told))


def _name_dots(axes: Axes, dots: dict[str, tuple[float, float]]) -> None:
    """Names beside their dots, on the side where there is room, and never on each other."""
    places = {arm: axes.transData.transform(place) for arm, place in dots.items()}
    middle = axes.bbox.x0 + 0.7 * axes.bbox.width
    for left in (True, False):
        ceiling = math.inf
        side = {arm: y for arm, (x, y) in places.items() if bool(x > middle) is left}
        for arm, y in sorted(side.items(), key=lambda item: -item[1]):
            ceiling = min(y + 8, ceiling - 17)
            shift = (-10, ceiling - y) if left else (10, ceiling - y)
            axes.annotate(
                arm, dots[arm], shift, textcoords="offset pixels", ha="right" if left else "left", va="center",
                color=INK, weight="bold", fontsize=TEXT, zorder=6,
            )  # fmt: skip


def curves(comparison: Comparison) -> dict[str, Any] | None:
    """One panel for each arm: validation accuracy by epoch, every seed and the mean, with the mean of none."""
    runs = {
        arm: [[100 * point["val_top1"] for point in run["curve"]] for run in comparison.done if run["arm"] == arm]
        for arm in comparison.arms
    }
    runs = {arm: of for arm, of in runs.items() if of}
    if not runs:
        return None
    seconds = {
        arm: fmean(point["seconds"] for run in comparison.done if run["arm"] == arm for point in run["curve"])
        for arm in runs
    }
    means = {arm: [fmean(values) for values in zip(*of, strict=False)] for arm, of in runs.items()}
    held, ends = levels(comparison, [value for of in runs.values() for run in of for value in run])
    epochs = max(map(len, means.values()))
    return {
        "panels": [
            {
                "arm": arm,
                "chart": _panel(arm, of, means, held, ends, f"curve-{number}"),
                "last": f"{means[arm][-1]:.2f}",
                "end": _end(comparison, of),
                "seconds": f"{seconds[arm]:.1f}",
            }
            for number, (arm, of) in enumerate(runs.items())
        ],
        "table": [[_spread(of, epoch) for of in runs.values()] for epoch in range(epochs)],
    }


def _panel(
    arm: str,
    runs: Sequence[Sequence[float]],
    means: dict[str, list[float]],
    held: Levels,
    ends: tuple[float, float],
    key: str,
) -> Markup:
    epochs = max(map(len, means.values()))

    def draw(axes: Axes) -> None:
        dots = "o" if epochs == 1 else ""
        for run in runs:
            axes.plot(range(1, len(run) + 1), run, color=SOFT, alpha=0.55, linewidth=1, marker=dots, markersize=3)
        if arm != "none" and "none" in means:
            none = means["none"]
            axes.plot(range(1, len(none) + 1), none, color=INK, linewidth=1.5, dashes=(3.5, 2.5), marker=dots)
        axes.plot(range(1, len(means[arm]) + 1), means[arm], color=ACCENT, linewidth=2.5, marker=dots)
        axes.set(ylim=ends, xticks=sorted({1, epochs}))
        held.draw(axes)
        axes.yaxis.set_major_locator(MaxNLocator(4, steps=STEPS))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} %"))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"epoch {value:g}"))
        axes.grid(axis="y", color=LINE)

    number = f"{len(runs)} seed{'' if len(runs) == 1 else 's'}"
    title = f"Validation accuracy of {arm} by epoch: {number}, the mean ends at {means[arm][-1]:.2f} %"
    return _drawn(draw, PANEL, 160, key, title, "", "panel")


def _spread(runs: Sequence[Sequence[float]], epoch: int) -> str:
    """Mean, lowest and highest after an epoch; empty where no run got there."""
    at = [run[epoch] for run in runs if epoch < len(run)]
    return f"{fmean(at):.2f} ({min(at):.2f} to {max(at):.2f})" if at else ""


def _end(comparison: Comparison, runs: Sequence[Sequence[float]]) -> str:
    """Whether the curves of one arm, in percent, have ended, and by how much they rose at last."""
    shares = [[value / 100 for value in run] for run in runs]
    start = comparison.chance or 0.0
    mean, error = learning.rise(shares, start) or (0.0, 0.0)
    word = "ended" if learning.ended(shares, comparison.question.margin, start) else "still climbing"
    spread = f" (standard error {100 * error:.2f})" if error else ""
    return typeset(f"{word}: {points(mean)} points in the last quarter{spread}")


def _both(draw: Callable[[Axes], None], height: int, key: str, title: str, description: str) -> Markup:
    """A chart for wide screens and one for narrow ones, of which a page shows the one that suits it."""
    return Markup().join(
        _drawn(draw, width, height, f"{key}-{kind}", title, description, kind)
        for kind, width in (("wide-chart", WIDE), ("narrow-chart", NARROW))
    )


def _drawn(
    draw: Callable[[Axes], None], width: int, height: int, key: str, title: str, description: str, kind: str
) -> Markup:
    """An SVG element for a page; names are text, whatever is in them."""
    with matplotlib.rc_context({"text.parse_math": False, "axes.unicode_minus": True}):
        layout = ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02)
        figure = Figure(figsize=(width / 72, height / 72), dpi=72, layout=layout)  # a point is a pixel
        figure.patch.set_alpha(0)
        axes = figure.add_subplot(facecolor="none")
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0, labelsize=TEXT, labelcolor=SOFT)
        axes.set_axisbelow(True)
        draw(axes)
        svg = Chart(figure).svg()
    return Markup(_inlined(svg, key, title, description, kind))


def _inlined(svg: str, key: str, title: str, description: str, kind: str) -> str:
    body = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    _, tag, inner = re.split(r"(<svg[^>]*>)", body, maxsplit=1)
    view = re.search(r'viewBox="[^"]*"', tag)[0]  # type: ignore[index]
    for colour, name in VARIABLES.items():
        inner = inner.replace(colour, f"var(--{name})")
    # every chart of a page has names of its own, since one that is not shown lends nothing to others
    inner = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{key}-", inner)
    named = f'role="img" aria-labelledby="{key}-title {key}-desc"'
    words = f'<title id="{key}-title">{escape(title)}</title><desc id="{key}-desc">{escape(description)}</desc>'
    return f'<svg class="chart {kind}" {view} {named}>{words}{inner}'


def _say(axes: Axes, x: float, y: float, words: str, *, color: str = SOFT, **how: Any) -> Any:
    return axes.text(x, y, words, color=color, fontsize=TEXT, **how)


def _marks(axes: Axes) -> int:
    return 6 if axes.bbox.width > NARROW else 4
