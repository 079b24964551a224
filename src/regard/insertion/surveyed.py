"""A model together with the survey of one forward pass through it: which of its modules give a map."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property

from torch import nn

from regard.insertion.layout import Layout
from regard.insertion.outputs import Output
from regard.insertion.survey import CONVOLUTIONS, Survey


@dataclass(frozen=True)
class Surveyed:
    """A model and the survey of one forward pass through it.

    Attributes:
        model: the network.
        survey: of a pass through it.
        once: whether modules that the pass calls several times are passed over.
    """

    model: nn.Module
    survey: Survey
    once: bool = False

    @cached_property
    def modules(self) -> dict[str, nn.Module]:
        """By name; a module that has several is known by its first."""
        return dict(self.model.named_modules())

    def passing_over_repeated(self) -> Surveyed:
        return replace(self, once=True)

    def counted(self, names: Iterable[str]) -> list[str]:
        """Of some names each once, without modules that are passed over."""
        return [name for name in dict.fromkeys(names) if not self.once or self.is_called_once(name)]

    def map(self, name: str) -> tuple[int, ...]:
        """(B, C, *spatial) of what a module gives in its first call; empty where that is no map."""
        return self.survey.outputs[name][0].map

    def is_map(self, name: str) -> bool:
        """Whether a mechanism could stand behind a module: what it gives is a map, and is read."""
        return name not in self.survey.unread and self.fits(self.survey.outputs[name][0])

    def fits(self, output: Output) -> bool:
        """Whether an output is a map of as many axes as the network's convolutions have."""
        first = output.layout == Layout("channels_first")
        return bool(output.map) and (len(output.map) - 2 in self._ranks or not self._ranks or not first)

    @cached_property
    def _ranks(self) -> set[int]:
        """Numbers of spatial axes of the convolutions."""
        return {len(module.kernel_size) for module in self.modules.values() if isinstance(module, CONVOLUTIONS)}

    def is_called_once(self, name: str) -> bool:
        return len(self.survey.outputs[name]) == 1
