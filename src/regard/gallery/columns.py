"""A column of the page: the maps of one layer on every picture as they are drawn, with figures and charts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from regard.gallery.options import Options
from regard.gallery.series import Series
from regard.gallery.subjects import Subject
from regard.maps.meaning import Meaning, class_effect
from regard.maps.recording import Map
from regard.pictures import charts
from regard.pictures.captions import caption
from regard.pictures.drawing import draw
from regard.pictures.picture import Picture

CHART = 150  # pixels high
FOLLOWS = 0.5  # of a channel's variance is between classes: it is named
NAMED = 5  # channels that follow the class, at most


@dataclass(frozen=True)
class Column:
    """One layer of a network, on every picture.

    Attributes:
        name: of the tap, module or layer.
        kind: of its map, or of evidence the method.
        caption: what is drawn, for a reader who has never seen such a picture.
        pictures: one for each image.
        values: (K, ...) what is judged: of pixels (K, h, w), else (K, n).
        meaning: of these.
        charts: what each shows -> the chart: gates by class, the curves of the checks.
        figures: the numbers behind the charts.
    """

    name: str
    kind: str
    caption: str
    pictures: list[Picture] = field(repr=False)
    values: np.ndarray = field(repr=False)
    meaning: Meaning
    charts: dict[str, Picture] = field(default_factory=dict, repr=False)
    figures: dict[str, Any] = field(default_factory=dict, repr=False)

    def to_json(self) -> dict[str, Any]:
        named = {"name": self.name, "kind": self.kind, "caption": self.caption, "words": self.meaning.words}
        return named | asdict(self.meaning) | self.figures


@dataclass(frozen=True)
class Shown:
    """What a network was shown, and what it answered.

    Attributes:
        images: (K, C, H, W).
        pictures: the same for a reader, in any size.
        masks: (K, H, W), true on the object.
        classes: the predicted one of each picture; None of a network without classes.
    """

    images: Tensor
    pictures: Sequence[Image.Image]
    masks: np.ndarray | None
    classes: Sequence[int] | None


def column(series: Series, subject: Subject, shown: Shown, options: Options) -> Column:
    """Draw and judge the maps of one layer.

    Args:
        series: its maps, with the checks.
        subject: the network.
        shown: what it was shown.
        options: how to draw.
    """
    target = "the predicted class" if options.target is None else subject.called(options.target)
    made = Column(
        series.name,
        series.kind,
        caption(series.maps[0], series.kind, options.head, options.smooth, target),
        list(_drawn(series, shown.pictures, options)),
        series.values,
        series.meaning(shown.images, shown.masks, shown.classes),
    )
    if series.kind == "channel" and shown.classes is not None:
        _add_gates_by_class(made, shown.classes, subject)
    if series.curves is not None:
        probabilities = {name: curve.mean(0).tolist() for name, curve in series.curves.all.items()}
        made.figures["score_left"] = probabilities
        made.charts["deletion and insertion: the probability of the class, as a share of that on the whole picture"] = (
            charts.curves(probabilities, CHART, over="share of the pixels deleted or inserted")
        )
    if series.cascade is not None:
        made.figures["random_weights_by_layer"] = series.cascade.likeness
        made.charts["cascading randomisation: rank correlation with the map of the trained weights"] = charts.curves(
            {"": series.cascade.likeness}, CHART, over="layers randomised, the last first", ends=("none", "all")
        )
    return made


def _drawn(series: Series, pictures: Sequence[Image.Image], options: Options) -> Iterator[Picture]:
    """A column shares its scale, so that its pictures can be compared."""
    values = series.values
    limits = (float(values.min()), float(values.max())) if values.ndim == 3 else None
    usual = values.mean(0) if series.kind == "channel" and len(values) > 1 else None
    batches = [Map(found.name, "spatial", found.value) for found in series.maps] if series.is_evidence else series.maps
    places = ((found, number) for found in batches for number in range(len(found.value)))
    for (found, number), picture in zip(places, pictures, strict=True):
        yield draw(
            found,
            picture,
            number=number,
            query=options.query,
            head=options.head,
            size=options.size,
            smooth=options.smooth,
            limits=limits,
            usual=usual,
        )


def _add_gates_by_class(column: Column, classes: Sequence[int], subject: Subject) -> None:
    """The mean gates of the most frequent classes, and which channels follow the class."""
    common = [number for number, _ in Counter(classes).most_common(len(charts.STYLES))]
    if len(common) < 2:
        return
    means = {number: column.values[np.asarray(classes) == number].mean(0) for number in common}
    chart = charts.by_class({subject.called(number): mean for number, mean in means.items()}, CHART)
    column.charts["mean gates by predicted class"] = chart
    effect = class_effect(column.values, classes)
    if effect is None or column.meaning.words:
        return
    shares = effect[1]
    column.figures["channels_by_class"] = [
        {
            "channel": int(channel),
            "share": float(shares[channel]),
            "highest": subject.called(max(means, key=lambda number: means[number][channel])),
        }
        for channel in np.argsort(shares)[::-1][:NAMED]
        if shares[channel] > FOLLOWS
    ]
