"""What made a network decide as it did: Grad-CAM and its relatives, at a layer that is found by itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from regard.borrowing import borrowed, call, refuse_unseen, weights_kept
from regard.errors import UserError, near
from regard.layout import Layout
from regard.recording import Map, record
from regard.survey import Survey, dry_run

Target = int | Sequence[int] | Tensor | Callable[[Any], Tensor] | None

_layers: Any = WeakIdKeyDictionary()  # model -> what it looked like, and the layer that was found then


@dataclass(frozen=True, repr=False, kw_only=True)
class Saliency(Map):
    """A map of what spoke for a target.

    Attributes:
        name: dotted name of the layer.
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
    were. Only what follows the layer is differentiated.

    Args:
        model: any network.
        example: what it is called with: one argument, a tuple of several, or a dict of keyword arguments.
        target: a class, or one for each image; None takes the class that each image is given; for anything else a
            function of the output that returns one score for each image, or their sum, such as `pixel` or `box`.
        method: one of `METHODS`.
        layer: dotted name; ``"auto"`` takes the last map of more than one pixel that the output depends on.
        relu: whether what speaks against the target is left out.

    Raises:
        UserError: the method or layer is unknown, the layer gives no map, or the target does not depend on it.

    Example:
        >>> import torch, torchvision, regard
        >>> model = torchvision.models.resnet18()
        >>> found = regard.explain(model, torch.randn(2, 3, 64, 64), target=7)
        >>> found.name, found.value.shape
        ('layer4', torch.Size([2, 1, 2, 2]))
    """
    refuse_unseen(model)
    if method not in METHODS:
        raise UserError(f"there is no method {method!r}: it is one of {', '.join(METHODS)}{near(method, [*METHODS])}")
    name, layout = find_layer(model, example, layer)
    taken: list[Tensor] = []
    with torch.inference_mode(False), torch.no_grad(), borrowed(model) as twin, weights_kept(twin):
        _cut(twin.get_submodule(name), taken)
        output = call(twin, example)
        torch.set_grad_enabled(True)
        scores, classes = _score(output, target)
        if not taken:
            raise UserError(f"the layer {name!r} is not run: choose another")
        reached = scores.requires_grad and torch.autograd.grad(scores.sum(), taken[-1], allow_unused=True)[0]
        if reached is False or reached is None:
            raise UserError(f"the target does not depend on the layer {name!r}: choose a layer before it")
        a, g = (layout.map(tensor.detach()) for tensor in (taken[-1], reached))
        a, g = (tensor.to(torch.promote_types(tensor.dtype, torch.float32)) for tensor in (a, g))
        value = METHODS[method](a, g).unsqueeze(1)
    return Saliency(
        name, "spatial", value.relu() if relu else value, method=method, classes=classes, scores=scores.detach()
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
        scores = _tensor(output)
        if scores.dim() != 4:
            raise UserError(f"a pixel's score needs an output of (B, classes, H, W), got {tuple(scores.shape)}")
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


def find_layer(model: nn.Module, example: Any, layer: str = "auto") -> tuple[str, Layout]:
    """The layer whose map is explained, and how it holds it; remembered for a model as long as it is not rebuilt.

    Args:
        model, example, layer: as in `explain`.

    Raises:
        UserError: there is no such layer, or it gives no map.
    """
    shapes = tuple(tuple(leaf.shape) for leaf in tree_leaves(example) if isinstance(leaf, Tensor))
    seen = shapes, tuple((name, id(module)) for name, module in model.named_modules())
    known = _layers.get(model)
    if known is None or known[0] != seen:
        _layers[model] = known = seen, dry_run(model, _fewer(example)), {}
    _, survey, found = known
    if layer not in found:
        found[layer] = _found(survey, layer)
    return found[layer]


def _found(survey: Survey, layer: str) -> tuple[str, Layout]:
    maps = {
        name: outputs[-1].layout
        for name in survey.order
        if name and (outputs := survey.outputs[name])[-1].layout and math.prod(outputs[-1].map[2:]) > 1
    }
    if layer != "auto":
        if layer not in survey.outputs:
            raise UserError(f"there is no layer {layer!r} that is run{near(layer, [*maps])}")
        if layer not in maps:
            given = survey.outputs[layer][-1].words
            raise UserError(f"the layer {layer!r} gives {given}, which is no map of pixels{near(layer, [*maps])}")
        return layer, maps[layer]
    # as wide as the last: the queries and keys of a last block are no features
    candidates = [name for name in reversed(maps) if survey.goes_on(name)]
    for name in candidates:
        width = survey.outputs[name][-1].map[1]
        if name not in survey.unread and width == survey.outputs[candidates[0]][-1].map[1]:
            return name, maps[name]
    raise UserError("no layer gives a map of more than one pixel: name one with layer=, or pass larger images")


def _fewer(example: Any) -> Any:
    """One image is enough to find the layer."""
    return example[:1] if isinstance(example, Tensor) else example


def _cut(module: nn.Module, taken: list[Tensor]) -> None:
    """From now on the module's output is a leaf, and what is computed from it is recorded by autograd."""

    def begin(_: nn.Module, args: Any, output: Any) -> Any:
        first = next(leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor))
        torch.set_grad_enabled(True)
        taken.append(first.detach().requires_grad_())
        return taken[-1].clone()  # what follows may write over it

    module.register_forward_hook(begin)


# --- the target ------------------------------------------------------------------------------------------------------


def _tensor(output: Any) -> Tensor:
    if isinstance(output, Mapping) and "out" in output:  # torchvision's segmentation
        output = output["out"]
    output = getattr(output, "logits", output)
    if not isinstance(output, Tensor):
        raise UserError(f"the model gives {type(output).__name__}: pass a function of it as the target")
    return output


def _score(output: Any, target: Target) -> tuple[Tensor, Tensor | None]:
    """What is differentiated, and the classes where it is theirs."""
    if callable(target):
        scores = target(output)
        if not isinstance(scores, Tensor) or scores.dim() > 1:
            raise UserError("the target's function returns one score for each image, or their sum, as a tensor")
        return scores, None
    logits = _tensor(output)
    if logits.dim() != 2:
        raise UserError(
            f"a class is explained where the output is (B, classes), got {tuple(logits.shape)}: pass a function of the "
            "output as the target, such as regard.saliency.pixel(class, row, column)"
        )
    if target is None:
        classes = logits.argmax(1)
    else:
        classes = torch.as_tensor(target, device=logits.device)
        if classes.dim() == 0:
            classes = classes.expand(len(logits))
    if classes.shape != logits.shape[:1] or classes.is_floating_point():
        raise UserError(f"the target is one class, or one for each of {len(logits)} images, got {target!r}")
    if int(classes.min()) < 0 or int(classes.max()) >= logits.shape[1]:
        raise UserError(f"the network knows classes 0 to {logits.shape[1] - 1}, got {target!r}")
    return logits.gather(1, classes.unsqueeze(1)).squeeze(1), classes
