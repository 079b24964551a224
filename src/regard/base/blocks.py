"""Blocks: what `with` blocks put in force, for the code inside them alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Generic, TypeVar

T = TypeVar("T")


class Blocks(Generic[T]):
    """What is in force where `with` blocks are open: other threads and asyncio tasks do not see it.

    A task sees what was in force where it was created; a thread that is started sees nothing of it. Blocks may end in
    another order than they began.

    Args:
        name: for those who debug.
        outside: what is in force outside of all blocks, if anything.
    """

    def __init__(self, name: str, *outside: T) -> None:
        self._open: ContextVar[tuple[list[T], ...]] = ContextVar(name, default=tuple([value] for value in outside))

    @contextmanager
    def enter(self, value: T) -> Iterator[None]:
        entry = [value]  # one of its own: the same value may be in force twice
        self._open.set((*self._open.get(), entry))
        try:
            yield
        finally:
            self._open.set(tuple(other for other in self._open.get() if other is not entry))

    def last(self) -> T:
        return self._open.get()[-1][0]

    def __contains__(self, value: T) -> bool:
        for (entry,) in self._open.get():  # noqa: SIM110, asked at every operation, and `any` takes twice as long
            if entry is value:
                return True
        return False
