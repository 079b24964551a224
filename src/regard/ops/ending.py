"""What follows a gate, done in the gate's own pass.

At the end of a residual branch a network adds the other branch to what a gate gives, and cuts off what is below 0: the
map is written and read twice more. A gate whose map is marked with an `Ending` therefore gives a `Pending` tensor, its
result not computed yet: an addition and a ReLU join the pass, and anything else that looks at it has it computed. What
was added is read when the pass runs: nobody may change it in place before the ReLU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_map

ADD = frozenset({torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__})
ADD_INTO = frozenset({Tensor.add_, Tensor.__iadd__})
RELU = frozenset({torch.relu, Tensor.relu, F.relu})
RELU_INTO = frozenset({torch.relu_, Tensor.relu_})
# what asks for no number of the result: the map has the answer
ASKS = frozenset({Tensor.dim, Tensor.size, Tensor.numel}) | {
    getattr(Tensor, name).__get__ for name in ("shape", "ndim", "dtype", "device", "layout")
}


@dataclass
class Ending:
    """What follows the gate at one place of a network.

    Attributes:
        add: another map of its shape is added to the result.
        relu: the result, or the sum, is cut off below 0.
        inplace: the result is written over the map.
        seen: while this is found out, the pending tensors of the call.
    """

    add: bool = False
    relu: bool = False
    inplace: bool = False
    seen: list[Pending] | None = field(default=None, repr=False)


def hooked(module: nn.Module) -> bool:
    """Whether anybody is told of a module's calls, and would miss one that is not made in the ordinary way."""
    hooks = module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks
    return any(hooks)


def mark(x: Tensor, ending: Ending | None) -> None:
    """Let a gate of this map know what follows it, or nothing."""
    x._regard_ending = ending  # type: ignore[attr-defined]


def marked(x: Tensor) -> Ending | None:
    return getattr(x, "_regard_ending", None)


class Pending(Tensor):
    """The result of a gate, computed when a number of it is needed."""

    run: Callable[[Tensor | None, bool, bool], Tensor]  # what is added, whether it is cut off, and written over the map
    ending: Ending
    added: Tensor | None
    value: Tensor | None

    @staticmethod
    def of(x: Tensor, ending: Ending, run: Callable[[Tensor | None, bool, bool], Tensor]) -> Tensor:
        """The result for a marked map: at once where nothing is to join."""
        if ending.seen is None and not (ending.add or ending.relu):
            return run(None, False, ending.inplace)
        pending = Tensor._make_subclass(Pending, x)
        pending.run, pending.ending, pending.added, pending.value = run, ending, None, None
        if ending.seen is not None:
            ending.seen.append(pending)
        return pending

    @property
    def untouched(self) -> bool:
        return self.value is None and self.added is None

    def settle(self) -> Tensor:
        if self.value is None:
            self.value = self.run(self.added, False, self.ending.inplace)
        return self.value

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunctionSubclass():
            if func in ASKS:
                return func(*args, **kwargs)
            into = func in ADD_INTO or func in RELU_INTO or kwargs.get("inplace", False)
            if func in ADD or func in ADD_INTO:
                found = _added(args[0], args[1], into) if len(args) == 2 and not kwargs else None
            else:
                found = _cut_off(args[0], into) if func in RELU or func in RELU_INTO else None
            if found is not None:
                return found
            args, kwargs = tree_map(lambda arg: arg.settle() if isinstance(arg, Pending) else arg, (args, kwargs))
            return func(*args, **kwargs)


def _added(a: Any, b: Any, into: bool) -> Tensor | None:
    """The sum of a pending tensor and another one, or None where it is no such sum."""
    if not into and not _open(a):
        a, b = b, a
    if not _open(a) or a.added is not None:
        return None
    b = b.settle() if isinstance(b, Pending) else b
    if not _open(a):  # it was the other one, too
        return None
    if not isinstance(b, Tensor) or (b.shape, b.dtype, b.device) != (a.shape, a.dtype, a.device):
        return None
    ending = a.ending
    if ending.seen is not None:
        ending.add = True
    if into:
        a.added = b
        return a if ending.relu or ending.seen is not None else a.settle()
    if not (ending.relu or ending.seen is not None):
        return a.run(b, False, False)  # not over the map: somebody may still look at what was before the sum
    total = Tensor._make_subclass(Pending, a)
    total.run, total.ending, total.added, total.value = _kept(a.run), ending, b, None
    return total


def _open(a: Any) -> TypeGuard[Pending]:
    return isinstance(a, Pending) and a.value is None


def _cut_off(a: Any, into: bool) -> Tensor | None:
    """A pending tensor, or a sum with one, cut off below 0; None where it is known already."""
    if not _open(a):
        return None
    if a.ending.seen is not None:
        a.ending.relu = True
    y = a.run(a.added, True, into and a.ending.inplace)
    if into:
        a.value = y
    return y


def _kept(run: Callable[[Tensor | None, bool, bool], Tensor]) -> Callable[[Tensor | None, bool, bool], Tensor]:
    """The same, never over the map."""
    return lambda add, relu, inplace: run(add, relu, False)
