"""The reference implementation of `excite`: plain torch, any device and dtype."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import linear


def run(
    squeezed: Sequence[Tensor], down: Tensor, down_bias: Tensor | None, up: Tensor, up_bias: Tensor | None
) -> Tensor:
    if len(squeezed) == 1:
        return torch.sigmoid(linear(torch.relu(linear(squeezed[0], down, down_bias)), up, up_bias))
    stacked = torch.stack(tuple(squeezed), dim=1)
    return torch.sigmoid(linear(torch.relu(linear(stacked, down, down_bias)), up, up_bias).sum(1))
