"""`explain`: the evidence for a network's decision, by Grad-CAM and its relatives."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from regard.base.errors import UserError, near
from regard.maps.gradcam import METHODS
from regard.maps.layer_choice import explained_layers, joined_names
from regard.maps.recording import Map
from regard.maps.targets import Target
from regard.networks.hookable import refuse_unseen


@dataclass(frozen=True, repr=False, kw_only=True)
class Saliency(Map):
    """A map of the evidence for a target.

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
    """Show where in a layer's map the evidence for a decision lies.

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
        relu: whether evidence against the target is left out.

    Raises:
        UserError: the method or layer is unknown, the layer gives no map or not one for each image, the target does not
            depend on it, or no image shows evidence for the target.

    Warns:
        UserWarning: some of the images show no evidence for the target.

    Example:
        >>> import torch, torchvision, regard
        >>> _ = torch.manual_seed(0)
        >>> model = torchvision.models.resnet18()
        >>> found = regard.explain(model, torch.randn(2, 3, 64, 64), target=7)
        >>> found.name, found.value.shape
        ('layer4', torch.Size([2, 1, 2, 2]))
    """
    saliency = evidence(model, example, target, method=method, layer=layer, relu=relu, blank=False)
    rows = saliency.value.flatten(1)
    if not rows.isfinite().all():
        odd = ", ".join(str(number) for number, row in enumerate(rows) if not row.isfinite().all())
        raise UserError(
            f"in the images {odd} the {method} map at {saliency.name!r} is not finite: the network's numbers overflow "
            "on this input, or the target has no gradient there"
        )
    blank = [number for number, row in enumerate(rows) if not row.any()]
    if blank:
        why = f"at {saliency.name!r} there is no evidence for the target ({method}): "
        why += "pass relu=False to see the evidence against it" if relu else "all values are 0"
        why += ", or name another layer or method"
        if len(blank) == len(rows):
            raise UserError(why)
        warnings.warn(f"in the images {', '.join(map(str, blank))} {why}", stacklevel=2)
    return saliency


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
    """As `explain`, whose arguments these are; also where there is no evidence for the target, and with `blank`
    where no layer moves it."""
    refuse_unseen(model)
    if method not in METHODS:
        raise UserError(f"there is no method {method!r}: it is one of {', '.join(METHODS)}{near(method, [*METHODS])}")
    passed, levels = explained_layers(model, example, target, layer, blank=blank)
    value = _joined([METHODS[method](*passed.map(key)).unsqueeze(1) for key in levels])
    return Saliency(
        joined_names(levels),
        "spatial",
        value.relu() if relu else value,
        method=method,
        classes=passed.classes,
        scores=passed.scores.detach(),
    )


def _joined(maps: Sequence[Tensor]) -> Tensor:
    """Maps (B, 1, \\*spatial) of the same pictures, at the size of the finest; the sum of each stays what it was."""
    finest = max(maps, key=lambda level: level[0].numel())
    if len({level.dim() for level in maps}) > 1:
        raise UserError("the layers that the target reads hold maps of different kinds: name one of them with layer=")
    total = torch.zeros_like(finest)
    mode = {3: "linear", 4: "bilinear", 5: "trilinear"}[finest.dim()]
    for level in maps:
        if level.shape != finest.shape:
            share = level[0].numel() / finest[0].numel()
            level = share * nn.functional.interpolate(level, finest.shape[2:], mode=mode)
        total = total + level
    return total
