"""The law of `gate`: plain torch, any device, dtype and rank."""

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor


def run(
    x: Tensor,
    gates: Sequence[Tensor],
    mean: bool = False,
    shift: Tensor | None = None,
    add: Tensor | None = None,
    relu: bool = False,
    inplace: bool = False,
) -> Tensor:
    # under autocast a gate comes in a narrower type; the map keeps its own
    gates = [gate.to(x.dtype) for gate in gates]
    y = x * (reduce(torch.add, gates) / len(gates)) if mean else reduce(torch.mul, gates, x)
    y = y if shift is None else y + shift.to(x.dtype)
    y = y if add is None else y + add.to(x.dtype)
    y = torch.relu(y) if relu else y
    return x.copy_(y) if inplace else y
