"""What is timed of a model: an inference, a training step; and the loss where none is given."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._pytree import tree_leaves

from regard.base.errors import UserError
from regard.networks.replica import call, shadow

Loss = Callable[[nn.Module, Any], Tensor]
"""From a model in train mode and an example to the number that a training step differentiates."""


def inference(model: nn.Module, example: Any) -> Callable[[], Any]:
    """A forward pass of the model itself in eval mode, ready to be called."""
    model.eval()

    def infer() -> Any:
        with torch.inference_mode():
            return call(model, example)

    return infer


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


def rng_kept(device: torch.device) -> AbstractContextManager[None]:
    """Dropout and initialisation draw inside; outside, the random state is as it was."""
    return torch.random.fork_rng([device] if device.type == "cuda" else [])
