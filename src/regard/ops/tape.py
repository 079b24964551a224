"""The gradient of a map that is squeezed and then weighed is written once, for any kernels.

Between a squeeze and the gate that follows it (`ops.Joint`), ordinary autograd would write the gradient of the map in
pieces and add them up. Here the gate, and every squeeze but the first, leave theirs on a `Tape` as small tensors, and
the first squeeze, whose backward runs last by construction, writes the sum in one pass. A backward that is itself
differentiated, or meets tensors that no kernel may see, is that of the reference.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from typing import Any, Protocol
from weakref import ref

import torch
from torch import Tensor

from regard.ops.kernels.plan import Cannot, arrange


class Kernels(Protocol):
    """What an implementation brings: see `regard.ops.kernels.cpu`."""

    reduce: Callable[..., list[dict[str, Tensor]]]
    affine: Callable[..., Tensor]
    scatter: Callable[..., None]
    gather: Callable[..., list[Tensor]]


class Tape:
    """What the gradient of a map is still made of, for each backward pass by itself: several may run at once.

    Args:
        node: of the squeeze.
    """

    def __init__(self, node: Any) -> None:
        self.node, self.held = ref(node), dict[int, Pieces]()

    def leave(self, pieces: Pieces) -> None:
        """For the squeeze, if this pass will come to it and take them up."""
        node: Any = self.node()
        if torch._C._will_engine_execute_node(node):
            self.held.setdefault(torch._C._current_graph_task_id(), Pieces()).extend(pieces)

    def take(self) -> Pieces:
        """Everything that this pass left."""
        return self.held.pop(torch._C._current_graph_task_id(), None) or Pieces()


@dataclass
class Pieces:
    """What a gradient of a map is made of.

    Attributes:
        maps: a gradient of the map's shape, the factors it is multiplied by, and whether by their mean.
        terms: products of small tensors.
        weights: small tensors by which the map itself is multiplied, less others or None.
        picks: places and gradients of maxima, and the factors of the map there.
    """

    maps: list[tuple[Tensor, tuple[Tensor, ...], bool]] = field(default_factory=list)
    terms: list[tuple[Tensor, ...]] = field(default_factory=list)
    weights: list[tuple[Tensor, Tensor | None]] = field(default_factory=list)
    picks: list[tuple[Tensor, Tensor, tuple[Tensor, ...]]] = field(default_factory=list)

    def extend(self, other: Pieces) -> None:
        """Take up what another part of the gradient is made of."""
        for mine, theirs in zip(vars(self).values(), vars(other).values(), strict=True):
            mine.extend(theirs)

    def write(self, kernels: Kernels, x: Tensor, axes: tuple[int, ...]) -> Tensor:
        """The gradient of x, laid out in the order of these axes."""
        (first, factors, mean), *maps = self.maps or [(x.new_zeros(()).expand(x.shape), (), False)]
        first = arrange(first, axes)
        weighted, terms = self._weighted(x)
        try:
            y = kernels.affine(first, factors, mean=mean, terms=terms, picks=self.picks, **weighted)
            picks = []
        except Cannot:  # more than one pass takes
            y = _in_steps(kernels, kernels.affine(first, factors, mean=mean), terms, weighted)
            picks = self.picks
        for another, factors, mean in maps:
            y = kernels.affine(kernels.affine(arrange(another, axes), factors, mean=mean), x=y, out=y)
        for places, values, factors in picks:
            kernels.scatter(y, places, values, factors)
        return y

    def _weighted(self, x: Tensor) -> tuple[dict[str, Any], list[tuple[Tensor, ...]]]:
        """How the map itself is added, as arguments of `affine`, and all terms.

        About one mean, before anything is rounded: far from 0 the map and its mean are nearly the same.
        """
        if not self.weights:
            return {}, self.terms
        about = next((mean for _, mean in self.weights if mean is not None), None)
        weights = [weight for weight, _ in self.weights]
        terms = [*self.terms]
        if about is not None:
            terms += [(w * (about if m is None else about - m),) for w, m in self.weights if m is not about]
        return {"x": x, "weight": sum(weights[1:], weights[0]), "about": about}, terms


def _in_steps(kernels: Kernels, y: Tensor, terms: list[tuple[Tensor, ...]], weighted: dict[str, Any]) -> Tensor:
    """Add a weighted map and terms to y, a pass for each."""
    if weighted:
        y = kernels.affine(y, out=y, **weighted)
    for term in terms:
        try:
            y = kernels.affine(y, terms=[term], out=y)
        except Cannot:
            y = kernels.affine(y, terms=[(prod(term[1:], start=term[0]),)], out=y)
    return y
