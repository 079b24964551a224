"""What the gates of an arm do: by how much they shrink a branch at the start, how far they opened, and what the
accuracy loses where they look at something else, or at nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from regard.insertion.attachment import attached
from regard.insertion.scaled_start import taps_in_replica
from regard.layers.tap import Tap, taps
from regard.networks.replica import call

MEANS, ASKED = 256, 1000  # training images that a gate's mean is taken over; validation or test images asked again


def branch_scales(model: nn.Module, example: Any) -> dict[str, float | None]:
    """For every site the root mean square of what its mechanism gives over that of what it gets, batch norms as in
    training; None where it gets zeros.

    Args:
        model: with attachments, at their start.
        example: a batch of training images.
    """
    found: dict[str, float | None] = {}
    for attachment in attached(model):
        with taps_in_replica(attachment) as (replica, _), torch.no_grad():

            def ratio(module: nn.Module, args: tuple[Tensor, ...], y: Tensor, site: str) -> None:
                before = args[-1].float().norm()
                found[site] = float(y.float().norm() / before) if before > 0 else None

            for site, module in attachment.on(replica).modules.items():
                module.register_forward_hook(lambda m, args, y, site=site: ratio(m, args, y, site))
            call(replica, example)
    return found


class Openings:
    """How far gates open, collected while a model runs: numbers of each tap over images.

    Args:
        model: in evaluation mode.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.sums: dict[str, dict[str, Any]] = {}

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Collect from what the model is called with in the block."""

        def add(name: str, tap: Tap, value: Tensor) -> None:
            value = value.detach().double() / tap.rest  # type: ignore[operator]
            seen = self.sums.setdefault(name, {"tap": tap, "images": 0, "sum": 0.0, "squares": 0.0, "places": 0.0})
            seen["images"] += len(value)
            seen["sum"] = seen["sum"] + value.sum(0)
            seen["squares"] = seen["squares"] + value.square().sum(0)
            seen["places"] = seen["places"] + value.flatten(1).var(1, correction=0).sum()

        with _shown(_gating(self.model), add):
            yield

    def told(self) -> list[dict[str, Any]]:
        """One entry for each gate, as `records.Gate` declares it; of a gate that leaves its map alone the mean is 1."""
        entries = []
        for name, seen in self.sums.items():
            mean = seen["sum"] / seen["images"]
            between = (seen["squares"] / seen["images"] - mean.square()).clamp(min=0).mean().sqrt()
            strength = seen["tap"].strength
            entries.append(
                {
                    "name": name,
                    "kind": seen["tap"].kind,
                    "mean": float(mean.mean()),
                    "places": float((seen["places"] / seen["images"]).sqrt()),
                    "images": float(between),
                    "strength": None if strength is None else strength.item(),
                }
            )
        return entries


def averages(model: nn.Module, run: Callable[[], Any]) -> dict[str, Tensor]:
    """The mean of every gate over the images that `run` shows the model, by the name of its tap: one image's shape."""
    sums: dict[str, tuple[Tensor, int]] = {}

    def add(name: str, tap: Tap, value: Tensor) -> None:
        total, count = sums.get(name, (torch.zeros((), dtype=torch.float64, device=value.device), 0))
        sums[name] = total + value.detach().double().sum(0), count + len(value)

    with _shown(_gates(model), add):
        run()
    return {name: total / count for name, (total, count) in sums.items()}


@contextmanager
def replaced(model: nn.Module, means: dict[str, Tensor] | None) -> Iterator[None]:
    """In the block every gate is its mean or, where no means are given, the gate of the image before in the batch."""

    def replace(name: str, tap: Tap, value: Tensor) -> Tensor:
        return value.roll(1, 0) if means is None else means[name].to(value.dtype).expand(value.shape)

    with _shown(((name, tap) for name, tap in _gates(model) if means is None or name in means), replace):
        yield


@contextmanager
def _shown(named: Iterable[tuple[str, Tap]], tell: Callable[[str, Tap, Tensor], Tensor | None]) -> Iterator[None]:
    """In the block `tell` is given every map with its tap; a map that it returns is applied instead."""
    handles = [
        tap.register_forward_hook(lambda tap, args, value, name=name: tell(name, tap, value)) for name, tap in named
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def has_gates(model: nn.Module) -> bool:
    """Whether anything in the model can be replaced."""
    return any(True for _ in _gates(model))


def _gates(model: nn.Module) -> Iterator[tuple[str, Tap]]:
    """All taps but weights between pairs of things, which grow with the square of the pixels."""
    yield from ((name, tap) for name, tap in taps(model) if not tap.pairwise)


def _gating(model: nn.Module) -> Iterator[tuple[str, Tap]]:
    """The taps that multiply."""
    yield from ((name, tap) for name, tap in taps(model) if tap.rest is not None)
