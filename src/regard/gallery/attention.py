"""What a network's attention looks at on some pictures, and its evidence for a class, recorded batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from regard.gallery.options import Options
from regard.gallery.series import Key, Series
from regard.gallery.subjects import Subject
from regard.maps.gradcam import METHODS
from regard.maps.recording import Map, record
from regard.maps.saliency import evidence
from regard.maps.targets import class_scores
from regard.maps.views import views
from regard.networks.replica import borrowed
from regard.pictures.drawing import can_draw

COLUMNS = 6  # of attention, unless more are asked for


@dataclass(frozen=True)
class Seen:
    """What a network's attention looks at in some pictures.

    Attributes:
        maps: in the order of the calls; the gates along the axes of one mechanism are one map, and of weights between
            positions there is one query. All on the CPU.
        classes: of each picture, the number of the predicted class and its probability; None without classes.
        hidden: names of what cannot be laid on the picture: tokens of unknown places, channels that look at others.
        dropped: see `regard.maps.recording.Maps`.
    """

    maps: list[Map]
    classes: list[tuple[int, float | None]]
    hidden: list[str]
    dropped: list[str]


def see(subject: Subject, images: Tensor, query: tuple[float, float] = (0.5, 0.5)) -> Seen:
    """What the attention looks at, as maps that `regard.draw` takes.

    Args:
        subject: the network.
        images: as `Subject.prepare` gives them.
        query: the place (row, column) whose view is taken of weights between positions, as shares of the sides.
    """
    with torch.inference_mode(), borrowed(subject.model) as replica, record(replica, queries=[query]) as maps:
        output = replica(images)
    classes: list[tuple[int, float | None]] = [(0, None)] * len(images)
    scores = class_scores(output)
    if scores is not None:
        shares = scores.float().softmax(1).max(1)
        classes = list(zip(shares.indices.tolist(), shares.values.tolist(), strict=True))
    shown, hidden = [], []
    for view in views(maps, query):
        if len(view.value) == len(images) and can_draw(view):
            shown.append(view)
        else:
            hidden.append(view.name)
    return Seen(shown, classes, list(dict.fromkeys(hidden)), list(maps.dropped))


@dataclass
class Recording:
    """What was recorded on all pictures.

    Attributes:
        maps: of each layer, kind and call those of every batch.
        classes, hidden, dropped: see `Seen`.
    """

    maps: dict[Key, list[Map]] = field(default_factory=dict)
    classes: list[tuple[int, float | None]] = field(default_factory=list)
    hidden: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)

    def add(self, seen: Seen) -> None:
        """One batch more."""
        self.classes += seen.classes
        self.hidden, self.dropped = seen.hidden, seen.dropped
        calls: dict[tuple[str, str], int] = {}
        for found in seen.maps:
            call = calls[found.name, found.kind] = calls.get((found.name, found.kind), -1) + 1
            self.maps.setdefault((found.name, found.kind, call), []).append(found)

    @property
    def attention(self) -> list[Key]:
        """All but the evidence, in the order of the network."""
        return [key for key in self.maps if key[1] not in METHODS]

    def series(self, every: bool, head: int | None) -> list[Series]:
        """All maps, or the last of each kind and resolution and of these the deepest few; evidence comes last.

        Args:
            every: whether all are meant.
            head: see `Series.of`.
        """
        chosen = self.attention
        if not every:
            last = {(key[1], _sides(self.maps[key][0])): key for key in chosen}
            chosen = [key for key in chosen if key in last.values()][-COLUMNS:]
        chosen += [key for key in self.maps if key[1] in METHODS]
        return [Series.of(key, self.maps[key], head) for key in chosen]


def _sides(found: Map) -> tuple[int, ...]:
    return tuple(found.value.shape[1:2] if found.kind in ("channel", "axis") else found.value.shape[2:])


def record_all(
    subject: Subject,
    images: Tensor,
    options: Options,
    layer: str | None,
    target: int | Sequence[int] | None,
    tell: Callable[[int], None] = lambda done: None,
) -> Recording:
    """What a network's attention looks at, and its evidence for a class.

    Args:
        subject: the network.
        images: (K, C, H, W), as `Subject.prepare` gives them.
        options: how to look.
        layer: at which the evidence is shown; None shows none.
        target: the class, or one for each picture; None is the predicted one.
        tell: is called with the number of pictures that are done.
    """
    recording = Recording()
    for start in range(0, len(images), options.batch):
        batch = slice(start, start + options.batch)
        recording.add(see(subject, images[batch], options.query))
        if layer is not None:
            classes = target[batch] if isinstance(target, Sequence) else target
            value = evidence(subject.model, images[batch], classes, method=options.method, layer=layer).value
            shown = Map(layer, options.method, value.float().cpu())
            recording.maps.setdefault((layer, options.method, 0), []).append(shown)
        tell(min(len(images), batch.stop))
    return recording
