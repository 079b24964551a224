"""The answer for people: one HTML file that opens anywhere, without a network and without a script."""

from __future__ import annotations

import json
import math
import re
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import jinja2
import numpy as np
import torch
from matplotlib.ticker import MaxNLocator
from PIL import Image

from regard.base.errors import UserError
from regard.base.files import opened, slug, write_text
from regard.base.schema import fault
from regard.comparison import learning
from regard.comparison.arms import twinned
from regard.comparison.pictures import REASONS
from regard.comparison.records import Shown
from regard.comparison.results import UNTRAINED, Comparison, counted, interval, points
from regard.comparison.statistics import Verdict
from regard.insertion.layout import Layout
from regard.maps.meaning import judge
from regard.maps.recording import Map
from regard.pictures.captions import CAPTIONS
from regard.pictures.drawing import draw
from regard.pictures.marks import without_scale
from regard.pictures.picture import data_uri, resize

PICTURE = 112  # pixels of a picture in the sheet of maps
PICTURES = 8  # images in that sheet
TAPS = 5  # maps of one arm, Grad-CAM with them
UNPACKED = 2**30  # bytes of an arm's maps, at most
BARS = 64  # channels drawn of a channel gate
TITLES = {
    "better by more than the margin": "Better than none by more than the margin",
    "better": "Better than none",
    "better, by less than matters": "Better than none, by less than matters",
    "worse by more than the margin": "Worse than none by more than the margin",
    "worse": "Worse than none",
    "worse, by less than matters": "Worse than none, by less than matters",
    "no difference worth having": "No difference worth having",
    "undecided": "Undecided",
}
SIGNS = {"better": "▲", "worse": "▼", "equal": "=", "undecided": "?"}


def write(comparison: Comparison) -> Path:
    """Write `report.html` into the comparison's folder, whole or not at all, and return its path."""
    page = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    ).get_template("report.html.jinja")
    html = page.render(
        comparison=comparison,
        question=comparison.question,
        headline=headline(comparison.against("none")) if comparison.trained else UNTRAINED,
        signs=SIGNS,
        differences=[_difference(comparison, verdict) for verdict in comparison.against("none")],
        base=_accuracy(comparison, "none"),
        forest=_forest(comparison.against("none"), comparison.question["margin"]),
        control=[_difference(comparison, verdict) for verdict in comparison.against("wider")],
        control_forest=_forest(comparison.against("wider"), comparison.question["margin"]),
        scatter=_scatter(comparison),
        prices=_prices(comparison),
        curves=_curves(comparison),
        gates=_gates(comparison),
        costs=[(row["arm"], row["inference"], row["training step"]) for row in comparison.price_table()[1:]],
        endpoints=_endpoints(comparison),
        classes=_classes(comparison),
        galleries=[
            gallery
            for arm in comparison.arms
            if (gallery := _gallery(comparison.folder, arm, len(comparison.question["classes"])))
        ],
        facts=_facts(comparison.question),
        environment=_environment(comparison),
        counted=counted,
        signed=_typeset,
    )
    return write_text(comparison.folder / "report.html", html)


def headline(verdicts: Sequence[Verdict]) -> str:
    """The verdicts in one line: names while they are few, counts when they are many."""
    if all(verdict.word == "undecided" for verdict in verdicts):
        return "Undecided"
    parts = []
    for word, title in TITLES.items():
        arms = [verdict.arm for verdict in verdicts if verdict.word == word]
        names = ", ".join(arms) if len(verdicts) <= 4 else f"{len(arms)} of {len(verdicts)} arms"
        parts += [f"{title}: {names}."] if arms else []
    return " ".join(parts)


class Scale:
    """A linear axis: where a value lies on the page, and which round values to mark.

    Args:
        values: what must fit on the axis.
        start, end: where the lowest and the highest of them lie, in pixels or percent.
        marks: the most round values to mark.
    """

    def __init__(self, values: Iterable[float], start: float, end: float, marks: int = 6) -> None:
        finite = [value for value in values if math.isfinite(value)]
        self.low, self.high = min(finite), max(finite)
        if self.low == self.high:
            self.low, self.high = self.low - 0.5, self.high + 0.5
        self.start, self.end = start, end
        ticks = MaxNLocator(marks, steps=[1, 2, 2.5, 5, 10]).tick_values(self.low, self.high)
        self.ticks = [float(tick) for tick in ticks if self.low <= tick <= self.high]

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + min(max(share, 0.0), 1.0) * (self.end - self.start), 2)


def _difference(comparison: Comparison, verdict: Verdict) -> dict[str, Any]:
    return {
        "arm": verdict.arm,
        "word": verdict.word,
        "direction": verdict.direction,
        "sentence": _typeset(verdict.sentence),
        **_accuracy(comparison, verdict.arm),
        "mean": _typeset(points(verdict.mean)),
        "interval": _typeset(interval(verdict)),
        "ahead": f"{verdict.wins} of {len(verdict.seeds)}" + (f", {verdict.ties} tied" if verdict.ties else ""),
        "p": _chance(verdict.p) if verdict.look or verdict.later else "",
    }


def _gates(comparison: Comparison) -> list[dict[str, str]]:
    """How each mechanism's gates started and opened, and what is lost without them; empty text where unknown."""
    rows = []
    for arm, told in comparison.gates.items():
        if twinned(arm):
            continue
        twins = comparison.against(comparison.twins.get(arm, ""))
        seen = {True: "yes", False: "no", None: ""}[told["opened"]]
        lost = {
            word: _typeset(points(-told[word])) if told[word] is not None else ""
            for word in ("mean_gate", "other_gate")
        }
        rows.append(
            {
                "arm": arm,
                "word": comparison.uses_input.get(arm, "") if comparison.trained else "",
                "difference": _typeset(points(twins[0].mean)) if twins else "",
                "interval": _typeset(interval(twins[0])) if twins else "",
                "scale": f"{told['branch_scale']:.2f}" if told["branch_scale"] is not None else "",
                "opened": seen,
                **lost,
                "images": f"{told['images']:,}",
            }
        )
    return rows


def _accuracy(comparison: Comparison, arm: str) -> dict[str, str]:
    """Mean and standard deviation over seeds, and the mean among the first five, in percent; empty where unknown."""
    scores, fives = comparison.scores[arm].values(), comparison.top5[arm].values()
    return {
        "accuracy": f"{100 * fmean(scores):.2f}" if scores else "",
        "spread": f"{100 * stdev(scores):.2f}" if len(scores) > 1 else "",
        "top5": f"{100 * fmean(fives):.2f}" if fives else "",
    }


def _chance(p: float) -> str:
    """A p-value to three decimals."""
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def _forest(verdicts: Sequence[Verdict], margin: float) -> dict[str, Any] | None:
    """Every seed's difference, the mean and the interval of each arm, on one axis in percentage points."""
    judged = [verdict for verdict in verdicts if len(verdict.differences)]
    if not judged:
        return None
    seen = [value for verdict in judged for value in (*verdict.differences, verdict.low, verdict.high)]
    axis = Scale([100 * value for value in [*seen, -1.3 * margin, 1.3 * margin]], 4, 96)
    rows = []
    for verdict in judged:
        known = interval(verdict)
        rows.append(
            {
                "arm": verdict.arm,
                "text": _typeset(
                    f"{points(verdict.mean)} {known}" if known else f"{points(verdict.mean)}, no interval"
                ),
                "dots": [axis(100 * value) for value in verdict.differences],
                "mean": axis(100 * verdict.mean),
                "low": axis(100 * verdict.low) if known else None,
                "high": axis(100 * verdict.high) if known else None,
            }
        )
    return {
        "rows": rows,
        "ticks": [(axis(tick), _typeset(f"{tick:+g}" if tick else "0")) for tick in axis.ticks],
        "zero": axis(0),
        "band": (axis(-100 * margin), axis(100 * margin)),
        "margin": f"{100 * margin:g}",
    }


def _scatter(comparison: Comparison) -> dict[str, Any] | None:
    """Each arm's accuracy against its time at inference, relative to none."""
    priced = comparison.cost["arms"] if comparison.cost else {}
    ratios = {arm: priced[arm].get("infer_ratio", (1.0, 1.0, 1.0)) for arm in comparison.arms if arm in priced}
    ratios["none"] = (1.0, 1.0, 1.0)
    scores = {arm: [100 * top1 for top1 in comparison.scores[arm].values()] for arm in ratios}
    ratios = {arm: ratio for arm, ratio in ratios.items() if scores[arm]}
    if not priced or len(ratios) < 2:
        return None
    across = Scale([value for ratio in ratios.values() for value in ratio], 14, 90)
    seen = [value for arm in ratios for value in scores[arm]]
    up = Scale([*seen, *_within_reach(comparison, seen)], 300, 16, marks=5)
    dots: list[dict[str, Any]] = []
    for arm, (low, middle, high) in ratios.items():
        place = {"x": across(middle), "y": up(fmean(scores[arm])), "left": across(low), "right": across(high)}
        place |= {"bottom": up(min(scores[arm])), "top": up(max(scores[arm])), "flip": across(middle) > 70}
        dots.append({"arm": arm, "ratio": f"{middle:.2f}", "accuracy": f"{fmean(scores[arm]):.2f}", **place})
    for side in (True, False):  # names on one side of their dots must not lie on each other
        floor = -math.inf
        for dot in sorted((dot for dot in dots if dot["flip"] is side), key=lambda dot: dot["y"]):
            dot["label"] = floor = max(dot["y"] - 8, floor + 17)
    return {
        "dots": dots,
        "across": [(across(tick), f"{tick:g}×") for tick in across.ticks],
        "up": [(up(tick), f"{tick:g} %") for tick in up.ticks],
        **_levels(comparison, up),
    }


def _known_levels(comparison: Comparison) -> dict[str, float]:
    """What every accuracy is to be held against, in percent."""
    levels = {"linear model on pixels": comparison.linear, "chance": comparison.chance}
    return {name: 100 * level for name, level in levels.items() if level is not None}


def _within_reach(comparison: Comparison, seen: Sequence[float]) -> list[float]:
    """The levels for which an axis over these values is made longer: the others would press the values together."""
    span = max(5.0, max(seen) - min(seen))
    return [level for level in _known_levels(comparison).values() if min(seen) - span <= level <= max(seen) + span]


def _levels(comparison: Comparison, up: Scale) -> dict[str, Any]:
    """The lines of the levels, and in words those that lie beyond the axis."""
    known = {name: (level, f"{name} {level:.1f} %") for name, level in _known_levels(comparison).items()}
    return {
        "levels": [{"y": up(level), "name": text} for level, text in known.values() if up.low <= level <= up.high],
        "below": ", ".join(text for level, text in known.values() if level < up.low),
        "above": ", ".join(text for level, text in known.values() if level > up.high),
    }


def _prices(comparison: Comparison) -> list[dict[str, Any]]:
    """The cost table: medians, each with its spread over rounds."""
    if not comparison.cost:
        return []
    rows = []
    for arm in comparison.arms:
        if price := comparison.cost["arms"].get(arm):
            scores = list(comparison.scores[arm].values())
            rows.append(
                {
                    "arm": arm,
                    "accuracy": f"{100 * fmean(scores):.2f}" if scores else "",
                    "parameters": f"{price['parameters']:,}",
                    "added": f"{price['added_parameters']:+,}" if price.get("added_parameters") else "",
                    "macs": f"{price['macs'] / 1e6:,.2f}",
                    "peak": f"{price['peak_bytes'] / 2**20:,.1f}" if price.get("peak_bytes") else "",
                    "peak_ratio": f"{price['peak_ratio']:.2f}×" if price.get("peak_ratio") else "",
                }
                | {key: _spread(price[key], " ms") for key in ("infer_ms", "train_ms")}
                | {
                    key: _spread(price[key], "×") if key in price and arm != "none" else ("", "")
                    for key in ("infer_ratio", "train_ratio")
                }
            )
    return rows


def _curves(comparison: Comparison) -> dict[str, Any] | None:
    """One panel for each arm: validation accuracy by epoch, every seed and the mean, with the mean of none."""
    curves = {
        arm: [[100 * point["val_top1"] for point in run["curve"]] for run in comparison.done if run["arm"] == arm]
        for arm in comparison.arms
    }
    curves = {arm: runs for arm, runs in curves.items() if runs}
    if not curves:
        return None
    seen = [value for runs in curves.values() for run in runs for value in run]
    up = Scale([*seen, *_within_reach(comparison, seen)], 96, 4, marks=4)
    means = {arm: [fmean(values) for values in zip(*runs, strict=False)] for arm, runs in curves.items()}
    seconds = {arm: [point["seconds"] for run in comparison.done if run["arm"] == arm for point in run["curve"]]
               for arm in curves}  # fmt: skip
    epochs = max(len(mean) for mean in means.values())

    def line(values: Sequence[float]) -> str:
        """The path of one curve in a box of 100 x 100; a single epoch is a dot."""
        step = 96 / max(1, epochs - 1)
        places = [f"{2 + i * step:.1f} {up(value):.1f}" for i, value in enumerate(values)]
        return "M" + " L".join(places if len(places) > 1 else places * 2)

    return {
        "panels": [
            {
                "arm": arm,
                "seeds": [line(run) for run in runs],
                "mean": line(means[arm]),
                "none": line(means["none"]) if arm != "none" and "none" in means else None,
                "last": f"{means[arm][-1]:.2f}",
                "end": _end(comparison, runs),
                "seconds": f"{fmean(seconds[arm]):.1f}",
            }
            for arm, runs in curves.items()
        ],
        "ticks": [(up(tick), f"{tick:g} %") for tick in up.ticks],
        **_levels(comparison, up),
        "epochs": epochs,
        "table": [
            [
                f"{fmean(at):.2f} ({min(at):.2f} to {max(at):.2f})"
                if (at := [run[epoch] for run in runs if epoch < len(run)])
                else ""
                for runs in curves.values()
            ]
            for epoch in range(epochs)
        ],
    }


def _end(comparison: Comparison, runs: Sequence[Sequence[float]]) -> str:
    """Whether the curves of one arm, in percent, have ended, and by how much they rose at last."""
    shares = [[value / 100 for value in run] for run in runs]
    start = comparison.chance or 0.0
    mean, error = learning.rise(shares, start) or (0.0, 0.0)
    word = "ended" if learning.ended(shares, comparison.question["margin"], start) else "still climbing"
    spread = f" (standard error {100 * error:.2f})" if error else ""
    return _typeset(f"{word}: {points(mean)} points in the last quarter{spread}")


def _endpoints(comparison: Comparison) -> list[dict[str, str]]:
    """One row for each arm: what its logits say beside accuracy; empty where no logits were kept."""
    calibration, churn, second = comparison.calibration, comparison.churn, comparison.log_loss_against_none
    rows = []
    for arm in comparison.arms:
        losses, errors = list(comparison.log_loss[arm].values()), list(calibration[arm].values())
        found = second.get(arm)
        rows.append(
            {
                "arm": arm,
                "log_loss": f"{fmean(losses):.3f}" if losses else "",
                "spread": f"{stdev(losses):.3f}" if len(losses) > 1 else "",
                "difference": _typeset(f"{found.mean:+.3f}") if found else "",
                "interval": _typeset(f"[{found.low:+.3f}, {found.high:+.3f}]") if found and found.bounded else "",
                "word": found.word if found and comparison.trained else "",
                "calibration": f"{100 * fmean(errors):.2f}" if errors else "",
                "seeds": f"{100 * churn[arm]['seeds']:.2f}" if "seeds" in churn[arm] else "",
                "none": f"{100 * churn[arm]['none']:.2f}" if "none" in churn[arm] else "",
            }
        )
    return rows if any(row["log_loss"] for row in rows) else []


def _classes(comparison: Comparison) -> list[tuple[str, list[str]]]:
    """One row for each class: what every arm's accuracy on it is above that of none, in points."""
    by_class = comparison.by_class
    return [
        (name, [_typeset(points(math.nan if (gain := gains[i]) is None else gain)) for gains in by_class.values()])
        for i, name in enumerate(comparison.question["classes"])
        if by_class
    ]


def _gallery(folder: Path, arm: str, classes: int = 2**31) -> dict[str, Any] | None:
    """What one arm looked at: a row of test images, and a row for each of its last taps."""
    path = folder / "maps" / f"{slug(arm)}.npz"
    if not path.exists():
        return None
    opened(path).close()
    try:
        return _drawn(arm, *_maps(path, classes))
    except Exception as error:  # what numpy raises for a broken file differs with every kind of damage
        reason = (str(error).splitlines() or [""])[0][:200] or type(error).__name__
        raise UserError(
            f"{path} is damaged ({reason}): delete it, and the report is written without the maps of {arm}"
        ) from error


def _drawn(arm: str, taps: list[dict[str, Any]], kept: dict[str, np.ndarray]) -> dict[str, Any] | None:
    if not taps:
        return None
    pictures = [resize(image, PICTURE) for image in kept["images"]]
    return {
        "arm": arm,
        "files": [str(file) for file in kept["files"]],
        "labels": [int(label) for label in kept["labels"]],
        "predictions": [int(label) for label in kept["predictions"]],
        "images": [data_uri(picture) for picture in pictures],
        "rows": [_map_row(tap, kept[tap["key"]], pictures, kept.get("masks")) for tap in _chosen(taps, kept)],
        "taps": len(taps),
    }


def _maps(path: Path, classes: int) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    """What a file of maps describes and holds, of the first few pictures; it may come from anybody."""
    with zipfile.ZipFile(path) as file:  # before anything is unpacked
        size = sum(entry.file_size for entry in file.infolist())
        if size > UNPACKED:
            raise ValueError(f"unpacked it would be {size:,} bytes")
    with np.load(path, allow_pickle=False) as stored:
        taps = json.loads(str(stored["taps"]))
        if wrong := fault(taps, list[Shown]):
            raise ValueError(f"taps: {wrong}")
        names = ["images", "labels", "predictions", "files", *(["masks"] if "masks" in stored else [])]
        kept = {name: stored[name][:PICTURES] for name in [*names, *(tap["key"] for tap in taps)]}
    count, *sides = kept["images"].shape if kept["images"].ndim == 4 else (0, 0)
    wanted = {
        "images": kept["images"].dtype == np.uint8 and len(sides) == 3 and sides[2] == 3,
        **{
            name: kept[name].dtype.kind in "iu" and bool(((kept[name] >= 0) & (kept[name] < classes)).all())
            for name in ("labels", "predictions")
        },
        "files": kept["files"].dtype.kind == "U" and kept["files"].ndim == 1,
        "masks": "masks" not in kept or (kept["masks"].dtype == bool and kept["masks"].shape[1:] == tuple(sides[:2])),
    }
    for tap in taps:
        kind, array = tap["kind"], kept[tap["key"]]
        axes = (2,) if kind == "channel" else (3,) if kind in ("spatial", "token", REASONS) else (2, 3, 4, 5, 6)
        known = kind in ("channel", "token", REASONS) or kind in CAPTIONS
        wanted[tap["key"]] = known and array.dtype.kind == "f" and array.ndim in axes and wanted.get(tap["key"], True)
    for name, sound in wanted.items():
        if name in kept and (not sound or len(kept[name]) != count or kept[name].size == 0):
            raise ValueError(f"{name} is {kept[name].dtype} {kept[name].shape}, or holds what it cannot")
    return taps, kept


def _chosen(taps: Sequence[dict[str, Any]], kept: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """The last tap of each kind and resolution, and of those the deepest few."""
    last = {(tap["kind"], kept[tap["key"]].shape[1:]): tap for tap in taps}
    return [tap for tap in taps if any(tap is other for other in last.values())][-TAPS:]


def _map_row(
    tap: dict[str, Any], maps: np.ndarray, pictures: Sequence[Image.Image], masks: np.ndarray | None
) -> dict[str, Any]:
    """One tap on every image: overlays of a spatial map or bars of a channel gate, and in words what they show."""
    site, _, rest = tap["name"].partition(".regard.")
    kind = tap["kind"]
    empty = "; ".join(judge(maps).words) or None
    low, high = float(maps.min()), float(maps.max())
    limits = low, high
    if tap["kind"] == "channel" or (empty and empty.startswith("flat")):
        # Bars start where the gate can; a flat map stretched over all colours would show rounding noise as attention.
        bounds = [bound for bound in tap["limits"] or () if type(bound) in (int, float) and abs(bound) < 1e30]
        reach = [low, high, *(bounds or (0.0, 2 * float(maps.mean())))]
        limits = min(reach), max(reach)
    caption = "What spoke for the class" if kind == REASONS else CAPTIONS[kind].rstrip(".")
    row = {"site": site, "tap": rest.rpartition(".")[2] or kind, "kind": kind, "caption": caption, "empty": empty}
    row |= {"low": f"{low:.3g}", "high": f"{high:.3g}", "object": None}
    if tap["kind"] == "channel":
        every = math.ceil(maps.shape[1] / BARS)
        return row | {
            "size": counted(maps.shape[1], "channel") + (f", every {_ordinal(every)} drawn" if every > 1 else ""),
            "cells": [_bars(gate[::every], limits) for gate in maps],
            "ranges": [f"{gate.min():.2f} to {gate.max():.2f}" for gate in maps],
        }
    placed = kind in ("spatial", "token", REASONS)
    if kind == "token":
        found = Map(
            tap["name"], kind, torch.from_numpy(maps).flatten(1)[:, None, None], Layout("tokens", 0, maps.shape[1:])
        )
    else:
        found = Map(tap["name"], "spatial" if placed else kind, torch.from_numpy(maps))
    drawn = [
        draw(found, picture, number=number, size=PICTURE, limits=limits if placed else None)
        for number, picture in enumerate(pictures)
    ]
    return row | {
        "size": " × ".join(map(str, maps.shape[1:])),
        "cells": [data_uri(without_scale(one)) for one in drawn],
        "object": None if masks is None or kind not in ("spatial", REASONS) else _share_on(maps, masks),
    }


def _share_on(maps: np.ndarray, masks: np.ndarray) -> dict[str, Any]:
    """How much of the maps lies on the objects, beside what a flat map would have there.

    The two count as the same, and the maps as uninformative, when they differ by less than a tenth of the latter.
    """
    size = masks.shape[2], masks.shape[1]
    spread = np.stack([np.asarray(Image.fromarray(map.clip(0)).resize(size, Image.Resampling.BOX)) for map in maps])
    total = spread.sum()
    share = float(spread[masks].sum() / total) if total > 0 else 0.0
    flat = float(masks.mean())
    return {
        "share": f"{100 * share:.0f}",
        "flat": f"{100 * flat:.0f}",
        "uninformative": abs(share - flat) < 0.1 * flat,
    }


def _bars(gate: np.ndarray, limits: tuple[float, float]) -> str:
    """The path of a bar for each channel, in a box of 100 x 100."""
    low, high = limits
    heights = 100 * np.clip((gate - low) / (high - low), 0.02, 1) if high > low else np.full(len(gate), 50.0)
    wide = 100 / len(gate)
    return "".join(f"M{i * wide:.1f} 100v-{height:.0f}h{0.8 * wide:.1f}V100z" for i, height in enumerate(heights))


def _facts(question: dict[str, Any]) -> dict[str, str]:
    """What every run had in common, in words a reader can compare."""
    facts = {}
    for key, value in question.items():
        if key in ("broken", "classes") or value is None or value is False:  # what was not asked for
            continue
        text = "yes" if value is True else f"{value:,}" if isinstance(value, int) else str(value)
        facts[key.replace("_", " ")] = text
    classes = question["classes"]
    facts["classes"] = f"{len(classes)}: {', '.join(classes[:20])}{', …' if len(classes) > 20 else ''}"
    return facts


def _environment(comparison: Comparison) -> dict[str, str]:
    """Versions and machine; where runs were made in several, all of their values."""
    environments = [comparison.environment, *(run.get("environment") or {} for run in comparison.done)]
    keys = dict.fromkeys(key for environment in environments for key in environment)
    return {
        key: ", ".join(dict.fromkeys(str(environment[key]) for environment in environments if key in environment))
        for key in keys
    }


def _spread(triple: Sequence[float], unit: str) -> tuple[str, str]:
    """The median with its unit, and the quartiles around it."""
    low, middle, high = triple
    digits = 1 if middle >= 10 else 2
    return f"{middle:.{digits}f}{unit}", f"{low:.{digits}f} to {high:.{digits}f}"


def _typeset(text: str) -> str:
    """The text with true minus signs, which line up with plus signs, and no line break inside a number and its unit."""
    text = re.sub(r"(?<![\w-])-(?=\d)", "−", text)
    return re.sub(r"(?<=\d) %|(?<=\bp) = ", lambda match: match[0].replace(" ", "\u00a0"), text)


def _ordinal(number: int) -> str:
    return {2: "second", 3: "third"}.get(number, f"{number}th")
