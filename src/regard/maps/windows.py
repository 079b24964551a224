"""Where the tokens of windows lie: transformers that cut a map into windows move its pixels about, and only what they
did to them tells which token is which pixel."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from regard.base.functions import CONVOLUTIONS, MIXTURES, MOVES, POOLINGS, RESIZES, Call, tensors
from regard.insertion.positions import Positions, follow
from regard.maps.notes import Notes
from regard.maps.places import Place

SPLITS = frozenset({"view", "reshape", "unflatten"})
NEW_MAPS = CONVOLUTIONS | POOLINGS | RESIZES
CHANGES = MOVES | MIXTURES | {"linear"}  # what may leave pixels elsewhere in a tensor of the same shape
LARGE = 1 << 20  # pixels in a batch of maps, the moves of which are not kept for the next pass
LONG = 1 << 10  # moves of maps of one shape


class Windows:
    """The pixel that each token is, from where a map is padded, rolled or cut into windows until it is whole again.
    Numbers of pixels of the second image come after those of the first.

    While a network runs only the moves are noted, since its caches are cold for anything else; they are done with the
    numbers of the pixels when somebody asks for tokens, and once for all blocks and passes that move maps of one shape
    alike.
    """

    def __init__(self, notes: Notes) -> None:
        self.notes = notes
        self._begins = {"roll": _rolls, "pad": _pads, **dict.fromkeys(SPLITS, _splits)}
        self.beginnings = frozenset(self._begins)  # what is followed though nothing is known of its operands

    def follow(self, call: Call) -> None:
        """See one function of torch at work."""
        for note in call.notes:
            if (main := note.step) is not None:
                break
        else:
            begun = self._begin(call)
            if begun is None:
                return  # most calls of most networks
            main = begun
        result, name = call.result, call.word
        if name in NEW_MAPS:
            return
        if name not in CHANGES and isinstance(result, Tensor) and result.shape == main.shape:
            self.notes.of(result).step = main
            return
        results = tensors(result)
        for tensor, step in zip(results, self._steps(call, [x.shape for x in results], main), strict=True):
            if len(step.shape) != 4 or step.goes_on:
                self.notes.of(tensor).step = step

    def of(self, tokens: Tensor, batch: int, queries: Sequence[tuple[float, float]]) -> list[Place]:
        """The places that are asked for, as the tokens of values (windows and heads, N, width) hold them.

        Args:
            tokens: the values.
            batch: number of images.
            queries: places (row, column) as shares of the sides.

        Returns:
            One for each, or none where not all of them are known.
        """
        note = self.notes.get(tokens)
        if note is None or note.step is None or tokens.dim() < 4:
            return []
        key = (batch, tuple(queries), tokens.device)
        places: dict[Any, list[Place]] = note.step.places
        if key not in places:
            places.clear()
            places[key] = note.step.find(*key)
        return places[key]

    def _begin(self, call: Call) -> Step | None:
        """The step of a map whose pixels begin to move; None where they do not."""
        begins = self._begins.get(call.word)
        x = call.args[0] if begins and call.args else None
        if begins is None or not isinstance(x, Tensor) or x.dim() != 4 or not isinstance(call.result, Tensor):
            return None
        channels_last = begins(call, x)
        if channels_last is None:
            return None
        step = self.notes.of(x).step = _begun(x.shape, channels_last)
        return step

    def _steps(self, call: Call, shapes: list[torch.Size], main: Step) -> list[Step]:
        """One for each result; the same ones where the same was done to the same before."""
        given = tuple([arg if type(arg) is int else self._held(arg) for arg in call.args])
        named = {key: self._held(value) for key, value in call.kwargs.items()} if call.kwargs else {}
        done = main.done
        key = (call.function, given, *named.items(), *shapes)
        try:
            if (steps := done.get(key)) is not None:
                return steps
        except TypeError:  # a tensor that tells what to take: another one in every pass
            done = {}
        else:
            if len(done) > LONG:
                done.clear()
        move = Call(call.word, call.function, given, named)
        steps = [Step(move, shapes, number, main, done) for number in range(len(shapes))]
        if done is main.done:
            done[key] = steps
        return steps

    def _held(self, arg: Any) -> Any:
        """An argument without the memory of tensors; what tells it from others."""
        if isinstance(arg, Tensor):
            note = self.notes.get(arg)
            if note is not None and note.step is not None:
                return note.step
            return [arg] if arg.dtype in (torch.int64, torch.bool) else _Other(arg.shape)
        if isinstance(arg, list | tuple):
            return tuple([entry if type(entry) is int else self._held(entry) for entry in arg])
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


class Step:
    """One move of the pixels, without the memory of its tensors.

    Attributes:
        move: the function, with a step or an `_Other` in the place of each tensor that it was given; None for a map as
            it was before the first move.
        shapes: of the results.
        number: which of the results this is.
        main: the step that it continues.
        done: the steps that follow, by what was done.
        channels_last: of the map before the first move.
        sides: of the map.
        places: what was asked for in it.
    """

    def __init__(
        self,
        move: Call | None,
        shapes: list[torch.Size],
        number: int,
        main: Step | None,
        done: dict[Any, list[Step]],
        channels_last: bool = False,
    ) -> None:
        self.move, self.shapes, self.number, self.main, self.done = move, shapes, number, main, done
        self.channels_last = channels_last
        self.shape = shapes[number]
        self.sides: tuple[int, ...] = main.sides if main else self.shape[1:3] if channels_last else self.shape[2:]
        self.places: dict[Any, list[Place]] = {}

    @cached_property
    def positions(self) -> Positions | None:
        """Where the numbers of this result lie: the move, done with the numbers of the pixels."""
        with torch.inference_mode(False), torch.no_grad():  # the next pass may be one that learns
            if self.main is None or self.move is None:
                return _numbered(self.shape, self.channels_last)
            main = self.main.positions
            if main is None or (self.move.word == "linear" and main.varies(-1)):
                return None
            stand_ins = _StandIns()
            args = tuple([stand_ins.of(arg) for arg in self.move.args])
            kwargs = {key: stand_ins.of(arg) for key, arg in self.move.kwargs.items()}
            results = [torch.empty(shape, device="meta") for shape in self.shapes]
            call = Call(self.move.word, self.move.function, args, kwargs, results)
            return follow(call, main, stand_ins.positions)[self.number]

    @cached_property
    def goes_on(self) -> bool:
        """Whether it is neither the map as it was, nor another map that was made of it."""
        if self.move and self.move.word != "linear" and self.sides not in (self.shape[1:3], self.shape[2:]):
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
            places = [Place.of(pixels, heads, (height, width), batch, query) for query in queries]
        return [place for place in places if place] if all(places) else []


class _StandIns:
    """Tensors without memory in the place of those that were there."""

    def __init__(self) -> None:
        self._positions: dict[int, Positions | None] = {}

    def of(self, arg: Any) -> Any:
        if isinstance(arg, Step | _Other):
            tensor = torch.empty(arg.shape, device="meta")
            if isinstance(arg, Step):
                self._positions[id(tensor)] = arg.positions
            return tensor
        if isinstance(arg, _Slice):
            return slice(*arg)
        if isinstance(arg, list):
            return arg[0]
        return tuple(map(self.of, arg)) if isinstance(arg, tuple) else arg

    def positions(self, tensor: Tensor) -> Positions | None:
        return self._positions.get(id(tensor))


def _first(shape: torch.Size, channels_last: bool) -> Step:
    return Step(None, [shape], 0, None, {}, channels_last)


_remembered = lru_cache(maxsize=32)(_first)


def _begun(shape: torch.Size, channels_last: bool) -> Step:
    """The first step of maps of a shape; one of its own where tensors are not what they seem (fake ones, say)."""
    large = shape.numel() > LARGE * shape[3 if channels_last else 1]
    own = large or torch._C._len_torch_dispatch_stack()
    return _first(shape, channels_last) if own else _remembered(shape, channels_last)


# whether the channels of a map are its last axis, when something begins to move its pixels; None where nothing does


def _rolls(call: Call, x: Tensor) -> bool | None:
    dims = call.option(2, "dims")
    if not isinstance(dims, Sequence):
        return None
    return {(1, 2): True, (2, 3): False}.get(tuple(sorted(dim % 4 for dim in dims)))


def _pads(call: Call, x: Tensor) -> bool | None:
    around = call.option(1, "pad", ())
    return True if any(around[2:]) and not any(around[:2]) else None


def _splits(call: Call, x: Tensor) -> bool | None:
    before, after = x.shape, call.result.shape
    if len(after) != 6 or after[0] != before[0]:
        return None
    if after[-1] == before[-1]:
        return True
    return False if after[1] == before[1] else None


def _numbered(shape: torch.Size, channels_last: bool) -> Positions:
    sides = (shape[1], shape[2]) if channels_last else (shape[2], shape[3])
    return Positions(_grid(shape[0], sides).unsqueeze(-1 if channels_last else 1).expand(shape), sides)


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
