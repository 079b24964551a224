"""Where the tokens of windows lie: transformers that cut a map into windows move its pixels about, and only what they
did to them tells which token is which pixel."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from regard.insertion.positions import MOVES, PRODUCTS, RESIZES, Positions, follow
from regard.maps.noted import Noted

SPLITS = {"view", "reshape", "unflatten"}
BEGINNINGS = {"roll", "pad", *SPLITS}
CHANGES = MOVES | PRODUCTS | {"linear"}  # what may leave pixels elsewhere in a tensor of the same shape
LARGE = 1 << 20  # pixels in a batch of maps, the moves of which are not kept for the next pass
LONG = 1 << 10  # moves of maps of one shape


class Windows:
    """The pixel that each token is, from where a map is padded, rolled or cut into windows until it is whole again.
    Numbers of pixels of the second image come after those of the first.

    While a network runs only the moves are noted, since its caches are cold for anything else; they are done with the
    numbers of the pixels when somebody asks for tokens, and once for all blocks and passes that move maps of one shape
    alike.
    """

    def __init__(self) -> None:
        self._known = Noted()  # tensor -> _Step

    def follow(self, name: str, func: Callable[..., Any], args: Any, kwargs: Any, result: Any) -> None:
        """See one function of torch at work.

        Args:
            name: of the function, without underscores.
            func, args, kwargs, result: the call.
        """
        known = self._known
        if (moved := known.first(args)) is not None:
            main = known[moved]
        elif name not in BEGINNINGS:
            return  # most calls of most networks
        else:
            x = args[0] if args else None
            if not isinstance(x, Tensor) or x.dim() != 4 or not isinstance(result, Tensor):
                return
            last = _begins(name, x, args, kwargs, result)
            if last is None:
                return
            main = known[x] = _begun(x.shape, last)
        if name.startswith("conv") or "pool" in name or name in RESIZES:
            return  # a map of its own
        if name not in CHANGES and isinstance(result, Tensor) and result.shape == main.shape:
            known[result] = main
            return
        tensors = [result] if isinstance(result, Tensor) else _leaves(result)
        shapes = [tensor.shape for tensor in tensors]
        for tensor, step in zip(tensors, self._steps(name, func, args, kwargs, shapes, main), strict=True):
            if len(step.shape) != 4 or step.goes_on:
                known[tensor] = step

    def of(self, tokens: Tensor, batch: int, queries: Sequence[tuple[float, float]]) -> list[Place]:
        """The places that are asked for, as the tokens of values (windows and heads, N, width) hold them.

        Args:
            tokens: the values.
            batch: number of images.
            queries: places (row, column) as shares of the sides.

        Returns:
            One for each, or none where not all of them are known.
        """
        step: _Step | None = self._known.get(tokens)
        if step is None or tokens.dim() < 4:
            return []
        key = (batch, tuple(queries), tokens.device)
        if key not in step.places:
            step.places.clear()
            step.places[key] = step.find(*key)
        return step.places[key]

    def _steps(
        self,
        name: str,
        func: Callable[..., Any],
        args: Any,
        kwargs: Mapping[str, Any],
        shapes: list[torch.Size],
        main: _Step,
    ) -> list[_Step]:
        """One for each result; the same ones where the same was done to the same before."""
        given = tuple([self._held(arg) for arg in args])
        named = {key: self._held(value) for key, value in kwargs.items()} if kwargs else {}
        done = main.done
        key = (func, given, *named.items(), *shapes)
        try:
            found = done.get(key)
        except TypeError:  # a tensor that tells what to take: another one in every pass
            return [_Step(name, func, given, named, shapes, number, main, {}) for number in range(len(shapes))]
        if found is None:
            if len(done) > LONG:
                done.clear()
            found = [_Step(name, func, given, named, shapes, number, main, done) for number in range(len(shapes))]
            done[key] = found
        return found

    def _held(self, arg: Any) -> Any:
        """An argument without the memory of tensors; what tells it from others."""
        if isinstance(arg, Tensor):
            step = self._known.get(arg)
            return step or ([arg] if arg.dtype in (torch.int64, torch.bool) else _Other(arg.shape))
        if isinstance(arg, list | tuple):
            return tuple([self._held(entry) for entry in arg])
        if isinstance(arg, slice):
            return _Slice(arg.start, arg.stop, arg.step)
        return arg


class _Other(NamedTuple):
    """A tensor of which no pixels are known."""

    shape: torch.Size


class _Slice(NamedTuple):
    """One that can be a key of a dictionary."""

    start: Any
    stop: Any
    step: Any


class _Step:
    """One move of the pixels, without the memory of its tensors.

    Attributes:
        name, func, args, kwargs: of the function, with a step or an `_Other` in the place of each tensor; with no
            function the map as it was before the first move, of which `args` says whether its channels are last.
        shapes: of the results.
        number: which of the results this is.
        main: the step that it continues.
        done: the steps that follow, by what was done.
        sides: of the map.
        places: what was found of it.
    """

    def __init__(
        self,
        name: str,
        func: Callable[..., Any] | None,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        shapes: list[torch.Size],
        number: int,
        main: _Step | None,
        done: dict[Any, list[_Step]],
    ) -> None:
        self.name, self.func, self.args, self.kwargs = name, func, args, kwargs
        self.shapes, self.number, self.main, self.done = shapes, number, main, done
        self.shape = shapes[number]
        self.sides: tuple[int, ...] = main.sides if main else self.shape[1:3] if args[0] else self.shape[2:]
        self.places: dict[Any, list[Place]] = {}

    @cached_property
    def positions(self) -> Positions | None:
        """Where the numbers of this result lie: the move, done with the numbers of the pixels."""
        with torch.inference_mode(False), torch.no_grad():  # the next pass may be one that learns
            if self.main is None:
                return _numbered(self.shape, *self.args)
            main = self.main.positions
            if main is None or (self.name == "linear" and main.varies(-1)):
                return None
            known: dict[int, Positions | None] = {}

            def stands(arg: Any) -> Any:
                """A tensor without memory in the place of one that was there."""
                if isinstance(arg, _Step | _Other):
                    tensor = torch.empty(arg.shape, device="meta")
                    if isinstance(arg, _Step):
                        known[id(tensor)] = arg.positions
                    return tensor
                if isinstance(arg, _Slice):
                    return slice(*arg)
                if isinstance(arg, list):
                    return arg[0]
                return tuple(map(stands, arg)) if isinstance(arg, tuple) else arg

            args = [stands(arg) for arg in self.args]
            kwargs = {key: stands(arg) for key, arg in self.kwargs.items()}
            results = [torch.empty(shape, device="meta") for shape in self.shapes]
            function: Any = self.func
            known_to = lambda tensor: known.get(id(tensor))  # noqa: E731
            return follow(self.name, function, tuple(args), kwargs, results, main, known_to)[self.number]

    @cached_property
    def goes_on(self) -> bool:
        """Whether it is neither the map as it was, nor another map that was made of it."""
        if self.name != "linear" and self.sides not in (self.shape[1:3], self.shape[2:]):
            return True
        return self.positions is not None and not _at_rest(self.positions)

    def find(self, batch: int, queries: Sequence[tuple[float, float]], device: torch.device) -> list[Place]:
        """As `Windows.of`."""
        positions = self.positions
        if positions is None or positions.varies(-1):
            return []
        axes = range(1, len(self.shape) - 2)
        heads = next((axis for axis in axes if not positions.varies(axis)), None)
        if heads is None:
            return []
        with torch.inference_mode(False), torch.no_grad():
            pixels = positions.index[..., 0].select(heads, 0).flatten(0, -2).long().to(device)
            height, width = positions.sides
            found = [Place.of(pixels, heads, (height, width), batch, query) for query in queries]
        return [place for place in found if place] if all(found) else []


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
            pixels: (windows, N), of the tokens.
            heads: the axis of the heads in the values.
            sides: of the map.
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
        return values[self._windows(values.shape[:-3])]

    def token(self, values: Tensor) -> Tensor:
        """Its own, (B, heads, width), of the values of all windows."""
        values = values.movedim(self.heads, -3)
        return values[(*self._windows(values.shape[:-3]), slice(None), self.row)]

    def _windows(self, shape: torch.Size) -> tuple[Any, ...]:
        return (self.window,) if len(shape) == 1 else torch.unravel_index(self.window, shape)

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


def _begin(shape: torch.Size, last: bool) -> _Step:
    return _Step("", None, (last,), {}, [shape], 0, None, {})


_once = lru_cache(maxsize=32)(_begin)


def _begun(shape: torch.Size, last: bool) -> _Step:
    """The first step of maps of a shape; one of its own where tensors are not what they seem (fake ones, say)."""
    large = shape.numel() > LARGE * shape[3 if last else 1]
    return _begin(shape, last) if large or torch._C._len_torch_dispatch_stack() else _once(shape, last)


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


def _numbered(shape: torch.Size, last: bool) -> Positions:
    sides = (shape[1], shape[2]) if last else (shape[2], shape[3])
    return Positions(_grid(shape[0], sides).unsqueeze(-1 if last else 1).expand(shape), sides)


def _leaves(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


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
