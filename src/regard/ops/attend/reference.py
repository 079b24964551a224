"""The reference implementation of `attend`: plain torch, any device, dtype and rank."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F


def run(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    bias: Tensor | None,
    watch: Callable[[Tensor], Tensor] | None,
) -> Tensor:
    # contiguous: what steps through memory gets no kernel that spares the weights
    q, k, v = (x.flatten(3).transpose(2, 3).contiguous() for x in (query, key, value))
    if watch is None:
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)
    else:
        logits = q @ k.transpose(2, 3) * scale
        weights = torch.softmax(logits if bias is None else logits + bias, dim=-1)
        sides = (*weights.shape[:2], *query.shape[3:], *key.shape[3:])
        y = watch(weights.reshape(sides)).reshape(weights.shape) @ v
    return y.transpose(2, 3).reshape(*value.shape[:3], *query.shape[3:])
