"""The places of a network where mechanisms can go, each with the words that find it, and why the others are none."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import nn

from regard.base.errors import UserError
from regard.base.tables import aligned
from regard.insertion.attach import attach
from regard.insertion.attachment import Attached
from regard.insertion.dry_run import dry_run
from regard.insertion.site import At, choose
from regard.insertion.survey import Survey
from regard.insertion.surveyed import Surveyed
from regard.insertion.words import WORDS
from regard.layers.tap import taps
from regard.networks.hookable import refuse_unhookable
from regard.networks.replica import shadow
from regard.registry.registration import info
from regard.registry.spelling import parse

MANY = 64 * 64  # places of a map: beyond, comparing all pairs takes seconds on a processor


@dataclass(frozen=True)
class Place:
    """A module that the forward pass calls.

    Attributes:
        name: its dotted name.
        kind: its class.
        shape: (B, C, *spatial) of the map in its output; empty where there is none.
        layout: how the output holds the map, see `regard.insertion.layout.Layout`; None where there is none.
        calls: how often one forward pass calls it.
        words: those of `sites` that find it.
        chosen: whether the mechanism, or the word that was asked for, goes there.
        reason: why it cannot be a site, or why the mechanism cannot stand there; else "".
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    layout: str | None
    calls: int
    words: tuple[str, ...]
    chosen: bool
    reason: str


@dataclass(frozen=True)
class Plan:
    """Where something goes in a network; as text: a table.

    Attributes:
        what: the mechanism or the word.
        places: in the order of the forward pass.
        refused: why it cannot go there at all, in a sentence.
        notes: what to know of it at its sites, a sentence each.
    """

    what: str
    places: tuple[Place, ...]
    refused: str | None
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Everything, as what JSON can hold."""
        return asdict(self)

    @property
    def table(self) -> str:
        """The places."""
        why = "why not" if any(place.reason for place in self.places) else ""
        rows = [("", "name", "kind", "shape", "layout", "calls", "found by", why)]
        for place in self.places:
            shape = " x ".join(map(str, place.shape))
            mark = "*" if place.chosen else ""
            words = ", ".join(place.words)
            kind, layout = place.kind, place.layout or ""
            rows.append((mark, place.name, kind, shape, layout, str(place.calls), words, place.reason))
        return "\n".join(aligned(rows))

    def __str__(self) -> str:
        count = sum(place.chosen for place in self.places)
        end = self.refused or f"* {self.what} goes to {count} site{'s' * (count != 1)}."
        return "\n".join([self.table, "", end, *(f"  {note}" for note in self.notes)])


def plan(
    model: nn.Module,
    example: Any,
    *,
    mechanism: str | None = None,
    at: At = "auto",
    layout: str | None = None,
    every: bool = False,
) -> Plan:
    """Say where a mechanism goes in a network, and what other places there are.

    Args:
        model: any module; it is left exactly as it was.
        example: input of the dry run; a tuple is positional arguments, a dict keyword arguments, anything else one.
        mechanism: such as ``"cbam"`` or ``"se[reduction=8]"``; it is attached to a shadow of the model to see whether
            it can stand there. None asks for the places alone.
        at, layout: see `regard.sites`.
        every: every module that the dry run called, not only what a word finds; also where no word finds anything.

    Raises:
        UserError: the mechanism is unknown, or the model cannot be called with the example.
    """
    refuse_unhookable(model)
    network = Surveyed(model, dry_run(model, example, layout))
    chosen: list[str] = []
    notes: tuple[str, ...] = ()
    refused = None
    if mechanism is None:
        try:
            chosen = [site.name for site in choose(at, network)]
        except UserError as error:
            refused = str(error)
    else:
        name, options = parse(mechanism)
        card = info(name)
        try:
            attached = attach(shadow(model), name, at=at, layout=layout, example=example, **options)
            chosen, notes = attached.sites, (*attached.notes, *_notes(attached, network.survey))
        except UserError as error:
            refused = str(error) if card.place is None else f"{mechanism} cannot be attached: {error}"
    what = mechanism or (at if isinstance(at, str) else "your function" if callable(at) else ",".join(at))
    return Plan(what, _places(network, chosen, every), refused, notes)


def _places(network: Surveyed, chosen: Sequence[str], every: bool) -> tuple[Place, ...]:
    """What the dry run called, in the order of the pass: all, or what is chosen or found by a word, if anything is."""
    words = {word: set(_names(word, network)) for word in WORDS if word != "auto"}
    places = []
    for name in dict.fromkeys(network.survey.order):
        if not name:
            continue
        outputs = network.survey.outputs[name]
        layout = outputs[0].layout
        place = Place(
            name=name,
            kind=type(network.modules[name]).__name__,
            shape=outputs[0].map,
            layout=layout.word if layout else None,
            calls=len(outputs),
            words=tuple(word for word, names in words.items() if name in names),
            chosen=name in chosen,
            reason="",
        )
        places.append(place)
    shown = [place for place in places if every or place.words or place.chosen] or places
    return tuple(replace(place, reason=_why_not(place, network)) for place in shown)


def _notes(attached: Attached, survey: Survey) -> tuple[str, ...]:
    """What compares every place of a map with every other takes time that grows with the square of the places."""
    sides = {site: survey.outputs[site][0].map[2:] for site in attached.sites}
    slow = [
        site
        for site, mechanism in attached.modules.items()
        if math.prod(sides[site]) > MANY and any(tap.kind == "position" for _, tap in taps(mechanism))
    ]
    return tuple(
        f"At {site!r} {attached.mechanism} compares each of {' x '.join(map(str, sides[site]))} places with every "
        f"other ({math.prod(sides[site]) ** 2:,} pairs for each image): a smaller map costs far less, see at."
        for site in slow
    )


def _names(word: str, network: Surveyed) -> list[str]:
    try:
        return [site.name for site in choose(word, network)]
    except UserError:  # the network has no such place
        return []


def _why_not(place: Place, network: Surveyed) -> str:
    try:
        (site,) = choose([place.name], network)
    except UserError as error:
        return str(error)
    if site.name != place.name:
        return f"its last child stands for it: {site.name}"
    outputs = network.survey.outputs[place.name]
    if len({output.kind for output in outputs}) > 1:
        shapes = sorted({output.map for output in outputs})
        return f"called with maps that no one mechanism serves, {' and '.join(map(str, shapes[:3]))}"
    return "one mechanism would serve all calls: say repeated=True" if place.calls > 1 else ""
