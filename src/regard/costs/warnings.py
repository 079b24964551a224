"""What to know of a mechanism at its sites before training: one forward pass shows it."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from regard.costs.advice_text import bytes_text
from regard.insertion.attachment import Attached
from regard.layers.tap import taps
from regard.networks.replica import borrowed, call
from regard.registry.registration import info

LEAVING = re.compile("export|onnx|compile", re.IGNORECASE)  # promises that matter to who leaves Python
LARGE = 2**30  # bytes of one map that are worth a warning


def warnings_of(model: nn.Module, attached: Attached, example: Any, device: torch.device, batches: float) -> list[str]:
    """What to know of an attached mechanism, a sentence each.

    Args:
        model: with the mechanism.
        attached: the mechanism.
        example: a batch for the model.
        device: on which it is to be trained.
        batches: the size of the batch in training, in that of the example.
    """
    maps, starved = _seen(model, attached, example)
    sentences = _of_small_maps(maps, starved) + _of_large_maps(attached, maps, device, batches)
    sentences += [f"{note[0].upper()}{note[1:]}." for note in attached.notes]
    exceptions = info(attached.mechanism).exceptions
    return sentences + [f"No {what}: {reason}." for what, reason in exceptions.items() if LEAVING.search(what)]


def _seen(model: nn.Module, attached: Attached, example: Any) -> tuple[dict[str, torch.Size], list[str]]:
    """The shape of the map at every site, and the sites where a batch norm sees one value per channel and image."""
    maps: dict[str, torch.Size] = {}
    starved: list[str] = []

    def see_map(site: str) -> Callable[..., None]:
        return lambda _, args: maps.__setitem__(site, args[0].shape)

    def see_norm(site: str) -> Callable[..., None]:
        def look(_: nn.Module, args: tuple[Tensor]) -> None:
            if args[0].numel() == args[0].shape[1] * maps[site][0]:
                starved.append(site)

        return look

    with borrowed(model) as replica, torch.no_grad():
        for site, mechanism in attached.on(replica).modules.items():
            mechanism.register_forward_pre_hook(see_map(site))
            for norm in mechanism.modules():
                if isinstance(norm, _BatchNorm):
                    norm.register_forward_pre_hook(see_norm(site))
        call(replica, example)
    return maps, starved


def _of_small_maps(maps: dict[str, torch.Size], starved: Sequence[str]) -> list[str]:
    sentences = []
    single = [site for site, shape in maps.items() if math.prod(shape[2:]) == 1]
    if single:
        sentences.append(
            f"{_where(single)} the map is a single pixel: weights between places have nothing to choose there."
        )
    if starved:
        sentences.append(
            f"{_where(starved)} its batch norm sees one value per channel and image: small batches make it noisy, and "
            "a batch of 1 teaches it nothing."
        )
    return sentences


def _of_large_maps(attached: Attached, maps: dict[str, torch.Size], device: torch.device, batches: float) -> list[str]:
    """Of maps that grow with the square of the pixels."""
    sizes = {site: _square(attached.modules[site], shape) * batches for site, shape in maps.items()}
    heavy = [site for site, size in sizes.items() if size > min(LARGE, memory_of(device) / 4)]
    if not heavy:
        return []
    largest = max(heavy, key=sizes.__getitem__)
    pixels, size = " x ".join([f"{math.prod(maps[largest][2:]):,}"] * 2), bytes_text(sizes[largest])
    return [f"{_where(heavy)} the map between positions ({pixels}) takes up to {size} where it is recorded or built."]


def _square(mechanism: nn.Module, shape: Sequence[int]) -> int:
    """Bytes of the maps between positions that a mechanism makes of one batch, found without making them."""
    if not any(tap.kind == "position" for _, tap in taps(mechanism)):
        return 0
    sizes = [0]
    shadow = deepcopy(mechanism).to("meta").eval()
    for _, tap in taps(shadow):
        if tap.kind == "position":
            tap.register_forward_hook(lambda _, __, weights: sizes.append(weights.numel() * weights.element_size()))
    kind = next((weight.dtype for weight in shadow.parameters()), torch.float32)
    with torch.no_grad():
        shadow(torch.empty(tuple(shape), device="meta", dtype=kind))
    return sum(sizes)


def too_large(peak: int, batch: int, device: torch.device) -> list[str]:
    memory = memory_of(device)
    if peak <= memory:
        return []
    return [
        f"At batch {batch} a training step needs about {bytes_text(peak)}, and the device has {bytes_text(memory)}."
    ]


def memory_of(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _where(sites: Sequence[str]) -> str:
    distinct = list(dict.fromkeys(sites))
    return f"At {distinct[0]!r}" if len(distinct) == 1 else f"At {len(distinct)} sites, such as {distinct[-1]!r},"
