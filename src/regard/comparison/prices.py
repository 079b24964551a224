"""What each arm costs in the host it is compared in."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from regard.comparison import hosts
from regard.comparison.arms import PARAMETERS, PLAIN, WIDER
from regard.comparison.network import build, on_device
from regard.comparison.question import Question
from regard.costs import costing
from regard.costs.counts import parameters
from regard.costs.timing import noisy
from regard.costs.width import widen
from regard.insertion.attachment import attached

WIDEST = 16.0  # times the width of the host
SECONDS = 20.0  # for all timings together


def measure(question: Question, arms: list[str]) -> dict[str, Any]:
    """The content of cost.json. Runs alone on the machine, in a fresh process."""
    models = {arm: _model(question, arm) for arm in arms}
    example = _example(question, models[PLAIN])
    rounds: list[int] = []
    costs = costing.measure(
        models, example, baseline=PLAIN, budget=SECONDS, progress=lambda done, _: rounds.append(done)
    )
    return {
        "device": question.device,
        "batch": len(example),
        "rounds": len(rounds),
        "noisy": noisy(costs[PLAIN].infer_ms) is not None,
        "arms": {arm: asdict(cost) for arm, cost in costs.items()},
        "narrow": {arm: found.notes for arm, model in models.items() for found in attached(model) if found.notes},
    }


def widening(question: Question, arms: list[str]) -> float:
    """How much wider the plain host is when its training step takes as long as that of the slowest arm, in turns."""
    models = {arm: _model(question, arm) for arm in [PLAIN, *arms]}
    example = _example(question, models[PLAIN])
    costs = costing.measure(models, example, baseline=PLAIN, budget=SECONDS / 2)
    slowest = max(arms, key=lambda arm: costs[arm].train_ratio[1])  # type: ignore[index]

    def build_wider(factor: float) -> nn.Module:
        return _model(question.widened(WIDER, factor), WIDER)

    factor, _ = widen(build_wider, models[slowest], example, budget=SECONDS / 2, train=True)
    return factor


def widening_parameters(question: Question, arms: list[str]) -> float:
    """How much wider the plain host is when it has at least as many parameters as the arm that has most: the least such
    width. It depends on no timing."""
    goal = max(parameters(build(question, arm, seed=0)) for arm in arms)

    def count(factor: float) -> int:
        return parameters(build(question.widened(PARAMETERS, factor), PARAMETERS, seed=0))

    low, high = 1.0, 1.0
    while count(high) < goal and high < WIDEST:
        low, high = high, min(2 * high, WIDEST)
    for _ in range(12):  # by then the factor's steps are finer than those of whole channels
        middle = (low + high) / 2
        low, high = (middle, high) if count(middle) < goal else (low, middle)
    return high


def _model(question: Question, arm: str) -> nn.Module:
    return on_device(build(question, arm, seed=0), question.device)


def _example(question: Question, host: nn.Module) -> torch.Tensor:
    size, channels = question.size, question.channels
    batch = min(64, max(4, 2**20 // (3 * size * size)))
    x = torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(0))
    return x.to(question.device, memory_format=hosts.memory_format(host))
