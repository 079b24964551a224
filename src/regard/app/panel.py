"""What a panel of the page shows: one map of one network over the picture, and what it means in sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from PIL import Image

from regard.app.networks import AS_IT_IS, Networks
from regard.app.pictures import DRAWN_AT
from regard.base.errors import UserError
from regard.gallery.attention import see
from regard.gallery.series import Series
from regard.gallery.subjects import Subject
from regard.maps.gradcam import METHODS
from regard.maps.recording import Map
from regard.maps.saliency import explain
from regard.pictures.captions import caption
from regard.pictures.drawing import draw

OVERLAID = ("spatial", "axis", "element", "token", "criss-cross", "frame", "path", *METHODS)  # drawn on the picture
WARNING = "! "  # stands before a sentence that warns


@dataclass(frozen=True)
class Panel:
    """What a panel shows.

    Attributes:
        maps: label and key of each map that it can show: of each place with attention, then of each method of evidence.
        key: of the map that is drawn; it begins with its kind.
        heads: how many the map has; 0 where there is nothing to choose.
        drawn: the map over the picture.
        sentences: what is seen; those that warn begin with `WARNING`.
    """

    maps: list[tuple[str, str]] = field(default_factory=list)
    key: str | None = None
    heads: int = 0
    drawn: Image.Image | None = None
    sentences: list[str] = field(default_factory=list)


class _Labelled(NamedTuple):
    label: str
    map: Map


def look_into(
    networks: Networks,
    name: str,
    mechanism: str,
    key: str | None,
    head: int | None,
    picture: Image.Image,
    query: tuple[float, float],
) -> Panel:
    """Look into a network.

    Args:
        networks: what may be opened.
        name, mechanism: see `Networks.open`.
        key: of `Panel.maps`; one that is not there stands for the last place with attention, of the mechanism that is
            attached if it has any.
        head: of weights between places; None is the mean of all, as is one that is not there.
        picture: RGB.
        query: the place (row, column) whose view is shown of weights between places, as fractions of the sides.

    Raises:
        UserError: as `Networks.open`, or the network cannot be looked into.
    """
    with networks.lock:
        subject = networks.open(name, mechanism)
        images = subject.prepare([picture])
        seen = see(subject, images, query)
        maps, prediction = _by_key(seen.maps), seen.classes[0]
        choices = [(labelled.label, key) for key, labelled in maps.items()]
        if prediction[1] is not None:
            choices += [(f"evidence ({method})", method) for method in METHODS]
        key = _shown(key, choices, maps, mechanism)
        shown = maps[key].map if key in maps else explain(subject.model, images, method=key)
    heads = shown.value.shape[1] if shown.kind == "token" else 1
    head = head if head is not None and 0 <= head < heads > 1 else None
    kind = shown.kind if key in maps else key
    series = Series.of((shown.name, kind, 0), [shown], head)
    values, meaning = series.values, series.meaning(images)
    sentences = [
        *_about_the_network(subject, mechanism, prediction),
        *([] if maps else ["No attention was recognised in this network: it can only show the evidence for a class."]),
        caption(shown, kind, head),
        *([] if shown.kind in ("token", "criss-cross") else ["This map is the same for every query location."]),
        *(f"{WARNING}{warning[0].upper()}{warning[1:]}." for warning in meaning.words),
        f"{_scale(shown.kind, values.min(), values.max())}; {meaning}.",
    ]
    drawn = draw(shown, picture, query=query, head=head, size=DRAWN_AT).image()
    return Panel(choices, key, heads if heads > 1 else 0, drawn, sentences)


def _by_key(maps: Sequence[Map]) -> dict[str, _Labelled]:
    """Every map by its key; the second call of a place has a key of its own."""
    by_key: dict[str, _Labelled] = {}
    for recorded in maps:
        place = f"{recorded.kind}/{recorded.name}/"
        call = 1 + sum(key.startswith(place) for key in by_key)
        kind = "view" if recorded.kind == "token" else recorded.kind
        label = f"{recorded.name or 'the network'} ({kind}{f', call {call}' if call > 1 else ''})"
        by_key[f"{place}{call}"] = _Labelled(label, recorded)
    return by_key


def _shown(key: str | None, choices: Sequence[tuple[str, str]], maps: Mapping[str, _Labelled], mechanism: str) -> str:
    """The key that was chosen, or of what is shown in its place."""
    keys = [key for _, key in choices]
    if not keys:
        raise UserError(
            "No attention was recognised in this network, and it predicts no classes: there is nothing to see."
        )
    if key in keys:
        return key
    attached = [key for key in maps if mechanism != AS_IT_IS and f"regard.{mechanism}" in key]
    return (attached or list(maps))[-1] if maps else keys[0]


def _about_the_network(subject: Subject, mechanism: str, prediction: tuple[int, float | None]) -> list[str]:
    sentences = []
    if subject.random:
        sentences.append(f"{WARNING}The weights of this network are random: start with --pretrained or --weights FILE.")
    if mechanism != AS_IT_IS:
        sentences.append(
            f"{WARNING}{mechanism} was attached just now and is untrained: it shows how it works, not what it finds."
        )
    number, probability = prediction
    if probability is not None:
        digits = 1 if probability < 0.01 else 0
        sentences.append(f"Predicted class: {subject.called(number)}, {100 * probability:.{digits}f} %.")
    return sentences


def _scale(kind: str, low: float, high: float) -> str:
    dark, bright = (" (dark)", " (bright)") if kind in OVERLAID else ("", "")
    return f"From {low:.3g}{dark} to {high:.3g}{bright}"
