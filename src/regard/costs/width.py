"""The width at which a plain network takes as long as one with attention."""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import deepcopy

from torch import Tensor, nn

from regard.costs.counts import parameters
from regard.costs.steps import inference, rng_kept, training_step
from regard.costs.timing import Spread, interleave, ratio


def widen(
    build: Callable[[float], nn.Module],
    like: nn.Module,
    example: Tensor,
    *,
    train: bool = False,
    tolerance: float = 0.05,
    widest: float = 4.0,
    steps: int = 8,
    rounds: int = 15,
    budget: float | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[float, Spread]:
    """The width at which a plain network takes as long at inference, or in a training step, as a given model.

    Found by bisection between 1 and `widest`, on a logarithmic scale; each step builds a network and times it in turns
    with the given model. Networks with equally many parameters are taken for the same one and timed once.

    Args:
        build: returns the plain network with every width multiplied by the factor, on the example's device and in
            its memory format; it may round widths.
        like: the model whose time is to be met. It stays as it is.
        example: (B, ...), the batch.
        train: whether a training step is timed and not inference, see `measure`.
        tolerance: how far the median ratio of the times may be from 1.
        widest: no factor reaches this.
        steps: networks built at most.
        rounds: timings in each step, see `interleave`.
        budget: seconds for all timings together, see `interleave`.
        progress: called with steps done and steps at most.

    Returns:
        The factor, and the plain network's time over the other's: lower quartile, median, upper quartile.
        Where no factor comes within the tolerance it is the closest that was tried.
    """
    timed = training_step if train else inference
    goal = timed(deepcopy(like), example)
    tried: dict[int, tuple[float, Spread]] = {}
    factor, low, high = 1.0, 1.0, widest
    for done in range(1, steps + 1):
        with rng_kept(example.device):
            plain = build(factor)
        size = parameters(plain)
        if size not in tried:
            pair = {"plain": timed(plain, example), "like": goal}
            share = None if budget is None else budget / steps
            timings = interleave(pair, rounds=rounds, budget=share, device=example.device)
            tried[size] = factor, ratio(timings["plain"], timings["like"])
        if progress:
            progress(done, steps)
        median = tried[size][1][1]
        if abs(median - 1) <= tolerance:
            break
        low, high = (factor, high) if median < 1 else (low, factor)
        if low == high:
            break
        factor = math.sqrt(low * high)
    return min(tried.values(), key=lambda timed: abs(math.log(timed[1][1])))
