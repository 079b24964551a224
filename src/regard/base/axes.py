"""Where functions of torch take the axes of a tensor."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from regard.base.functions import Call


def went(call: Call, axis: int) -> tuple[int | None, int]:
    """Where a turn, or what takes parts, takes an axis of its first argument: and how many axes there are then.

    None where it takes it nowhere.
    """
    x, args, kwargs = call.operands[0], call.args[1:], call.kwargs
    if call.word in ("permute", "transpose") and not kwargs:  # the most, and in every layer of a transformer
        rank = x.dim()
        order = [place % rank for place in (args if isinstance(args[0], int) else args[0])]
        if call.word == "permute":
            return order.index(axis), rank
        return (order[1 - order.index(axis)] if axis in order else axis), rank
    kwargs = {name: value for name, value in kwargs.items() if name != "input"}
    # what is taken may be told by slices or tensors, which are no keys
    numbers = call.word != "getitem" or isinstance(args[0], int)
    if not numbers or any(isinstance(arg, Tensor) for arg in (*args, *kwargs.values())):
        return _tried(call.function, x.shape, axis, *args, **kwargs)
    return _remembered(call.function, x.shape, axis, *map(_key, args), **{name: _key(kwargs[name]) for name in kwargs})


def _key(arg: Any) -> Any:
    return tuple(arg) if isinstance(arg, list) else arg


def _tried(function: Any, shape: torch.Size, axis: int, *args: Any, **kwargs: Any) -> tuple[int | None, int]:
    """Done with a tensor without memory, in which the side of that axis is like no other."""
    sides = list(shape)
    sides[axis] = sum(sides) + 1
    with torch.no_grad():
        try:
            moved = tree_leaves(function(torch.empty(sides, device="meta"), *args, **kwargs))[0]
        except (RuntimeError, TypeError, IndexError, ValueError):
            return None, 0
    return (list(moved.shape).index(sides[axis]) if sides[axis] in moved.shape else None), moved.dim()


_remembered = lru_cache(maxsize=1024)(_tried)
