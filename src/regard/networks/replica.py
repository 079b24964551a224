"""Replicas of a user's model, which is called and looked at by way of them, so that it stays as it is."""

from __future__ import annotations

from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from types import CellType, FunctionType, MethodType
from typing import Any

from torch import nn

from regard.networks.randomness import same_randomness

LONG = 1000  # entries of a container that is not searched for modules: a vocabulary
BLANK = nn.Module()

Rebuild = Callable[[list[Any]], Any]  # makes a value like another one of other parts


@contextmanager
def borrowed(model: nn.Module) -> Iterator[nn.Module]:
    """A `replica` to call and to put hooks into; afterwards every random state is as it was."""
    with same_randomness():
        yield replica(model)


def replica(model: nn.Module) -> nn.Module:
    """The same network over again, in evaluation mode: modules, hooks and buffers are copies, the weights are shared.

    So nothing that is done to it reaches the model, which another thread may be training. As among the replicas of
    `torch.nn.DataParallel`, a hook is given the module that runs, which is the copy.
    """
    copies = _Copies()
    modules = list(model.modules())
    for module in modules:
        copies.hold(module, object.__new__(type(module)))
        for buffer in module._buffers.values():
            if buffer is not None and id(buffer) not in copies:
                copies.hold(buffer, buffer.detach().clone())
    for module in modules:
        state = {name: (value, copies.of(value)) for name, value in dict(vars(module)).items()}
        for name, (value, other) in state.items():
            own = value is other and name in vars(BLANK) and isinstance(value, dict | set)  # hooks will be added
            vars(copies.of(module))[name] = value.copy() if own else other
        copies.of(module).training = False
    copy: nn.Module = copies.of(model)
    return copy


def shadow(model: nn.Module) -> nn.Module:
    """A copy of a model that reads the same weights and has modes, buffers and gradients of its own."""
    weights: dict[int, Any] = {
        id(weight): nn.Parameter(weight.detach(), weight.requires_grad) for weight in model.parameters()
    }
    return deepcopy(model, weights)


def call(model: nn.Module, example: Any) -> Any:
    """Call a model with an example: a tuple is positional arguments, a mapping keyword arguments, else one."""
    if isinstance(example, tuple):
        return model(*example)
    if isinstance(example, Mapping):
        return model(**example)
    return model(example)


class _Copies(dict[int, Any]):
    """By id, the copies of a model's modules and buffers, and of whatever leads to one of them."""

    def __init__(self) -> None:
        super().__init__()
        self.held: list[Any] = []  # an id is good for as long as its owner lives

    def hold(self, value: Any, copy: Any) -> Any:
        self.held.append(value)
        self[id(value)] = copy
        return copy

    def of(self, value: Any, *, beyond: bool = True) -> Any:
        """The value's copy, or itself where it leads to nothing that was copied.

        Args:
            beyond: whether to look into an object that is no module; not into those that it holds in turn.
        """
        if id(value) in self:
            return self[id(value)]
        foreign = type(value).__new__ is object.__new__ and hasattr(value, "__dict__")
        opened = _opened(value) if not foreign or beyond else None
        if opened is None:
            return value
        parts, closed = opened
        self.hold(value, value)  # for circles
        copies = [self.of(part, beyond=beyond and not foreign) for part in parts]
        changed = any(copy is not part for copy, part in zip(copies, parts, strict=True))
        return self.hold(value, closed(copies)) if changed else value


def _opened(value: Any) -> tuple[list[Any], Rebuild] | None:
    """The parts of which a value is made, and how to make it of others; None where it cannot lead to a module."""
    kind = type(value)
    if kind in (list, tuple, set, frozenset, deque):
        return (list(value), kind) if len(value) <= LONG else None
    if kind in (dict, OrderedDict, defaultdict):
        return _opened_mapping(value) if len(value) <= LONG else None
    if kind is MethodType:
        return [value.__self__], lambda parts: MethodType(value.__func__, *parts)
    if kind is partial:
        return [value.func, value.args, value.keywords], lambda parts: partial(parts[0], *parts[1], **parts[2])
    if kind is FunctionType:
        return _opened_function(value)
    if kind.__new__ is object.__new__ and hasattr(value, "__dict__"):
        return _opened_object(value)
    return None


def _opened_mapping(value: Any) -> tuple[list[Any], Rebuild]:
    count = len(value)

    def filled(parts: list[Any]) -> Any:
        copy = value.copy()
        copy.clear()
        copy.update(zip(parts[:count], parts[count:], strict=True))
        return copy

    return [*value, *value.values()], filled


def _opened_function(value: FunctionType) -> tuple[list[Any], Rebuild]:
    """Defaults, and what the function holds of the names around it."""
    cells = [cell for cell in value.__closure__ or () if cell != CellType()]

    def bound(parts: list[Any]) -> Any:
        anew = {
            id(cell): cell if cell.cell_contents is part else CellType(part)
            for cell, part in zip(cells, parts[2:], strict=True)
        }
        closure = tuple(anew.get(id(cell), cell) for cell in value.__closure__ or ())
        copy = FunctionType(value.__code__, value.__globals__, value.__name__, parts[0], closure or None)
        copy.__kwdefaults__ = parts[1]
        copy.__dict__.update(value.__dict__)
        return copy

    return [value.__defaults__, value.__kwdefaults__, *(cell.cell_contents for cell in cells)], bound


def _opened_object(value: Any) -> tuple[list[Any], Rebuild]:
    names = list(vars(value))

    def alike(parts: list[Any]) -> Any:
        copy = object.__new__(type(value))
        copy.__dict__.update(zip(names, parts, strict=True))
        return copy

    return [vars(value)[name] for name in names], alike
