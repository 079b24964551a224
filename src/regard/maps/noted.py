"""Noted: what is known of tensors, for as long as they live."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary


class Noted:
    """A dictionary of tensors by identity, which keeps none of them.

    Asked for every argument of every operation, it mostly knows nothing: an id that was never noted tells that at once,
    and one that was may be another tensor's by now, which the dictionary tells.

    Attributes:
        ids: of all tensors that were ever noted.
    """

    def __init__(self) -> None:
        self._values: Any = WeakIdKeyDictionary()
        self.ids: set[int] = set()

    def __contains__(self, tensor: Tensor) -> bool:
        return id(tensor) in self.ids and tensor in self._values

    def first(self, args: Any) -> Any:
        """The first of some arguments that is noted; None where there is none."""
        ids = self.ids
        for arg in args:
            if id(arg) in ids and arg in self._values:
                return arg
        return None

    def __getitem__(self, tensor: Tensor) -> Any:
        return self._values[tensor]

    def __setitem__(self, tensor: Tensor, value: Any) -> None:
        self.ids.add(id(tensor))
        self._values[tensor] = value

    def get(self, tensor: Tensor, default: Any = None) -> Any:
        return self._values.get(tensor, default) if id(tensor) in self.ids else default

    def pop(self, tensor: Tensor, default: Any = None) -> Any:
        return self._values.pop(tensor, default)
