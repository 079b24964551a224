"""`cross` as matrix products of whole lines; what the backward pass needs besides its inputs it computes again.

A map is cut into its rows, and turned on its side into its columns, so that every copy runs along memory.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.amp import custom_bwd, custom_fwd


def why_not(query: Tensor, key: Tensor, value: Tensor, watch: Callable[[Tensor], Tensor] | None) -> str | None:
    if query.device.type != "cpu":
        return f"needs tensors on the CPU, got {query.device}"
    if not query.dtype == key.dtype == value.dtype:
        return f"needs one dtype, got {query.dtype}, {key.dtype} and {value.dtype}"
    if not query.numel():
        return "needs pixels"
    return None if watch is None else "the weights are watched"


def run(query: Tensor, key: Tensor, value: Tensor, watch: Callable[[Tensor], Tensor] | None) -> Tensor:
    return Cross.apply(query, key, value)


class Cross(torch.autograd.Function):
    """query, key: (B, M, H, W);  value: (B, C, H, W)"""

    @staticmethod
    @custom_fwd(device_type="cpu")
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        ctx.save_for_backward(query, key, value)
        return _collect(_weigh(query, key), value)

    @staticmethod
    @custom_bwd(device_type="cpu")
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value = ctx.saved_tensors
        weights = _weigh(query, key)
        # from the weights' own gradients: where one weight is 1 this is exactly 0, however large the logits are
        dlogits = torch._softmax_backward_data(_match(dy, value), weights, -1, weights.dtype)
        return _collect(dlogits, key), _spread(dlogits, query), _spread(weights, dy)


def _weigh(query: Tensor, key: Tensor) -> Tensor:
    """(B, H, W, H + W): a pixel's weights over its column, itself left out, then over its row."""
    logits = _match(query, key)
    logits[..., : query.shape[2]].diagonal(dim1=1, dim2=3).fill_(-float("inf"))
    return torch.softmax(logits, dim=-1)


def _match(a: Tensor, b: Tensor) -> Tensor:
    """Inner products of every pixel of one map with the column, then the row, of another: (B, H, W, H + W)."""
    columns, rows = _lines(a.mT).mT @ _lines(b.mT), _lines(a).mT @ _lines(b)
    return torch.cat([_map(columns, len(a)), rows.unflatten(0, (len(a), -1))], dim=-1)


def _collect(weights: Tensor, x: Tensor) -> Tensor:
    """What every pixel gets from its column and row."""
    columns, rows = _cut(weights)
    return _map(_lines(x.mT) @ columns.mT, len(x)).mT + _map(_lines(x) @ rows.mT, len(x))


def _spread(weights: Tensor, x: Tensor) -> Tensor:
    """What every pixel gives to its column and row, summed where it arrives."""
    columns, rows = _cut(weights)
    return _map(_lines(x.mT) @ columns, len(x)).mT + _map(_lines(x) @ rows, len(x))


def _cut(weights: Tensor) -> tuple[Tensor, Tensor]:
    """(B, H, W, H + W) to (B * W, H, H) of the columns and (B * H, W, W) of the rows."""
    height = weights.shape[1]
    return _lines(weights[..., :height]), weights[..., height:].flatten(0, 1)


def _lines(x: Tensor) -> Tensor:
    """(B, C, H, W) to (B * H, C, W)"""
    return x.transpose(1, 2).flatten(0, 1)


def _map(lines: Tensor, batch: int) -> Tensor:
    """(B * H, C, W) to (B, C, H, W)"""
    return lines.unflatten(0, (batch, -1)).transpose(1, 2)
