"""Hidden layers of gates: how many units they have, and a start that leaves none of them shut."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from regard.layers.norm import LayerNorm
from regard.registry.registration import info

FEW = 4  # hidden units say little
NARROW = 16  # of so many random units all are shut in one start of 65,536


def width(layer: nn.Module) -> int:
    """Units of a hidden layer, or of the norm behind it."""
    weight = layer.weight
    assert isinstance(weight, nn.Parameter)
    return len(weight)


@torch.no_grad()
def open_up(layer: nn.Module) -> None:
    """Let the units of a narrow hidden layer start open: behind a ReLU a random one may be shut for every image, and
    where all are, the gate is a constant that never learns. A wide layer stays as its authors start it.

    As in LoRA one of two factors starts at 0: the weights of the layer, with biases of 1, so that it is open whatever
    comes in. Without biases there is no such start: then the weights of every other unit are from 0 up, and those of
    the next the same below 0. A norm keeps its weights and has biases of 2, as its results lie around 0; but of one
    value a layer norm leaves 0, and of two their order, so that such a one is told to scale and shift alone.
    """
    if width(layer) >= NARROW:
        return
    weight, bias = layer.weight, layer.bias
    assert isinstance(weight, nn.Parameter)
    if isinstance(layer, LayerNorm):
        layer.plain = width(layer) < 3
    if bias is None:
        weight.abs_()
        weight[1::2] = -weight[: len(weight) // 2 * 2 : 2]
    elif weight.dim() > 1 or getattr(layer, "plain", False):
        weight.zero_()
        bias.fill_(1.0)  # type: ignore[operator]
    else:
        bias.fill_(2.0)  # type: ignore[operator]


def narrow(name: str, channels: Mapping[str, int], options: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Where a mechanism has fewer than 4 hidden units, and which option gives more, a sentence each.

    Args:
        name: of the mechanism.
        channels, options: by site.

    Example:
        >>> narrow("se", {"layer1": 16, "layer2": 64}, {"layer1": {}, "layer2": {}})
        ['1 hidden unit at layer1: reduction=4 gives 4']
    """
    places: dict[tuple[str, str], list[str]] = {}
    for site, count in channels.items():
        units = _units(name, count, options[site])
        if units is not None and units < FEW:
            words = f"{units} hidden unit{'s' * (units != 1)}", _wider(name, count, options[site], units)
            places.setdefault(words, []).append(site)
    return [
        f"{units} at {', '.join(sites[:3])}{f' and {len(sites) - 3} more' * (len(sites) > 3)}{remedy}"
        for (units, remedy), sites in places.items()
    ]


def _units(name: str, channels: int, options: Mapping[str, Any]) -> int | None:
    """The least width of its hidden layers; None where it has none."""
    card = info(name)
    if card.hidden is None:
        return None
    with torch.device("meta"):
        return min(map(width, card.hidden(card.factory(channels, **options))), default=None)


def _wider(name: str, channels: int, options: Mapping[str, Any], units: int) -> str:
    """Which option gives more hidden units, and how many."""
    chosen = {**info(name).options, **options}
    tried = [("hidden", FEW)] if chosen.get("hidden") else []
    reduction = chosen.get("reduction", 1)
    while reduction > 1:
        reduction //= 2
        tried.append(("reduction", reduction))
    best = units
    for option, value in tried:
        count = _units(name, channels, {**options, option: value}) or 0
        if count > best:
            best, remedy = count, f": {option}={value} gives {count}"
        if count >= FEW:
            break
    return remedy if best > units else ""
