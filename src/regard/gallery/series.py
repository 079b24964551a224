"""The maps of one layer on all pictures: what becomes a column of the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from regard.base.errors import UserError
from regard.maps.deletion import Curves
from regard.maps.gradcam import METHODS
from regard.maps.meaning import Meaning, judge
from regard.maps.recording import Map

Key = tuple[str, str, int]  # name, kind and call


@dataclass(frozen=True)
class Cascade:
    """What cascading randomisation made of a series.

    Attributes:
        likeness: rank correlation of the maps with those of the network as it is, from no layer randomised to all.
        maps: with all layers randomised, as `Series.judged` gives them.
    """

    likeness: list[float]
    maps: np.ndarray


@dataclass(frozen=True)
class Series:
    """The maps of one tap, module or layer on all pictures, and what the checks made of them.

    Attributes:
        name: of the tap, module or layer.
        kind: of the maps, or of evidence the method.
        call: which of its calls in one pass.
        maps: of each batch of pictures.
        values: (K, ...) what is judged: of pixels (K, h, w), else (K, n).
        window: of views that reach no further than a window (h, w), true in it; None where all pixels are judged.
        cascade: None where the weights were not randomised.
        curves: deletion and insertion; None where that was not measured, or the maps have no pixels.
    """

    name: str
    kind: str
    call: int
    maps: Sequence[Map]
    values: np.ndarray
    window: np.ndarray | None
    cascade: Cascade | None = None
    curves: Curves | None = None

    @classmethod
    def of(cls, key: Key, maps: Sequence[Map], head: int | None = None) -> Series:
        """What is recorded, with what of it is judged.

        Args:
            key: name, kind and call.
            maps: of each batch of pictures, as `regard.gallery.attention.see` gives them.
            head: of weights between positions; None is the mean of the heads.

        Raises:
            UserError: there is no such head.
        """
        values = np.concatenate([_values(found, head) for found in maps])
        reached = (values != 0).any(0)
        return cls(*key, maps, values, reached if maps[0].windows and not reached.all() else None)

    @property
    def key(self) -> Key:
        return self.name, self.kind, self.call

    @property
    def is_evidence(self) -> bool:
        """Whether it shows evidence for a class, not attention."""
        return self.kind in METHODS

    @property
    def covers_picture(self) -> bool:
        """Whether it ranks all pixels of a picture; a view from one place does not."""
        return self.values.ndim == 3 and self.kind not in ("token", "criss-cross")

    def judged(self, values: np.ndarray) -> np.ndarray:
        """Of values like its own those in the window, (K, n); all of them where there is none."""
        return values if self.window is None else values[:, self.window]

    def meaning(self, images: Any, masks: np.ndarray | None = None, classes: Sequence[int] | None = None) -> Meaning:
        """What the maps are worth.

        Args:
            images: (K, C, H, W) that the network was shown.
            masks: (K, H, W), true on the object.
            classes: (K,) of the pictures, where they are known.
        """
        return judge(
            self.judged(self.values),
            images if self.window is None else None,
            masks=masks,
            random=self.cascade.maps if self.cascade else None,
            classes=classes if self.kind == "channel" else None,
            curves=self.curves,
        )


def _values(found: Map, head: int | None) -> np.ndarray:
    value = found.value
    if found.kind in ("spatial", "element", "axis", *METHODS) and value.dim() == 4:
        return np.asarray(value.mean(1))
    if found.kind == "token" and found.layout:
        if head is not None and head >= value.shape[1]:
            raise UserError(f"the weights of {found.name} have {value.shape[1]} heads, there is no number {head}")
        weights = (value.mean(1) if head is None else value[:, head])[:, 0, found.layout.prefix :]
        return np.asarray(weights.unflatten(1, found.layout.grid))
    if found.kind in ("branch", "kernel"):  # as it is drawn
        return np.asarray(value.flatten(2).mean(2) if found.kind == "branch" else value.mean(1))
    return np.asarray(value.flatten(1))
