"""Contestants timed against each other and the lower bound, in the same rounds; only what is right has a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from regard.base.errors import UserError
from regard.costs.agreement import Outcome, agreement, exact_outcome
from regard.costs.contestants import Contestant, Setting, Step, inputs_of, lower_bound
from regard.costs.memory import peak_memory
from regard.costs.records import MEASURED, TRAFFIC, Record
from regard.costs.timing import interleave, ratio


def contest(
    setting: Setting, contestants: Sequence[Contestant], *, rounds: int = 15, budget: float | None = None
) -> list[Record]:
    """A record for each contestant, all timed in the same rounds as the lower bound.

    What is wrong or does not run has no time. The lower bound of inference is to sum the map and to copy it; of
    training to do so, to sum the map again, and to sum and to copy the gradient.

    Ours has to agree with the reference in float64, on as many images as make 8 million numbers: every output, and
    in training every gradient. It may differ by `TOLERANCE`, relative to the largest value, which is room for sums in
    another order; or by four times what the reference itself differs in that dtype, there or, up to half the largest
    value, in another output, input's or weight's gradient: where rounding moves a maximum to another place its gradient
    goes along, and a weight's gradient is what is left when many rounded numbers cancel. A module of another
    library has only to run.
    """
    torch.set_num_threads(setting.threads)
    if any(contestant.compiled for contestant in contestants):
        torch.compiler.reset()
    inputs = inputs_of(setting)
    exact = cache(lambda: exact_outcome(setting))
    records: dict[Contestant, Record] = {}
    steps: dict[Any, Step] = {}
    for contestant in contestants:
        record = records[contestant] = setting.to_json() | vars(contestant) | dict.fromkeys(MEASURED)
        try:
            steps |= _ready(contestant, setting, inputs, exact, record)
        except Exception as error:  # whatever it is, it is the answer
            record["refused"] = _brief(error)
    x = inputs[0].detach()
    target = torch.empty_like(x)
    steps |= {"lower bound": lower_bound(x, training=setting.training), "copy": lambda: target.copy_(x)}
    timings = interleave(steps, rounds=rounds, budget=budget, device=setting.device)
    copied = 2 * x.nbytes / timings["copy"].median
    for contestant, record in records.items():
        record |= {"floor_seconds": timings["lower bound"].spread, "copy_gb_per_second": copied / 1e9}
        if contestant in steps:
            timing = timings[contestant]  # type: ignore[index]
            record |= {"seconds": timing.spread, "over_floor": ratio(timing, timings["lower bound"])}
            record["of_copy_bandwidth"] = TRAFFIC[setting.pass_] * x.nbytes / timing.median / copied
    return list(records.values())


def _ready(
    contestant: Contestant,
    setting: Setting,
    inputs: Sequence[Tensor],
    exact: Callable[[], tuple[Setting, Outcome, dict[str, float]]],
    record: Record,
) -> dict[Contestant, Step]:
    """What is to be timed of a contestant, nothing where it is wrong; what else is known of it goes into its record."""
    if contestant.source == "ours":
        record["agreement"] = answer = agreement(setting, contestant, *exact())
        if not answer["agrees"]:
            record["refused"] = f"wrong: {answer['worst']} is off by {answer['deviation']:.0e}"
            return {}
    module = contestant.module(setting)
    step = contestant.step(module, inputs, training=setting.training)
    step()
    if setting.training:
        record["maps_kept"] = contestant.kept(module, inputs)
    if setting.device != "cpu":
        record["peak_maps"] = peak_memory(step, setting.device) / inputs[0].nbytes
    return {contestant: step}


def _brief(error: Exception) -> str:
    sentence = next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")
    return sentence if isinstance(error, UserError) else f"does not run: {type(error).__name__}: {sentence}"[:200]
