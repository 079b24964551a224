"""The ops that carry the mechanisms. Each has a plain implementation that is the law; see `dispatch`."""

from collections.abc import Callable

from torch import Tensor

from regard.ops.attending import reference as _attending
from regard.ops.dispatch import Op, use_impl
from regard.ops.gating import reference as _gating
from regard.ops.squeezing import reference as _squeezing

__all__ = ["attend", "attending", "gate", "gating", "squeeze", "squeezing", "use_impl"]

attending = Op("regard.ops.attending", _attending.run)
squeezing = Op("regard.ops.squeezing", _squeezing.run)
gating = Op("regard.ops.gating", _gating.run)


def squeeze(x: Tensor, dims: tuple[int, ...], kinds: tuple[str, ...] = ("avg",)) -> tuple[Tensor, ...]:
    """Say what stands along some axes in one number of each kind.

    Formula:   avg: mean(x);  max: max(x);  lp: sqrt(sum(x^2));  lse: log(sum(exp(x))), each over `dims`
    Shape:     x: (B, C, *spatial);  one result for each kind: the shape of x with 1 at every axis of `dims`
    Gradient:  among equal maxima the first in memory order gets all of it; lp has gradient 0 where all values are 0
    Keeps:     avg: nothing; max: where the maximum was; lp, lse: x and the result
    Traffic:   reads x once for each kind
    Impls:     reference
    Tolerance: float32 1e-5, bfloat16 2e-2, relative to the largest value

    Args:
        x: the map.
        dims: axes to squeeze, counted from 0 (the batch); ``(2, 3)`` leaves channels, ``(1,)`` leaves pixels.
        kinds: any of ``"avg"``, ``"max"``, ``"lp"``, ``"lse"``.
    """
    return squeezing(x, dims, kinds)


def gate(x: Tensor, *gates: Tensor) -> Tensor:
    """Weigh a map by one or more gates.

    Formula:   y = x * g1 * g2 * ...
    Shape:     x, y: (B, C, *spatial);  each gate broadcasts to x
    Gradient:  dx = dy * g1 * g2 ...;  dg = sum of dy * x * (the other gates) over the axes in which g has size 1
    Keeps:     x, the gates, and for each gate but the last one map more
    Traffic:   for each gate: reads the map once, writes it once
    Impls:     reference
    Tolerance: float32 1e-6, bfloat16 1e-2, relative to the largest value

    The result has the dtype and the memory layout of x, whatever the gates have.

    Args:
        x: the map.
        gates: tensors that broadcast to the map, e.g. (B, C, 1, 1) or (B, 1, H, W).
    """
    return gating(x, *gates)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scale: float = 1.0,
    bias: Tensor | None = None,
    watch: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Weigh values by how well their keys answer a query: softmax attention between positions, channels first.

    Formula:   w_ij = softmax_j(scale * q_i . k_j + bias_ij);  y_i = sum_j w_ij v_j
    Shape:     query: (B, heads, D, *queries);  key: (B, heads, D, *keys);  value: (B, heads, E, *keys);
               y: (B, heads, E, *queries);  w: (B, heads, *queries, *keys)
    Gradient:  of query, key, value and bias
    Keeps:     query, key, value, y and one number for each query; the weights only where they are watched
    Traffic:   linear in the positions; quadratic where the weights are watched
    Impls:     reference
    Tolerance: float32 1e-5, bfloat16 3e-2, relative to the largest value

    Args:
        query, key, value: maps with any number of axes after the third.
        scale: of the logits; 1 leaves them alone.
        bias: added to the logits, broadcasts to (B, heads, N of the queries, N of the keys); -inf hides a key.
        watch: sees the weights, and what it returns is applied: a `Tap` that is watched. Without it they are never
            built.
    """
    return attending(query, key, value, scale, bias, watch)
