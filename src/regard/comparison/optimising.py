"""How the weights of a run move: Muon for the kernels of the host's convolutions, AdamW for everything else."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from regard.insertion.attachment import attached

WARMUP = 0.15  # share of the training in which the rates rise
# of Muon; tried on validation images (`make frontier`)
MOMENTUM, DECAY, ITERATIONS = 0.9, 0.02, 3


class Optimiser:
    """The optimisers of one run behind one schedule.

    Muon (Jordan et al. 2024) gives the step of a matrix singular values near 1. The kernel of a convolution is such a
    matrix: its outputs by all that each sees. Depthwise kernels, those of one input channel, whatever is attached,
    linear layers, norms and biases are AdamW's; only what has more than one axis is decayed.

    Args:
        model: on its device and in its memory layout; what requires no gradient is left alone.
        rate: learning rate of AdamW at its height.
        matrix_rate: that of Muon; None leaves everything to AdamW.
        decay: weight decay of AdamW.
    """

    def __init__(self, model: nn.Module, rate: float, matrix_rate: float | None, decay: float) -> None:
        self._kernels = [] if matrix_rate is None else _kernels(model)
        taken = {id(kernel) for kernel in self._kernels}
        rest = [p for p in model.parameters() if p.requires_grad and id(p) not in taken]
        groups = [
            {"params": [p for p in rest if p.dim() > 1], "weight_decay": decay},
            {"params": [p for p in rest if p.dim() <= 1], "weight_decay": 0.0},
        ]
        self.parts: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(groups, lr=rate, fused=True)  # one pass over each weight
        ]
        self._matrices = [nn.Parameter(_matrix(kernel.detach())) for kernel in self._kernels]
        if matrix_rate is not None and self._matrices:
            self.parts.append(
                torch.optim.Muon(
                    self._matrices, lr=matrix_rate, momentum=MOMENTUM, weight_decay=DECAY, ns_steps=ITERATIONS
                )
            )
        self._heights = [[group["lr"] for group in part.param_groups] for part in self.parts]
        self._parameters = [*rest, *self._kernels]

    def step(self, done: float) -> None:
        """Move the weights by the gradients that they have, which are forgotten.

        Args:
            done: share of the training that lies behind, from 0 to below 1.
        """
        for kernel, matrix in zip(self._kernels, self._matrices, strict=True):
            matrix.grad = None if kernel.grad is None else _matrix(kernel.grad, like=kernel)
        for part, heights in zip(self.parts, self._heights, strict=True):
            for group, height in zip(part.param_groups, heights, strict=True):
                group["lr"] = height * schedule(done)
            part.step()
        for parameter in (*self._parameters, *self._matrices):
            parameter.grad = None

    def state(self) -> list[dict[str, Any]]:
        """The state of each part, for a checkpoint."""
        return [part.state_dict() for part in self.parts]

    def load(self, states: list[dict[str, Any]]) -> None:
        """Take up what `state` gave; see `fits`."""
        for part, state in zip(self.parts, states, strict=True):
            part.load_state_dict(state)

    def fits(self, states: Any) -> bool:
        """Whether `load` takes these states, which come from a file."""
        return len(states) == len(self.parts) and all(map(_fits, states, self.parts))


def schedule(done: float, warmup: float = WARMUP) -> float:
    """Share of the learning rate: a linear warm-up, then down to nothing by the square of what is left.

    The end is flat, so that the last quarter of a short training shows whether more of it would help.
    """
    if done < warmup:
        return (done + 0.01) / (warmup + 0.01)
    return ((1 - done) / (1 - warmup)) ** 2


def _kernels(model: nn.Module) -> list[Tensor]:
    added = {
        part for attachment in attached(model) for module in attachment.modules.values() for part in module.modules()
    }
    return [
        module.weight
        for module in model.modules()
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)
        and module not in added
        and module.groups == 1
        and module.in_channels > 1
        and module.weight.requires_grad
    ]


def _matrix(weight: Tensor, like: Tensor | None = None) -> Tensor:
    """A kernel (O, I, \\*sides) as (O, I * sides), the columns in the order in which those of `like` lie in memory.

    Of a kernel itself it is a view, so that what moves the one moves the other.
    """
    like = weight if like is None else like
    if like.is_contiguous():
        return weight.flatten(1)
    return weight.movedim(1, -1).flatten(1)


def _fits(stored: Any, part: torch.optim.Optimizer) -> bool:
    settings = part.state_dict()["param_groups"]
    parameters = [parameter for group in part.param_groups for parameter in group["params"]]
    kept = [tensor for entry in stored["state"].values() for tensor in entry.values()]
    return (
        [group["params"] for group in stored["param_groups"]] == [group["params"] for group in settings]
        and [group.keys() for group in stored["param_groups"]] == [group.keys() for group in settings]
        and stored["state"].keys() == set(range(len(parameters)))
        and all(isinstance(tensor, Tensor) and tensor.is_floating_point() for tensor in kept)
        and all(
            tensor.shape in (torch.Size(), parameters[number].shape)
            for number, entry in stored["state"].items()
            for tensor in entry.values()
        )
    )
