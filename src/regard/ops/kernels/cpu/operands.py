"""The operands of a plan, numbered in the order in which a call lists their pointers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ctypes import c_int64
from itertools import count

from regard.ops.kernels import interface


class Operands:
    """Hands out numbers for the pointers of a plan, from 1, with the strides of the tensors that they point to.

    Args:
        strides: four for each tensor, in the order of the call.
    """

    def __init__(self, strides: Iterable[Sequence[int]]) -> None:
        self._strides, self._numbers = iter(strides), count(1)

    def pointer(self) -> int:
        """The number of the next pointer, to a tensor that is dense."""
        return next(self._numbers)

    def stride(self) -> Sequence[int]:
        """The strides of the next tensor, without a pointer of its own."""
        return next(self._strides)

    def next(self) -> interface.Operand:
        """The next tensor."""
        return interface.Operand(self.pointer(), (c_int64 * 4)(*self.stride()))

    def next_two(self) -> tuple[interface.Operand, interface.Operand]:
        """The next two tensors, which lie alike."""
        stride = (c_int64 * 4)(*self.stride())
        return interface.Operand(self.pointer(), stride), interface.Operand(self.pointer(), stride)


def varies(operand: interface.Operand) -> bool:
    """Whether an operand varies along the fastest axis."""
    return operand.stride[3] != 0
