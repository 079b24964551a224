"""What every source of networks offers: this package's small one, timm, torchvision, a user's file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from regard.base.errors import UserError
from regard.registry.named import SMALL, Named

SIDE = 224  # pixels, where neither the user nor the network says another size

Normalisation = tuple[tuple[float, ...], tuple[float, ...]]  # mean and deviation of each channel, as fractions of 1


@dataclass(frozen=True)
class Wanted:
    """What a network is built for.

    Attributes:
        classes, channels: of its output and of its images; its own where None.
        size: of the images, for a network that is built for one size alone.
        pretrained: with weights that have learnt.
        widening: every width is multiplied by this.
    """

    classes: int | None = None
    channels: int | None = None
    size: int | None = None
    pretrained: bool = False
    widening: float = 1.0


class Source(Protocol):
    """Where networks of one kind come from; each is a file of this room."""

    def check(self, named: Named) -> None:
        """Raise a `UserError` where there is no such network."""

    def build(self, named: Named, wanted: Wanted) -> tuple[nn.Module, Any]:
        """The network, and the example that came with it, or None."""

    def example(self, named: Named, model: nn.Module, size: int | None, batch: int) -> Any:
        """A batch for it."""

    def image_size(self, named: Named) -> int | None:
        """The side in pixels that it expects; None where any does."""

    def pretraining(self, named: Named) -> Normalisation | None:
        """How the images were normalised that it was trained with, where that is known."""


def random_images(*shape: int, make: Callable[..., Tensor] = torch.randn) -> Tensor:
    """Images of random numbers.

    Raises:
        UserError: they do not fit into memory.
    """
    try:
        return make(*shape)
    except (RuntimeError, TypeError) as error:  # no memory, or more numbers than a tensor can count
        sides = " x ".join(map(str, shape))
        raise UserError(f"images of {sides} numbers do not fit into memory: take a smaller size or batch") from error


def cannot_widen(named: Named) -> UserError:
    return UserError(f"the wider control knows {SMALL} and the ResNets of timm, not {named.text!r}: leave it out")
