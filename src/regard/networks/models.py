"""Networks by a word, for every command: the small one, timm's, torchvision's, or what a user's function returns."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from regard.base.errors import UserError
from regard.networks import from_file, from_here, from_timm, from_torchvision
from regard.networks.randomness import seeded
from regard.networks.source import Normalisation, Source, Wanted, cannot_widen
from regard.registry.named import Named

SOURCES: dict[str, Source] = {
    "small": from_here,
    "timm": from_timm,
    "torchvision": from_torchvision,
    "file": from_file,
}


def open_model(
    text: str,
    *,
    size: int | None = None,
    batch: int | None = None,
    usual: int = 8,
    pretrained: bool = False,
    device: torch.device | str = "cpu",
) -> tuple[nn.Module, Any]:
    """Build a network with random weights, and a batch for it. Nothing is downloaded unless `pretrained` is set.

    The same text gives the same weights and images every time; the global random states stay as they were.

    Args:
        text: ``"small_resnet"``; a name of timm; ``"torchvision/NAME"``, also of its segmentation, detection, video and
            optical-flow networks; each with options where wanted (``"resnet18[num_classes=5]"``, those in
            `regard.networks.options.OPTIONS`); or ``"file.py:function"``, which runs the file, under a name of its own
            and with what lies beside it, and returns a model, or a model and an example. The function is called without
            arguments, but for the numbers of classes and channels where it asks for them.
        size: side of the images in pixels; None is the network's own. A detector, which resizes its images itself, is
            told to resize them to this.
        batch: images, or clips; None is the usual number.
        usual: that number.
        pretrained: with timm's weights.
        device: of both.

    Returns:
        The model, and the example to call it with: one tensor, or a tuple of arguments.

    Raises:
        UserError: there is no such network, it cannot be built like that, the file does not give a model, or the images
            do not fit into memory.

    Example:
        >>> model, example = open_model("resnet18", size=64, batch=2)
        >>> model(example).shape
        torch.Size([2, 1000])
    """
    for word, number in {"size": size, "batch": batch}.items():
        if number is not None and number < 1:
            raise UserError(f"{word} is at least 1, got {number}")
    try:
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError) as error:
        raise UserError(f"there is no device {str(device)!r} here: take cpu, or leave it out") from error
    named = Named.read(text)
    with seeded(0):
        model, example = build(named, Wanted(size=size, pretrained=pretrained))
        if example is None:
            example = SOURCES[named.kind].example(named, model, size, batch or usual)
        elif size or batch:
            raise UserError(f"{text} returns its own example, which size and batch do not change: leave them out")
    return model.to(device), tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, example)


def build(named: Named, wanted: Wanted) -> tuple[nn.Module, Any]:
    """Build a network, with weights from torch's global generator.

    Returns:
        The model, and the example that a user's function returned with it, or None.

    Raises:
        UserError: it cannot be built like that.
    """
    if wanted.pretrained and named.kind != "timm":
        raise UserError(
            f"{named.text.partition('[')[0]} has no pretrained weights: take a model of timm, or --weights FILE"
        )
    if wanted.widening != 1.0 and named.kind not in ("small", "timm"):
        raise cannot_widen(named)
    return SOURCES[named.kind].build(named, wanted)


def image_size(named: Named) -> int | None:
    """The side in pixels that a network of timm or torchvision expects; None where any does."""
    return SOURCES[named.kind].image_size(named)


def pretraining(named: Named) -> Normalisation | None:
    """Mean and deviation of each channel that a network of timm or torchvision was trained with, as fractions of 1."""
    return SOURCES[named.kind].pretraining(named)


def check(named: Named) -> None:
    """Raise a `UserError` where there is no such network."""
    SOURCES[named.kind].check(named)
