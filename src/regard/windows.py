"""Where the tokens of windows lie: transformers that cut a map into windows move its pixels about, and only what they
did to them tells which token is which pixel."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._pytree import tree_map_only
from torch.utils.weak import WeakIdKeyDictionary

# what moves numbers about, and does the same to those of the pixels
MOVES = {
    "view", "reshape", "permute", "transpose", "swapaxes", "movedim", "flatten", "unflatten", "contiguous", "unsqueeze",
    "squeeze", "roll", "unbind", "chunk", "split", "getitem", "expand", "mT",
}  # fmt: skip
SPLITS = {"view", "reshape", "unflatten"}


class Windows:
    """The pixel that each token is, followed from where a map is rolled or cut into windows.

    For every tensor that comes from such a map there is a tensor of its shape that holds numbers of pixels, those of
    the second image after those of the first, and -1 where something was added around the map. What moves the one is
    done to the other; what leaves a tensor's shape, or all of it but its last axis, leaves its tokens where they are.
    """

    def __init__(self) -> None:
        self._known: Any = WeakIdKeyDictionary()  # tensor -> (numbers of pixels, sides of the map)

    def follow(self, name: str, func: Callable[..., Any], args: Any, kwargs: Any, result: Any) -> None:
        """See one function of torch at work.

        Args:
            name: of the function, without underscores.
            func, args, kwargs, result: the call.
        """
        x = next((arg for arg in args if isinstance(arg, Tensor) and arg in self._known), None)
        if x is None:
            x = args[0] if args else None
            if not isinstance(x, Tensor) or x.dim() != 4 or not isinstance(result, Tensor):
                return
            last = _begins(name, x, args, kwargs, result)
            if last is None:
                return
            self._known[x] = _numbered(x, last)
        pixels, sides = self._known[x]
        if name in MOVES:
            swapped = tree_map_only(Tensor, lambda t: pixels if t is x else t, (args, kwargs))
            moved = func(*swapped[0], **swapped[1])
        elif name == "pad" and x is args[0]:
            moved = F.pad(pixels.contiguous(), args[1] if len(args) > 1 else kwargs["pad"], value=-1)
        elif isinstance(result, Tensor) and result.shape == x.shape:
            moved = pixels
        elif isinstance(result, Tensor) and result.shape[:-1] == x.shape[:-1] and _alike(pixels, -1):
            moved = pixels[..., :1].expand(result.shape)
        else:
            return
        for one, numbers in zip(_list(result), _list(moved), strict=True):
            if not self._at_rest(numbers, sides):
                self._known[one] = numbers, sides

    def of(self, tokens: Tensor) -> tuple[Tensor, int, tuple[int, int]] | None:
        """Where the tokens of values (windows and heads, N, width) lie; None where that is not known.

        Returns:
            Their pixels (windows, N), the axis of the heads in the values, and the sides of the map.
        """
        if tokens not in self._known or tokens.dim() < 4 or not _alike(self._known[tokens][0], -1):
            return None
        pixels, sides = self._known[tokens]
        heads = next((axis for axis in range(1, tokens.dim() - 2) if _alike(pixels, axis)), None)
        if heads is None:
            return None
        return pixels[..., 0].select(heads, 0).long().flatten(0, -2), heads, sides

    def _at_rest(self, pixels: Tensor, sides: tuple[int, int]) -> bool:
        """Whether a map is as it was before it was cut: then nothing has to be followed any more."""
        if pixels.dim() != 4:
            return False
        whole = _grid(len(pixels), sides, pixels.device)
        return torch.equal(pixels[..., 0], whole) or torch.equal(pixels[:, 0], whole)


def view_from(
    weights: Tensor, pixels: Tensor, sides: tuple[int, int], batch: int, query: tuple[float, float]
) -> Tensor | None:
    """The view from one place in every image, on the whole map: 0 outside of its window.

    Args:
        weights: (windows, heads, N, N) of all images.
        pixels: (windows, N), as `Windows.of` gives them.
        sides: of the map.
        batch: number of images.
        query: the place (row, column) as shares of the sides.

    Returns:
        (B, heads, 1, h * w), or None where the place is in no window.
    """
    height, width = sides
    at = min(height - 1, int(query[0] * height)) * width + min(width - 1, int(query[1] * width))
    tokens = pixels.shape[1]
    slots = torch.full((batch * height * width,), -1, device=pixels.device)
    there = pixels.flatten() >= 0
    slots[pixels.flatten()[there]] = torch.arange(there.numel(), device=pixels.device)[there]
    slot = slots[torch.arange(batch, device=pixels.device) * height * width + at]
    if bool((slot < 0).any()):
        return None
    window, row = slot // tokens, slot % tokens
    seen = weights[window, :, row]
    where = pixels[window] % (height * width)
    where = where.masked_fill(pixels[window] < 0, height * width)  # what was added is taken off again
    spread = seen.new_zeros(batch, seen.shape[1], height * width + 1)
    spread.scatter_add_(2, where.unsqueeze(1).expand(-1, seen.shape[1], -1), seen)
    return spread[:, :, None, :-1]


def _begins(name: str, x: Tensor, args: Any, kwargs: Mapping[str, Any], result: Tensor) -> bool | None:
    """Whether the channels of a map are its last axis, when something begins to move its pixels; None where not."""
    if name == "roll":
        dims = kwargs.get("dims", args[2] if len(args) > 2 else None)
        found = sorted(dim % 4 for dim in dims) if isinstance(dims, Sequence) else None
        return {(1, 2): True, (2, 3): False}.get(tuple(found)) if found else None
    if name == "pad":
        around = args[1] if len(args) > 1 else kwargs.get("pad", ())
        return True if len(around) > 2 and not any(around[:2]) else None
    if name in SPLITS and result.dim() == 6 and result.shape[0] == x.shape[0]:
        if result.shape[-1] == x.shape[-1]:
            return True
        return False if result.shape[1] == x.shape[1] else None
    return None


def _alike(pixels: Tensor, axis: int) -> bool:
    """Whether they are the same all along an axis; looked at where it begins and ends."""
    return torch.equal(pixels.select(axis, 0), pixels.select(axis, -1))


def _numbered(x: Tensor, last: bool) -> tuple[Tensor, tuple[int, int]]:
    sides = (x.shape[1], x.shape[2]) if last else (x.shape[2], x.shape[3])
    pixels = _grid(len(x), sides, x.device).unsqueeze(-1 if last else 1)
    return pixels.expand(x.shape), sides


def _grid(batch: int, sides: tuple[int, int], device: torch.device) -> Tensor:
    numbers = torch.arange(batch * sides[0] * sides[1], device=device, dtype=torch.int32)
    return numbers.view(batch, *sides)


def _list(tree: Any) -> list[Tensor]:
    return [tree] if isinstance(tree, Tensor) else list(tree)
