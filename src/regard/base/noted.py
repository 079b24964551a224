"""Noted: what is known of tensors, for as long as they live."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Generic, TypeVar
from weakref import ref

from torch import Tensor

T = TypeVar("T")


class Noted(Generic[T]):
    """A dictionary of tensors by identity, which keeps none of them.

    It is asked for every argument of every function while a network runs, so that it is a plain dictionary by id, from
    which a tensor goes in the moment it dies: its id may be another one's afterwards.
    """

    def __init__(self) -> None:
        values: dict[int, T] = {}
        alive: dict[int, tuple[ref[Tensor], int]] = {}  # id of a reference -> itself, and the id of its tensor

        def forget(dead: ref[Tensor]) -> None:
            _, key = alive.pop(id(dead))
            values.pop(key, None)

        self._values, self._alive, self._forget = values, alive, forget
        self.by_id = values.get  # the same as `get`, of an id

    def __contains__(self, tensor: Tensor) -> bool:
        return id(tensor) in self._values

    def __getitem__(self, tensor: Tensor) -> T:
        return self._values[id(tensor)]

    def __setitem__(self, tensor: Tensor, value: T) -> None:
        key = id(tensor)
        if key not in self._values:
            reference = ref(tensor, self._forget)
            self._alive[id(reference)] = reference, key
        self._values[key] = value

    def get(self, tensor: Any, default: Any = None) -> Any:
        """What is known of a tensor; the default also of what is none."""
        return self._values.get(id(tensor), default)

    def update(self, pairs: Iterable[tuple[Tensor, T]]) -> None:
        for tensor, value in pairs:
            self[tensor] = value
