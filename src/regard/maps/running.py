"""Running: which of a model's modules runs, read from the interpreter."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

from torch import nn

from regard.layers.tap import Tap

CALL = nn.Module._call_impl.__code__


class Running:
    """The modules of a model that run, the innermost first: name, module, what it was called with.

    Hooks on all modules would cost more than all else that is done while a network is recorded.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._names: dict[int, str] = {}

    def begin(self, model: nn.Module) -> None:
        """The model, or the copy of it that is called in its place, begins to run; its modules may have changed."""
        self.model, self._names = model, {}

    @property
    def name(self) -> str | None:
        """Dotted name of the innermost; None where it is another network's, or has taps of its own."""
        name, module, _ = next(iter(self), ("", None, ()))
        return None if module is None or type(module).__module__.startswith("regard.mechanisms") else name

    def __iter__(self) -> Iterator[tuple[str, nn.Module, list[Any]]]:
        if not self._names:
            self._name("", self.model)
        frame: FrameType | None = sys._getframe()
        while frame:
            code = frame.f_code
            if code is CALL or (code.co_name == "forward" and code.co_argcount):  # some call forward themselves
                held = frame.f_locals
                module: Any = held.get(code.co_varnames[0])
                name = self._names.get(id(module))
                if name is not None and _applies(module):
                    words = (*code.co_varnames[1 : code.co_argcount], "args", "kwargs")
                    yield name, module, [held.get(word) for word in words]
            frame = frame.f_back

    def _name(self, name: str, module: nn.Module) -> None:
        """Name a module and all inside of it; one that has several names is known by its first."""
        self._names[id(module)] = name
        start = name + "." if name else ""
        for key, child in module._modules.items():
            if child is not None and id(child) not in self._names:
                self._name(start + key, child)


def _applies(module: nn.Module) -> bool:
    """Whether a module may be said to apply attention: torch's own layers and taps do so for those around them."""
    return bool(module._modules) or not (isinstance(module, Tap) or type(module).__module__.startswith("torch.nn"))
