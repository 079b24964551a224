"""What a module does, in a few words."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from diagram.labels import pooled
from diagram.letters import Letters, by


def layer(module: nn.Module, x: Tensor, result: Tensor, letters: Letters) -> str:
    """The label of a module that is drawn as one box.

    Args:
        module: any.
        x, result: the first tensors of its call.
        letters: the names of lengths.
    """
    kind = re.sub(r"[123]d$", "", type(module).__name__)
    room = type(module).__module__.removeprefix("torch.nn.modules.")
    for family, rule in FAMILIES:
        if isinstance(module, family):
            return rule(module)
    if isinstance(module, nn.Softmax) and module.dim is not None:
        return letters.over("softmax", x, [module.dim])
    if room == "pooling":
        return pooled(kind, x, result, getattr(module, "kernel_size", None), letters)
    if room == "activation" and not module._modules:
        return kind.lower()
    if not type(module).__module__.startswith(("torch.nn", "regard.layers.norm")):
        return type(module).__name__
    words = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z0-9]+", kind)
    return " ".join(word if word.isupper() else word.lower() for word in words)


def _linear(module: Any) -> str:
    return f"{type(module).__name__} {module.in_features} → {module.out_features}"


def _convolution(module: Any) -> str:
    kind = "Conv" if isinstance(module, nn.Conv2d) else type(module).__name__
    words = [f"{kind} {by(module.kernel_size)}, {module.in_channels} → {module.out_channels}"]
    words += [f"{what} {by(n)}" for what in ("stride", "dilation") if set(n := getattr(module, what)) != {1}]
    if module.groups > 1:
        words.append("depthwise" if module.groups == module.in_channels else f"{module.groups} groups")
    return ", ".join(words)


def _group_norm(module: Any) -> str:
    return f"group norm, {module.num_groups} groups"


FAMILIES: list[tuple[type[nn.Module], Callable[[Any], str]]] = [
    (nn.Linear, _linear),
    (_ConvNd, _convolution),
    (nn.GroupNorm, _group_norm),
]
