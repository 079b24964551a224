"""What a model costs: parameters, multiply-adds, latency, the time of a training step, memory."""

from __future__ import annotations

import gc
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from copy import deepcopy
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.profiler import profile
from torch.nn import functional
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from regard.base.errors import UserError
from regard.costs.timing import Spread, Timing, collector_resting, interleave, ratio
from regard.networks.replica import call, shadow

Loss = Callable[[nn.Module, Any], Tensor]
"""From a model in train mode and an example to the number that a training step differentiates."""


@dataclass(frozen=True)
class Cost:
    """What one model costs. Triples are lower quartile, median, upper quartile over rounds.

    What speaks of training is None where training was not measured.

    Attributes:
        parameters: numbers in its parameters, shared ones once.
        added_parameters: the same, less the baseline's.
        macs: multiply-adds of one image; convolutions and matrix products only.
        added_macs: the same, less the baseline's.
        infer_ms: inference of the batch, milliseconds.
        train_ms: forward and backward pass of the batch, milliseconds.
        infer_ratio: inference time over the baseline's, paired by round.
        train_ratio: the same of the training step.
        peak_bytes: most memory that a training step holds at once beside parameters and batch.
        peak_ratio: the same over the baseline's.
    """

    parameters: int
    added_parameters: int
    macs: int
    added_macs: int
    infer_ms: Spread
    train_ms: Spread | None
    infer_ratio: Spread
    train_ratio: Spread | None
    peak_bytes: int | None
    peak_ratio: float | None


def parameters(model: nn.Module) -> int:
    """Numbers in a model's parameters, shared ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def multiply_adds(model: nn.Module, example: Any) -> int:
    """Multiply-adds of convolutions and matrix products in one call of the model in eval mode.

    Pooling, gates, norms and additions are not counted. The model stays as it is.

    Args:
        model: any module.
        example: a tuple is positional arguments, a dict keyword arguments, anything else one.
    """
    model = shadow(model).eval()
    with _rng_kept(device_of(example)), torch.no_grad(), _counted() as counter:
        call(model, example)
    return counter.get_total_flops() // 2


def batch_size(example: Any) -> int:
    """Images in an example: the length of its first argument, a batch or a list of images."""
    return len(_arguments(example)[0])


def resized(example: Any, batch: int) -> Any:
    """The example with another number of images: its own, over again where there are more.

    What is as long as the batch, tensors and lists, is taken for a batch; everything else stays.
    """
    had = batch_size(example)
    places = [place % had for place in range(batch)]

    def resize(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value[places] if value.dim() and len(value) == had else value
        if isinstance(value, list):
            return [value[place] for place in places] if len(value) == had else value
        if isinstance(value, tuple):
            return tuple(map(resize, value))
        return {name: resize(part) for name, part in value.items()} if isinstance(value, Mapping) else value

    return resize(example)


def device_of(example: Any) -> torch.device:
    """Where the example is."""
    tensors = [leaf for leaf in tree_leaves(example) if isinstance(leaf, Tensor)]
    return tensors[0].device if tensors else torch.device("cpu")


def training_step(model: nn.Module, example: Any, loss: Loss | None = None) -> Callable[[], None]:
    """Forward and backward pass in train mode, ready to be called; no optimiser. It works on a `shadow`."""
    model = shadow(model).train()
    loss = loss or stand_in

    def train() -> None:
        loss(model, example).backward()
        model.zero_grad()

    return train


def stand_in(model: nn.Module, example: Any) -> Tensor:
    """A loss where none is given: cross entropy of scores (B, K, ...) with made-up labels; of any other output the mean
    of all floating-point numbers in it, which takes the same way back through the network."""
    output = call(model, example)
    if isinstance(output, Tensor) and output.is_floating_point() and output.dim() > 1 and output.shape[1] > 1:
        batch, classes, *rest = output.shape
        labels = torch.arange(batch * math.prod(rest), device=output.device) % classes
        return functional.cross_entropy(output, labels.reshape(batch, *rest))
    means = [leaf.mean() for leaf in tree_leaves(output) if isinstance(leaf, Tensor) and leaf.requires_grad]
    if not means:
        raise UserError(
            f"nothing that the {type(model).__name__} returns in train mode depends on a parameter, so a training step "
            "has nothing to differentiate: pass loss=, a function of the model and the example"
        )
    return torch.stack(means).sum()


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
        with _rng_kept(device):
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


def measure(
    models: Mapping[str, nn.Module],
    example: Any,
    *,
    baseline: str = "none",
    rounds: int = 15,
    budget: float | None = None,
    loss: Loss | None = None,
    train: bool = True,
    warmup: int = 3,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Cost]:
    """Measure models side by side: all timings interleaved in this process, on shadows that read the models' weights.

    Inference is a forward pass in eval mode; a training step is forward pass, loss and backward pass in train mode,
    without an optimiser. The models stay as they are.

    Args:
        models: by name.
        example: a batch on the device and in the memory format to be measured; a tuple is positional arguments, a dict
            keyword arguments, anything else one.
        baseline: name of the model that the others are compared to.
        rounds: timings of each model, see `interleave`.
        budget: seconds for the timings, see `interleave`.
        loss: ``(model, example) -> number`` to differentiate; see `stand_in` for what None stands for.
        train: False leaves training unmeasured.
        warmup: calls before the first round, see `interleave`.
        progress: called with rounds done and rounds asked for.

    Raises:
        UserError: the baseline is not among the models.
    """
    if baseline not in models:
        raise UserError(
            f"no model is named {baseline!r}, which the others are to be compared to: "
            f"pass one of that name, or baseline= one of {', '.join(map(repr, models))}"
        )
    device = device_of(example)
    steps = {f"{name} infer": _inference(shadow(model), example) for name, model in models.items()}
    if train:
        steps |= {f"{name} train": training_step(model, example, loss) for name, model in models.items()}
    with _rng_kept(device):
        timings = interleave(steps, rounds=rounds, warmup=warmup, budget=budget, device=device, progress=progress)
        peaks = {name: peak_memory(steps[f"{name} train"], device) for name in models if train}
    macs = {name: multiply_adds(model, example) // batch_size(example) for name, model in models.items()}
    return {
        name: Cost(
            parameters=parameters(model),
            added_parameters=parameters(model) - parameters(models[baseline]),
            macs=macs[name],
            added_macs=macs[name] - macs[baseline],
            infer_ms=_milliseconds(timings[f"{name} infer"]),
            train_ms=_milliseconds(timings[f"{name} train"]) if train else None,
            infer_ratio=ratio(timings[f"{name} infer"], timings[f"{baseline} infer"]),
            train_ratio=ratio(timings[f"{name} train"], timings[f"{baseline} train"]) if train else None,
            peak_bytes=peaks.get(name),
            peak_ratio=peaks[name] / peaks[baseline] if train else None,
        )
        for name, model in models.items()
    }


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
        build: from a factor of the width to the plain network, on the example's device and in its memory format;
            it may round widths.
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
    timed = training_step if train else _inference
    goal = timed(deepcopy(like), example)
    tried: dict[int, tuple[float, Spread]] = {}
    factor, low, high = 1.0, 1.0, widest
    for done in range(1, steps + 1):
        with _rng_kept(example.device):
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
    return min(tried.values(), key=lambda found: abs(math.log(found[1][1])))


def _inference(model: nn.Module, example: Any) -> Callable[[], Any]:
    model.eval()

    def infer() -> Any:
        with torch.inference_mode():
            return call(model, example)

    return infer


def _arguments(example: Any) -> list[Any]:
    if isinstance(example, Mapping):
        return list(example.values())
    return list(example) if isinstance(example, tuple) else [example]


def _milliseconds(timing: Timing) -> Spread:
    low, median, high = timing.spread
    return 1e3 * low, 1e3 * median, 1e3 * high


def _rng_kept(device: torch.device) -> AbstractContextManager[None]:
    """Dropout and initialisation draw inside; outside, the random state is as it was."""
    return torch.random.fork_rng([device] if device.type == "cuda" else [])


@contextmanager
def _counted() -> Iterator[FlopCounterMode]:
    """torch's counter, seeing attention in every form."""
    cpu_attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # unknown to the counter of older torch
    counter = FlopCounterMode(display=False, custom_mapping={cpu_attention: _attention_flops})
    fused = torch.backends.mha.get_fastpath_enabled()  # nn.MultiheadAttention as one operator, which it takes for free
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with counter:
            yield counter
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


def _attention_flops(query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
    return sdpa_flop_count(query, key, value)
