"""Constant twins: a mechanism that stays in its places, and whose gates have stopped looking at anything."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from regard.insertion.attachment import Attached
from regard.insertion.scaled_start import taps_in_replica
from regard.layers.tap import Constant, Tap, taps
from regard.networks.replica import call
from regard.ops import use_impl


def make_constant(attached: Attached, example: Any) -> None:
    """Put a `Constant` in the place of every tap of an attachment, so that its input moves no gate any more.

    A constant starts with what its gate was on average over the example, at the start that the attachment has. What is
    learnt no more, since it led to a gate alone, is no parameter of the model any more: nothing decays it, nothing
    counts it. What still sees the input, such as GC's transform, learns as ever.

    Args:
        attached: fresh from `regard.attach`.
        example: what the model was attached with.
    """
    means: dict[Tap, Tensor] = {}
    with taps_in_replica(attached) as (host, pairs), torch.no_grad():

        def average(tap: Tap, args: tuple[Tensor], value: Tensor) -> None:
            means.setdefault(tap, args[0].float().mean(0))

        for tap, copy in pairs:
            if not tap.pairwise:
                copy.register_forward_hook(average)
        call(host, example)
        dtype = _dtype(attached)
        constants = {id(tap): Constant(tap, means[copy].to(dtype)) for tap, copy in pairs if copy in means}
        constants |= {id(tap): Constant(tap, None) for tap, _ in pairs if tap.pairwise}
    for module in attached.modules.values():
        for part in list(module.modules()):
            for name, child in part._modules.items():
                if id(child) in constants:
                    part._modules[name] = constants[id(child)]
    dropped = _led_to_gates(attached, example)
    for module in attached.modules.values():
        _drop_parameters(module, dropped)


def is_constant(module: nn.Module) -> bool:
    """Whether a model holds a constant twin."""
    return any(isinstance(tap, Constant) for _, tap in taps(module))


def _dtype(attached: Attached) -> torch.dtype:
    tensors = [parameter for parameter in attached.model.parameters() if parameter.is_floating_point()]
    return tensors[0].dtype if tensors else torch.get_default_dtype()


def _led_to_gates(attached: Attached, example: Any) -> set[int]:
    """Ids of the parameters that the output depends on no more: no path of the graph leads to them."""
    own = [parameter for parameter in attached.parameters() if parameter.requires_grad]
    # the reference joins nothing into one step: a path through it is one of the numbers
    with taps_in_replica(attached) as (host, _), torch.enable_grad(), use_impl("reference"):
        output = call(host, example)
        found = torch.autograd.grad(output.float().sum(), own, allow_unused=True)
    return {id(parameter) for parameter, gradient in zip(own, found, strict=True) if gradient is None}


def _drop_parameters(module: nn.Module, dropped: set[int]) -> None:
    """Let these be buffers, which a state dict holds under the same names."""
    for part in module.modules():
        for name, parameter in list(part._parameters.items()):
            if parameter is not None and id(parameter) in dropped:
                del part._parameters[name]
                part.register_buffer(name, parameter.detach())
