"""The checks that run a network again: cascading randomisation of its weights, and deletion and insertion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from regard.gallery.attention import record_all
from regard.gallery.options import Options, Tell
from regard.gallery.series import Cascade, Key, Series
from regard.gallery.subjects import Subject
from regard.maps.deletion import deletion_insertion
from regard.maps.meaning import rank_correlation
from regard.maps.randomisation import can_be_randomised, randomised

STAGES = 6  # at which the maps are compared while the weights are randomised
STEPS = 10  # of deletion and insertion


def with_cascades(
    series: Sequence[Series],
    subject: Subject,
    images: Tensor,
    options: Options,
    layer: str | None,
    targets: Sequence[int],
    tell: Tell,
) -> list[Series]:
    """The series with what becomes of their maps while the network's weights are randomised layer by layer.

    Args:
        series: of the network as it is.
        subject: the network.
        images: the first ones of those that the series are of.
        options, layer: as the series were recorded.
        targets: the class of each image.
        tell: is called with what is done.
    """
    cascades: dict[Key, Cascade] = {}
    layers = sum(map(can_be_randomised, subject.model.modules()))
    stages = sorted({round(layers * stage / STAGES) for stage in range(1, STAGES + 1)} - {0})
    for number, (_, copy) in enumerate(randomised(subject.model, images[:1]), start=1):
        if number not in stages:
            continue
        recording = record_all(replace(subject, model=copy), images, options, layer, targets)
        for each in series:
            if each.key in recording.maps:
                maps = each.judged(Series.of(each.key, recording.maps[each.key], options.head).values)
                likeness = rank_correlation(each.judged(each.values[: len(images)]), maps)
                before = cascades[each.key].likeness if each.key in cascades else [1.0]
                cascades[each.key] = Cascade([*before, likeness], maps)
        tell("randomising weights", stages.index(number) + 1, len(stages))
    return [replace(each, cascade=cascades.get(each.key)) for each in series]


def with_curves(
    series: Sequence[Series], model: nn.Module, images: Tensor, targets: Sequence[int], batch: int, tell: Tell
) -> list[Series]:
    """The series with deletion and insertion curves, where their maps rank all pixels.

    Args:
        series: of the network.
        model: gives (B, classes).
        images: the first ones of those that the series are of.
        targets: the class of each image.
        batch: images at a time.
        tell: is called with what is done.
    """
    measured: list[Series] = []
    total = sum(each.covers_picture for each in series)
    chance = None
    for each in series:
        if each.covers_picture:
            maps = torch.from_numpy(each.values[: len(images)]).to(images.device)
            curves = deletion_insertion(model, images, maps, targets, steps=STEPS, batch=batch, chance=chance)
            chance = curves.chance
            each = replace(each, curves=curves)
            tell("deleting and inserting", sum(one.curves is not None for one in measured) + 1, total)
        measured.append(each)
    return measured
