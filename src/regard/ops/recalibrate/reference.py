"""The reference implementation of `recalibrate`: plain torch, any device, dtype and rank."""

import torch
from torch import Tensor
from torch.nn.functional import conv1d, linear


def run(
    x: Tensor,
    kernel: Tensor | None,
    down: Tensor | None,
    down_bias: Tensor | None,
    up: Tensor | None,
    up_bias: Tensor | None,
    strength: Tensor | None,
    fades: bool,
) -> Tensor:
    s = x.mean(tuple(range(2, x.dim())))
    if kernel is not None:
        gate = torch.sigmoid(conv1d(s.unsqueeze(1), kernel, padding=kernel.shape[-1] // 2)).squeeze(1)
    else:
        assert down is not None
        assert up is not None
        gate = torch.sigmoid(linear(torch.relu(linear(s, down, down_bias)), up, up_bias))
    if strength is not None:
        moved = strength.to(gate.dtype)
        gate = 1 + moved * (gate - 1) if fades else moved * gate
    return x * gate.to(x.dtype).view(*gate.shape, *[1] * (x.dim() - 2))
