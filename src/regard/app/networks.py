"""The networks that the page offers: named by the command, opened when they are chosen."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

import regard
from regard.base.errors import UserError
from regard.gallery.opening import open_subject, trained, trained_on
from regard.gallery.subjects import Subject

DEFAULTS = ("vit_tiny_patch16_224", "seresnet18", "skresnet18", "efficientnet_b0", "resnet18")  # if none is named
OPEN = 4  # networks, at most
AS_IT_IS = "as it is"  # in the place of a mechanism


class Offer(NamedTuple):
    """A network that may be chosen.

    Attributes:
        open: opens it.
        peak: see `regard.Subject`, as far as it is known before that.
    """

    open: Callable[[], Subject]
    peak: int | None = None


def offers(
    words: Sequence[str],
    *,
    weights: Path | None = None,
    pretrained: bool = False,
    size: int | None = None,
    own: str | None = None,
) -> dict[str, Offer]:
    """The networks that words name, by what the page calls them.

    Args:
        words: networks as `regard.gallery.opening.open_subject` takes them, and folders of comparisons, of which every
            variant with weights is offered; without words a few networks of timm are.
        weights, pretrained, size, own: see `regard.gallery.opening.open_subject`.

    Raises:
        UserError: a folder holds no comparison or no weights, or the weights are meant for several networks.
    """
    if weights is not None and len(words) != 1:
        raise UserError(f"--weights are of one network, and {len(words)} are named: name the one they belong to")
    offered: dict[str, Offer] = {}
    folders = [word for word in words if Path(word).is_dir()]
    for word in words or DEFAULTS:
        if word in folders:
            prefix = f"{Path(word).resolve().name}: " if len(folders) > 1 else ""
            offered |= {prefix + name: offer for name, offer in _variants(word, own).items()}
        else:
            opened = partial(open_subject, word, weights=weights, pretrained=pretrained, size=size, own=own)
            offered[word] = Offer(opened)
    return offered


def _variants(folder: str, own: str | None) -> dict[str, Offer]:
    """Every trained network of a comparison."""
    kept, peak = trained(folder), trained_on(folder)
    return {f"{arm}, seed {seed}": Offer(partial(open_subject, str(path), own=own), peak) for arm, seed, path in kept}


def attachable() -> list[str]:
    """The mechanisms that can be attached to a network."""
    return [name for name in regard.names() if regard.info(name).place is not None]


class Networks:
    """The networks that are offered; the last few stay open, and one thread at a time works with them.

    Attributes:
        offered: by name.
        peak: by which pictures of more than 8 bits are scaled for all of them, as `regard.look` does it.
        lock: held while a network works, since each takes all cores.
    """

    def __init__(self, offered: Mapping[str, Offer]) -> None:
        self.offered = offered
        self.peak = max((offer.peak for offer in offered.values() if offer.peak), default=None)
        self.lock = threading.RLock()
        self._open: dict[tuple[str, str], Subject] = {}

    def open(self, name: str, mechanism: str = AS_IT_IS) -> Subject:
        """A network, with a mechanism attached as its authors start it.

        Raises:
            UserError: it is not offered, cannot be opened, or the mechanism cannot be attached to it.
        """
        if name not in self.offered:
            raise UserError(f"there is no network {name!r} to choose here")
        with self.lock:
            subject = self._open.pop((name, mechanism), None) or self._opened(name, mechanism)
            self._open[name, mechanism] = subject
            while len(self._open) > OPEN:
                del self._open[next(iter(self._open))]
            return subject

    def _opened(self, name: str, mechanism: str) -> Subject:
        if mechanism == AS_IT_IS:
            return self.offered[name].open()
        plain = self.open(name)
        model = deepcopy(plain.model)
        regard.attach(model, mechanism, example=torch.zeros(1, plain.channels, *plain.size), start="paper", seed=0)
        return replace(plain, model=model)
