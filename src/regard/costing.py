"""What a model costs: parameters, multiply-adds, latency, the time of a training step, memory."""

from __future__ import annotations

import gc
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.profiler import profile
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from regard.errors import UserError
from regard.timing import Spread, Timing, interleave, ratio


@dataclass(frozen=True)
class Cost:
    """What one model costs. Triples are lower quartile, median, upper quartile over rounds.

    Attributes:
        parameters: numbers in its parameters, shared ones once.
        added_parameters: the same, less the baseline's.
        macs: multiply-adds of one image; convolutions and matrix products only.
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
    infer_ms: Spread
    train_ms: Spread
    infer_ratio: Spread
    train_ratio: Spread
    peak_bytes: int
    peak_ratio: float


def parameters(model: nn.Module) -> int:
    """Numbers in a model's parameters, shared ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def multiply_adds(model: nn.Module, example: Tensor) -> int:
    """Multiply-adds of convolutions and matrix products in one call `model(example)` in eval mode.

    Pooling, gates, norms and additions are not counted. The model stays as it is.
    """
    model = deepcopy(model).eval()
    with _rng_kept(example.device), torch.no_grad(), _counted() as counter:
        model(example)
    return counter.get_total_flops() // 2


def peak_memory(step: Callable[[], object], device: torch.device | str) -> int:
    """Most memory, in bytes, held at once during one call, above what was held before.

    Counted in torch's own allocations on the device, which on the CPU are the same in every call.
    Call the step once before if it keeps something for later.
    """
    device = torch.device(device)
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else the profiler writes to stderr
    with profile(profile_memory=True) as profiled:
        step()
    held = peak = 0
    for event in profiled.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


def measure(
    models: Mapping[str, nn.Module],
    example: Tensor,
    *,
    baseline: str = "none",
    rounds: int = 15,
    budget: float | None = None,
    target: Tensor | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Cost]:
    """Measure models side by side: all timings interleaved in this process, on copies.

    Inference is a forward pass in eval mode; a training step is forward pass, cross entropy and backward pass in train
    mode, without an optimiser. The models stay as they are.

    Args:
        models: by name; each maps the example to scores (B, K, ...).
        example: (B, ...), on the device and in the memory format to be measured.
        baseline: name of the model that the others are compared to.
        rounds: timings of each model, see `interleave`.
        budget: seconds for the timings, see `interleave`.
        target: labels (B, ...) for the cross entropy; made up where None.
        progress: called with rounds done and rounds asked for.

    Raises:
        UserError: the baseline is not among the models, or a model does not return scores.
    """
    if baseline not in models:
        raise UserError(
            f"no model is named {baseline!r}, which the others are to be compared to: "
            f"pass one of that name, or baseline= one of {', '.join(map(repr, models))}"
        )
    with _rng_kept(example.device):
        infer = {name: _inference(deepcopy(model), example) for name, model in models.items()}
        labels = {name: _labels(name, call()) if target is None else target for name, call in infer.items()}
        train = {name: _training_step(deepcopy(model), example, labels[name]) for name, model in models.items()}
        steps = {f"{name} infer": step for name, step in infer.items()}
        steps |= {f"{name} train": step for name, step in train.items()}
        timings = interleave(steps, rounds=rounds, budget=budget, device=example.device, progress=progress)
        peaks = {name: peak_memory(step, example.device) for name, step in train.items()}
    return {
        name: Cost(
            parameters=parameters(model),
            added_parameters=parameters(model) - parameters(models[baseline]),
            macs=multiply_adds(model, example) // len(example),
            infer_ms=_milliseconds(timings[f"{name} infer"]),
            train_ms=_milliseconds(timings[f"{name} train"]),
            infer_ratio=ratio(timings[f"{name} infer"], timings[f"{baseline} infer"]),
            train_ratio=ratio(timings[f"{name} train"], timings[f"{baseline} train"]),
            peak_bytes=peaks[name],
            peak_ratio=peaks[name] / peaks[baseline],
        )
        for name, model in models.items()
    }


def widen(
    build: Callable[[float], nn.Module],
    like: nn.Module,
    example: Tensor,
    *,
    tolerance: float = 0.05,
    widest: float = 4.0,
    steps: int = 8,
    rounds: int = 15,
    budget: float | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[float, Spread]:
    """The width at which a plain network takes as long at inference as a given model.

    Found by bisection between 1 and `widest`, on a logarithmic scale; each step builds a network and times it in turns
    with the given model. Networks with equally many parameters are taken for the same one and timed once.

    Args:
        build: from a factor of the width to the plain network, on the example's device and in its memory format;
            it may round widths.
        like: the model whose latency is to be met. It stays as it is.
        example: (B, ...), the batch.
        tolerance: how far the median ratio of the latencies may be from 1.
        widest: no factor reaches this.
        steps: networks built at most.
        rounds: timings in each step, see `interleave`.
        budget: seconds for all timings together, see `interleave`.
        progress: called with steps done and steps at most.

    Returns:
        The factor, and the plain network's latency over the other's: lower quartile, median, upper quartile.
        Where no factor comes within the tolerance it is the closest that was tried.
    """
    goal = _inference(deepcopy(like), example)
    tried: dict[int, tuple[float, Spread]] = {}
    factor, low, high = 1.0, 1.0, widest
    for done in range(1, steps + 1):
        with _rng_kept(example.device):
            plain = build(factor)
        size = parameters(plain)
        if size not in tried:
            pair = {"plain": _inference(plain, example), "like": goal}
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


def _inference(model: nn.Module, example: Tensor) -> Callable[[], Any]:
    model.eval()

    def infer() -> Any:
        with torch.inference_mode():
            return model(example)

    return infer


def _training_step(model: nn.Module, example: Tensor, labels: Tensor) -> Callable[[], None]:
    model.train()

    def train() -> None:
        functional.cross_entropy(model(example), labels).backward()
        model.zero_grad()

    return train


def _labels(name: str, scores: Any) -> Tensor:
    """Some label for every place of the scores (B, K, ...)."""
    if not isinstance(scores, Tensor) or scores.ndim < 2:
        what = f"a tensor of shape {tuple(scores.shape)}" if isinstance(scores, Tensor) else type(scores).__name__
        raise UserError(
            f"the model {name!r} returns {what}, but a training step needs scores of shape (batch, classes, ...): "
            "wrap it so that it returns one such tensor"
        )
    batch, classes, *rest = scores.shape
    return torch.arange(batch * math.prod(rest), device=scores.device).reshape(batch, *rest) % classes


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
