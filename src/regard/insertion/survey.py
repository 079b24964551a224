"""Survey: what one forward pass of a user's model showed, and what a module tells by itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from regard.insertion.outputs import Output

CHILD = "regard"
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass
class Survey:
    """What one forward pass showed.

    Attributes:
        layout: of maps that do not tell it by themselves.
        outputs: what each module gave, in every call.
        order: of the calls' ends.
        branches: ends of the branches of residual additions; blocks: the modules that add them.
        convolutions: the last spatial convolution in each of these branches.
        beside: the last unit of a spatial convolution with its norm and its activation that another layer
            follows in the branch: from its end to the convolution.
        expansions: ends of the wide part of each inverted residual, before it is narrowed.
        features: modules on whose outputs another layer works.
        unread: modules behind which only other tokens are read than those of the pixels.
    """

    layout: str | None = None
    outputs: dict[str, list[Output]] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)
    branches: list[str] = field(default_factory=list)
    blocks: list[str] = field(default_factory=list)
    convolutions: list[str] = field(default_factory=list)
    beside: dict[str, str] = field(default_factory=dict)
    expansions: list[str] = field(default_factory=list)
    features: set[str] = field(default_factory=set)
    unread: set[str] = field(default_factory=set)

    def goes_on(self, name: str) -> bool:
        """Whether another layer works on what a module gives: else it is a prediction, not a feature."""
        return name in self.features


def looks_at_neighbours(module: Any) -> bool:
    """Whether a module is a convolution over more than single pixels."""
    return isinstance(module, CONVOLUTIONS) and max(module.kernel_size) > 1


def keeps_sides(convolution: Any) -> bool:
    """Whether a convolution pads so that, but for its stride, the map keeps its sides."""
    if type(convolution).forward not in (kind.forward for kind in CONVOLUTIONS):
        return True  # one that pads by itself
    sizes = zip(convolution.kernel_size, convolution.dilation, strict=True)
    wanted = tuple(dilation * (size - 1) / 2 for size, dilation in sizes)
    return len(set(wanted)) == 1 and convolution.padding in ("same", wanted)


def innermost(name: str, modules: Mapping[str, nn.Module]) -> str:
    """A Sequential would run the new child as one of its own: its last child stands for it."""
    module = modules[name]
    while type(module).forward is nn.Sequential.forward and len(module._modules):
        module = [child for key, child in module._modules.items() if key != CHILD and child is not None][-1]
    # one that has several names is known by its first
    return name if module is modules[name] else next(own for own, other in modules.items() if other is module)
