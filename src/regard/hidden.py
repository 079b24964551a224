"""Hidden layers of gates: how many units they have, and a start that leaves none of them shut."""

from __future__ import annotations

import torch
from torch import nn

from regard.norm import LayerNorm

FEW = 4  # hidden units say little
NARROW = 16  # of so many random units all are shut in one start of 65,536


def width(layer: nn.Module) -> int:
    """Units of a hidden layer, or of the norm behind it."""
    weight = layer.weight
    assert isinstance(weight, nn.Parameter)
    return len(weight)


@torch.no_grad()
def open_up(layer: nn.Module) -> None:
    """Let the units of a narrow hidden layer start open: behind a ReLU a random one may be shut for every image, and
    where all are, the gate is a constant that never learns. A wide layer stays as its authors start it.

    As in LoRA one of two factors starts at 0: the weights of the layer, with biases of 1, so that it is open whatever
    comes in. Without biases there is no such start: then the weights of every other unit are from 0 up, and those of
    the next the same below 0. A norm keeps its weights and has biases of 2, as its results lie around 0; but of one
    value a layer norm leaves 0, and of two their order, so that such a one is told to scale and shift alone.
    """
    if width(layer) >= NARROW:
        return
    weight, bias = layer.weight, layer.bias
    assert isinstance(weight, nn.Parameter)
    if isinstance(layer, LayerNorm):
        layer.plain = width(layer) < 3
    if bias is None:
        weight.abs_()
        weight[1::2] = -weight[: len(weight) // 2 * 2 : 2]
    elif weight.dim() > 1 or getattr(layer, "plain", False):
        weight.zero_()
        bias.fill_(1.0)  # type: ignore[operator]
    else:
        bias.fill_(2.0)  # type: ignore[operator]
