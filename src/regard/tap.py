"""Tap: an identity inside a mechanism that marks a map, so that it can be read."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn


class Tap(nn.Module):
    """Pass a map on unchanged; a forward hook on the tap sees it.

    A tap may also *fade in* its map: a gate ``g`` becomes ``1 + strength * (g - 1)`` with one learnable number that
    starts at 0, so that the mechanism starts as the identity and costs nothing more (the arithmetic is done on the
    small gate). What a hook sees is the gate that is really applied: with a strength below 0 or above 1 that learnt to
    press down what the mechanism lifts, or the other way round, it leaves the range of `low` and `high`.

    Args:
        kind: what the map speaks of: ``"channel"`` (B, C, 1, ...), ``"spatial"`` (B, 1, H, ...) or
            ``"axis"`` (B, C and one axis of the map, the others 1).
        low, high: the values the map can take before it is faded in.
    """

    strength: nn.Parameter | None

    def __init__(self, kind: str, *, low: float = 0.0, high: float = 1.0) -> None:
        super().__init__()
        self.kind = kind
        self.low, self.high = low, high
        self.register_parameter("strength", None)

    def fade_in(self) -> None:
        """Start from a gate of 1 everywhere. The strength is not counted in a mechanism's published parameters."""
        # one element, not none: sharding and some optimisers refuse scalars
        self.strength = nn.Parameter(torch.zeros(1))

    def forward(self, value: Tensor) -> Tensor:
        if self.strength is None:
            return value
        return 1 + self.strength.to(value.dtype) * (value - 1)

    def extra_repr(self) -> str:
        return f"{self.kind}, {self.low:g}..{self.high:g}" + (", fades in" if self.strength is not None else "")


def taps(module: nn.Module) -> Iterator[tuple[str, Tap]]:
    """Every tap inside a module with its dotted name."""
    for name, child in module.named_modules():
        if isinstance(child, Tap):
            yield name, child


def fade_in(module: nn.Module) -> None:
    """Let every gate of a mechanism start at 1: the identity, exactly."""
    for _, tap in taps(module):
        tap.fade_in()
