"""The reference implementation of `selfgate`: plain torch, any device, dtype and rank."""

from collections.abc import Callable
from math import prod

import torch
from torch import Tensor
from torch.nn import functional as F

from regard.layers.norm import wide


def run(
    x: Tensor,
    slope: Tensor | None,
    level: Tensor | None,
    bias: Tensor | None,
    strength: Tensor | None,
    fades: bool,
    energy: float | None,
    epsilon: float,
    shuffle: bool,
    watch: Callable[[Tensor], Tensor] | None,
) -> Tensor:
    axes, channels = tuple(range(2, x.dim())), x.shape[1]
    narrow, x = x.dtype, wide(x)

    def each(parameter: Tensor) -> Tensor:
        """One number for each channel."""
        return parameter.repeat(channels // len(parameter)).view(-1, *[1] * len(axes))

    terms = []
    if energy is not None:
        d = (x - x.mean(axes, keepdim=True)).square()
        variance = d.sum(axes, keepdim=True) / max(prod(x.shape[2:]) - 1, 1)
        terms.append(d / (4 * (variance + energy)) + 0.5)
    if slope is not None:
        # not the function of `functional`, which refuses a single value
        terms.append(each(slope) * torch.group_norm(x, channels, eps=epsilon))
    if level is not None:
        terms.append(each(level) * x.mean(axes, keepdim=True))
    if bias is not None:
        terms.append(each(bias))
    gate = torch.sigmoid(sum(terms[1:], terms[0])).expand_as(x)
    if watch is not None:
        gate = watch(gate)
    elif strength is not None:
        moved = strength.to(gate.dtype)
        gate = 1 + moved * (gate - 1) if fades else moved * gate
    y = (x * gate).to(narrow)
    return F.channel_shuffle(y, 2) if shuffle else y
