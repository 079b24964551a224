"""What models cost, side by side: parameters, multiply-adds, latency, the time of a training step, memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from regard.base.errors import UserError
from regard.costs.counts import multiply_adds, parameters
from regard.costs.examples import batch_size, device_of
from regard.costs.memory import peak_memory
from regard.costs.steps import Loss, inference, rng_kept, training_step
from regard.costs.timing import Spread, Timing, interleave, ratio
from regard.networks.replica import shadow


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
        loss: ``(model, example) -> number`` to differentiate; see `steps.stand_in` for what None stands for.
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
    steps = {f"{name} infer": inference(shadow(model), example) for name, model in models.items()}
    if train:
        steps |= {f"{name} train": training_step(model, example, loss) for name, model in models.items()}
    with rng_kept(device):
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


def _milliseconds(timing: Timing) -> Spread:
    low, median, high = timing.spread
    return 1e3 * low, 1e3 * median, 1e3 * high
