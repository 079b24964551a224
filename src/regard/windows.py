"""Where the tokens of windows lie: transformers that cut a map into windows move its pixels about, and only what they
did to them tells which token is which pixel."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from regard.positions import RESIZES, Positions, follow

SPLITS = {"view", "reshape", "unflatten"}
BEGINNINGS = {"roll", "pad", *SPLITS}


class Windows:
    """The pixel that each token is, followed from where a map is padded, rolled or cut into windows until it is whole
    again. Numbers of pixels of the second image come after those of the first."""

    def __init__(self) -> None:
        self._known: Any = WeakIdKeyDictionary()  # tensor -> Positions

    def follow(self, name: str, func: Callable[..., Any], args: Any, kwargs: Any, result: Any) -> None:
        """See one function of torch at work.

        Args:
            name: of the function, without underscores.
            func, args, kwargs, result: the call.
        """
        if not self._known and name not in BEGINNINGS:
            return  # most calls of most networks
        x = next((arg for arg in args if isinstance(arg, Tensor) and arg in self._known), None)
        if x is None:
            x = args[0] if args else None
            if not isinstance(x, Tensor) or x.dim() != 4 or not isinstance(result, Tensor):
                return
            last = _begins(name, x, args, kwargs, result)
            if last is None:
                return
            self._known[x] = _numbered(x, last)
        main = self._known[x]
        if name.startswith("conv") or "pool" in name or name in RESIZES or (name == "linear" and main.varies(-1)):
            return  # a map of its own
        found = follow(name, func, args, kwargs, result, main, self._known.get)
        tensors = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        for tensor, positions in zip(tensors, found, strict=True):
            if positions and not _at_rest(positions):
                self._known[tensor] = positions

    def of(self, tokens: Tensor) -> tuple[Tensor, int, tuple[int, int]] | None:
        """Where the tokens of values (windows and heads, N, width) lie; None where that is not known.

        Returns:
            Their pixels (windows, N), the axis of the heads in the values, and the sides of the map.
        """
        positions = self._known.get(tokens)
        if positions is None or tokens.dim() < 4 or positions.varies(-1):
            return None
        heads = next((axis for axis in range(1, tokens.dim() - 2) if not positions.varies(axis)), None)
        if heads is None:
            return None
        pixels = positions.index[..., 0].select(heads, 0).flatten(0, -2)
        height, width = positions.sides
        return pixels.long().to(tokens.device), heads, (height, width)


@dataclass(frozen=True)
class Place:
    """One place of a map in every image, as windows hold it.

    Attributes:
        window, row: (B,); which window it is in, and which of its tokens it is.
        heads: axis of the heads in the values of all windows (\\*windows, N, width), which is among those in front.
        where: (B, N); the pixels of that window's tokens in their own image, and h * w for what was added.
        sides: of the map.
    """

    window: Tensor
    row: Tensor
    heads: int
    where: Tensor
    sides: tuple[int, int]

    @classmethod
    def of(
        cls, pixels: Tensor, heads: int, sides: tuple[int, int], batch: int, query: tuple[float, float]
    ) -> Place | None:
        """None where the place is in no window, or in several.

        Args:
            pixels, heads, sides: as `Windows.of` gives them.
            batch: number of images.
            query: the place (row, column) as shares of the sides.
        """
        height, width = sides
        at = min(height - 1, int(query[0] * height)) * width + min(width - 1, int(query[1] * width))
        images = torch.arange(batch, device=pixels.device) * height * width
        window, row = torch.isin(pixels, images + at).nonzero(as_tuple=True)
        if len(window) != batch:
            return None
        order = pixels[window, row].argsort()  # that of the images
        window, row = window[order], row[order]
        mine = pixels[window]
        where = (mine % (height * width)).masked_fill(mine < 0, height * width)
        return cls(window, row, heads, where, sides)

    def tokens(self, values: Tensor) -> Tensor:
        """Those of its windows, (B, heads, N, width), of the values of all windows."""
        values = values.movedim(self.heads, -3)
        return values[torch.unravel_index(self.window, values.shape[:-3])]

    def token(self, values: Tensor) -> Tensor:
        """Its own, (B, heads, width), of the values of all windows."""
        values = values.movedim(self.heads, -3)
        index: tuple[Any, ...] = (*torch.unravel_index(self.window, values.shape[:-3]), slice(None), self.row)
        return values[index]

    def view(self, seen: Tensor) -> Tensor:
        """What is seen from the place, on the whole map: 0 outside of its window.

        Args:
            seen: (B, heads, N).

        Returns:
            (B, heads, 1, h * w).
        """
        spread = seen.new_zeros(*seen.shape[:2], math.prod(self.sides) + 1)
        spread.scatter_add_(2, self.where.unsqueeze(1).expand_as(seen), seen)
        return spread[:, :, None, :-1]  # without what was added


def _begins(name: str, x: Tensor, args: Any, kwargs: Mapping[str, Any], result: Tensor) -> bool | None:
    """Whether the channels of a map are its last axis, when something begins to move its pixels; None where not."""
    if name == "roll":
        dims = kwargs.get("dims", args[2] if len(args) > 2 else None)
        found = sorted(dim % 4 for dim in dims) if isinstance(dims, Sequence) else None
        return {(1, 2): True, (2, 3): False}.get(tuple(found)) if found else None
    if name == "pad":
        around = args[1] if len(args) > 1 else kwargs.get("pad", ())
        return True if any(around[2:]) and not any(around[:2]) else None
    if name in SPLITS and result.dim() == 6 and result.shape[0] == x.shape[0]:
        if result.shape[-1] == x.shape[-1]:
            return True
        return False if result.shape[1] == x.shape[1] else None
    return None


def _numbered(x: Tensor, last: bool) -> Positions:
    sides = (x.shape[1], x.shape[2]) if last else (x.shape[2], x.shape[3])
    return Positions(_grid(len(x), sides).unsqueeze(-1 if last else 1).expand(x.shape), sides)


def _grid(batch: int, sides: tuple[int, ...]) -> Tensor:
    numbers = torch.arange(batch * math.prod(sides), dtype=torch.int32, device="cpu")
    return numbers.view(batch, *sides)


def _at_rest(positions: Positions) -> bool:
    """Whether a map is as it was before it was cut: then nothing has to be followed any more."""
    index = positions.index
    if index.dim() != 4 or positions.sides not in (index.shape[1:3], index.shape[2:]):
        return False
    whole, core = _grid(len(index), positions.sides), positions.core
    return torch.equal(core[..., 0], whole) or torch.equal(core[:, 0], whole)
