"""What each arm costs in the host it is compared in."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from regard import costing
from regard.comparison import hosts
from regard.comparison.asked import PLAIN, WIDER
from regard.comparison.training import build, on_device
from regard.insertion import attached
from regard.timing import noisy

SECONDS = 20.0  # for all timings together


def measure(question: dict[str, Any], arms: list[str]) -> dict[str, Any]:
    """The content of cost.json. Runs alone on the machine, in a fresh process."""
    models = {arm: _model(question, arm) for arm in arms}
    example = _example(question, models[PLAIN])
    rounds: list[int] = []
    costs = costing.measure(
        models, example, baseline=PLAIN, budget=SECONDS, progress=lambda done, _: rounds.append(done)
    )
    return {
        "device": question["device"],
        "batch": len(example),
        "rounds": len(rounds),
        "noisy": noisy(costs[PLAIN].infer_ms) is not None,
        "arms": {arm: asdict(cost) for arm, cost in costs.items()},
        "narrow": {arm: found.notes for arm, model in models.items() for found in attached(model) if found.notes},
    }


def widening(question: dict[str, Any], arms: list[str]) -> float:
    """How much wider the plain host is when its inference takes as long as that of the dearest arm."""
    models = {arm: _model(question, arm) for arm in [PLAIN, *arms]}
    example = _example(question, models[PLAIN])
    costs = costing.measure(models, example, baseline=PLAIN, budget=SECONDS / 2)
    dearest = max(arms, key=lambda arm: costs[arm].infer_ratio[1])

    def build_wider(factor: float) -> nn.Module:
        return _model(question | {"widening": factor}, WIDER)

    factor, _ = costing.widen(build_wider, models[dearest], example, budget=SECONDS / 2)
    return factor


def _model(question: dict[str, Any], arm: str) -> nn.Module:
    return on_device(build(question, arm, seed=0), question)


def _example(question: dict[str, Any], host: nn.Module) -> torch.Tensor:
    size, channels = question["size"], question["channels"]
    batch = min(64, max(4, 2**20 // (3 * size * size)))
    x = torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(0))
    return x.to(question["device"], memory_format=hosts.memory_format(host))
