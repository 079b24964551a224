"""Which node made which tensor, while a forward pass is watched."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from diagram.flow import Node
from diagram.letters import Letters
from regard.base.functions import tensors
from regard.base.noted import Noted

LIBRARIES = (
    "torch.",
    f"{__package__}.",
    "regard.base.",
    "regard.ops",
)  # whose lines are not where something was computed


class Graph:
    """The nodes of a forward pass as far as it has come.

    Attributes:
        nodes: in the order of the pass.
        letters: the names of lengths.
        constants: tensor -> the name of the parameter or buffer that it comes from.
        modules: the modules that run now, from the outermost.
        hidden: the number of boxes that we are inside of; what is computed there is no node.
    """

    def __init__(self, module: nn.Module, letters: Mapping[int, str]) -> None:
        self.nodes: list[Node] = []
        self.letters = Letters(letters)
        self.constants = Noted[str]()
        self.modules: list[nn.Module] = []
        self.hidden = 0
        self._made = Noted[tuple[Node, Tensor]]()  # tensor -> its node, and the tensor as that node made it
        for name, constant in (*module.named_parameters(), *module.named_buffers()):
            self.constants[constant] = name

    def add(
        self,
        kind: str,
        text: str,
        inputs: Sequence[Any],
        results: Any,
        *,
        name: str = "",
        roles: Sequence[str] = (),
        site: object = None,
    ) -> Node:
        """Add a node that makes the `results` from the `inputs`; a constant among them has no arrow."""
        results = tensors(results)
        roles = [*roles, *[""] * len(inputs)]
        pairs = [(x, role) for x, role in zip(inputs, roles, strict=False) if x in self]
        sources = list(dict.fromkeys(self.source(x, role if len(pairs) > 1 else "") for x, role in pairs))
        stacks = kind in ("step", "layer") and len(pairs) == 1 and pairs[0][0].shape == results[0].shape
        site = site or (id(self.modules[-1]) if self.modules else None, _line())
        node = Node(kind, [(text, name)], self.letters.shape(results[0]), sources, site, stacks)
        self.nodes.append(node)
        self._made.update((tensor, (node, tensor)) for tensor in results)
        return node

    def pass_on(self, inputs: Sequence[Tensor], results: Sequence[Tensor]) -> None:
        """Let the results come from where the inputs come from: each from its own, or all from the first."""
        origins = inputs if len(inputs) == len(results) else [inputs[0]] * len(results)
        self._made.update((result, self._made[x]) for result, x in zip(results, origins, strict=True))

    def source(self, tensor: Tensor, role: str) -> Node:
        """The node that a tensor comes from, or a note on the way where that needs words."""
        node, made = self._made[tensor]
        words = [role] if role and not any(role in name for _, name in node.rows) else []
        if tensor.numel() < made.numel():
            words.append(self.letters.shape(tensor))
        elif tensor.numel() == made.numel() and tensor.shape[-1:] == made.shape[-1:] and tensor is not made:
            # the last axis stayed where it was: if the rest no longer reads in the old order, channels were shuffled
            words += [] if torch.equal(tensor.reshape(made.shape), made.to(tensor.dtype)) else ["reordered"]
        if not words:
            return node
        note = Node("note", [(" ".join(words), "")], self.letters.shape(tensor), [node], " ".join(words))
        self.nodes.append(note)
        if not role:
            self._made[tensor] = note, tensor
        return note

    def origin(self, operand: Any) -> Node | str:
        """The node that made an operand, or words for a constant."""
        if not isinstance(operand, Tensor):
            return self.letters.number(operand)
        return self._made[operand][0] if operand in self._made else self.constants.get(operand, "constant")

    def factors(self, operands: Sequence[Tensor]) -> str:
        """What a map is multiplied by: taps, weights, or a gate."""
        origins = map(self.origin, operands)
        return " and ".join(str(x) if isinstance(x, str) or x.kind == "tap" else "gate" for x in origins)

    def __contains__(self, operand: Any) -> bool:
        """Whether a node made it."""
        return isinstance(operand, Tensor) and operand in self._made

    @contextmanager
    def inside_a_box(self) -> Iterator[None]:
        self.hidden += 1
        try:
            yield
        finally:
            self.hidden -= 1


def _line() -> tuple[str, int]:
    """The line that calls torch or an op."""
    frame = sys._getframe()
    while frame.f_back and frame.f_globals["__name__"].startswith(LIBRARIES):
        frame = frame.f_back
    return frame.f_code.co_filename, frame.f_lineno
