"""Notes: all that is known of the tensors of a pass that is recorded, one note for each of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any

from torch import Tensor

from regard.base.noted import Noted

if TYPE_CHECKING:
    from regard.maps.batches import Images
    from regard.maps.windows import Step


@dataclass(frozen=True)
class Mark:
    """What a squashed tensor is: made by what, along which axis, and of what.

    Attributes:
        by: ``"softmax"`` or ``"bound"``.
        dim: of a softmax, counted from the end; None where that is not known.
        roots: numbers of the tensors it is an elementwise function of: x sigmoid(x) is an activation, no gate.
        channels_last: whether a layer made it that works on the last axis.
        spread: whether its numbers were repeated along some axes.
    """

    by: str
    dim: int | None
    roots: frozenset[int]
    channels_last: bool = False
    spread: bool = False


class Note:
    """What is known of one tensor.

    Attributes:
        number: which tensor this is, of all in the pass: an id is given again once its tensor is gone.
        mark: it is a gate, or weights.
        roots: numbers of what it is moved by a number from.
        channels_last: it has several axes and was made by a layer that works on the last.
        turned: how many pixels it has, in a map whose columns come before its rows.
        step: where its pixels are, in windows.
        images: where its images are, if they are not counted by the first axis.
    """

    mark: Mark | None = None
    roots: frozenset[int] | None = None
    channels_last: bool = False
    turned: int = 0
    step: Step | None = None
    images: Images | None = None

    number: int


class Notes(Noted[Note]):
    """The notes of a pass."""

    def __init__(self) -> None:
        super().__init__()
        self._numbers = count()

    def of(self, tensor: Tensor) -> Note:
        """A tensor's note, a new one where it has none."""
        note = self.by_id(id(tensor))
        if note is None:
            note = self[tensor] = Note()
            note.number = next(self._numbers)
        return note

    def marked(self, operands: Iterable[Any]) -> list[Tensor]:
        """The gates and weights among what a function is given."""
        by_id = self.by_id
        return [x for x in operands if (note := by_id(id(x))) and note.mark]

    def mark(self, tensor: object) -> Mark | None:
        note: Note | None = self.get(tensor)
        return note.mark if note else None
