"""Following: a dry run, seen function by function: what comes from where, and which tensors hold a map."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from regard.base.functions import CONVOLUTIONS, MIXTURES, POOLINGS, Call, tensors
from regard.base.noted import Noted
from regard.base.tracing import Tracer
from regard.insertion.additions import Addition, Additions, OpenCall
from regard.insertion.channels import channels
from regard.insertion.origins import Made, Origin, Sum, Unit
from regard.insertion.outputs import Output, describe
from regard.insertion.positions import Positions, follow, whole
from regard.insertion.survey import Survey, innermost, keeps_sides, looks_at_neighbours


@dataclass
class Step:
    """One tensor that a function gave.

    Attributes:
        call: of the function.
        given: the origins and shapes of the tensors that it was given, without parameters.
        before, shape: of the one that it continues.
        tensor: what it gave.
        after: its origin, as far as it is known.
        addition: ``"residual"`` or ``"parallel"`` where maps were added.
    """

    call: Call
    given: list[tuple[Origin, torch.Size]]
    before: Origin
    shape: torch.Size
    tensor: Tensor
    after: Origin
    addition: str


class Following(Tracer):
    """One forward pass, watched.

    Args:
        survey: what is found out goes there.
    """

    def __init__(self, survey: Survey) -> None:
        super().__init__({})
        self.survey = survey
        self.additions = Additions()
        self.rules = {
            **dict.fromkeys(CONVOLUTIONS, self.on_convolution),
            **dict.fromkeys(MIXTURES, self.on_mixture),
            **dict.fromkeys(POOLINGS, self.on_pooling),
            "linear": self.on_layer,
            "add": self.on_addition,
            "cat": self.on_concatenation,
        }
        self._origins: Noted[Origin] = Noted()
        self._stack: list[OpenCall] = []
        self._clock = 0
        self._paused = False
        self._pictures = False  # whether any positions are known
        self._narrowed: list[tuple[str, int]] = []  # ends of wide parts, and bits of what they were narrowed to
        self._followed_by = 0  # bits of all from which a layer went on
        self._bits: dict[str, int] = {}  # of each module's output
        self._units: list[Unit] = []

    @property
    def awake(self) -> bool:
        return not self._paused

    # modules

    def enter(self, name: str, inputs: Any) -> None:
        self._clock += 1
        block = OpenCall(name, self._clock)
        if not self._stack:
            for tensor in _maps(inputs):
                if tensor.dim() > 3:
                    self._origin(tensor).positions = whole(tensor.shape)
        origins = [self._origin(tensor) for tensor in _maps(inputs) if tensor.dim() > 2]
        for origin in origins:
            block.inputs |= origin.bit
            block.before |= origin.bit | origin.ancestors
        block.layers = max((origin.layers for origin in origins), default=0)
        self._stack.append(block)

    def leave(self, name: str, module: nn.Module, output: Any) -> None:
        block = self._stack.pop()
        seen = Output((), None, f"a {type(output).__name__}")
        if isinstance(output, Tensor):
            seen = self._describe(output)
        self.survey.order.append(name)
        self.survey.outputs.setdefault(name, []).append(seen)
        self.additions.leave(block, self._origin(output) if isinstance(output, Tensor) else None)
        made = Made(name, block.entered, seen.map)
        for part in _maps(output):
            origin = self._origin(part)
            self._bits[name] = self._bits.get(name, 0) | origin.bit
            if not origin.bit & block.inputs:
                origin.module = made
            self._end(module, origin, made)

    def _end(self, module: nn.Module, origin: Origin, made: Made) -> None:
        """A map that comes out of a tuple, or in another form than from the last layer, ends its way here."""
        layer = bool(module._parameters or module._buffers)
        if layer or origin.source is None or (made.map and origin.source.map != made.map):
            origin.source = made
        if layer:
            origin.pooled = None
        if looks_at_neighbours(module):
            origin.convolution = made

    def pass_over(self, output: Tensor | None, x: Tensor) -> None:
        """What is attached already is no part of the network: its map comes from where the site's came from."""
        self._paused = output is None
        if output is not None:
            self._origins[output] = self._origin(x)

    # functions

    def meet(self, call: Call) -> None:
        call.notes = [(self._origin(tensor), tensor.shape) for tensor in _maps((call.args, call.kwargs))]

    def follow(self, call: Call) -> None:
        given: list[tuple[Origin, torch.Size]] = call.notes
        if not given:
            return
        addition = self._addition(*call.operands[:2]) if call.word == "add" else ""
        results, product = tensors(call.result), call.word == "mul"
        first = next((tensor.shape for tensor in _maps(results)), torch.Size())
        positions = follow(call, _continued(given, first, product)[0].positions, self._positions)
        depth, layers = 1 + max(origin.depth for origin, _ in given), max(origin.layers for origin, _ in given)
        ancestors = 0
        for origin, _ in given:
            ancestors |= origin.ancestors | origin.bit
        for tensor, places in zip(results, positions, strict=True):
            before, shape = _continued(given, tensor.shape, product)
            after = replace(before, depth=depth, layers=layers, ancestors=ancestors, bit=self._bit(), positions=places)
            after.channels = channels(call, before.channels, shape, tensor.shape)
            self._pictures = self._pictures or places is not None
            rule = self.rules.get(call.word, self.on_other)
            rule(Step(call, given, before, shape, tensor, after, addition))
            self._origins[tensor] = after

    def on_layer(self, step: Step) -> None:
        """A layer follows what was done since the last convolution."""
        self._weigh(step)
        before, after = step.before, step.after
        source = before.pooled or before.source
        if before.convolution and before.module and source:
            after.unit = Unit(before.convolution, source, before.module)
            self._units.append(after.unit)
        after.convolution = after.pooled = None

    def on_convolution(self, step: Step) -> None:
        """What ends before a convolution, and what it makes of the width."""
        self.on_layer(step)
        before, after, weight = step.before, step.after, step.call.option(1, "weight")
        channels, width = step.shape[1], step.tensor.shape[1]
        if max(weight.shape[2:]) > 1:
            depthwise = before.width and weight.shape[1] == 1 and width == channels
            after.width = "depthwise" if depthwise else ""
            return
        if before.width == "depthwise" and width < channels and before.module:
            self._narrowed.append((before.module.module, after.bit))
        after.width = "pointwise" if width > channels else ""

    def on_mixture(self, step: Step) -> None:
        self._weigh(step)
        self.on_other(step)

    def on_addition(self, step: Step) -> None:
        if not step.addition:
            self.on_other(step)
            return
        after, shape = step.after, step.tensor.shape
        after.convolution = None
        shortcut = min((origin for origin, own in step.given if own == shape), key=lambda origin: origin.depth)
        if shortcut.positions:  # the longer way may have mixed pixels
            after.channels, after.positions = shortcut.channels, shortcut.positions
        after.sum = Sum(self._stack[-1].entered, after.bit)
        if step.addition == "parallel":  # the sum of two ways is the end of neither
            after.source = None

    def on_concatenation(self, step: Step) -> None:
        self.additions.join(origin.sum for origin, _ in step.given)

    def on_pooling(self, step: Step) -> None:
        self.on_other(step)
        step.after.source, step.after.pooled = None, step.before.source or step.before.pooled

    def on_other(self, step: Step) -> None:
        """What has fewer pixels for each channel was pooled: a gate begins there."""
        tensor, shape = step.tensor, step.shape
        if 2 < tensor.dim() == len(shape) and tensor.numel() * shape[1] < math.prod(shape) * tensor.shape[1]:
            step.after.width = ""

    def _weigh(self, step: Step) -> None:
        step.after.layers += 1
        step.after.sum = None
        self.additions.weighted |= step.after.bit
        self._followed_by |= step.after.ancestors

    def _addition(self, left: object = None, right: object = None) -> str:
        """Tell an addition of two maps: ``"residual"``, where one is computed from the other or both from their block's
        one input, or ``"parallel"``; empty where it is none."""
        if not (isinstance(left, Tensor) and isinstance(right, Tensor)) or left.shape != right.shape:
            return ""
        if left.dim() < 3 or not self._stack:
            return ""
        shortcut, branch = sorted((self._origin(left), self._origin(right)), key=lambda origin: origin.depth)
        block = self._stack[-1]
        if branch.source is None or branch.source.entered <= block.entered:
            return "parallel"
        if branch.channels is None:
            branch.channels = shortcut.channels
        # not where attention works on windows that are joined outside of it
        ends = branch.source.map == self._describe(left if self._origin(left) is branch else right).map
        return "residual" if self.additions.see(Addition(block, branch, ends), shortcut) else "parallel"

    # what the whole pass tells

    def finish(self, modules: Mapping[str, nn.Module]) -> None:
        """Tell the survey what only the whole pass tells."""
        survey = self.survey
        survey.features = {name for name, bits in self._bits.items() if bits & self._followed_by}
        # what is narrowed to a prediction is no inverted residual
        survey.expansions = [name for name, narrow in self._narrowed if narrow & self._followed_by]
        units = [unit for addition in self.additions if (unit := self._add(addition))]
        plain = [unit for unit in self._units if max(unit.convolution.map[2:], default=1) > 1]
        for unit in units or plain * (not survey.branches):
            if not keeps_sides(modules[unit.convolution.module]):
                continue
            for end in (unit.activation, unit.norm):
                # an activation that serves several layers is no end of a unit
                if end.map == unit.convolution.map and len(survey.outputs[end.module]) == 1:
                    survey.beside[innermost(end.module, modules)] = unit.convolution.module
                    break

    def _add(self, addition: Addition) -> Unit | None:
        """Tell the survey of a residual block; the last unit of its branch, if there is one."""
        block, branch, survey = addition.block.name, addition.branch, self.survey
        if branch.source and addition.ends:
            survey.branches.append(branch.source.module)
        if block:
            survey.blocks.append(block)
        inside = block + "." if block else ""
        unit = branch.unit if branch.unit and branch.unit.convolution.module.startswith(inside) else None
        if branch.convolution and branch.convolution.module.startswith(inside):
            survey.convolutions.append(branch.convolution.module)
        elif unit:
            survey.convolutions.append(unit.convolution.module)
        return unit

    # what is known of tensors

    def _describe(self, tensor: Tensor) -> Output:
        return describe(tensor, self._origin(tensor), self.survey.layout, self._pictures)

    def _origin(self, tensor: Tensor) -> Origin:
        origin: Origin | None = self._origins.get(tensor)
        if origin is None:  # an image comes with its channels first
            origin = self._origins[tensor] = Origin(self._bit(), channels=1 if tensor.dim() > 2 else None)
        return origin

    def _positions(self, tensor: Tensor) -> Positions | None:
        origin: Origin | None = self._origins.get(tensor)
        return origin.positions if origin else None

    def _bit(self) -> int:
        self._clock += 1
        return 1 << self._clock


def _continued(given: list[tuple[Origin, torch.Size]], shape: torch.Size, product: bool) -> tuple[Origin, torch.Size]:
    """The one that an operation's result continues: a map times a gate is still the map, not the longer way."""
    sign = -1 if product else 1
    return max(given, key=lambda pair: (pair[1] == shape, pair[0].source is not None, sign * pair[0].depth))


def _maps(tree: Any) -> list[Tensor]:
    """The tensors in a tree that are no parameters."""
    return [tensor for tensor in tensors(tree) if not isinstance(tensor, nn.Parameter)]
