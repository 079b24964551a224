"""The reference implementation of `agree`: plain torch, any device, dtype and rank."""

from collections.abc import Callable
from math import prod

import torch
from torch import Tensor


def run(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    strength: Tensor | None,
    fades: bool,
    unbiased: bool,
    epsilon: float,
    watch: Callable[[Tensor], Tensor] | None,
) -> Tensor:
    grouped = x.unflatten(1, (len(weight), -1))
    axes = tuple(range(3, grouped.dim()))
    t = (grouped * grouped.mean(axes, keepdim=True)).sum(2)
    axes = tuple(range(2, t.dim()))
    correction = int(unbiased and prod(t.shape[2:]) > 1)
    t = (t - t.mean(axes, keepdim=True)) / (t.std(axes, correction=correction, keepdim=True) + epsilon)
    weight, bias = (parameter.view(-1, *[1] * len(axes)) for parameter in (weight, bias))
    mask = torch.sigmoid(weight * t + bias)
    if watch is not None:
        mask = watch(mask)
    elif strength is not None:
        moved = strength.to(mask.dtype)
        mask = 1 + moved * (mask - 1) if fades else moved * mask
    return (grouped * mask.to(x.dtype).unsqueeze(2)).flatten(1, 2)
