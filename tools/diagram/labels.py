"""What a function of torch computes, in a few words: tables of names, and a rule for each kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from diagram.flow import Node
from diagram.letters import Letters, by

# functions whose operands stand in the other order than they are read
SWAPPED = {"rsub": "sub", "rdiv": "div", "rtruediv": "div", "rpow": "pow", "rmatmul": "matmul"}
PAIRS = {  # of two operands: the sign before a constant, and the word between two maps
    "add": ("+", "add"), "sub": ("−", "subtract"), "mul": ("×", "multiply"), "div": ("÷", "divide"),
    "matmul": ("·", "matrix product"), "pow": ("to the power", "power"),
    "maximum": ("or at least", "larger of both"), "minimum": ("or at most", "smaller of both"),
}  # fmt: skip
COMMUTE = ("add", "mul", "maximum", "minimum")
TWICE = {"mul": "square", "add": "× 2"}  # of a map and itself
POWERS = {"2": "square", "0.5": "square root"}
OVER = {  # over axes
    "mean": "mean", "sum": "sum", "max": "max", "amax": "max", "min": "min", "amin": "min", "softmax": "softmax",
    "log_softmax": "log-softmax", "std": "std", "var": "variance", "norm": "length", "logsumexp": "log-sum-exp",
    "vector_norm": "length", "argmax": "place of the max", "cumsum": "running sum", "normalize": "unit length",
    "avg": "mean", "lp": "length", "lse": "log-sum-exp",
}  # fmt: skip
WORDS = {
    "scaled_dot_product_attention": "softmax(query · key) · value", "cat": "concat", "neg": "negative",
    "interpolate": "resize", "grid_sample": "sample at the grid", "normal": "draw from a normal",
    "setitem": "write into", "abs": "absolute value", "sqrt": "square root",
}  # fmt: skip
ROLES = {"sub": ("", "subtracted"), "div": ("", "divisor"), "scaled_dot_product_attention": ("query", "key", "value")}


@dataclass
class Operation:
    """A call of a function of torch, as it is read.

    Attributes:
        name: of the function, as in the tables.
        args, kwargs: its arguments; of a swapped one (``1 - x``) as they are read.
        tensors: among its arguments.
        result: its first tensor.
        letters: the names of lengths.
        origin: of an operand, the node that made it, or words for a constant.
    """

    name: str
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    tensors: Sequence[Any]
    result: Tensor
    letters: Letters
    origin: Callable[[Any], Node | str]

    def __post_init__(self) -> None:
        if self.name == "bmm":
            self.name = "matmul"
        if self.name in ("max", "min") and len(self.tensors) == 2:
            self.name += "imum"
        if self.name in SWAPPED:
            self.name, self.args = SWAPPED[self.name], (self.args[1], self.args[0])

    @property
    def operands(self) -> Sequence[Any]:
        return self.args[:2] if self.name in PAIRS and len(self.args) > 1 else self.tensors

    @property
    def dims(self) -> list[int]:
        """The axes that it works over, counted from 0."""
        place = 2 if "norm" in self.name else 1
        missing = 1 if self.name == "normalize" else None
        dims = self.args[place] if len(self.args) > place else self.kwargs.get("dim", missing)
        rank = self.tensors[0].dim()
        return [dim % rank for dim in ([dims] if isinstance(dims, int) else dims or range(rank))]


def label(operation: Operation) -> str:
    """What is computed, in words."""
    rule = RULES.get(operation.name, pool if "pool" in operation.name else named)
    return rule(operation)


def named(operation: Operation) -> str:
    return WORDS.get(operation.name, operation.name.replace("_", " "))


def pair(operation: Operation) -> str:
    """An operation of two operands, of which one may be a number or a constant."""
    if len(operation.operands) < 2:
        return named(operation)
    left, right = map(operation.origin, operation.operands)
    if isinstance(left, Node) and isinstance(right, Node):
        return _of_two_maps(operation, left, right)
    sign, _ = PAIRS[operation.name]
    constant = right if isinstance(left, Node) else left
    if operation.name == "pow" and constant is right:
        return POWERS.get(str(constant), f"{sign} {constant}")
    return f"{sign} {constant}" if constant is right or operation.name in COMMUTE else f"{constant} {sign} it"


def _of_two_maps(operation: Operation, left: Node, right: Node) -> str:
    _, word = PAIRS[operation.name]
    if operation.operands[0] is operation.operands[1]:
        return TWICE.get(operation.name, word)
    if operation.name == "matmul":
        return f"{word} over {operation.letters.size(operation.operands[0].shape[-1])}"
    taps = [node for node in (left, right) if node.kind == "tap"]
    return f"times {taps[0]}" if operation.name == "mul" and taps else word


def over(operation: Operation) -> str:
    return operation.letters.over(OVER[operation.name], operation.tensors[0], operation.dims)


def total(operation: Operation) -> str:
    """A sum; of what was stacked just before, it is an addition."""
    origin = operation.origin(operation.tensors[0])
    if isinstance(origin, Node) and str(origin) == "stack":
        stacked = {source.shape for source in origin.sources}
        return "add" if stacked == {operation.letters.shape(operation.result)} else over(operation)
    return over(operation)


def pool(operation: Operation) -> str:
    kernel = operation.args[1] if len(operation.args) > 1 else operation.kwargs.get("kernel_size")
    return pooled(operation.name, operation.tensors[0], operation.result, kernel, operation.letters)


def pooled(name: str, x: Tensor, result: Tensor, kernel: Any, letters: Letters) -> str:
    """What a pooling gives, by the name of its function or class."""
    what = "max" if "max" in name.lower() else "mean"
    if set(result.shape[2:]) == {1}:
        return letters.over(what, x, range(2, x.dim()))
    if "daptive" in name:
        return f"{what} pool to {by(result.shape[2:])}"
    return f"{what} pool {by(kernel if isinstance(kernel, tuple) else [kernel] * (x.dim() - 2))}"


def windows(operation: Operation) -> str:
    return f"windows of {operation.args[2]}" if len(operation.args) == 4 else named(operation)


def einsum(operation: Operation) -> str:
    terms, _, kept = operation.args[0].replace(" ", "").partition("->")
    lengths: dict[str, int] = {}
    for term, x in zip(terms.split(","), operation.tensors, strict=False):
        left, _, right = term.partition("...")
        lengths |= dict(zip(left, x.shape, strict=False)) | dict(zip(right[::-1], x.shape[::-1], strict=False))
    gone = [length for letter, length in lengths.items() if letter not in kept]
    return f"matrix product over {operation.letters.sizes(gone)}" if gone else "multiply"


RULES: dict[str, Callable[[Operation], str]] = {
    **dict.fromkeys(PAIRS, pair),
    **dict.fromkeys(OVER, over),
    "sum": total,
    "unfold": windows,
    "einsum": einsum,
}
