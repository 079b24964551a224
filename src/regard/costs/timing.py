"""Interleaved, honest timing: what is compared runs in the same minutes of the same process, in turns."""

from __future__ import annotations

import gc
import math
import platform
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np
import torch

ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "17179869184"}
"""Environment of every process that trains or times on the CPU: glibc then keeps freed maps instead of returning them.

Set before the process starts; glibc reads it once. Without it each large map costs fresh zeroed pages.
"""

SHORTEST = 1e-3  # seconds; a callable that takes less is repeated inside one timing
FEWEST = 5  # rounds that are run whatever the budget
RESTLESS = 0.1  # interquartile range over median

Spread = tuple[float, float, float]
"""Lower quartile, median, upper quartile."""


@dataclass(frozen=True)
class Timing:
    """How long one callable took.

    Attributes:
        seconds: (rounds,) float64, seconds per call; round `i` is the same moment for all that one `interleave` timed.
    """

    seconds: np.ndarray

    @property
    def spread(self) -> Spread:
        """Lower quartile, median and upper quartile, in seconds."""
        return _spread(self.seconds)

    @property
    def median(self) -> float:
        """In seconds."""
        return self.spread[1]

    @property
    def quartiles(self) -> tuple[float, float]:
        """Lower and upper quartile, in seconds."""
        low, _, high = self.spread
        return low, high


def interleave(
    callables: Mapping[str, Callable[[], object]],
    *,
    rounds: int = 15,
    warmup: int = 3,
    budget: float | None = None,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Timing]:
    """Time callables in turns, so that whatever else the machine does meets all of them alike.

    Every round runs each callable once, in an order shuffled anew. On CUDA the device is synchronised before and after.
    Garbage collection rests during a timing. A callable shorter than a millisecond is repeated inside one timing.

    Args:
        callables: what to time, by name; what they return is dropped inside the timing.
        rounds: timings of each callable.
        warmup: calls of each callable before the first round; at least 1.
        budget: seconds, warm-up included; when they are spent no further round starts, but 5 rounds are run at least.
        device: the device on which the callables work.
        progress: called with rounds done and rounds asked for, after every round.
    """
    start = perf_counter()
    device = torch.device(device)
    repeats = {
        name: math.ceil(SHORTEST / min(_time(call, 1, device) for _ in range(warmup)))
        for name, call in callables.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in callables}
    order = list(callables)
    shuffle = random.Random(0).shuffle
    for done in range(1, rounds + 1):
        shuffle(order)
        for name in order:
            seconds[name].append(_time(callables[name], repeats[name], device))
        if progress:
            progress(done, rounds)
        if budget is not None and done >= FEWEST and perf_counter() - start >= budget:
            break
    return {name: Timing(np.array(values)) for name, values in seconds.items()}


def ratio(timing: Timing, baseline: Timing) -> Spread:
    """How many times as long as the baseline, paired by round: lower quartile, median, upper quartile.

    Both come from the same `interleave`.
    """
    return _spread(timing.seconds / baseline.seconds)


def noisy(spread: Spread) -> str | None:
    """A sentence when the middle half of the timings spans more than 10 % of their median, else None.

    Args:
        spread: lower quartile, median, upper quartile of the baseline, in any unit.
    """
    low, median, high = spread
    share = (high - low) / median
    if share <= RESTLESS:
        return None
    return (
        f"the machine is too busy to tell small differences: the middle half of the timings spans {share:.0%} of their "
        f"median, and {RESTLESS:.0%} would do; stop other programs and measure again"
    )


def allocator_hint() -> str | None:
    """A sentence when this process runs on glibc without the settings of `ALLOCATOR`, else None.

    What counts is the environment in which the process was started. Another allocator, preloaded, is as good.
    """
    if platform.libc_ver()[0] != "glibc":
        return None
    started_with = Path("/proc/self/environ").read_bytes().decode(errors="replace")
    variables = dict(entry.split("=", 1) for entry in started_with.split("\0") if "=" in entry)
    preloaded = variables.get("LD_PRELOAD", "")
    if ALLOCATOR.keys() <= variables.keys() or any(word in preloaded for word in ("jemalloc", "tcmalloc", "mimalloc")):
        return None
    settings = " ".join(f"{name}={value}" for name, value in ALLOCATOR.items())
    return (
        "this process returns large blocks of memory to the system, which makes large maps slower and timings noisier "
        f"on the CPU: start it with {settings} in the environment"
    )


def _time(call: Callable[[], object], repeats: int, device: torch.device) -> float:
    """Seconds per call."""
    with collector_resting():
        _synchronise(device)
        start = perf_counter()
        for _ in range(repeats):
            call()
        _synchronise(device)
        return (perf_counter() - start) / repeats


@contextmanager
def collector_resting() -> Iterator[None]:
    """No garbage collection for a while."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _spread(values: np.ndarray) -> Spread:
    low, median, high = np.percentile(values, (25, 50, 75))
    return float(low), float(median), float(high)
