"""What made a network decide as it did: Grad-CAM and its relatives, at a layer that is found by itself."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from regard.base.errors import UserError, near
from regard.insertion.layout import Layout
from regard.insertion.survey import Survey, dry_run
from regard.maps.recording import Map, record
from regard.networks.hookable import refuse_unseen
from regard.networks.replica import borrowed, call
from regard.networks.weights import weights_kept

Target = int | Sequence[int] | Tensor | Callable[[Any], Tensor] | None

BETWEEN = " + "  # the names of parallel layers, which are explained together
LOGITS = ("logits", "out")  # what networks call their scores among other outputs

_layers: Any = WeakIdKeyDictionary()  # model -> what it looked like, its survey, and the layers that were found then


@dataclass(frozen=True, repr=False, kw_only=True)
class Saliency(Map):
    """A map of what spoke for a target.

    Attributes:
        name: dotted name of the layer; of parallel levels all of them, ``"neck.0 + neck.1"``.
        kind: ``"spatial"``.
        value: (B, 1, \\*spatial of the layer), not scaled.
        method: of `METHODS`.
        classes: (B,) the class that was explained in each image; None where the target was no class.
        scores: (B,) or () what was explained, as the network gave it.
    """

    method: str
    classes: Tensor | None
    scores: Tensor


def explain(
    model: nn.Module,
    example: Any,
    target: Target = None,
    *,
    method: str = "grad-cam",
    layer: str = "auto",
    relu: bool = True,
) -> Saliency:
    """Say which places of a layer's map spoke for a decision.

    Formula:  with A (B, C, \\*spatial) the layer's map and G its gradient,
              grad-cam: sum_c mean(G_c) A_c;  hirescam: sum_c G_c A_c;  layercam: sum_c max(G_c, 0) A_c;
              grad-cam++: sum_c w_c A_c, w_c = sum max(G, 0) G^2 / (2 G^2 + G^3 sum(A)), sums over the pixels of a
              channel; then what is below 0 becomes 0.
    Source:   Selvaraju et al. 2017, arXiv 1610.02391; Chattopadhay et al. 2018, arXiv 1710.11063; Draelos and Carin
              2020, arXiv 2011.08891; Jiang et al. 2021, LayerCAM, IEEE TIP.

    The model runs in evaluation mode; afterwards its mode, buffers, gradients and torch's random state are as they
    were. Of a named layer, or once it was found, only what follows it is differentiated.

    Where a network folds the frames of a clip into its batch, the map is (B, 1, frames, h, w). The maps of parallel
    levels, as detectors have them, are joined at the size of the finest: what a pixel of a coarse one says is shared
    out among the pixels it covers.

    Args:
        model: any network.
        example: what it is called with: one argument, a tuple of several, or a dict of keyword arguments.
        target: a class, or one for each image; None takes the class that each image is given; for anything else a
            function of the output that returns one score for each image, or their sum, such as `pixel` or `box`.
        method: one of `METHODS`.
        layer: dotted name, or several as in `Saliency.name`; ``"auto"`` takes the last map of more than one pixel that
            the target reads, and those beside it that it reads as well.
        relu: whether what speaks against the target is left out.

    Raises:
        UserError: the method or layer is unknown, the layer gives no map or not one for each image, the target does not
            depend on it, or nothing speaks for the target in any image.

    Warns:
        UserWarning: nothing speaks for the target in some of the images.

    Example:
        >>> import torch, torchvision, regard
        >>> model = torchvision.models.resnet18()
        >>> found = regard.explain(model, torch.randn(2, 3, 64, 64), target=7)
        >>> found.name, found.value.shape
        ('layer4', torch.Size([2, 1, 2, 2]))
    """
    found = evidence(model, example, target, method=method, layer=layer, relu=relu, blank=False)
    rows = found.value.flatten(1)
    if not rows.isfinite().all():
        wrong = [number for number, row in enumerate(rows) if not row.isfinite().all()]
        raise UserError(
            f"in the images {', '.join(map(str, wrong))} the {method} map at {found.name!r} is not finite: the "
            "network's numbers overflow on this input, or the target has no gradient there"
        )
    blank = [number for number, row in enumerate(rows) if not row.any()]
    if blank:
        why = f"at {found.name!r} nothing speaks for the target ({method}): "
        why += "pass relu=False to see what speaks against it" if relu else "all values are 0"
        why += ", or name another layer or method"
        if len(blank) == len(rows):
            raise UserError(why)
        warnings.warn(f"in the images {', '.join(map(str, blank))} {why}", stacklevel=2)
    return found


def evidence(
    model: nn.Module,
    example: Any,
    target: Target,
    *,
    method: str = "grad-cam",
    layer: str = "auto",
    relu: bool = True,
    blank: bool = True,
) -> Saliency:
    """As `explain`, whose arguments these are; also where nothing speaks for the target, or with `blank` nothing moves
    it."""
    refuse_unseen(model)
    if method not in METHODS:
        raise UserError(f"there is no method {method!r}: it is one of {', '.join(METHODS)}{near(method, [*METHODS])}")
    if callable(target) and layer == "auto":  # what it reads is told by itself alone
        survey = _surveyed(model, example)[0]
        passed = _Pass.of(model, example, target, _maps(survey), cut=False)
        levels = passed.last(survey, blank=blank)
    else:
        layers = _layers_of(model, example, layer)
        passed = _Pass.of(model, example, target, {name: layout for (name, _), layout in layers.items()}, cut=True)
        levels = passed.reached(layers, blank=blank)
        if left := {name for name, _ in layers} - {name for name, _ in levels}:
            _refuse_behind(left, _Pass.of(model, example, target, passed.layouts, cut=False))
    value = _joined([METHODS[method](*passed.map(key)).unsqueeze(1) for key in levels])
    return Saliency(
        BETWEEN.join(dict.fromkeys(name for name, _ in levels)),
        "spatial",
        value.relu() if relu else value,
        method=method,
        classes=passed.classes,
        scores=passed.scores.detach(),
    )


def rollout(model: nn.Module, example: Any, *, residual: float = 0.5) -> Map:
    """Follow the weights between tokens through all layers: what of the picture reaches the class token.

    Formula:  A = residual I + (1 - residual) mean of the heads, for each layer, multiplied from the last to the first;
              the row of the class token, or without one the mean of the rows
    Source:   Abnar and Zuidema 2020, arXiv 2005.00928.

    Args:
        model: a transformer whose layers all see all tokens, such as ViT.
        example: what it is called with.
        residual: the share of what passes a layer by.

    Returns:
        A map (B, 1, h, w) of kind ``"spatial"``.

    Raises:
        UserError: the network has no weights between all tokens, or not the same tokens in all layers.
    """
    with torch.inference_mode(False), torch.no_grad(), borrowed(model) as twin, record(twin, kinds={"token"}) as maps:
        call(twin, example)
    layers = [found for found in maps if found.layout is not None and found.value.shape[2] == found.value.shape[3]]
    if not layers or len({found.value.shape[2] for found in layers}) > 1 or len(layers) < len(maps):
        raise UserError(
            f"rollout needs layers that all weigh the same tokens of the whole picture; of {len(maps)} products with "
            f"weights {len(layers)} do"
        )
    layout = layers[0].layout
    assert layout is not None  # as chosen above
    tokens = layers[0].value.shape[2]
    identity = torch.eye(tokens, device=layers[0].value.device)
    joined = identity
    for found in layers:
        joined = (residual * identity + (1 - residual) * found.value.float().mean(1)) @ joined
    rows = joined[:, 0] if layout.prefix else joined.mean(1)
    return Map("rollout", "spatial", rows[:, layout.prefix :].unflatten(1, layout.grid).unsqueeze(1))


def pixel(number: int, row: int, column: int) -> Callable[[Any], Tensor]:
    """A target: the score of a class at one pixel of a segmentation.

    Args:
        number: of the class.
        row, column: of the output's map.
    """

    def score(output: Any) -> Tensor:
        scores = logits_of(output)
        if scores.dim() != 4:
            raise UserError(f"a pixel's score needs an output of (B, classes, H, W), got {tuple(scores.shape)}")
        for what, at, size in (("class", number, 1), ("row", row, 2), ("column", column, 3)):
            if not -scores.shape[size] <= at < scores.shape[size]:
                raise UserError(f"the network's output has {scores.shape[size]} for {what}, from 0 on, got {at}")
        return scores[:, number, row, column]

    return score


def box(number: int) -> Callable[[Any], Tensor]:
    """A target: the score of a detector's box, in each image.

    Args:
        number: of the box, in the detector's order; in an image with fewer boxes nothing is explained.
    """

    def score(output: Any) -> Tensor:
        try:
            found = [image["scores"] for image in output]
        except (KeyError, TypeError, IndexError) as error:
            raise UserError(
                'a box needs a detector whose output is [{"scores": ...}, ...], as torchvision\'s'
            ) from error
        if not any(len(scores) > number for scores in found):
            raise UserError(f"there is no box {number}: the images have {', '.join(str(len(one)) for one in found)}")
        return torch.stack([scores[number] if len(scores) > number else scores.sum() * 0 for scores in found])

    return score


# --- the methods: (B, C, *spatial) and its gradient -> (B, *spatial) -------------------------------------------------


def _grad_cam(a: Tensor, g: Tensor) -> Tensor:
    return (g.mean(_pixels(a), keepdim=True) * a).sum(1)


def _grad_cam_plus_plus(a: Tensor, g: Tensor) -> Tensor:
    axes = _pixels(a)
    below = 2 * g**2 + a.sum(axes, keepdim=True) * g**3
    weights = torch.where(below == 0, 0, g**2 / torch.where(below == 0, 1, below)) * g.relu()
    return (weights.sum(axes, keepdim=True) * a).sum(1)


def _hirescam(a: Tensor, g: Tensor) -> Tensor:
    return (g * a).sum(1)


def _layercam(a: Tensor, g: Tensor) -> Tensor:
    return (g.relu() * a).sum(1)


METHODS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "grad-cam": _grad_cam,
    "grad-cam++": _grad_cam_plus_plus,
    "hirescam": _hirescam,
    "layercam": _layercam,
}


def _pixels(a: Tensor) -> tuple[int, ...]:
    return tuple(range(2, a.dim()))


# --- the layer -------------------------------------------------------------------------------------------------------

Key = tuple[str, int]  # a layer's name, and which of its calls in one pass


def find_layer(model: nn.Module, example: Any, layer: str = "auto") -> str:
    """The layer whose map is explained for a class, as `Saliency.name` has it; remembered for a model as long as it is
    not rebuilt.

    Args:
        model, example, layer: as in `explain`.

    Raises:
        UserError: there is no such layer, or it gives no map.
    """
    return BETWEEN.join(dict.fromkeys(name for name, _ in _layers_of(model, example, layer)))


def _surveyed(model: nn.Module, example: Any) -> tuple[Survey, dict[str, dict[Key, Layout]]]:
    """One pass, watched, and the layers that were found with it; remembered."""
    shapes = tuple(tuple(leaf.shape) for leaf in tree_leaves(example) if isinstance(leaf, Tensor))
    seen = shapes, tuple((name, id(module)) for name, module in model.named_modules())
    known: Any = _layers.get(model)
    if known is None or known[0] != seen:
        _layers[model] = known = seen, dry_run(model, _fewer(example)), {}
    return known[1], known[2]


def _layers_of(model: nn.Module, example: Any, layer: str) -> dict[Key, Layout]:
    """The calls of the layers of this name, or what the scores of classes read; and how they hold their maps."""
    survey, known = _surveyed(model, example)
    if layer not in known:
        maps = _maps(survey)
        if layer == "auto":
            few = _fewer(example)
            known[layer] = {
                key: maps[key[0]] for key in _Pass.of(model, few, None, maps, cut=False).last(survey, blank=True)
            }
        else:
            names = [_named(survey, maps, name) for name in layer.split(BETWEEN)]
            known[layer] = {(name, call): maps[name] for name in names for call in range(len(survey.outputs[name]))}
    return known[layer]


def _maps(survey: Survey) -> dict[str, Layout]:
    """What gives maps of more than one pixel, in the order of the pass, and how it holds them."""
    found: dict[str, Layout] = {}
    for name in survey.order:
        last = survey.outputs[name][-1]
        if name and last.layout and math.prod(last.map[2:]) > 1:
            found.pop(name, None)
            found[name] = last.layout
    return found


def _named(survey: Survey, maps: Mapping[str, Layout], layer: str) -> str:
    if layer not in survey.outputs:
        raise UserError(f"there is no layer {layer!r} that is run{near(layer, [*maps])}")
    if layer not in maps:
        given = survey.outputs[layer][-1].words
        raise UserError(f"the layer {layer!r} gives {given}, which is no map of pixels{near(layer, [*maps])}")
    return layer


def _fewer(example: Any) -> Any:
    """One image is enough to find the layer."""
    return example[:1] if isinstance(example, Tensor) else example


@dataclass
class _Pass:
    """One pass of a network in which the maps of some layers were kept, and the gradient of the target in them.

    Attributes:
        layouts: of the layers.
        pictures: how many came in; None where the example does not tell and the scores do not.
        several: whether it takes pictures in several arguments.
        kept: what each call gave; in the order of their ends.
        gradients: None where the target does not depend on it.
        scores, classes: as in `Saliency`.
        turns: where a map holds the frames of clips in the place of the batch, their numbers (B, frames).
        moving: the answers of `moves`.
    """

    layouts: Mapping[str, Layout]
    several: bool = False
    pictures: int | None = None
    kept: dict[Key, Tensor] = field(default_factory=dict)
    gradients: dict[Key, Tensor | None] = field(default_factory=dict)
    scores: Tensor = field(default_factory=lambda: torch.zeros(()))
    classes: Tensor | None = None
    turns: dict[Key, Tensor] = field(default_factory=dict)
    moving: dict[Key, bool] = field(default_factory=dict)

    @staticmethod
    def of(model: nn.Module, example: Any, target: Target, layouts: Mapping[str, Layout], *, cut: bool) -> _Pass:
        """Run it.

        Args:
            model, example, target: as in `explain`.
            layouts: the layers to keep.
            cut: whether each is a leaf, and nothing before it is differentiated.
        """
        self = _Pass(layouts, several=len(_pictures_in(example)) > 1)
        with torch.inference_mode(False), torch.no_grad(), borrowed(model) as twin, weights_kept(twin):
            for name in layouts:
                twin.get_submodule(name).register_forward_hook(self._keep(name, cut))
            output = call(twin, example)
            torch.set_grad_enabled(True)
            self.scores, self.classes = _score(output, target)
            if self.scores.requires_grad:
                apart = self.scores.dim() and any(len(kept) != len(self.scores) for kept in self.kept.values())
                found = torch.autograd.grad(
                    self.scores.sum(), [*self.kept.values()], allow_unused=True, retain_graph=bool(apart)
                )
                self.gradients = dict(zip(self.kept, found, strict=True))
            self.pictures = len(self.scores) if self.scores.dim() else next(iter(_pictures_in(example)), None)
            if self.scores.dim() and len(self.scores) > 1:
                for key, tensor in self.kept.items():
                    if len(tensor) != len(self.scores) and self.moves(key) and len(tensor) % len(self.scores) == 0:
                        self._sort(key)
        return self

    def _keep(self, name: str, cut: bool) -> Callable[..., Any]:
        def keep(_: nn.Module, args: Any, output: Any) -> Any:
            first = next(leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor))
            torch.set_grad_enabled(True)
            if cut or not first.requires_grad:
                first = first.detach().requires_grad_()
            self.kept[name, sum(other == name for other, _ in self.kept)] = first
            return first.clone()  # what follows may write over it

        return keep

    def _sort(self, key: Key) -> None:
        """Of a layer that holds several maps for each picture, the numbers (pictures, frames) of theirs, as far as the
        scores tell."""
        groups = []
        for score in self.scores:
            (gradient,) = torch.autograd.grad(score, self.kept[key], retain_graph=True)
            groups.append(gradient.flatten(1).any(1).nonzero().flatten())
        whole = len({len(group) for group in groups}) == 1 and torch.cat(groups).sort().values
        if whole is not False and torch.equal(whole, torch.arange(len(self.kept[key]), device=whole.device)):
            self.turns[key] = torch.stack(groups)

    def moves(self, key: Key) -> bool:
        """Whether a pixel of its map makes a difference to the target."""
        if key not in self.moving:
            gradient = self.gradients.get(key)
            self.moving[key] = gradient is not None and bool(self.layouts[key[0]].map(gradient).any())
        return self.moving[key]

    def fits(self, key: Key) -> bool:
        """Whether its maps can be told to be those of the pictures that came in."""
        return self.pictures in (None, len(self.kept[key])) or key in self.turns or self._frames(key)

    def _frames(self, key: Key) -> bool:
        """One clip alone: all maps are its frames."""
        return self.pictures == 1 and self.moves(key) and self.scores.dim() == 1 and self._all(key)

    def _all(self, key: Key) -> bool:
        gradient = self.gradients[key]
        return gradient is not None and bool(gradient.flatten(1).any(1).all())

    def map(self, key: Key) -> tuple[Tensor, Tensor]:
        """(B, C, \\*spatial) and its gradient; of frames (B, C, frames, \\*spatial)."""
        layout, gradient = self.layouts[key[0]], self.gradients[key]
        assert gradient is not None  # as `last` and `reached` chose
        both = []
        for tensor in (self.kept[key].detach(), gradient.detach()):
            maps = layout.map(tensor)
            maps = maps.to(torch.promote_types(maps.dtype, torch.float32))
            if key in self.turns:
                maps = maps[self.turns[key]].movedim(1, 2)
            elif self.pictures not in (None, len(maps)):
                maps = maps.movedim(0, 1).unsqueeze(0)
            both.append(maps)
        return both[0], both[1]

    def reached(self, layers: Mapping[Key, Layout], *, blank: bool) -> list[Key]:
        """Of the layers that were cut, what the target reads."""
        said = _words(layers)
        if not self.kept:
            raise UserError(f"the layer {said!r} is not run: choose another")
        keys = [key for key in self.kept if key in layers and self.gradients.get(key) is not None]
        if not keys:
            raise UserError(f"the target does not depend on the layer {said!r}: choose a layer before it")
        keys = [key for key in keys if self.moves(key)] or keys
        if not (blank or self.moves(keys[-1])):
            raise UserError(
                f"the gradient of the target is 0 everywhere at the layer {said!r}: it is saturated, or reads none of "
                "these pixels; explain a score from before a softmax or a threshold, or name a layer before it"
            )
        for key in keys:
            if not self.fits(key):
                raise UserError(
                    f"the layer {key[0]!r} holds {len(self.kept[key])} maps for {self.pictures} images, and it cannot "
                    "be told which is whose: choose a layer before it"
                )
        self._refuse_several(keys)
        return keys

    def last(self, survey: Survey, *, blank: bool) -> list[Key]:
        """What the target reads last: one map, or those of parallel levels, of which none is computed from another.

        With `blank` a target that nothing moves, as that of a classifier of zeros, is told by what it depends on.
        """
        before = self._before()
        left = [key for key in self.kept if survey.goes_on(key[0]) and self.gradients.get(key) is not None]
        if not left:
            if not self.kept:
                raise UserError(
                    "no layer gives a map of more than one pixel: name one with layer=, or pass larger images"
                )
            if not self.scores.requires_grad:
                raise UserError("the target does not depend on the network's layers: return what it computed")
            raise UserError(
                "the target depends on no layer that gives a map of more than one pixel and that another follows: name "
                "one with layer="
            )
        if not any(self.moves(key) for key in left):
            if not blank:
                raise UserError(
                    f"the gradient of the target is 0 everywhere, as far as at the layer {left[0][0]!r}: explain a "
                    "score from before a softmax or a threshold"
                )
            self.moving |= {key: True for key in left if key[0] not in survey.unread}
        able = [key for key in left if self.moves(key) and self.fits(key)]
        found: list[Key] = []
        while read := [key for key in able if key in left]:
            # as wide as the last: the queries and keys of a last block are no features
            width = self._map(left[-1])[1]
            found.append(next((key for key in reversed(read) if self._map(key)[1] == width), read[-1]))
            left = [key for key in left if not _related(key, found[-1], before)]
        if not found:
            raise UserError(
                f"no layer that the target reads holds one map for each of {self.pictures} images: name one with layer="
            )
        for keys in self._alike(found):  # the keys and values of an attention, say: what they are made of tells more
            shared = [key for key in able if all(key in before[one] for one in keys)]
            shared = [key for key in shared if self._map(key)[2:] == self._map(keys[0])[2:]]
            if len(keys) > 1 and shared:
                found = [key for key in found if key not in keys] + shared[-1:]
        found = list(dict.fromkeys(found))
        self._refuse_several(found)
        return sorted(found, key=[*self.kept].index)

    def _alike(self, keys: Sequence[Key]) -> list[list[Key]]:
        """Those whose maps have the same sides, together."""
        groups: dict[tuple[int, ...], list[Key]] = {}
        for key in keys:
            groups.setdefault(self._map(key)[2:], []).append(key)
        return [*groups.values()]

    def _map(self, key: Key) -> tuple[int, ...]:
        return self.layouts[key[0]].shape(tuple(self.kept[key].shape))

    def _refuse_several(self, keys: Sequence[Key]) -> None:
        if len(keys) > 1 and self.several:
            raise UserError(
                f"the target reads several pictures in {_words(keys)!r}: explain a module that takes one of them "
                "and keeps the others"
            )

    def _before(self) -> dict[Key, set[Key]]:
        """Of every kept map, those that it was computed from."""
        made = {tensor.grad_fn: key for key, tensor in self.kept.items() if tensor.grad_fn is not None}
        leaves = {id(tensor): key for key, tensor in self.kept.items() if tensor.grad_fn is None}
        found: dict[Key, set[Key]] = {}
        for key, tensor in self.kept.items():
            found[key] = set()
            nodes = [] if tensor.grad_fn is None else [node for node, _ in tensor.grad_fn.next_functions]
            seen = set()
            while nodes:
                node = nodes.pop()
                if node is None or node in seen:
                    continue
                seen.add(node)
                own = made.get(node) or leaves.get(id(getattr(node, "variable", None)))
                if own is None:
                    nodes += [further for further, _ in node.next_functions]
                elif own != key:
                    found[key] |= {own} | found.get(own, set())
        return found


def _related(one: Key, other: Key, before: Mapping[Key, set[Key]]) -> bool:
    return one == other or one in before[other] or other in before[one]


def _refuse_behind(left: set[str], passed: _Pass) -> None:
    """Of several layers that were named, one that the target reads through another is no parallel level."""
    for key, before in passed._before().items():
        for name, _ in before:
            if name in left and key[0] not in left:
                raise UserError(f"the target reads {name!r} through {key[0]!r}: name one of them, or parallel levels")


def _words(keys: Any) -> str:
    return BETWEEN.join(dict.fromkeys(name for name, _ in keys))


def _pictures_in(example: Any) -> list[int]:
    """How many pictures each tensor of an example holds; a list of pictures (C, H, W) is one batch."""
    if isinstance(example, Tensor):
        return [len(example)] if example.dim() > 3 else [1] if example.dim() == 3 else []
    parts = [example]  # a list is one argument
    if isinstance(example, Mapping | tuple):
        parts = [*example.values()] if isinstance(example, Mapping) else [*example]
    found = []
    for part in parts:
        if isinstance(part, list) and part and all(isinstance(one, Tensor) and one.dim() == 3 for one in part):
            found.append(len(part))
        elif isinstance(part, Tensor):
            found += [len(part)] if part.dim() > 3 else []
    return found


def _joined(maps: Sequence[Tensor]) -> Tensor:
    """Maps (B, 1, \\*spatial) of the same pictures, at the size of the finest; the sum of each stays what it was."""
    finest = max(maps, key=lambda one: one[0].numel())
    if len({one.dim() for one in maps}) > 1:
        raise UserError("the layers that the target reads hold maps of different kinds: name one of them with layer=")
    total = torch.zeros_like(finest)
    mode = {3: "linear", 4: "bilinear", 5: "trilinear"}[finest.dim()]
    for one in maps:
        if one.shape != finest.shape:
            share = one[0].numel() / finest[0].numel()
            one = share * nn.functional.interpolate(one, finest.shape[2:], mode=mode)
        total = total + one
    return total


# --- the target ------------------------------------------------------------------------------------------------------


def logits_of(output: Any) -> Tensor:
    """The scores among a network's outputs: the tensor itself; what a dict or an object calls ``logits`` or ``out``, or
    its only tensor; of a tuple the first.

    Raises:
        UserError: it cannot be told which they are.
    """
    if isinstance(output, Tensor):
        return output
    if isinstance(output, tuple | list) and not hasattr(output, "_fields") and output and isinstance(output[0], Tensor):
        return output[0]
    named: Mapping[Any, Any] = {}
    if isinstance(output, Mapping):
        named = output
    elif hasattr(output, "_asdict"):  # a named tuple
        named = output._asdict()
    elif hasattr(output, "__dict__"):
        named = vars(output)
    tensors = {str(name): value for name, value in named.items() if isinstance(value, Tensor)}
    for name in LOGITS if len(tensors) != 1 else tensors:
        if name in tensors:
            return tensors[name]
    given = f"{type(output).__name__} of {', '.join(tensors)}" if tensors else type(output).__name__
    raise UserError(f"the model gives {given}: pass a function of it as the target")


def class_scores(output: Any) -> Tensor | None:
    """What a network's output says of classes, (B, classes); None where it says nothing of them."""
    try:
        scores = logits_of(output)
    except UserError:
        return None
    return scores if scores.dim() == 2 else None


def _score(output: Any, target: Target) -> tuple[Tensor, Tensor | None]:
    """What is differentiated, and the classes where it is theirs."""
    if callable(target):
        scores = target(output)
        if not isinstance(scores, Tensor) or scores.dim() > 1:
            raise UserError("the target's function returns one score for each image, or their sum, as a tensor")
        return scores, None
    logits = logits_of(output)
    if logits.dim() != 2:
        raise UserError(
            f"a class is explained where the output is (B, classes), got {tuple(logits.shape)}: pass a function of the "
            "output as the target, such as regard.pixel(class, row, column)"
        )
    if target is None:
        classes = logits.argmax(1)
    else:
        try:
            classes = torch.as_tensor(target, device=logits.device)
        except (TypeError, ValueError, RuntimeError):
            classes = torch.zeros(())
        if classes.dim() == 0:
            classes = classes.expand(len(logits))
    if classes.shape != logits.shape[:1] or classes.is_floating_point() or classes.dtype == torch.bool:
        raise UserError(f"the target is one class, or one for each of {len(logits)} images, got {target!r}")
    if int(classes.min()) < 0 or int(classes.max()) >= logits.shape[1]:
        raise UserError(f"the network knows classes 0 to {logits.shape[1] - 1}, got {target!r}")
    return logits.gather(1, classes.unsqueeze(1)).squeeze(1), classes
