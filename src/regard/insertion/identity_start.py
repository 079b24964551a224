"""The start "identity": a fresh mechanism leaves its map as it is, so that a network that has learnt loses nothing."""

from __future__ import annotations

from torch import nn

from regard.insertion.hidden import open_up
from regard.registry.info import Info


def start_as_identity(card: Info, module: nn.Module) -> None:
    """Let a fresh module leave its map as it is, with hidden units that can learn."""
    if card.identity is not None:
        card.identity(module)
    for layer in card.hidden(module) if card.hidden else ():
        open_up(layer)
