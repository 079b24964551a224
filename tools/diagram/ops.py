"""The ops of the library, each in words of its own, whatever it does inside."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from itertools import product
from typing import Any

from torch import Tensor

from diagram.graph import Graph
from diagram.labels import OVER, ROLES, WORDS
from diagram.letters import by
from regard.ops.dispatch import Op, answered

ATTENTION = "scaled_dot_product_attention"


def watched_ops(graph: Graph) -> AbstractContextManager[None]:
    """Every op inside the block adds its node to the graph."""

    def watched(op: Op, *args: Any) -> Any:
        if graph.hidden or op.name in STEP_BY_STEP:
            return op.reference(*args)
        if op.name in WATCHABLE and args[-1] is not None:
            return _attend(graph, op, *args)
        with graph.inside_a_box():
            result = op.reference(*args)
        rule = RULES.get(op.name)
        if rule:
            rule(graph, result, *args)
        else:
            graph.add("step", op.name, args, result)
        return result

    return answered(watched)


def _squeeze(graph: Graph, result: Any, x: Tensor, dims: Any, kinds: Any, factors: Any) -> None:
    times = f"times {graph.factors(factors)}, " if factors else ""
    for (axes, kind), squeezed in zip(product(dims, kinds), result[1:], strict=True):
        graph.add("step", times + graph.letters.over(OVER[kind], x, axes), [x, *factors], squeezed)


def _gate(graph: Graph, result: Any, x: Tensor, gates: Any, mean: bool, shift: Any) -> None:
    words = [f"times {'the mean of ' * mean}{graph.factors(gates)}"] if gates else []
    words += ["add"] * (shift is not None)
    graph.add("step", ", ".join(words), [x, *gates, shift], result)


def _convolve(graph: Graph, result: Any, x: Tensor, weight: Tensor) -> None:
    name = graph.constants.get(weight, "").removesuffix(".weight")
    kind = "Conv" if x.dim() == 4 else f"Conv{x.dim() - 2}d"
    graph.add("layer", f"{kind} {by(weight.shape[2:])}, {len(x[0])} → 1", [x], result, name=name)


def _attend_unwatched(graph: Graph, result: Any, *args: Any) -> None:
    query, key, value, _, bias, *_ = args
    graph.add("step", WORDS[ATTENTION], [query, key, value, bias], result, roles=ROLES[ATTENTION])


def _attend(graph: Graph, op: Op, *args: Any) -> Any:
    """Attention whose weights are watched: they are a node between two."""
    query, key, value, *options, watch = args
    bias = options[1:]  # scale, bias
    seen: list[Tensor] = []

    def show(weights: Tensor) -> Tensor:
        graph.hidden -= 1
        graph.add("step", "softmax(query · key)", [query, key, *bias], weights, roles=("query", "key", "bias"))
        seen.append(watch(weights))
        graph.hidden += 1
        return seen[0]

    with graph.inside_a_box():
        result = op.reference(query, key, value, *options, show)
    graph.add("step", "weighted sum", [seen[0], value], result, roles=("", "value"))
    return result


STEP_BY_STEP = ("agreeing", "selfgating")  # ops that are shown by what they do
WATCHABLE = ("attending", "crossing")
RULES: dict[str, Callable[..., None]] = {
    "squeezing": _squeeze,
    "gating": _gate,
    "convolving": _convolve,
    "attending": _attend_unwatched,
}
