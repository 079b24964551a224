"""A model whose state moves whenever it runs, and all that measuring one must not change."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import nn


def everything(model: nn.Module) -> list[Any]:
    """All that measuring must not change."""
    return [
        {name: value.tolist() for name, value in model.state_dict().items()},
        [(module.training, len(module._forward_hooks)) for module in model.modules()],
        [parameter.grad for parameter in model.parameters()],
        [value._version for value in model.state_dict().values()],
        random.getstate(),
        np.random.get_state()[1].tolist(),  # noqa: NPY002
        torch.get_rng_state().tolist(),
    ]


def restless(channels: int = 4) -> nn.Module:
    """A model that draws numbers and keeps statistics, with its parts in different modes."""
    model = nn.Sequential(nn.Conv2d(3, channels, 3), nn.BatchNorm2d(channels), nn.Dropout(0.5), nn.Flatten())
    model[1].eval()
    return nn.Sequential(model, nn.Linear(channels * 36, 5))
