"""The most memory that a training step holds at once: measured, and predicted for a batch that may not fit."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from itertools import accumulate
from typing import Any

import torch
from torch import nn
from torch.autograd.profiler import profile

from regard.costs.examples import batch_size, device_of, resized
from regard.costs.steps import Loss, rng_kept, training_step
from regard.costs.timing import collector_resting


def peak_memory(step: Callable[[], object], device: torch.device | str) -> int:
    """Most memory, in bytes, held at once during one call, above what was held before.

    Counted in torch's own allocations on the device, which on the CPU are the same in every call.
    Call the step once before if it keeps something for later.
    """
    device = torch.device(device)
    if device.type == "cuda":
        gc.collect()
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    return max(_held(step, device), default=0)


def predicted_peak(model: nn.Module, example: Any, batch: int, loss: Loss | None = None) -> int:
    """The `peak_memory` of a training step at a batch that may not fit.

    Two small batches are watched, and every allocation is taken to grow in a straight line with the images. The peak
    may then fall on another moment: with few images on the last gradients, with many on the first.

    Args:
        model: stays as it is.
        example: a batch that fits.
        batch: images.
        loss: see `measure`.
    """
    own, device = batch_size(example), device_of(example)
    sizes = (own // 2, own) if own > 3 else (max(2, own), max(2, own) + 1)
    moments = []
    for size in sizes:
        step = training_step(model, resized(example, size), loss)
        with rng_kept(device):
            if device.type == "cuda":
                step()  # it keeps workspaces for later calls
            moments.append(_held(step, device))
    if len(moments[0]) != len(moments[1]):  # another way of computing: only the peaks can be compared
        moments = [[max(held)] for held in moments]
    further = (batch - sizes[1]) / (sizes[1] - sizes[0])
    return round(max(many + (many - few) * further for few, many in zip(*moments, strict=True)))


def _held(step: Callable[[], object], device: torch.device) -> list[int]:
    """Bytes held after each allocation and each release on the device during one call, above those held before."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else the profiler writes to stderr
    gc.collect(1)  # of what is older nothing is released during the step
    with collector_resting(), profile(profile_memory=True) as profiled:
        step()
    events = [event for event in profiled.kineto_results.events() if event.name() == "[memory]"]
    changes = [event for event in events if event.device_type().name == device.type.upper()]
    return list(accumulate(event.nbytes() for event in sorted(changes, key=lambda event: event.start_ns())))
