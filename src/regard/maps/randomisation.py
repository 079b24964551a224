"""Cascading weight randomisation, the sanity check of Adebayo et al. 2018 (arXiv 1810.03292): a map that hardly changes
when the network's weights are randomised shows the picture, not what was learnt."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from regard.maps.meaning import rank_correlation
from regard.maps.saliency import evidence, explain
from regard.maps.targets import Target
from regard.networks.randomness import same_randomness
from regard.networks.replica import borrowed, call


def randomised(model: nn.Module, example: Any, *, seed: int = 0) -> Iterator[tuple[str, nn.Module]]:
    """Copies of a network whose weights are randomised layer by layer, from the output to the input.

    Args:
        model: any network.
        example: what it is called with, to know the order of the layers.
        seed: of the weights.

    Yields:
        The layer that was randomised last, and one copy for all, which goes on being changed.
    """
    copy = deepcopy(model)
    modules = dict(copy.named_modules())
    order: list[str] = []
    with torch.no_grad(), borrowed(copy) as replica:
        for name, module in replica.named_modules():
            if can_be_randomised(module):
                module.register_forward_hook(lambda *_, name=name: order.append(name))
        call(replica, example)
    unseen = [name for name in modules if can_be_randomised(modules[name]) and name not in order]
    with same_randomness():
        torch.manual_seed(seed)
        for name in (*dict.fromkeys(reversed(order)), *unseen):  # ops may read a layer's weights without calling it
            with torch.no_grad():
                _randomise(modules[name])
            yield name, copy


def can_be_randomised(module: nn.Module) -> bool:
    """Whether a module has weights, or numbers that were measured, of its own."""
    return hasattr(module, "reset_parameters") or next(_own(module), None) is not None


def _own(module: nn.Module) -> Iterator[Tensor]:
    kept = (tensor for name, tensor in module._buffers.items() if name not in module._non_persistent_buffers_set)
    for tensor in (*module._parameters.values(), *kept):
        if tensor is not None and tensor.is_floating_point() and tensor.numel() and bool(tensor.isfinite().all()):
            yield tensor


def _randomise(module: Any) -> None:
    """As the module starts, where it can; what does not start by itself, from its own mean and deviation."""
    if hasattr(module, "reset_parameters"):
        module.reset_parameters()
        return
    for tensor in _own(module):
        mean, deviation = tensor.float().mean(), tensor.float().std(correction=0)
        if deviation == 0:  # such as a gate's one number
            deviation = 0.1 * mean.abs() if mean else torch.ones_like(mean)
        tensor.copy_(torch.randn(tensor.shape, device=tensor.device) * deviation + mean)


def randomisation_curve(
    model: nn.Module, images: Tensor, target: Target = None, *, layer: str = "auto", **options: Any
) -> Mapping[str, float]:
    """How like `explain`'s map the map stays while the network's weights are randomised layer by layer.

    Args:
        model, images, target, layer, options: as in `regard.explain`.

    Returns:
        Median rank correlation with the map of the trained network, by the layer that was randomised last.
    """
    trained = explain(model, images, target, layer=layer, **options)
    classes = trained.classes if target is None else target
    curve = {}
    for name, copy in randomised(model, images[:1]):
        maps = evidence(copy, images, classes, layer=trained.name, **options).value
        curve[name] = rank_correlation(trained.value, maps)
    return curve
