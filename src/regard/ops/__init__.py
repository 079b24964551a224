"""The ops that carry the mechanisms. Each has a plain implementation that is the law; see `dispatch`."""

from torch import Tensor

from regard.ops.dispatch import Op, use_impl
from regard.ops.gating import reference as _gating
from regard.ops.squeezing import reference as _squeezing

__all__ = ["gate", "gating", "squeeze", "squeezing", "use_impl"]

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
