"""The reference implementation of `cross`: plain torch, any device and dtype."""

from collections.abc import Callable

import torch
from torch import Tensor


def run(query: Tensor, key: Tensor, value: Tensor, watch: Callable[[Tensor], Tensor] | None) -> Tensor:
    height, width = query.shape[2:]
    itself = torch.eye(height, dtype=torch.bool, device=query.device).view(height, 1, height)
    column = torch.einsum("bchw,bcgw->bhwg", query, key).masked_fill(itself, -float("inf"))
    row = torch.einsum("bchw,bchv->bhwv", query, key)
    weights = torch.softmax(torch.cat([column, row], dim=-1), dim=-1)
    if watch is not None:
        weights = watch(weights)
    column, row = weights.to(value.dtype).split([height, width], dim=-1)
    return torch.einsum("bhwg,bcgw->bchw", column, value) + torch.einsum("bhwv,bchv->bchw", row, value)
