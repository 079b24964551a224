"""Which layer's map is explained: the one that is named, or the last of more than one pixel that the target reads."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from regard.base.errors import UserError, near
from regard.insertion.dry_run import dry_run
from regard.insertion.layout import Layout
from regard.insertion.survey import Survey
from regard.maps.gradients import Key, Pass
from regard.maps.targets import Target

BETWEEN = " + "  # the names of parallel layers, which are explained together

Ancestors = Mapping[Key, set[Key]]


class NoLayer(UserError):
    """By itself no layer was found whose map could be explained."""


def find_layer(model: nn.Module, example: Any, layer: str = "auto") -> str:
    """The layer whose map is explained for a class, as `regard.Saliency` names it; remembered for a model as long as
    it is not rebuilt.

    Args:
        model, example, layer: as in `regard.explain`.

    Raises:
        UserError: there is no such layer, or it gives no map.
        NoLayer: the layer is ``"auto"``, and none was found.
    """
    return joined_names(_layers(model, example, layer))


def joined_names(keys: Iterable[Key]) -> str:
    """The names of layers that are explained together, as one."""
    return BETWEEN.join(dict.fromkeys(name for name, _ in keys))


def explained_layers(
    model: nn.Module, example: Any, target: Target, layer: str, *, blank: bool
) -> tuple[Pass, list[Key]]:
    """One pass, and those of its layers whose maps are explained.

    Args:
        model, example, target, layer: as in `regard.explain`.
        blank: whether a target will do that no layer moves, such as that of a classifier of zeros.

    Raises:
        UserError: there is no such layer, it gives no map, or the target does not depend on it.
    """
    if callable(target) and layer == "auto":  # the layers that it reads need not be those that a class reads
        survey = _cache_entry(model, example).survey
        passed = Pass.of(model, example, target, _map_layouts(survey), cut=False)
        return passed, _last_read(passed, survey, blank=blank)
    layers = _layers(model, example, layer)
    passed = Pass.of(model, example, target, {name: layout for (name, _), layout in layers.items()}, cut=True)
    levels = _read(passed, layers, blank=blank)
    unread = {name for name, _ in layers} - {name for name, _ in levels}
    if unread:
        _refuse_nested(unread, Pass.of(model, example, target, passed.layouts, cut=False))
    return passed, levels


@dataclass
class _CacheEntry:
    """What is remembered of a model: a pass that was watched, and by `layer` the calls that are explained.

    Attributes:
        sign: of the model and its input: the shapes of the example and the identities of the modules.
    """

    sign: Any
    survey: Survey
    layers: dict[str, dict[Key, Layout]] = field(default_factory=dict)


_cache: Any = WeakIdKeyDictionary()  # model -> _CacheEntry


def _cache_entry(model: nn.Module, example: Any) -> _CacheEntry:
    shapes = tuple(tuple(leaf.shape) for leaf in tree_leaves(example) if isinstance(leaf, Tensor))
    sign = shapes, tuple((name, id(module)) for name, module in model.named_modules())
    entry: _CacheEntry | None = _cache.get(model)
    if entry is None or entry.sign != sign:
        _cache[model] = entry = _CacheEntry(sign, dry_run(model, _first(example)))
    return entry


def _first(example: Any) -> Any:
    """One image is enough to find the layer."""
    return example[:1] if isinstance(example, Tensor) else example


def _layers(model: nn.Module, example: Any, layer: str) -> dict[Key, Layout]:
    """The calls of the layers of this name, or of those that the scores of classes read; and how they hold their
    maps."""
    entry = _cache_entry(model, example)
    if layer not in entry.layers:
        maps = _map_layouts(entry.survey)
        if layer == "auto":
            passed = Pass.of(model, _first(example), None, maps, cut=False)
            keys = _last_read(passed, entry.survey, blank=True)
        else:
            names = [_named(entry.survey, maps, name) for name in layer.split(BETWEEN)]
            keys = [(name, call) for name in names for call in range(len(entry.survey.outputs[name]))]
        entry.layers[layer] = {key: maps[key[0]] for key in keys}
    return entry.layers[layer]


def _map_layouts(survey: Survey) -> dict[str, Layout]:
    """How the layers that give maps of more than one pixel hold them, in the order of the pass."""
    layouts: dict[str, Layout] = {}
    for name in survey.order:
        last = survey.outputs[name][-1]
        if name and last.layout and math.prod(last.map[2:]) > 1:
            layouts.pop(name, None)
            layouts[name] = last.layout
    return layouts


def _named(survey: Survey, maps: Mapping[str, Layout], layer: str) -> str:
    if layer not in survey.outputs:
        raise UserError(f"there is no layer {layer!r} that is run{near(layer, [*maps])}")
    if layer not in maps:
        given = survey.outputs[layer][-1].words
        raise UserError(f"the layer {layer!r} gives {given}, which is no map of pixels{near(layer, [*maps])}")
    return layer


def _read(passed: Pass, layers: Mapping[Key, Layout], *, blank: bool) -> list[Key]:
    """Of the layers that were named, those that the target reads."""
    name = joined_names(layers)
    if not passed.kept:
        raise UserError(f"the layer {name!r} is not run: choose another")
    keys = [key for key in passed.kept if key in layers and passed.gradients.get(key) is not None]
    if not keys:
        raise UserError(f"the target does not depend on the layer {name!r}: choose a layer before it")
    keys = [key for key in keys if passed.moves(key)] or keys
    if not (blank or passed.moves(keys[-1])):
        raise UserError(
            f"the gradient of the target is 0 everywhere at the layer {name!r}: it is saturated, or reads none of "
            "these pixels; explain a score from before a softmax or a threshold, or name a layer before it"
        )
    for key in keys:
        if not passed.fits(key):
            raise UserError(
                f"the layer {key[0]!r} holds {len(passed.kept[key])} maps for {passed.images} images, and it cannot "
                "be told which is whose: choose a layer before it"
            )
    _refuse_several_inputs(passed, keys)
    return keys


def _last_read(passed: Pass, survey: Survey, *, blank: bool) -> list[Key]:
    """What the target reads last: one map, or those of parallel levels, of which none is computed from another."""
    candidates = [key for key in passed.kept if survey.goes_on(key[0]) and passed.gradients.get(key) is not None]
    if not candidates:
        raise _no_candidates(passed)
    moving = [key for key in candidates if passed.moves(key)]
    if not moving and not blank:
        raise UserError(
            f"the gradient of the target is 0 everywhere, as far as at the layer {candidates[0][0]!r}: explain a "
            "score from before a softmax or a threshold"
        )
    moving = moving or [key for key in candidates if key[0] not in survey.unread]
    able = [key for key in moving if passed.fits(key)]
    ancestors = passed.ancestors()
    levels = _merged(passed, _levels(passed, candidates, able, ancestors), able, ancestors)
    if not levels:
        raise NoLayer(
            f"no layer that the target reads holds one map for each of {passed.images} images: name one with layer="
        )
    _refuse_several_inputs(passed, levels)
    return sorted(levels, key=[*passed.kept].index)


def _no_candidates(passed: Pass) -> NoLayer:
    if not passed.kept:
        return NoLayer("no layer gives a map of more than one pixel: name one with layer=, or pass larger images")
    if not passed.scores.requires_grad:
        return NoLayer("the target does not depend on the network's layers: return what it computed")
    return NoLayer(
        "the target depends on no layer that gives a map of more than one pixel and that another follows: name one "
        "with layer="
    )


def _levels(passed: Pass, candidates: Sequence[Key], able: Sequence[Key], ancestors: Ancestors) -> list[Key]:
    """The last map, then the last of those that are neither made of it nor it of them, and so on."""
    levels: list[Key] = []
    left = candidates
    while readable := [key for key in able if key in left]:
        # as wide as the last: the queries and keys of a last block are no features
        width = passed.shape(left[-1])[1]
        level = next((key for key in reversed(readable) if passed.shape(key)[1] == width), readable[-1])
        levels.append(level)
        left = [key for key in left if not _related(key, level, ancestors)]
    return levels


def _merged(passed: Pass, levels: list[Key], able: Sequence[Key], ancestors: Ancestors) -> list[Key]:
    """Levels of the same sides that one map of these sides leads to are that map: the keys and values of an attention,
    say, tell less than what they are made of."""
    by_sides: dict[tuple[int, ...], list[Key]] = {}
    for key in levels:
        by_sides.setdefault(passed.shape(key)[2:], []).append(key)
    for sides, keys in by_sides.items():
        shared = [key for key in able if all(key in ancestors[level] for level in keys)]
        shared = [key for key in shared if passed.shape(key)[2:] == sides]
        if len(keys) > 1 and shared:
            levels = [key for key in levels if key not in keys] + shared[-1:]
    return list(dict.fromkeys(levels))


def _related(first: Key, second: Key, ancestors: Ancestors) -> bool:
    return first == second or first in ancestors[second] or second in ancestors[first]


def _refuse_several_inputs(passed: Pass, keys: Sequence[Key]) -> None:
    if len(keys) > 1 and passed.several_inputs:
        raise UserError(
            f"the target reads several pictures in {joined_names(keys)!r}: explain a module that takes one of them "
            "and keeps the others"
        )


def _refuse_nested(unread: set[str], passed: Pass) -> None:
    """Of several layers that were named, one that the target reads through another is no parallel level."""
    for key, before in passed.ancestors().items():
        for name, _ in before:
            if name in unread and key[0] not in unread:
                raise UserError(f"the target reads {name!r} through {key[0]!r}: name one of them, or parallel levels")
