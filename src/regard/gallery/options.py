"""How to look: the options of `look` that its parts read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

Tell = Callable[[str, int, int], None]  # what is done, how much of it, and of how much


@dataclass(frozen=True)
class Options:
    """As `regard.look` explains them."""

    target: int | None
    method: str
    layer: str
    query: tuple[float, float]
    head: int | None
    every: bool
    checks: bool
    smooth: bool
    size: int
    batch: int
