"""The ops that carry the mechanisms. Each has a plain implementation that is the law; see `dispatch`."""

from collections.abc import Callable, Sequence

from torch import Tensor

from regard.ops.attending import reference as _attending
from regard.ops.crossing import reference as _crossing
from regard.ops.dispatch import Op, use_impl
from regard.ops.gating import reference as _gating
from regard.ops.squeezing import reference as _squeezing

__all__ = ["attend", "attending", "cross", "crossing", "gate", "gating", "squeeze", "squeezing", "use_impl"]

attending = Op("regard.ops.attending", _attending.run)
crossing = Op("regard.ops.crossing", _crossing.run)
squeezing = Op("regard.ops.squeezing", _squeezing.run)
gating = Op("regard.ops.gating", _gating.run)


def squeeze(
    x: Tensor, *dims: tuple[int, ...], kinds: Sequence[str] = ("avg",), gates: Sequence[Tensor] = ()
) -> tuple[Tensor, ...]:
    """Say what stands along some axes in one number of each kind, and pass the map on.

    Formula:   avg: mean(v);  sum: sum(v);  max: max(v);  var: mean((v - mean(v))^2);  lp: sqrt(sum(v^2));
               lse: log(sum(exp(v))), each over `dims`, of v = x * gates
    Shape:     x: (B, C, *spatial);  one result for each of `dims` and kind: the shape of x with 1 at every axis of
               `dims`
    Gradient:  among equal maxima the first in the order of the axes gets all of it; lp has gradient 0 where all values
               are 0
    Keeps:     reference: max, var, lp, lse: x and small tensors, and a map for each gate; cpu: x where a kind or a
               gate needs it, and small tensors
    Traffic:   reference: reads x once for each kind, and once more for each gate, which it writes; cpu: reads x once
    Impls:     reference, cpu
    Tolerance: float32 1e-5, bfloat16 2e-2, relative to the largest value

    The map comes back first, then the results, those of the first `dims` before those of the second. Work on with the
    map that comes back: a `gate` that follows then leaves its gradient to the squeeze, which writes the gradient of x
    once.

    Args:
        x: the map.
        dims: axes to squeeze, counted from 0 (the batch); ``(2, 3)`` leaves channels, ``(1,)`` leaves pixels. Several
            are answered from one reading.
        kinds: any of ``"avg"``, ``"sum"``, ``"max"``, ``"var"``, ``"lp"``, ``"lse"``.
        gates: tensors that broadcast to the map, which is squeezed as if it had been multiplied by them.
    """
    return squeezing(x, dims, tuple(kinds), tuple(gates))


def gate(x: Tensor, *gates: Tensor, mean: bool = False, shift: Tensor | None = None) -> Tensor:
    """Weigh a map by its gates.

    Formula:   y = x * g1 * g2 * ... + shift, or with `mean` x * (g1 + g2 + ...) / n + shift
    Shape:     x, y: (B, C, *spatial);  each gate, and the shift, broadcasts to x
    Gradient:  dx = dy * g1 * g2 ...;  dg = sum of dy * x * (the other gates) over the axes in which g has size 1
    Keeps:     reference: x, the gates, and for each gate but the last one map more; cpu: x and the gates
    Traffic:   reference: for each gate reads the map once and writes it once; cpu: reads x once and writes y once;
               backward reads x and dy, then dy, and writes dx
    Impls:     reference, cpu
    Tolerance: float32 1e-5, bfloat16 2e-2, relative to the largest value

    The result has the dtype and the memory layout of x, whatever the gates have.

    Args:
        x: the map.
        gates: tensors that broadcast to the map, e.g. (B, C, 1, 1) or (B, 1, H, W).
        mean: whether the map is weighed by the mean of its gates instead of their product.
        shift: a tensor that broadcasts to the map and is added to it at the end.
    """
    return gating(x, gates, mean, shift)


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
    Keeps:     query, key, value, y and one number for each query; the weights where they are watched, and without
               cpu where the CPU meets values that are not as wide as the queries
    Traffic:   linear in the positions; quadratic where the weights are kept
    Impls:     reference, cpu
    Tolerance: float32 1e-5, bfloat16 3e-2, relative to the largest value

    Args:
        query, key, value: maps with any number of axes after the third.
        scale: of the logits; 1 leaves them alone.
        bias: added to the logits, broadcasts to (B, heads, N of the queries, N of the keys); -inf hides a key.
        watch: sees the weights, and what it returns is applied: a `Tap` that is watched. Without it they are never
            built.
    """
    return attending(query, key, value, scale, bias, watch)


def cross(query: Tensor, key: Tensor, value: Tensor, *, watch: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """Weigh the values of a pixel's row and column by how well their keys answer its query.

    Formula:   w_ij = softmax_j(q_i . k_j);  y_i = sum_j w_ij v_j, over the pixels j in the row and column of i, each
               once
    Shape:     query, key: (B, M, H, W);  value, y: (B, C, H, W);  w: (B, H, W, H + W), the column before the row, where
               the pixel itself has 0 in the column
    Gradient:  of query, key and value
    Keeps:     cpu: query, key, value and y; reference: query, key, value and the weights, twice
    Traffic:   grows with (H + W) H W
    Impls:     reference, cpu
    Tolerance: float32 1e-5, bfloat16 3e-2, relative to the largest value

    Args:
        query, key, value: maps.
        watch: sees the weights, and what it returns is applied: a `Tap` that is watched.
    """
    return crossing(query, key, value, watch)
