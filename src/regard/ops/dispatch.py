"""Which implementation of an op runs: the whole choice is in this file.

An op is a folder: ``reference.py`` is plain torch, to which the others are held; ``cpu.py`` and ``triton.py`` may stand
beside it, each with ``why_not(*args) -> str | None`` (a reason, or None when it can run) and ``run(*args)``. A missing
file is a missing implementation.

``auto`` takes the first fast implementation without a reason against it, else the reference. An implementation asked
for by name runs, or raises with its reason; it never falls back in silence.

What ``auto`` took is remembered by the `look` of the arguments, all that a reason may depend on: inside a network every
step in Python costs ten times what it costs in a loop, as nothing of it is left in the caches. An implementation may
offer ``prepare(*args)`` besides: a faster ``run`` for arguments of this look while no gradients are recorded, or None.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from importlib.resources import files
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from regard.base.blocks import Blocks
from regard.base.errors import UserError, near

FAST = ("triton", "cpu")
NAMES = ("auto", "reference", *FAST)

# the name of an implementation, or what answers in place of all
_choice: Blocks[str | Callable[..., Any]] = Blocks("regard.use_impl", "auto")


def use_impl(name: str) -> AbstractContextManager[None]:
    """Run every op inside the block by one implementation.

    It holds for the code in the block, and for asyncio tasks created there; a thread that is started sees ``"auto"``,
    and nothing that runs beside is changed. What torch.compile or torch.export traces is the reference, whatever is
    asked.

    Args:
        name: ``"auto"``, ``"reference"``, ``"cpu"`` or ``"triton"``.

    Raises:
        UserError: the name is unknown; inside the block, an op that the implementation cannot run says why.

    Example:
        >>> import torch, regard
        >>> with regard.use_impl("reference"):
        ...     y = regard.create("se", 16)(torch.randn(1, 16, 4, 4))
    """
    if name not in NAMES:
        raise UserError(f"there is no implementation {name!r}: the names are {', '.join(NAMES)}{near(name, NAMES)}")
    return _choice.enter(name)


def answered(by: Callable[..., Any]) -> AbstractContextManager[None]:
    """Ask a function instead of every op inside the block: ``by(op, *args)``."""
    return _choice.enter(by)


def not_plain(*args: Any) -> str | None:
    """The guard before every fast implementation: why these arguments may only meet the reference, or None.

    A native function given a meta tensor crashes the process, and inside a tracer it bakes in a constant.
    """
    if torch.compiler.is_compiling():
        return "inside torch.compile or torch.export"
    if torch._C._get_tracing_state() is not None:
        return "inside torch.jit.trace"
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return "inside a torch.func transform"
    if torch._C._len_torch_dispatch_stack() > 0 or torch._ops._len_torch_dispatch_stack_pre_dispatch() > 0:
        return "inside a dispatch mode"
    if torch.autograd.forward_ad._current_level >= 0:
        return "inside forward-mode differentiation"
    return _not_plain_tensors(args)


def _not_plain_tensors(values: Iterable[Any]) -> str | None:
    for value in values:
        if isinstance(value, tuple):
            reason = _not_plain_tensors(value)
            if reason is not None:
                return reason
        elif isinstance(value, Tensor):
            if type(value) not in (Tensor, torch.nn.Parameter):
                return f"needs plain tensors, got {type(value).__name__}"
            if torch._C._functorch.is_legacy_batchedtensor(value):
                return "inside a batched gradient"
            if value.device.type == "meta" or value.layout != torch.strided:
                return f"needs strided tensors with memory, got {value.layout} on {value.device}"
            if value.is_neg():
                return "needs numbers as they lie in memory, got a tensor whose sign is still to be changed"
    return None


LOOKS = 1024  # remembered by each op
_include, _exclude = torch._C._dispatch_tls_local_include_set, torch._C._dispatch_tls_local_exclude_set


def look(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """All of the arguments, and of what torch is doing, that the choice of an implementation may depend on.

    Tracers, transforms, dispatch modes and autocast show in torch's dispatch keys.
    """
    keys = _include().raw_repr(), _exclude().raw_repr(), torch.autograd.forward_ad._current_level
    if torch._C._is_torch_function_mode_enabled():  # who watches torch's functions is not asked for every shape
        with torch._C.DisableTorchFunction():
            seen = tuple(map(_look, args))
    else:
        seen = tuple(map(_look, args))
    return *keys, torch.is_grad_enabled(), torch.get_num_threads(), *seen


def _look(value: Any) -> Any:
    if isinstance(value, Tensor):
        kind, device = value.__class__, value.device
        return kind, value.shape, value.stride(), value.dtype, device, value.requires_grad, value.is_neg()
    if isinstance(value, tuple):
        return tuple(map(_look, value))
    # what is no number counts by its class: a key must keep no module alive
    return value if value is None or isinstance(value, int | float | str) else value.__class__


class Op:
    """One op and its implementations.

    Args:
        package: the op's folder, e.g. ``"regard.ops.gate"``.
        reference: its plain implementation, imported statically (a lazy import inside a call breaks tracing).
    """

    def __init__(self, package: str, reference: Callable[..., Any]) -> None:
        self.name = package.rpartition(".")[2]
        self.package = package
        self.reference = reference
        here = files(package)
        self.fast = tuple(name for name in FAST if here.joinpath(f"{name}.py").is_file())
        self.loaded: dict[str, ModuleType] = {}
        self.chosen: dict[tuple[Any, ...], Callable[..., Any]] = {}  # by look

    def __call__(self, *args: Any) -> Any:
        if torch.compiler.is_compiling():
            return self.reference(*args)
        choice = _choice.last()
        if choice == "auto":
            if not self.fast:
                return self.reference(*args)
            try:
                seen = look(args)
                run = self.chosen.get(seen)
            except (RuntimeError, TypeError):  # no strides, or sizes that are symbols
                return self.reference(*args)
            return (run or self._choose(seen, args))(*args)
        if callable(choice):
            return choice(self, *args)
        reason = self.why_not(choice, *args)
        if reason is not None:
            raise UserError(f"{self.name}[{choice}]: {reason}")
        return self.reference(*args) if choice == "reference" else self._implementation(choice).run(*args)

    def _choose(self, seen: tuple[Any, ...], args: tuple[Any, ...]) -> Callable[..., Any]:
        """What `auto` takes for these arguments, remembered for all that look like them."""
        run = self.reference
        if not_plain(*args) is None:
            for name in self.fast:
                implementation = self._implementation(name)
                if implementation.why_not(*args) is None:
                    prepare = None if _records(args) else getattr(implementation, "prepare", None)
                    run = (prepare and prepare(*args)) or implementation.run
                    break
        if len(self.chosen) >= LOOKS:
            self.chosen.clear()
        self.chosen[seen] = run
        return run

    def why_not(self, name: str, *args: Any) -> str | None:
        """Why an implementation cannot run these arguments, or None when it can."""
        if name == "reference":
            return None
        if name not in self.fast:
            return "not implemented"
        return not_plain(*args) or self._implementation(name).why_not(*args)

    def explain(self, *args: Any) -> dict[str, str | None]:
        """For every implementation, why ``auto`` would pass it over, or None; ``auto`` takes the first None."""
        return {name: self.why_not(name, *args) for name in (*FAST, "reference")}

    def _implementation(self, name: str) -> ModuleType:
        if name not in self.loaded:
            self.loaded[name] = importlib.import_module(f"{self.package}.{name}")
        return self.loaded[name]


def _records(values: Iterable[Any]) -> bool:
    """Whether autograd records what is made of these."""
    return torch.is_grad_enabled() and any(
        _records(value) if isinstance(value, tuple) else isinstance(value, Tensor) and value.requires_grad
        for value in values
    )
