"""Which axis of a tensor counts the images, followed through what moves axes about or folds them into each other.

Everywhere it is the first, and attention that is written otherwise is rare: heads before images, tokens before images,
heads and images in one axis. Only tensors in which it lies elsewhere are noted.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor, nn

from regard.base.axes import went
from regard.base.functions import LISTED, PARTS, REGROUPINGS, TURNS, Call, tensors
from regard.maps.notes import Notes


class Images(NamedTuple):
    """Where the images are: along one axis, number ``(o * size + image) * after + i``.

    Attributes:
        axis: counted from the front.
        size: how many there are.
        before: how many times all images follow each other.
        after: how many entries of one image follow each other.
    """

    axis: int
    size: int
    before: int = 1
    after: int = 1


LOST = Images(-1, 0)  # it cannot be told where they are


class Batches:
    """Where the images are in every tensor of a pass in which they are not simply counted by the first axis."""

    def __init__(self, notes: Notes) -> None:
        self.notes = notes
        self._begins = {
            **dict.fromkeys(TURNS, _turns),
            **dict.fromkeys(REGROUPINGS, _regroups),
            **dict.fromkeys(("select", "unbind"), _takes),
            **dict.fromkeys(LISTED, self._joins),
            "getitem": _takes_number,
            "einsum": lambda call: True,
        }
        self.beginnings = frozenset(self._begins)  # what is followed though nothing is known of its operands
        self._rules = {
            **dict.fromkeys(PARTS | TURNS, _gone),
            **dict.fromkeys(REGROUPINGS - PARTS, _regrouped),
            "einsum": _lettered,
        }

    def follow(self, call: Call) -> None:
        """See one function of torch at work: most calls of most networks leave the images where they are."""
        for note in call.notes:
            if note.images is not None:
                break
        else:
            begins = self._begins.get(call.word)
            if begins is None or not begins(call):
                return
        if call.word in LISTED:
            self._note(call.result, self._joined(call))
        elif (main := self._main(call)) is not None:
            images, rule = self.of(main), self._rules.get(call.word, _kept)
            for result in tensors(call.result):
                self._note(result, None if images is None else rule(call, main, images, result))

    def of(self, tensor: Tensor) -> Images | None:
        """Where the images are in it; None where that cannot be told."""
        note = self.notes.get(tensor)
        images: Images = (note and note.images) or Images(0, tensor.shape[0] if tensor.dim() else 0)
        return None if images is LOST else images

    def first(self, tensor: Tensor, images: Images) -> Tensor:
        """The same numbers with the images counted by the first axis, what was folded into it behind them.

        Args:
            images: where they are in it.

        Returns:
            (B, \\*others), (B, folded, \\*others), or the tensor as it is where what was folded follows each image.
        """
        if images.axis == 0 and images.before == 1:
            return tensor
        apart = tensor.unflatten(images.axis, (images.before, images.size, images.after)).movedim(images.axis + 1, 0)
        apart = apart.flatten(images.axis + 1, images.axis + 2)
        return apart.squeeze(images.axis + 1) if images.before * images.after == 1 else apart

    def _note(self, result: Tensor, images: Images | None) -> None:
        if images is None:
            self.notes.of(result).images = LOST
        elif images != (0, result.shape[0] if result.dim() else 0, 1, 1):
            self.notes.of(result).images = images

    def _main(self, call: Call) -> Tensor | None:
        """The tensor that a result continues; None where it is only a table that is added to a map."""
        given = [operand for operand in call.operands if isinstance(operand, Tensor)]
        if call.word == "einsum":
            given = tensors(call.args)
        if len(given) < 2:
            return given[0] if given else None
        main = max(given, key=lambda tensor: (tensor.numel(), tensor.dim()))
        note = self.notes.get(main)
        return main if call.word == "einsum" or (note and note.images) else None

    def _joins(self, call: Call) -> bool:
        listed = call.args[0] if call.args else ()
        if not isinstance(listed, list | tuple) or not listed:
            return False
        held = any((note := self.notes.get(part)) and note.images for part in listed)
        return held or call.option(1, "dim", 0) in (0, -listed[0].dim())

    def _joined(self, call: Call) -> Images | None:
        """Of tensors that are put one after the other, or on top of one another."""
        parts = call.args[0]
        places = {self.of(part) for part in parts}
        dims = parts[0].dim() + (call.word == "stack")
        dim = call.option(1, "dim", 0) % max(1, dims)
        if places == {None} and call.word == "stack" and dim == 0:
            return Images(0, len(parts))  # one image each
        images = places.pop()
        if places or images is None or len({part.shape[images.axis] for part in parts}) > 1:
            return None
        if call.word == "stack":
            return images._replace(axis=images.axis + (dim <= images.axis))
        if dim != images.axis:
            return images
        if parts[0].shape[dim] == 1:
            return Images(dim, len(parts))
        return images._replace(before=len(parts) * images.before)


# whether the images leave the first axis, or share it, for the first time


def _is_map(call: Call) -> bool:
    x = call.args[0] if call.args else None
    return isinstance(x, Tensor) and x.is_floating_point() and not isinstance(x, nn.Parameter)


_turns = _is_map


def _regroups(call: Call) -> bool:
    x, result = call.args[0] if call.args else None, call.result
    if not (isinstance(x, Tensor) and isinstance(result, Tensor)) or x.shape[:1] == result.shape[:1]:
        return False
    return _is_map(call)


def _takes(call: Call) -> bool:
    return _is_map(call) and call.option(1, "dim", 0) in (0, -call.args[0].dim())


def _takes_number(call: Call) -> bool:
    taken = call.args[1]
    taken = taken[0] if isinstance(taken, tuple) and taken else taken
    return isinstance(taken, int) and not isinstance(taken, bool) and _is_map(call)


# where they are in a result, from where they were in the tensor that it continues


def _kept(call: Call, main: Tensor, images: Images, result: Tensor) -> Images | None:
    same = result.dim() == main.dim() and result.shape[images.axis] == main.shape[images.axis]
    return images if same else None


def _gone(call: Call, main: Tensor, images: Images, result: Tensor) -> Images | None:
    """Through a turn, or into parts."""
    axis, dims = went(call, images.axis)
    if axis is None or dims != result.dim():
        return None
    size, images = result.shape[axis], images._replace(axis=axis)
    if size == images.before * images.size * images.after:
        return images
    if images.before == images.after == 1:
        return images._replace(size=size)
    rounds, left = divmod(size, images.size * images.after)
    return None if left or call.word == "getitem" else images._replace(before=rounds)


def _regrouped(call: Call, main: Tensor, images: Images, result: Tensor) -> Images | None:
    before, after = main.shape, result.shape
    stride = images.after * math.prod(before[images.axis + 1 :])  # from one image to the next, in numbers
    for axis in range(len(after)):
        behind = math.prod(after[axis + 1 :])
        if behind and behind <= stride and stride * images.size <= behind * after[axis]:
            whole = stride % behind == 0 and (behind * after[axis]) % (stride * images.size) == 0
            rounds = behind * after[axis] // (stride * images.size) if whole else 0
            return Images(axis, images.size, rounds, stride // behind) if whole else None
    return None


def _lettered(call: Call, main: Tensor, images: Images, result: Tensor) -> Images | None:
    """Where the letter of an axis of a factor of Einstein's sum is in the result."""
    equation, *factors = call.args
    if not isinstance(equation, str) or "->" not in equation or "." in equation:
        return None
    before, after = equation.replace(" ", "").split("->")
    for letters, factor in zip(before.split(","), factors, strict=False):
        if factor is main:
            letter = letters[images.axis]
            return images._replace(axis=after.index(letter)) if letter in after else None
    return None
