"""A user's model, borrowed: called, looked at, and given back as it was."""

from __future__ import annotations

import random
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from types import CellType, FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.parameter import is_lazy

from regard.base.errors import UserError

LONG = 1000  # entries of a container that is not searched for modules: a vocabulary
BLANK = nn.Module()


@contextmanager
def borrowed(model: nn.Module) -> Iterator[nn.Module]:
    """A `twin` to call and to put hooks into; afterwards every random state is as it was."""
    with same_randomness():
        yield twin(model)


def twin(model: nn.Module) -> nn.Module:
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
        for name, (value, copy) in state.items():
            own = value is copy and name in vars(BLANK) and isinstance(value, dict | set)  # hooks will be added
            vars(copies.of(module))[name] = value.copy() if own else copy
        copies.of(module).training = False
    found: nn.Module = copies.of(model)
    return found


def shadow(model: nn.Module) -> nn.Module:
    """A copy of a model that reads the same weights and has modes, buffers and gradients of its own."""
    weights: dict[int, Any] = {
        id(weight): nn.Parameter(weight.detach(), weight.requires_grad) for weight in model.parameters()
    }
    return deepcopy(model, weights)


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


def _opened(value: Any) -> tuple[list[Any], Callable[[list[Any]], Any]] | None:
    """The parts of which a value is made, and how to make it of others; None where it cannot lead to a module."""
    kind = type(value)
    if kind in (list, tuple, set, frozenset, deque):
        return (list(value), kind) if len(value) <= LONG else None
    if kind in (dict, OrderedDict, defaultdict):
        keys, values = list(value), list(value.values())

        def filled(parts: list[Any]) -> Any:
            copy = value.copy()
            copy.clear()
            copy.update(zip(parts[: len(keys)], parts[len(keys) :], strict=True))
            return copy

        return ([*keys, *values], filled) if len(keys) <= LONG else None
    if kind is MethodType:
        return [value.__self__], lambda parts: MethodType(value.__func__, *parts)
    if kind is partial:
        return [value.func, value.args, value.keywords], lambda parts: partial(parts[0], *parts[1], **parts[2])
    if kind is FunctionType:
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
    if kind.__new__ is object.__new__ and hasattr(value, "__dict__"):
        names = list(vars(value))

        def alike(parts: list[Any]) -> Any:
            copy = object.__new__(kind)
            copy.__dict__.update(zip(names, parts, strict=True))
            return copy

        return [vars(value)[name] for name in names], alike
    return None


def weights_kept(module: nn.Module) -> saved_tensors_hooks:
    """Autograd keeps copies of the weights: another thread may be training them between the passes."""
    owned = {_address(weight) for weight in module.parameters()} - {None}

    def keep(tensor: Tensor) -> tuple[Tensor, int | None]:
        return (tensor.clone(), None) if _address(tensor) in owned else (tensor, tensor._version)

    def kept(pair: tuple[Tensor, int | None]) -> Tensor:
        tensor, version = pair
        if version not in (None, tensor._version):
            raise UserError(
                f"a tensor of shape {tuple(tensor.shape)} that the gradient needs was written over during the pass: "
                "the network changes it in place"
            )
        return tensor

    return saved_tensors_hooks(keep, kept)


def _address(tensor: Tensor) -> int | None:
    try:
        return tensor.untyped_storage().data_ptr()
    except (RuntimeError, ValueError):  # lazy, sparse, or a stranger's kind of tensor
        return None


@contextmanager
def same_randomness() -> Iterator[None]:
    """Afterwards every global random state is as it was."""
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        random.setstate(states[1])
        np.random.set_state(states[2])  # noqa: NPY002
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)


def same_kind(tensor: Tensor, own: Tensor) -> bool:
    """Whether a tensor may be copied into another: precision may differ, but no number loses a part of itself."""
    return tensor.layout == own.layout and (
        tensor.dtype == own.dtype or (tensor.is_floating_point() and own.is_floating_point())
    )


def call(model: nn.Module, example: Any) -> Any:
    if isinstance(example, tuple):
        return model(*example)
    if isinstance(example, Mapping):
        return model(**example)
    return model(example)


def brief(error: Exception) -> str:
    """An exception in one line."""
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


def is_compiled(module: nn.Module) -> bool:
    # by name: naming the class itself would load torch's whole compiler, which takes seconds
    return type(module).__name__ == "OptimizedModule" or module._compiled_call_impl is not None


def is_sharded(tensor: Tensor | None) -> bool:
    # by name: naming the class itself would load torch.distributed
    return type(tensor).__name__ == "DTensor" or type(getattr(tensor, "data", None)).__name__ == "DTensor"


def refuse_unseen(model: nn.Module) -> None:
    """What cannot be watched while it runs."""
    if not isinstance(model, nn.Module):
        raise UserError(f"the model must be a torch.nn.Module, got {type(model).__name__}")
    for module in model.modules():
        if is_compiled(module):
            raise UserError(
                "the model is compiled, and torch ignores hooks added after that: look into the model itself"
            )
        if isinstance(module, torch.jit.ScriptModule):
            raise UserError("the model is TorchScript, which takes no hooks: look into the Python model")


def refuse_unhookable(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise UserError(f"the model must be a torch.nn.Module, got {type(model).__name__}")
    for name, module in model.named_modules():
        where = f"{name!r}" if name else "the model"
        if is_compiled(module):
            raise UserError(
                f"{where} is already compiled, and torch ignores hooks added after that: attach first, compile then"
            )
        if isinstance(module, torch.jit.ScriptModule):
            raise UserError(f"{where} is a TorchScript module, which takes no hooks: attach to the Python model")
        if isinstance(module, nn.parallel.DistributedDataParallel):
            raise UserError("the model is wrapped in DistributedDataParallel already: attach first, wrap then")
        if any(map(is_sharded, module._parameters.values())):
            raise UserError(f"{where} is sharded already, and new parameters would not be: attach first, shard then")
        if any(map(is_lazy, (*module._parameters.values(), *module._buffers.values()))):
            raise UserError(f"{where} is lazy and has no weights yet: run the model once, then attach")
