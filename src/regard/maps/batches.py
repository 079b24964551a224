"""Which axis of a tensor counts the images, followed through what moves axes about or folds them into each other.

Everywhere it is the first, and attention that is written otherwise is rare: heads before images, tokens before images,
heads and images in one axis. Only tensors in which it lies elsewhere are remembered.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from regard.insertion.positions import REGROUPINGS
from regard.maps.noted import Noted

TURNS = {
    "permute", "transpose", "movedim", "moveaxis", "swapaxes", "swapdims", "mT", "mH", "T", "H", "t", "adjoint",
}  # fmt: skip
# what takes a tensor apart along its axes, or adds axes of one
PARTS = {"getitem", "unbind", "chunk", "split", "tensor_split", "select", "narrow", "squeeze", "unsqueeze"}
JOINED = {"cat", "concat", "concatenate", "stack", "einsum"}  # take tensors in a list


@dataclass(frozen=True)
class Place:
    """Where the images are: along one axis, number ``(o * images + image) * after + i``.

    Attributes:
        axis: counted from the front.
        before: how many times all images follow each other.
        after: how many entries of one image follow each other.
    """

    axis: int
    before: int = 1
    after: int = 1


class Batches:
    """The place of the images in every tensor of a pass in which it is not simply the first axis.

    Args:
        images: how many there are.
    """

    def __init__(self, images: int) -> None:
        self.images = images
        self._moved = Noted()  # tensor -> Place, or None where it cannot be told

    def follow(self, name: str, func: Callable[..., Any], args: Any, kwargs: Mapping[str, Any], result: Any) -> None:
        """See one function of torch at work, as `regard.maps.windows.Windows.follow` does."""
        if not (self._moved or name in TURNS):
            return  # most calls of most networks
        first = args[0] if args else None
        turned = name in TURNS and isinstance(first, Tensor) and not isinstance(first, nn.Parameter)
        if not (turned or any(isinstance(arg, Tensor) and arg in self._moved for arg in args) or name in JOINED):
            return
        tensors = [arg for arg in args if isinstance(arg, Tensor)]
        if name in JOINED:
            tensors += [leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor)]
        known = [tensor for tensor in tensors if tensor in self._moved]
        if not known and not turned:
            return
        main = max(tensors, key=lambda tensor: (tensor.numel(), tensor.dim()))
        if known and main not in self._moved:
            return  # a table that is added to a map, not a map
        place = self.of(main)
        for tensor in (leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)):
            found = None if place is None else self._after(name, func, args, kwargs, main, place, tensor)
            if found is None or (found.axis, found.before) != (0, 1):
                self._moved[tensor] = found

    def of(self, tensor: Tensor) -> Place | None:
        """Where the images are in it; None where that cannot be told."""
        if tensor in self._moved:
            place: Place | None = self._moved[tensor]
            return place
        size = tensor.shape[0] if tensor.dim() else 0
        return Place(0, 1, size // self.images) if size and size % self.images == 0 else None

    def first(self, tensor: Tensor) -> Tensor | None:
        """The same numbers with an axis of the images in front, and what was folded into it behind that.

        None where it cannot be told. (B, \\*others), or (B, folded, \\*others).
        """
        if tensor not in self._moved:
            return tensor
        place = self._moved[tensor]
        if place is None:
            return None
        apart = tensor.unflatten(place.axis, (place.before, self.images, place.after)).movedim(place.axis + 1, 0)
        apart = apart.flatten(place.axis + 1, place.axis + 2)
        return apart.squeeze(place.axis + 1) if place.before * place.after == 1 else apart

    def _after(
        self,
        name: str,
        func: Callable[..., Any],
        args: Any,
        kwargs: Mapping[str, Any],
        main: Tensor,
        place: Place,
        result: Tensor,
    ) -> Place | None:
        if name in REGROUPINGS - PARTS:
            return self._regrouped(main.shape, place, result.shape)
        if not kwargs and name in ("transpose", "permute"):  # the most, and in every layer of a transformer
            axes = args[1:] if isinstance(args[1], int) else args[1]
            axes = [axis % main.dim() for axis in axes]
            if name == "permute":
                return replace(place, axis=axes.index(place.axis))
            return replace(place, axis=dict(zip(axes, axes[::-1], strict=True)).get(place.axis, place.axis))
        if name in TURNS or name in PARTS:
            # what is taken may be told by slices or tensors, which are no keys
            went = _went.__wrapped__ if name in ("getitem", "tensor_split") else _went
            axis, dims = went(func, main.shape, place.axis, *args[1:], **kwargs)
            return Place(axis, place.before, place.after) if axis is not None and dims == result.dim() else None
        if name == "einsum":
            axis = _lettered(args, main, place.axis)
            return None if axis is None else Place(axis, place.before, place.after)
        same = result.dim() == main.dim() and result.shape[place.axis] == main.shape[place.axis]
        return place if same and name not in JOINED else None

    def _regrouped(self, before: torch.Size, place: Place, after: torch.Size) -> Place | None:
        stride = place.after * math.prod(before[place.axis + 1 :])  # from one image to the next, in numbers
        for axis in range(len(after)):
            behind = math.prod(after[axis + 1 :])
            if behind <= stride and stride * self.images <= behind * after[axis]:
                whole = stride % behind == 0 and (behind * after[axis]) % (stride * self.images) == 0
                return Place(axis, behind * after[axis] // (stride * self.images), stride // behind) if whole else None
        return None


@lru_cache(maxsize=1024)
def _went(func: Callable[..., Any], shape: torch.Size, axis: int, *args: Any, **kwargs: Any) -> tuple[int | None, int]:
    """Where a function takes an axis, and how many there are then.

    Done with a tensor without memory, in which the side of that axis is like no other.
    """
    sides = list(shape)
    sides[axis] = sum(sides) + 1
    with torch.no_grad():
        try:
            moved = tree_leaves(func(torch.empty(sides, device="meta"), *args, **kwargs))[0]
        except (RuntimeError, TypeError, IndexError, ValueError):
            return None, 0
    return (list(moved.shape).index(sides[axis]) if sides[axis] in moved.shape else None), moved.dim()


def _lettered(args: Any, factor: Tensor, axis: int) -> int | None:
    """Where an axis of a factor of Einstein's sum is in the result."""
    equation, *factors = args
    if not isinstance(equation, str) or "->" not in equation or "." in equation:
        return None
    before, after = equation.replace(" ", "").split("->")
    for letters, other in zip(before.split(","), factors, strict=False):
        if other is factor:
            return after.index(letters[axis]) if letters[axis] in after else None
    return None
