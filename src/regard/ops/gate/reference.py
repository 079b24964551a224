"""The reference implementation of `gate`: plain torch, any device, dtype and rank."""

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor


def run(x: Tensor, gates: Sequence[Tensor], mean: bool = False, shift: Tensor | None = None) -> Tensor:
    # under autocast a gate comes in a narrower type; the map keeps its own
    gates = [gate.to(x.dtype) for gate in gates]
    y = x * (reduce(torch.add, gates) / len(gates)) if mean else reduce(torch.mul, gates, x)
    return y if shift is None else y + shift.to(x.dtype)
