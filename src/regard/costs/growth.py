"""How time grows with the map, along one axis."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from regard.costs.contestants import Contestant, Setting, Step, inputs_of, lower_bound
from regard.costs.records import Record
from regard.costs.timing import interleave

SIZES = (0.25, 0.5, 1, 2, 4)
LARGEST = 2**25  # numbers of the largest map


def growth(
    setting: Setting, axis: str, contestants: Sequence[Contestant], *, rounds: int = 15, budget: float | None = None
) -> list[Record]:
    """How time grows along one axis: the slope of its logarithm over that of the size, by least squares.

    All sizes run in the same rounds, and each round has its slope. Time in proportion to the map has a slope of 1 along
    batch and channels, and of 2 along the side. The lower bound grows beside the contestants.
    """
    torch.set_num_threads(setting.threads)
    steps: dict[Any, Step] = {}
    for sized in (setting.grown(axis, factor) for factor in SIZES):
        if min(sized.shape) < 1 or math.prod(sized.shape) > LARGEST:
            continue
        inputs = inputs_of(sized)
        steps[None, sized.along(axis)] = lower_bound(inputs[0].detach(), training=sized.training)
        for contestant in contestants:
            try:
                step = contestant.step(contestant.module(sized), inputs, training=sized.training)
                step()
            except Exception:  # `contest` says why
                continue
            steps[contestant, sized.along(axis)] = step
    timings: dict[Any, Any] = interleave(steps, rounds=rounds, budget=budget, device=setting.device)
    slopes = []
    for who in (None, *contestants):
        sizes = [size for other, size in steps if other == who]
        if len(sizes) < 3:
            continue
        seconds = np.stack([timings[who, size].seconds for size in sizes])
        by_round = np.polyfit(np.log(sizes), np.log(seconds), 1)[0]
        known = {"source": who.source, "implementation": who.implementation} if who else {"source": "floor"}
        fitted = {"sizes": sizes, "seconds": np.median(seconds, axis=1).tolist()}
        slope = {"slope": np.percentile(by_round, (25, 50, 75)).tolist()}
        slopes.append(setting.to_json() | {"implementation": None} | known | {"axis": axis} | fitted | slope)
    return slopes
