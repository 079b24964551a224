"""A batch norm in front of a gate that is never written: x * scale + shift, joined with the gate's own pass.

In evaluation mode the average of a normalised channel is the normalised average, and a gate of one number per channel
times the norm's scale is another such gate. So a norm that was made `Lazy` gives a `Normed` tensor, its result not
computed yet: a squeeze to averages and a gate read its input instead, and anything else has it computed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from ctypes import Structure, addressof, c_double, c_int64, c_void_p
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from regard.ops.dispatch import LOOKS, look, undisturbed
from regard.ops.ending import ASKS
from regard.ops.kernels import cpu
from regard.ops.kernels.library import function, missing
from regard.ops.kernels.plan import Cannot

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class _Fold(Structure):
    _fields_ = [("channels", c_int64), ("batch", c_int64), ("epsilon", c_double)]
    _fields_ += [(name, c_void_p) for name in ("mean", "variance", "weight", "bias", "scale", "average")]


_Pointers = c_void_p * 6


class Lazy:
    """Stands in for the forward of one batch norm.

    Args:
        norm: see `cannot_fold`.
    """

    def __init__(self, norm: Any) -> None:
        self.norm = norm
        self.settled = False  # whether anybody looked at a result

    def __call__(self, x: Tensor) -> Tensor:
        norm = self.norm
        if (
            torch.is_grad_enabled()
            or norm.training
            or type(x) is not Tensor
            or x.dtype != torch.float32
            or not x.is_cpu
            or len(norm._forward_hooks) != 1
            or not undisturbed()
        ):
            return self.plain(x)
        return Normed.of(x, self)

    def plain(self, x: Tensor) -> Tensor:
        return type(self.norm).forward(self.norm, x)


def cannot_fold(norm: nn.Module) -> str | None:
    """Why a module cannot be `Lazy`, or None."""
    if type(norm) not in NORMS:
        return f"{type(norm).__name__} is no batch norm of torch's own"
    if norm.running_mean is None or norm.running_mean.dtype != torch.float32 or not norm.running_mean.is_cpu:
        return "it keeps no statistics in float32 on the CPU"
    if "forward" in vars(norm):
        return "its forward was replaced"
    return missing()


class Normed(Tensor):
    """The result of a batch norm, computed when a number of it is needed."""

    x: Tensor
    lazy: Lazy
    value: Tensor | None
    folded: tuple[Tensor, Tensor] | None

    @staticmethod
    def of(x: Tensor, lazy: Lazy) -> Normed:
        normed = Tensor._make_subclass(Normed, x)
        normed.x, normed.lazy, normed.value, normed.folded = x, lazy, None, None
        return normed

    def settle(self) -> Tensor:
        if self.value is None:
            self.lazy.settled = True
            self.value = self.lazy.plain(self.x)
        return self.value

    def fold(self, average: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Scale and shift, (1, C, 1, ...) each; an average of the norm's input, (B, C, 1, ...), becomes its own."""
        if self.folded is None:
            norm, (batch, channels, *sides) = self.lazy.norm, self.x.shape
            both = torch.empty((2, 1, channels, *[1] * len(sides)), dtype=torch.float32, device=cpu.CPU)
            given = (norm.running_mean, norm.running_var, norm.weight, norm.bias, both, average)
            plan = _Fold(channels, batch, norm.eps, 1, 2, 3, 4, 5, 6)
            pointers = _Pointers(*[None if tensor is None else tensor.data_ptr() for tensor in given])
            function("fold")(addressof(plan), pointers)
            scale, shift = both.unbind()
            self.folded = scale, shift
        return self.folded

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            if func not in ASKS:
                args, kwargs = tree_map(settled, (args, kwargs or {}))
            return func(*args, **(kwargs or {}))


def settled(value: Any) -> Any:
    """What was computed of a value, if it is one that waits for that."""
    return value.settle() if isinstance(value, Normed) else value


# --- squeeze and gate ------------------------------------------------------------------------------------------------

Weigh = Callable[["Normed", Tensor, Tensor | None], Tensor]
_prepared: dict[tuple[Any, ...], Weigh | None] = {}


def squeezes(x: Normed, dims: tuple[tuple[int, ...], ...], kinds: Sequence[str], gates: Sequence[Tensor]) -> bool:
    """Whether a squeeze can read the norm's input."""
    spatial = tuple(range(2, x.dim()))
    return x.value is None and tuple(kinds) == ("avg",) and not gates and dims == (spatial,)


def average(x: Normed, found: Tensor) -> Tensor:
    """The average of every channel, from that of the norm's input, which is written over."""
    if x.folded is not None:
        return found * x.folded[0] + x.folded[1]
    x.fold(found)
    return found


def prepare(
    x: Normed, gates: Sequence[Tensor], shift: Tensor | None, add: Tensor | None, relu: bool
) -> Callable[[], Tensor] | None:
    """What weighs the norm's input by one number for each channel, adds and cuts off; None where that cannot be."""
    if x.value is not None or len(gates) != 1 or shift is not None:
        return None
    (gate,), scales = gates, x.fold()
    if gate.dtype != torch.float32 or gate.shape[1:] != scales[0].shape[1:]:
        return None
    if add is not None and (add.shape, add.dtype, add.device) != (x.x.shape, x.x.dtype, x.x.device):
        return None
    seen = look((x.x, gate, add, relu))
    if seen not in _prepared:
        if len(_prepared) >= LOOKS:
            _prepared.clear()
        _prepared[seen] = None if cpu.why_not(x.x) else _weigh(x, gate, add, relu)
    weigh = _prepared[seen]
    return weigh and (lambda: weigh(x, gate, add))


def _weigh(x: Normed, gate: Tensor, add: Tensor | None, relu: bool) -> Weigh | None:
    """Factors gate and scale, and a term gate times shift; multiplied first where they vary along the fastest axis."""
    scale, shift = x.fold()
    try:
        affine = cpu.prepare_affine(x.x, (gate, scale), False, ((gate, shift),), add, relu, False)
        return affine and (lambda x, gate, add: affine(x.x, (gate, x.fold()[0], gate, x.fold()[1]), add))
    except Cannot:
        weighed = gate * scale
        affine = cpu.prepare_affine(x.x, (weighed,), False, ((weighed,),), add, relu, False)
        return affine and (lambda x, gate, add: affine(x.x, (gate * x.fold()[0], gate * x.fold()[1]), add))
