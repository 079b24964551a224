"""A dry run: one forward pass of a user's model with an example, which leaves the model as it was."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from regard.base.errors import ExampleError, UserError, brief
from regard.base.functions import tensors
from regard.insertion.following import Following
from regard.insertion.layout import LAYOUTS
from regard.insertion.survey import CHILD, Survey
from regard.networks.replica import borrowed, call
from regard.networks.weights import weights_kept


def dry_run(model: nn.Module, example: Any, layout: str | None = None) -> Survey:
    """Watch one forward pass; `layout` is that of the maps whose layout it does not tell."""
    if layout not in (*LAYOUTS, None):
        raise UserError(f"layout is None or one of {', '.join(map(repr, LAYOUTS))}, got {layout!r}")
    survey = Survey(layout)
    following = Following(survey)
    with borrowed(model) as replica:
        modules = {name: module for name, module in replica.named_modules() if CHILD not in name.split(".")}
        _hook(following, replica, modules)
        with torch.no_grad(), following:
            try:
                call(replica, example)
            except Exception as error:
                raise ExampleError(
                    f"the dry run failed ({brief(error)})",
                    needed="that the model accepts (a tuple is several arguments, a dict keyword arguments)",
                ) from error
    following.finish(modules)
    layouts = {name: outputs[0].layout for name, outputs in survey.outputs.items()}
    prefixes = {name: layout.prefix for name, layout in layouts.items() if layout and layout.prefix}
    if prefixes:
        survey.unread = _unread(model, example, prefixes)
    return survey


def _hook(following: Following, replica: nn.Module, modules: Mapping[str, nn.Module]) -> None:
    """Tell of every module that begins and ends; of what is attached already, as of what is passed over."""
    for name, module in modules.items():
        enter = lambda _, args, kwargs, name=name: following.enter(name, (args, kwargs))  # noqa: E731
        leave = lambda module, _, output, name=name: following.leave(name, module, output)  # noqa: E731
        module.register_forward_pre_hook(enter, with_kwargs=True)
        module.register_forward_hook(leave)
    for name, module in replica.named_modules():
        if name.split(".")[-1] == CHILD:
            module.register_forward_pre_hook(lambda _, args: following.pass_over(None, args[0]))
            module.register_forward_hook(lambda _, args, y: following.pass_over(y, args[0]))


def _unread(model: nn.Module, example: Any, prefixes: Mapping[str, int]) -> set[str]:
    """Of modules that give tokens, those whose pixels do not matter: in a last block only the class token is read."""
    probes: dict[str, Tensor] = {}

    def add(name: str) -> Callable[..., Tensor]:
        def probe(_: nn.Module, args: Any, output: Tensor) -> Tensor:
            probes[name] = torch.zeros_like(output, requires_grad=True)
            return output + probes[name]

        return probe

    # some networks have no backward pass
    with borrowed(model) as replica, weights_kept(replica), torch.enable_grad(), suppress(RuntimeError, UserError):
        for name in prefixes:
            replica.get_submodule(name).register_forward_hook(add(name))
        outputs = [y for y in tensors(call(replica, example)) if y.requires_grad]
        # weighed unevenly: the sum behind a layer norm has no gradient
        weights = [torch.linspace(1, 2, y.numel()).to(y).reshape(y.shape) for y in outputs]
        gradients = torch.autograd.grad(outputs, list(probes.values()), weights, allow_unused=True)
        found = dict(zip(probes, gradients, strict=True))
        if any(gradient is not None and gradient.any() for gradient in found.values()):  # no classifier of zeros
            return {n for n, gradient in found.items() if gradient is None or not gradient[:, prefixes[n] :].any()}
    return set()
