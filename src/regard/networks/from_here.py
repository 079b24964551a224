"""The small network of this package, by its word."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from regard.base.errors import UserError
from regard.networks.small_resnet import SmallResNet
from regard.networks.source import Normalisation, Wanted, random_images
from regard.registry.named import SMALL, Named

CLASSES, CHANNELS, WIDTH = 10, 3, 16
SIDE = 64  # of its images


def check(named: Named) -> None:
    """It is always there."""


def build(named: Named, wanted: Wanted) -> tuple[nn.Module, Any]:
    allowed = [p.name for p in inspect.signature(SmallResNet).parameters.values() if p.kind is p.KEYWORD_ONLY]
    for option, value in named.options.items():
        if option not in allowed:
            raise UserError(f"{SMALL} has no option {option!r}: its options are {', '.join(allowed)}")
        if not isinstance(value, int) or value < 1:
            raise UserError(f"{SMALL}: {option} is a whole number from 1, got {value!r}")
    width = round(named.options.get("width", WIDTH) * wanted.widening)
    sizes = wanted.classes or CLASSES, wanted.channels or CHANNELS
    return SmallResNet(*sizes, **{**named.options, "width": width}), None


def example(named: Named, model: nn.Module, size: int | None, batch: int) -> Any:
    return random_images(batch, CHANNELS, size or SIDE, size or SIDE)


def image_size(named: Named) -> int | None:
    return None


def pretraining(named: Named) -> Normalisation | None:
    return None
