"""The lengths of axes by their letters: (B, C, H, W), HW where two were joined, W/2 where one was halved."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from itertools import combinations

from torch import Tensor


class Letters:
    """Names for the lengths of axes, also of those that were joined or halved."""

    def __init__(self, letters: Mapping[int, str]) -> None:
        """
        Args:
            letters: length of an axis -> its name.
        """
        self.batch = next((length for length, letter in letters.items() if letter == "B"), 1)
        self.names = {length: letter for length, letter in letters.items() if length > 1}
        sides = sorted((letter, length) for length, letter in self.names.items() if letter in "DHW")
        for count in range(2, len(sides) + 1):
            for group in combinations(sides, count):
                self._join(*zip(*group, strict=True))
        for letter, length in sides:
            self.names.setdefault(-(-length // 2), f"{letter}/2")
        for length in [length for length, letter in self.names.items() if letter == "C"]:
            whole = length * math.prod(side for _, side in sides)
            self.names.setdefault(whole, "C" + "".join(letter for letter, _ in sides))

    def _join(self, names: tuple[str, ...], lengths: tuple[int, ...]) -> None:
        joined = "".join(names), math.prod(lengths)
        added = " + ".join(names), sum(lengths)
        halves = f"{joined[0]}/{2 ** len(names)}", math.prod(-(-length // 2) for length in lengths)
        for name, length in (joined, added, halves):
            self.names.setdefault(length, name)
        for name, length in (joined, added):
            self.names.setdefault(length - 1, f"{name} − 1")

    def size(self, length: int) -> str:
        return self.names.get(length, str(length))

    def sizes(self, lengths: Iterable[int]) -> str:
        return ", ".join(map(self.size, lengths))

    def shape(self, tensor: Tensor) -> str:
        sizes = [self.size(length) for length in tensor.shape]
        first = tensor.shape[0] if sizes else 0
        if sizes and sizes[0].isdigit() and first % self.batch == 0 and first > self.batch > 1:
            rest = self.size(first // self.batch)  # heads or windows, joined to the batch
            sizes[0] = f"{rest}B" if rest.isdigit() else f"B{rest}"
        return f"({', '.join(sizes)})"

    def number(self, number: float) -> str:
        # small numbers are themselves, not the length of an axis
        letters = self.names.get(int(number), "") if number > 9 and number == int(number) else ""
        return f"({letters})" if " " in letters else letters or f"{number:.3g}"

    def over(self, what: str, x: Tensor, dims: Iterable[int]) -> str:
        sizes = [self.size(x.shape[dim]) for dim in dims]
        return f"{what} over {', '.join(f'the {size}' if size.isdigit() else size for size in sizes)}"


def by(sizes: Iterable[int]) -> str:
    """Sizes as in 3×3."""
    return "×".join(map(str, sizes))
