"""The start "scaled": every gate that multiplies gets a factor that gives it a mean of 1 over the example."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from regard.base.errors import UserError, brief
from regard.insertion.attachment import Attached
from regard.layers.tap import Tap, taps
from regard.networks.replica import borrowed, call


@contextmanager
def taps_in_replica(attached: Attached) -> Iterator[tuple[nn.Module, list[tuple[Tap, Tap]]]]:
    """A borrowed replica of the host and each tap of the attachment with its copy in there, to be hooked and called.

    Batch norms are as in training: those of the host where they are so now, those of the mechanisms always.
    """
    with borrowed(attached.model) as replica:
        own = {id(part) for module in attached.modules.values() for part in module.modules()}
        for part, copy in zip(attached.model.modules(), replica.modules(), strict=True):
            if isinstance(part, _BatchNorm):
                copy.training = part.training or id(part) in own
        copies = attached.on(replica).modules
        pairs = [
            (tap, copy)
            for site, module in attached.modules.items()
            for (_, tap), (_, copy) in zip(taps(module), taps(copies[site]), strict=True)
        ]
        yield replica, pairs


def measure_gates(attached: Attached, example: Any) -> None:
    """Give every gate its factor, in the order of the pass, so that later ones see the earlier ones as they will be."""
    with taps_in_replica(attached) as (replica, pairs), torch.no_grad():
        seen: set[Tap] = set()

        def measure(tap: Tap, args: tuple[Tensor], value: Tensor) -> Tensor:
            if tap not in seen:
                seen.add(tap)
                tap.measure(args[0])
            return tap.forward(args[0])

        for tap, copy in pairs:
            if tap.scale is not None:
                copy.register_forward_hook(measure)
        try:
            call(replica, example)
        except Exception as error:
            raise UserError(
                f"the model fails on the example with batch norms as in training ({brief(error)}), which the start "
                "'scaled' needs: give an example of several images"
            ) from error
        for tap, copy in pairs:
            if tap.scale is not None and copy.scale is not None:
                tap.scale.copy_(copy.scale)
