"""`attend` a few queries at a time: for values wider or narrower than queries, which torch's own CPU kernel refuses.

The weights of one step are dropped at once and computed again on the way back.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.amp import custom_bwd, custom_fwd

STEP = 2**19  # weights of one head, which fit the cache


def why_not(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    bias: Tensor | None,
    watch: Callable[[Tensor], Tensor] | None,
) -> str | None:
    if query.device.type != "cpu":
        return f"needs tensors on the CPU, got {query.device}"
    if not query.dtype == key.dtype == value.dtype:
        return f"needs one dtype, got {query.dtype}, {key.dtype} and {value.dtype}"
    if watch is not None:
        return "the weights are watched"
    if bias is not None:
        return "takes no bias"
    if query.shape[2] == value.shape[2]:
        return "queries and values are equally wide, and torch's own kernel is as good"
    return None


def run(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    bias: Tensor | None,
    watch: Callable[[Tensor], Tensor] | None,
) -> Tensor:
    y = Attend.apply(query.flatten(3) * scale, key.flatten(3), value.flatten(3))
    return y.reshape(*value.shape[:3], *query.shape[3:])


class Attend(torch.autograd.Function):
    """query: (B, heads, D, queries);  key: (B, heads, D, keys);  value: (B, heads, E, keys)"""

    @staticmethod
    @custom_fwd(device_type="cpu")
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        ctx.save_for_backward(query, key, value)
        return torch.cat([value @ _weigh(q, key).mT for q in _steps(query, key)], dim=3)

    @staticmethod
    @custom_bwd(device_type="cpu")
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value = ctx.saved_tensors
        dqueries, dkey, dvalue = [], torch.zeros_like(key), torch.zeros_like(value)
        for q, g in zip(_steps(query, key), _steps(dy, key), strict=True):
            weights = _weigh(q, key)
            # from the weights' own gradients: where one weight is 1 this is exactly 0, however large the logits are
            dlogits = torch._softmax_backward_data(g.mT @ value, weights, -1, weights.dtype)
            dvalue = dvalue + g @ weights
            dqueries.append(key @ dlogits.mT)
            dkey = dkey + q @ dlogits
        return torch.cat(dqueries, dim=3), dkey, dvalue


def _steps(x: Tensor, key: Tensor) -> tuple[Tensor, ...]:
    """A map of the queries, some of them at a time."""
    return x.split(max(1, STEP // key.shape[3]), dim=3)


def _weigh(query: Tensor, key: Tensor) -> Tensor:
    """(B, heads, queries, keys)"""
    return torch.softmax(query.mT @ key, dim=-1)
