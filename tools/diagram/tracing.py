"""One forward pass, watched."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten_with_path

from diagram.flow import Flow, Node
from diagram.graph import Graph
from diagram.labels import ROLES, Operation, label
from diagram.layers import layer
from diagram.ops import watched_ops
from diagram.tidying import rolled, tidied
from regard.base.functions import LISTED, PARTS, REGROUPINGS, TURNS, Call, tensors
from regard.base.tracing import Tracer
from regard.layers.tap import Tap
from regard.networks.replica import borrowed

MOST = 40  # boxes of a picture; what would take more is drawn coarser

# What only changes how a tensor is stored or seen; an arrow says so where it takes a part or changes the order.
HOUSEKEEPING = REGROUPINGS | TURNS | PARTS | {
    "ravel", "expand", "expand_as", "broadcast_to", "broadcast_tensors", "flip", "roll", "contiguous", "clone",
    "detach", "data", "to", "type", "type_as", "float", "double", "half", "bfloat16",
    "dropout", "dropout1d", "dropout2d", "dropout3d",
}  # fmt: skip
FRESH = re.compile("new_.*|.*_like")  # tensors that take no more than their shape from another
NOISE = re.compile("rand.*|normal|bernoulli")
NOTHING = ("Identity", "Dropout", "Flatten", "Unflatten")  # how the classes of modules begin that are not drawn


def trace(module: nn.Module, inputs: Sequence[Tensor], letters: Mapping[int, str] | None = None) -> Flow:
    """Watch one forward pass, in evaluation mode; the module is left as it was.

    What would take more than about 40 boxes is drawn coarser: the rounds of a loop as one, then child modules as one.

    Args:
        module: any module.
        inputs: its arguments.
        letters: length of an axis -> its name, by default (B, C, H, W) of the first input. Only lengths that differ
            from each other and from the widths inside the module can be told apart.

    Example:
        >>> import regard, torch
        >>> print(trace(regard.create("se", 64), [torch.randn(2, 64, 7, 9)]))
        x; mean over H, W; Linear 64 → 4, relu; Linear 4 → 64, sigmoid; gate; times gate; y
    """
    if letters is None:
        axes = zip(inputs[0].shape, "BCHW" if inputs[0].dim() < 5 else "BCDHW", strict=False)
        letters = dict(list(axes)[::-1])
    depths = {name.count(".") + 1 for name, child in module.named_modules() if name and child._modules}
    for depth, roll in product((sys.maxsize, *sorted(depths, reverse=True)), (False, True)):
        with borrowed(module) as replica:
            nodes = _GraphTracer(replica, letters, depth).watch(inputs)
        nodes = tidied(rolled(nodes) if roll else nodes)
        if len(nodes) <= MOST:
            break
    return Flow(nodes)


class _GraphTracer(Tracer):
    """Fills a graph while a module runs."""

    def __init__(self, module: nn.Module, letters: Mapping[int, str], depth: int) -> None:
        """
        Args:
            module: may be changed.
            letters: length of an axis -> its name.
            depth: from which on a child module is one box.
        """
        super().__init__({})
        self.module = module
        self.depth = depth
        self.graph = Graph(module, letters)
        self.names = {child: name for name, child in module.named_modules()}
        self.learnt = {name for name, _ in module.named_parameters()}

    def watch(self, inputs: Sequence[Tensor]) -> list[Node]:
        for name, tensor in zip(inspect.signature(self.module.forward).parameters, inputs, strict=False):
            self.graph.add("input", name, [], tensor)
        for child in self.names:
            child.register_forward_pre_hook(self.enter)
            child.register_forward_hook(self.leave, with_kwargs=True)
        with torch.no_grad(), watched_ops(self.graph):
            torch.manual_seed(0)
            with self:
                result = self.module(*inputs)
        outputs = [(path, leaf) for path, leaf in tree_flatten_with_path(result)[0] if isinstance(leaf, Tensor)]
        for number, (path, tensor) in enumerate(outputs, 1):
            name = getattr(path[-1], "key", f"y{number}") if len(outputs) > 1 else "y"
            self.graph.add("output", str(name), [tensor], tensor)
        return self.graph.nodes

    @property
    def awake(self) -> bool:
        """Not inside of what is drawn as one box."""
        return not self.graph.hidden

    def follow(self, call: Call) -> None:
        results = tensors(call.args[0] if call.word == "setitem" else call.result)
        if not results:
            return
        inputs = tensors((call.args, call.kwargs))
        traced = [tensor for tensor in inputs if tensor in self.graph]
        if not traced or FRESH.fullmatch(call.word):
            self.name_constants(call.word, inputs, results)
        elif call.word in HOUSEKEEPING or _does_nothing(call.word, inputs, results):
            self.graph.pass_on(traced, results)
        else:
            self.compute(call, inputs, results)

    def name_constants(self, function: str, inputs: list[Tensor], results: list[Tensor]) -> None:
        """What is computed without the inputs is named by the parameters that it comes from."""
        constants = self.graph.constants
        names = [constants[tensor] for tensor in inputs if tensor in constants]
        names = ["0"] if "zeros" in function else names + ["noise"] * bool(NOISE.fullmatch(function))
        if names:
            named = " and ".join(dict.fromkeys(names)) if function == "cat" else names[0]
            constants.update((tensor, named) for tensor in results if named)

    def compute(self, call: Call, inputs: list[Tensor], results: list[Tensor]) -> None:
        """Add what a function of torch computes."""
        origin, letters = self.graph.origin, self.graph.letters
        operation = Operation(call.word, call.args, call.kwargs, inputs, results[0], letters, origin)
        names = [name for x in inputs for name in self.graph.constants.get(x, "").split(" and ")]
        kind = "step" if self.learnt.isdisjoint(names) else "layer"
        roles = ROLES.get(operation.name, ())
        self.graph.add(kind, label(operation), operation.operands, results, roles=roles)

    def enter(self, module: nn.Module, args: Any) -> None:
        self.graph.modules.append(module)
        self.graph.hidden += self.is_box(module)

    def leave(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        self.graph.modules.pop()
        self.graph.hidden -= self.is_box(module)
        inputs, results = tensors((args, kwargs)), tensors(output)
        name = self.names[module]
        if self.graph.hidden or not results:
            return
        if isinstance(module, Tap):
            self.graph.add("tap", name, inputs, output, site=id(module))
        elif not inputs:
            self.graph.constants.update((tensor, name) for tensor in results)
        elif type(module).__name__.startswith(NOTHING) and inputs[0] in self.graph:
            self.graph.pass_on(inputs, results)
        elif self.is_box(module) or not any(tensor in self.graph for tensor in results):
            self.add_box(module, inputs, results)

    def add_box(self, module: nn.Module, inputs: list[Tensor], results: list[Tensor]) -> None:
        learnt = any(True for _ in module.parameters())
        text = layer(module, inputs[0], results[0], self.graph.letters)
        name = self.names[module] if learnt else ""
        node = self.graph.add("layer" if learnt else "step", text, inputs, results, name=name, site=id(module))
        node.stacks &= not learnt or "Norm" in type(module).__name__
        node.rows += [("", f"map {self.names[tap]}") for tap in module.modules() if isinstance(tap, Tap)]

    def is_box(self, module: nn.Module) -> bool:
        """Whether a module is drawn as one box: torch's own, and what lies too deep."""
        family = set(type(module).__mro__) - {nn.Module, nn.Sequential}
        name = self.names[module]
        deep = name and module._modules and name.count(".") + 1 >= self.depth and not isinstance(module, nn.Sequential)
        return bool(deep) or any(kind.__module__.startswith("torch.nn.modules") for kind in family)


def _does_nothing(name: str, inputs: list[Tensor], results: list[Tensor]) -> bool:
    """Whether one tensor was joined to no other, or pooled over single pixels."""
    return (name in LISTED and len(inputs) == 1) or ("pool" in name and torch.equal(inputs[0], results[0]))
