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


LISTED = {"cat", "concat", "concatenate", "stack"}  # take tensors in a list
BEGINNINGS = TURNS | LISTED | REGROUPINGS | {"einsum", "getitem", "select", "unbind"}
CHANGES = BEGINNINGS | PARTS


@dataclass(frozen=True)
class Images:
    """Where the images are: along one axis, number ``(o * count + image) * after + i``.

    Attributes:
        axis: counted from the front.
        count: how many there are.
        before: how many times all images follow each other.
        after: how many entries of one image follow each other.
    """

    axis: int
    count: int
    before: int = 1
    after: int = 1


class Batches:
    """Where the images are in every tensor of a pass in which they are not simply counted by the first axis."""

    def __init__(self) -> None:
        self._moved = Noted()  # tensor -> Images, or None where it cannot be told

    def follow(self, name: str, func: Callable[..., Any], args: Any, kwargs: Mapping[str, Any], result: Any) -> None:
        """See one function of torch at work, as `regard.maps.windows.Windows.follow` does."""
        moved = self._moved
        if moved.first(args) is None and (name not in BEGINNINGS or not self._begins(name, args, kwargs, result)):
            return  # most calls of most networks
        if name in LISTED:
            images = self._joined(name, args, kwargs)
            if images is None or images != self._plain(result):
                moved[result] = images
            return
        tensors = [arg for arg in args if isinstance(arg, Tensor)]
        if name == "einsum":
            tensors += [leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor)]
        main = tensors[0] if len(tensors) == 1 else max(tensors, key=lambda tensor: (tensor.numel(), tensor.dim()))
        if main not in moved and len(tensors) > 1 and name != "einsum":
            return  # a table that is added to a map, not a map
        images = self.of(main)
        if name not in CHANGES and isinstance(result, Tensor) and result.shape == main.shape:
            moved[result] = images
            return
        for tensor in [result] if isinstance(result, Tensor) else tree_leaves(result):
            if isinstance(tensor, Tensor):
                found = None if images is None else self._after(name, func, args, kwargs, main, images, tensor)
                if found is None or found != self._plain(tensor):
                    moved[tensor] = found

    def of(self, tensor: Tensor) -> Images | None:
        """Where the images are in it; None where that cannot be told."""
        images: Images | None = self._moved[tensor] if tensor in self._moved else self._plain(tensor)
        return images

    def first(self, tensor: Tensor, images: Images) -> Tensor:
        """The same numbers with the images counted by the first axis, what was folded into it behind them.

        Args:
            images: where they are in it.

        Returns:
            (B, \\*others), (B, folded, \\*others), or the tensor as it is where what was folded follows each image.
        """
        if images.axis == 0 and images.before == 1:
            return tensor
        apart = tensor.unflatten(images.axis, (images.before, images.count, images.after)).movedim(images.axis + 1, 0)
        apart = apart.flatten(images.axis + 1, images.axis + 2)
        return apart.squeeze(images.axis + 1) if images.before * images.after == 1 else apart

    @staticmethod
    def _plain(tensor: Tensor) -> Images:
        return Images(0, tensor.shape[0] if tensor.dim() else 0)

    def _begins(self, name: str, args: Any, kwargs: Mapping[str, Any], result: Any) -> bool:
        """Whether the images leave the first axis, or share it, for the first time."""
        first = args[0] if args else None
        if name in LISTED:
            listed = first if isinstance(first, list | tuple) else ()
            held = any(isinstance(part, Tensor) and part in self._moved for part in listed)
            return held or (bool(listed) and _option(args, kwargs, 1, "dim", 0) in (0, -listed[0].dim()))
        if name == "einsum":
            return True
        if not isinstance(first, Tensor) or isinstance(first, nn.Parameter) or not first.is_floating_point():
            return False
        if name in TURNS:
            return True
        if name == "getitem":
            taken = args[1][0] if isinstance(args[1], tuple) and args[1] else args[1]
            return isinstance(taken, int) and not isinstance(taken, bool)
        if name in ("select", "unbind"):
            return _option(args, kwargs, 1, "dim", 0) in (0, -first.dim())
        return name in REGROUPINGS and isinstance(result, Tensor) and result.shape[:1] != first.shape[:1]

    def _joined(self, name: str, args: Any, kwargs: Mapping[str, Any]) -> Images | None:
        """Of tensors that are put one after the other, or on top of one another."""
        parts = args[0]
        places = {self.of(part) for part in parts}
        dims = parts[0].dim() + (name == "stack")
        dim = _option(args, kwargs, 1, "dim", 0) % max(1, dims)
        if places == {None} and name == "stack" and dim == 0:
            return Images(0, len(parts))  # one image each
        images = places.pop()
        if places or images is None or len({part.shape[images.axis] for part in parts}) > 1:
            return None
        if name == "stack":
            return replace(images, axis=images.axis + (dim <= images.axis))
        if dim != images.axis:
            return images
        if parts[0].shape[dim] == 1:
            return Images(dim, len(parts))
        return replace(images, before=len(parts) * images.before)

    def _after(
        self,
        name: str,
        func: Callable[..., Any],
        args: Any,
        kwargs: Mapping[str, Any],
        main: Tensor,
        images: Images,
        result: Tensor,
    ) -> Images | None:
        if name in REGROUPINGS - PARTS:
            return _regrouped(main.shape, images, result.shape)
        if not kwargs and name in ("transpose", "permute"):  # the most, and in every layer of a transformer
            axes = args[1:] if isinstance(args[1], int) else args[1]
            axes = [axis % main.dim() for axis in axes]
            if name == "permute":
                return replace(images, axis=axes.index(images.axis))
            return replace(images, axis=dict(zip(axes, axes[::-1], strict=True)).get(images.axis, images.axis))
        if name in TURNS or name in PARTS:
            axis, dims = went(func, main.shape, images.axis, *args[1:], **kwargs)
            if axis is None or dims != result.dim():
                return None
            return _part(replace(images, axis=axis), result.shape[axis], name)
        if name == "einsum":
            axis = _lettered(args, main, images.axis)
            return None if axis is None else replace(images, axis=axis)
        same = result.dim() == main.dim() and result.shape[images.axis] == main.shape[images.axis]
        return images if same else None


def _part(images: Images, size: int, name: str) -> Images | None:
    """Of a tensor from which some were taken along the axis of the images."""
    if size == images.before * images.count * images.after:
        return images
    if images.before == images.after == 1:
        return replace(images, count=size)
    rounds, left = divmod(size, images.count * images.after)
    return None if left or name == "getitem" else replace(images, before=rounds)


def _option(args: Any, kwargs: Mapping[str, Any], at: int, name: str, default: int) -> Any:
    given = kwargs.get(name, kwargs.get("axis") if name == "dim" else None)  # torch takes NumPy's word, too
    return given if given is not None else args[at] if len(args) > at else default


def _regrouped(before: torch.Size, images: Images, after: torch.Size) -> Images | None:
    stride = images.after * math.prod(before[images.axis + 1 :])  # from one image to the next, in numbers
    for axis in range(len(after)):
        behind = math.prod(after[axis + 1 :])
        if behind and behind <= stride and stride * images.count <= behind * after[axis]:
            whole = stride % behind == 0 and (behind * after[axis]) % (stride * images.count) == 0
            rounds = behind * after[axis] // (stride * images.count) if whole else 0
            return Images(axis, images.count, rounds, stride // behind) if whole else None
    return None


def went(func: Callable[..., Any], shape: torch.Size, axis: int, *args: Any, **kwargs: Any) -> tuple[int | None, int]:
    """As `_went`, which remembers; what is taken may be told by slices or tensors, which are no keys."""
    given = tuple([tuple(arg) if isinstance(arg, list) else arg for arg in args])
    leaves = tree_leaves((given, kwargs))
    keys = not any(isinstance(leaf, Tensor | slice) for leaf in leaves)
    return _went(func, shape, axis, *given, **kwargs) if keys else _went.__wrapped__(func, shape, axis, *args, **kwargs)


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
