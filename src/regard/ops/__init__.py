"""The ops that carry the mechanisms. Each has a reference implementation in plain torch; see `dispatch`."""

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from regard.base.errors import UserError
from regard.layers.conv import Pointwise
from regard.layers.tap import Constant, Tap, hooked
from regard.ops.agree import reference as agree_reference
from regard.ops.attend import reference as attend_reference
from regard.ops.convolve import reference as convolve_reference
from regard.ops.cross import reference as cross_reference
from regard.ops.dispatch import Op, use_impl
from regard.ops.excite import reference as excite_reference
from regard.ops.gate import reference as gate_reference
from regard.ops.recalibrate import reference as recalibrate_reference
from regard.ops.selfgate import reference as selfgate_reference
from regard.ops.squeeze import reference as squeeze_reference

__all__ = [
    "Joint",
    "agree",
    "attend",
    "convolve",
    "cross",
    "excite",
    "gate",
    "recalibrate",
    "selfgate",
    "squeeze",
    "use_impl",
]

PLAIN = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.GroupNorm, Pointwise)  # layers whose weights ops may read

_agree = Op("regard.ops.agree", agree_reference.run)
_attend = Op("regard.ops.attend", attend_reference.run)
_convolve = Op("regard.ops.convolve", convolve_reference.run)
_cross = Op("regard.ops.cross", cross_reference.run)
_excite = Op("regard.ops.excite", excite_reference.run)
_recalibrate = Op("regard.ops.recalibrate", recalibrate_reference.run)
_selfgate = Op("regard.ops.selfgate", selfgate_reference.run)
_squeeze = Op("regard.ops.squeeze", squeeze_reference.run)
_gate = Op("regard.ops.gate", gate_reference.run)

OPS = {op.name: op for op in (_agree, _attend, _convolve, _cross, _excite, _gate, _recalibrate, _selfgate, _squeeze)}
"""Every op by the name of its public function, which is also that of its folder."""


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
    Keeps:     reference: max, var, lp, lse: x and small tensors, and a map for each gate; cpu, triton: x where a kind
               or a gate needs it, and small tensors
    Traffic:   reference: reads x once for each kind, and once more for each gate, which it writes; cpu, triton: reads
               x once
    Impls:     reference, cpu, triton
    Tolerance: float32 1e-5, bfloat16 2e-2, float16 4e-3, relative to the largest value

    The map comes back first, itself, then the results, those of the first `dims` before those of the second. What is
    squeezed and then weighed is better a `Joint`, which writes the gradient of the map once.

    Args:
        x: the map.
        dims: axes to squeeze, counted from 0 (the batch); ``(2, 3)`` leaves channels, ``(1,)`` leaves pixels. Several
            are answered from one reading.
        kinds: any of ``"avg"``, ``"sum"``, ``"max"``, ``"var"``, ``"lp"``, ``"lse"``.
        gates: tensors that broadcast to the map, which is squeezed as if it had been multiplied by them.
    """
    return x, *_squeeze(x, dims, tuple(kinds), tuple(gates))[1:]


def gate(x: Tensor, *gates: Tensor, mean: bool = False, shift: Tensor | None = None) -> Tensor:
    """Weigh a map by its gates.

    Formula:   y = x * g1 * g2 * ... + shift, or with `mean` x * (g1 + g2 + ...) / n + shift
    Shape:     x, y: (B, C, *spatial);  each gate, and the shift, broadcasts to x
    Gradient:  dx = dy * g1 * g2 ...;  dg = sum of dy * x * (the other gates) over the axes in which g has size 1
    Keeps:     reference: x, the gates, and for each gate but the last one map more; cpu, triton: x and the gates
    Traffic:   reference: for each gate reads the map once and writes it once; cpu, triton: reads x once and writes y
               once; backward reads x and dy, then dy, and writes dx
    Impls:     reference, cpu, triton
    Tolerance: float32 1e-5, bfloat16 2e-2, float16 4e-3, relative to the largest value

    The result has the dtype and the memory layout of x, whatever the gates have.

    Args:
        x: the map.
        gates: tensors that broadcast to the map, e.g. (B, C, 1, 1) or (B, 1, H, W).
        mean: whether the map is weighed by the mean of its gates instead of their product.
        shift: a tensor that broadcasts to the map and is added to it at the end.
    """
    return _gate(x, gates, mean, shift)


class Joint:
    """A map that is squeezed, once or several times, and then weighed: its gradient is written once.

    The results and gradients are those of `squeeze` and `gate`. But the gate leaves its part of the map's gradient to
    the squeeze, which writes the sum in one pass, so that between the two the map has no gradient of its own that a
    hook could see or `autograd.grad` be asked for: it stays in here.

    Args:
        x: the map.

    Example:
        >>> import torch
        >>> from regard import ops
        >>> joint = ops.Joint(torch.randn(2, 8, 5, 7))
        >>> (mean,) = joint.squeeze((2, 3))
        >>> joint.gate(torch.sigmoid(mean)).shape
        torch.Size([2, 8, 5, 7])
    """

    def __init__(self, x: Tensor) -> None:
        self._x = x

    def squeeze(
        self, *dims: tuple[int, ...], kinds: Sequence[str] = ("avg",), gates: Sequence[Tensor] = ()
    ) -> tuple[Tensor, ...]:
        """The results of `squeeze`, without the map."""
        self._x, *results = _squeeze(self._x, dims, tuple(kinds), tuple(gates))
        return tuple(results)

    def gate(self, *gates: Tensor, mean: bool = False, shift: Tensor | None = None) -> Tensor:
        """The result of `gate`."""
        return _gate(self._x, gates, mean, shift)


def plain(layer: nn.Module) -> bool:
    """Whether a layer does nothing but what its class does, so that an op may read its weights instead of calling it.

    Hooks, pruning, parametrisations, adapters, quantisation and what loads weights for each call make the difference.
    """
    return type(layer) in PLAIN and not hooked(layer)


def recalibrate(
    x: Tensor,
    tap: Tap,
    *,
    down: nn.Linear | None = None,
    up: nn.Linear | None = None,
    conv: nn.Module | None = None,
) -> Tensor:
    """Weigh every channel of a map by what a few weights make of the channels' means.

    Formula:   s = mean(x) over the pixels;  g = sigmoid(W2 relu(W1 s + b1) + b2), or sigmoid(kernel * s), a
               convolution along the channels with zeros beyond the border;  y = x * g
    Shape:     x, y: (B, C, *spatial);  s, g: (B, C);  W1: (C / r, C);  W2: (C, C / r);  kernel: (1, 1, odd)
    Gradient:  of x, weights and biases, and of the tap's strength
    Keeps:     x and small tensors
    Traffic:   reads x twice and writes y; backward reads x and dy, then dy, and writes dx
    Impls:     reference, cpu
    Tolerance: float32 1e-5, bfloat16 5e-2, float16 1e-2, relative to the largest value

    The same as a `Joint` that is squeezed, a gate made of the means by `excite` or `convolve`, and the map weighed by
    it, in one call; where the tap is watched, on other devices, and where layers are not `plain`, it is just that.

    Args:
        x: the map.
        tap: shows the gate, (B, C, 1, ...), and fades it in.
        down, up: the layers of a small network that sees all channels, or
        conv: an `nn.Conv1d` along them, of one kernel as wide as wanted.
    """
    if (conv is None) == (down is None or up is None):
        raise UserError("recalibrate: give down and up, or conv")
    if x.is_cpu and not tap.watched and all(layer is None or plain(layer) for layer in (down, up, conv)):
        if conv is not None:
            return _recalibrate(x, conv.weight, None, None, None, None, *tap.applied)
        assert down is not None
        assert up is not None
        return _recalibrate(x, None, down.weight, down.bias, up.weight, up.bias, *tap.applied)
    joint = Joint(x)
    (s,) = joint.squeeze(tuple(range(2, x.dim())))
    if conv is not None:
        gate = torch.sigmoid(convolve(s.flatten(1).unsqueeze(1), conv))
    else:
        assert down is not None
        assert up is not None
        gate = excite(s.flatten(1), down=down, up=up)
    return joint.gate(tap(gate.view(s.shape)))


def selfgate(
    x: Tensor,
    tap: Tap,
    *,
    slope: Tensor | None = None,
    level: Tensor | None = None,
    bias: Tensor | None = None,
    energy: float | None = None,
    epsilon: float = 1e-5,
    shuffle: bool = False,
) -> Tensor:
    """Weigh every number of a map by how it stands to its channel's mean.

    Formula:   d = x - mean(x);  y = x * sigmoid(u), where u is the sum of what is asked for:
               slope * d / sqrt(mean(d^2) + epsilon);  level * mean(x);  bias;
               d^2 / (4 (sum(d^2) / (n - 1) + energy)) + 1/2;  means and sums over the n pixels of a channel
    Shape:     x, y: (B, C, *spatial);  slope, level, bias: (C,), or shorter and repeated along the channels
    Gradient:  of x, slope, level, bias, and of the tap's strength
    Keeps:     reference: x and five maps or more; cpu: x and two numbers for each channel
    Traffic:   reference: reads and writes the map for every step; cpu: reads x once and writes y, backward reads x and
               dy once and writes dx, where a channel (channels last: an image) fits the caches
    Impls:     reference, cpu
    Tolerance: float32 1e-5, bfloat16 3e-2, relative to the largest value

    A map of one pixel has d = 0, and n - 1 is at least 1.

    Args:
        x: the map.
        tap: shows the gate, (B, C, *spatial), and fades it in.
        slope: of the standardised values.
        level: of the channel's mean.
        bias: of every number.
        energy: above 0, added to the variance; None leaves the term out.
        epsilon: added to the variance that `slope` is divided by.
        shuffle: whether the two halves of the channels take turns in y: 0, C/2, 1, C/2 + 1, ...
    """
    watch = tap if tap.watched else None
    return _selfgate(x, slope, level, bias, *tap.applied, energy, epsilon, shuffle, watch)


def excite(*squeezed: Tensor, down: nn.Linear, up: nn.Linear) -> Tensor:
    """Turn what was squeezed into a gate, by a small network that sees all channels.

    Formula:   g = sigmoid(sum over the inputs s of W2 relu(W1 s + b1) + b2)
    Shape:     s, g: (B, C);  W1: (C / r, C);  W2: (C, C / r)
    Gradient:  of the inputs, weights and biases
    Keeps:     small tensors
    Traffic:   cpu: reads each weight once
    Impls:     reference, cpu
    Tolerance: float32 1e-5, bfloat16 3e-2, float16 4e-3, relative to the largest value

    Layers that are not `plain` are called as they are.

    Args:
        squeezed: one or more, such as averages and maxima.
        down, up: the layers.
    """
    if plain(down) and plain(up):
        return _excite(squeezed, down.weight, down.bias, up.weight, up.bias)
    if len(squeezed) == 1:
        return torch.sigmoid(up(torch.relu(down(squeezed[0]))))
    return torch.sigmoid(up(torch.relu(down(torch.stack(squeezed, dim=1)))).sum(1))


def agree(x: Tensor, weight: Tensor, bias: Tensor, tap: Tap, *, unbiased: bool = True, epsilon: float = 1e-5) -> Tensor:
    """Weigh the pixels of each group of channels by how well they agree with the group's average.

    Formula:   t = sum_c x_c mean(x_c) over a group's channels;  s = (t - mean(t)) / (std(t) + epsilon);
               y = x * sigmoid(weight * s + bias);  means and deviations over the pixels
    Shape:     x, y: (B, C, *spatial);  t, s: (B, G, *spatial);  weight, bias: (G,)
    Gradient:  of x, weight, bias, and of the tap's strength; std has gradient 0 where it is 0
    Keeps:     reference: x and one map more, and maps of one number for each group; cpu: x, and one number for each
               channel
    Traffic:   reference: reads x three times and writes two maps; cpu: reads x once and writes y, backward reads x and
               dy once and writes dx, where a group (channels last: an image) fits the caches
    Impls:     reference, cpu
    Tolerance: float32 2e-5, bfloat16 5e-2, relative to the largest value

    Args:
        x: the map.
        weight, bias: one for each group; their number says how many groups there are.
        tap: shows the gate, (B, G, *spatial), and fades it in.
        unbiased: whether the variance divides by one less than the pixels, where there are two.
        epsilon: added to the standard deviation.
    """
    return _agree(x, weight, bias, *tap.applied, unbiased, epsilon, tap if tap.watched else None)


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
    if isinstance(watch, Constant) and watch.value is None:  # without building the weights
        query, key, scale, watch = query.detach(), key.detach(), 0.0, None
    if isinstance(watch, Tap) and watch.queries is not None:
        with torch.no_grad():
            watch(_views(query, key, scale, bias, watch.queries))
        watch = None
    return _attend(query, key, value, scale, bias, watch)


def _views(
    query: Tensor, key: Tensor, scale: float, bias: Tensor | None, places: Sequence[int | tuple[float, float]]
) -> Tensor:
    """The weights of a few queries: (B, heads, Q, *keys)."""
    sides = query.shape[3:]
    numbers = []
    for place in places:
        number = 0
        for at, side in zip((place,) if isinstance(place, int) else place, sides, strict=False):
            number = number * side + min(side - 1, int(at * side))
        numbers.append(place if isinstance(place, int) else number)
    logits = query.flatten(3)[..., numbers].transpose(2, 3) @ key.flatten(3) * scale
    if bias is not None:
        logits = logits + (bias[..., numbers, :] if bias.shape[-2] > 1 else bias)
    return logits.softmax(-1).unflatten(3, key.shape[3:])


def cross(query: Tensor, key: Tensor, value: Tensor, *, watch: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """Weigh the values of a pixel's row and column by how well their keys answer its query.

    Formula:   w_ij = softmax_j(q_i . k_j);  y_i = sum_j w_ij v_j, over the pixels j in the row and column of i, each
               once
    Shape:     query, key: (B, M, H, W);  value, y: (B, C, H, W);  w: (B, H, W, H + W), the column before the row, where
               the pixel itself has 0 in the column
    Gradient:  of query, key and value
    Keeps:     cpu: query, key and value; reference: query, key, value and the weights, twice
    Traffic:   grows with (H + W) H W
    Impls:     reference, cpu
    Tolerance: float32 1e-5, bfloat16 3e-2, relative to the largest value

    Args:
        query, key, value: maps.
        watch: sees the weights, and what it returns is applied: a `Tap` that is watched.
    """
    return _cross(query, key, value, watch)


def convolve(x: Tensor, conv: nn.Module) -> Tensor:
    """Look at a few maps through one wide kernel: a convolution with one result, as large as the maps.

    Formula:   y = sum over channels and offsets of weight * x, with zeros beyond the border
    Shape:     x: (B, I, *spatial);  weight: (1, I, *odd sides);  y: (B, 1, *spatial)
    Gradient:  of x and weight
    Keeps:     x and weight
    Traffic:   reads x once and writes y
    Impls:     reference, cpu
    Tolerance: float32 1e-5, bfloat16 2e-2, relative to the largest value

    A mask is drawn by such a kernel from two maps; torch's convolution, made for many channels, takes several times as
    long for it as everything else that the gate does.

    A layer that is not `plain` is called as it is.

    Args:
        x: the maps.
        conv: `nn.Conv1d`, `nn.Conv2d` or `nn.Conv3d` with these weights, no bias, and a padding that keeps the sides.
    """
    return _convolve(x, cast(Tensor, conv.weight)) if plain(conv) else cast(Tensor, conv(x))
