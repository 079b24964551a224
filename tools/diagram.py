"""A module's data flow as a picture: what one forward pass computes, watched, laid out and written as SVG.

`trace` follows the tensors of one forward pass, `draw` makes a picture of what it saw. Both give the same answer every
time, so that a picture can be kept beside the code and compared with it.
"""

from __future__ import annotations

import inspect
import math
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import combinations, pairwise, product
from textwrap import wrap
from typing import Any
from xml.sax.saxutils import escape

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten_with_path, tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from regard.layers.tap import Tap
from regard.networks.borrowing import borrowed
from regard.ops.dispatch import Op, answered
from regard.pictures import svg
from regard.pictures.svg import LARGE, SMALL

MOST, WIDEST = 40, 900  # boxes and width of a picture; what would take more is drawn coarser
ROOM = 700  # the width of a page

# What only changes how a tensor is stored or seen; an arrow says so where it takes a part or changes the order.
HOUSEKEEPING = re.compile(
    "(view|reshape|expand|type)(_as)?|flatten|unflatten|ravel|squeeze|unsqueeze|transpose|permute|movedim|swapaxes|t|"
    "contiguous|clone|detach|to|float|double|half|bfloat16|broadcast_(to|tensors)|get|getitem|split|chunk|unbind|narrow|"
    "select|flip|roll|dropout[123d]*|requires_grad"
)
FRESH = re.compile("new_.*|.*_like")  # tensors that take no more than their shape from another
NOISE = re.compile("rand.*|normal|bernoulli")
ROLES = {"sub": ("", "subtracted"), "div": ("", "divisor"), "scaled_dot_product_attention": ("query", "key", "value")}

# The words for what torch's functions compute: of two operands, over axes, and of any kind.
SPELLINGS = {"truediv": "div", "iadd": "add", "isub": "sub", "imul": "mul", "itruediv": "div", "bmm": "matmul"}
PAIRS = {
    "add": ("+", "add"), "sub": ("−", "subtract"), "mul": ("×", "multiply"), "div": ("÷", "divide"),
    "matmul": ("·", "matrix product"), "pow": ("to the power", "power"),
    "maximum": ("or at least", "larger of both"), "minimum": ("or at most", "smaller of both"),
}  # fmt: skip
OVER = {
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


@dataclass(eq=False)
class Node:
    """One box of the picture.

    Attributes:
        kind: ``"input"``, ``"step"`` (no weights), ``"layer"`` (learnt weights), ``"tap"``, ``"note"`` (words on an
            arrow) or ``"output"``.
        rows: what it computes, step after step, each with its name in the module, or "".
        shape: of its result, in letters.
        sources: the nodes that its arrows come from.
        site: where it was computed, the same in every round of a loop.
        stacks: whether it may stand in the box of its only source.
        rounds: how many rounds of a loop it stands for.
    """

    kind: str
    rows: list[tuple[str, str]]
    shape: str
    sources: list[Node]
    site: object = None
    stacks: bool = False
    rounds: int = 1

    def __str__(self) -> str:
        return ", ".join(text or name for text, name in self.rows)


@dataclass
class Flow:
    """What a forward pass computes: its nodes, each after its sources. As text: its steps in their order."""

    nodes: list[Node]

    def __str__(self) -> str:
        return "; ".join(str(node) for node in self.nodes if node.kind != "note")


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
        with borrowed(module) as twin:
            nodes = _Watch(twin, inputs, letters, depth).nodes
        nodes = _tidied(_rolled(nodes) if roll else nodes)
        if len(nodes) <= MOST and _width(_layout(nodes)) <= WIDEST:
            break
    return Flow(nodes)


# What one forward pass computes


class _Watch(TorchFunctionMode):
    """One forward pass, as nodes."""

    def __init__(self, module: nn.Module, inputs: Sequence[Tensor], letters: Mapping[int, str], depth: int) -> None:
        super().__init__()
        self.nodes: list[Node] = []
        self.letters = _sizes(letters)
        self.batch = next((length for length, letter in letters.items() if letter == "B"), 1)
        self.depth = depth
        self.modules = {child: name for name, child in module.named_modules()}
        self.inside: list[nn.Module] = []
        self.hidden = 0  # the number of boxes that we are inside of
        self.made: Any = WeakIdKeyDictionary()  # tensor -> its node, and the tensor as that node made it
        self.stacked: Any = WeakIdKeyDictionary()  # result of `stack` -> its new axis
        self.constants: Any = WeakIdKeyDictionary()  # tensor -> the parameter or buffer that it comes from
        self.learnt = {name for name, _ in module.named_parameters()}
        for name, constant in (*module.named_parameters(), *module.named_buffers()):
            self.constants[constant] = name
        for name, tensor in zip(inspect.signature(module.forward).parameters, inputs, strict=False):
            self.add("input", name, [], tensor)
        for child in self.modules:
            child.register_forward_pre_hook(self.enter)
            child.register_forward_hook(self.leave, with_kwargs=True)
        with torch.no_grad(), self.watched_ops():
            torch.manual_seed(0)
            with self:
                result = module(*inputs)
        outputs = [(path, leaf) for path, leaf in tree_flatten_with_path(result)[0] if isinstance(leaf, Tensor)]
        for number, (path, tensor) in enumerate(outputs, 1):
            name = getattr(path[-1], "key", f"y{number}") if len(outputs) > 1 else "y"
            self.add("output", str(name), [tensor], tensor)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = getattr(func, "__name__", "").strip("_")
        results = _tensors(args[0] if name == "setitem" else result)
        if self.hidden or not results:
            return result
        inputs = _tensors((args, kwargs))
        traced = [tensor for tensor in inputs if tensor in self.made]
        if not traced or FRESH.fullmatch(name):
            names = [self.constants[tensor] for tensor in inputs if tensor in self.constants]
            names = ["0"] if "zeros" in name else names + ["noise"] * bool(NOISE.fullmatch(name))
            named = " and ".join(dict.fromkeys(names)) if name == "cat" else names[0] if names else ""
            self.constants.update((tensor, named) for tensor in results if named)
        elif HOUSEKEEPING.fullmatch(name) or _does_nothing(name, inputs, results):
            self.pass_on(traced, results)
        else:
            self.compute(SPELLINGS.get(name, name), args, kwargs, results)
        return result

    def compute(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], results: list[Tensor]) -> None:
        """Add what a function of torch computes."""
        operands: list[Any] = _tensors((args, kwargs))
        names = [name for tensor in operands for name in self.constants.get(tensor, "").split(" and ")]
        kind = "step" if self.learnt.isdisjoint(names) else "layer"
        if name in ("max", "min") and len(operands) == 2:
            name += "imum"
        swapped = name in ("rsub", "rdiv", "rtruediv", "rpow", "rmatmul")
        name = SPELLINGS.get(name[1:], name[1:]) if swapped else name
        if name in PAIRS and len(args) > 1:
            operands = [args[1], args[0]] if swapped else [args[0], args[1]]
            text = self.pair(name, operands[0], operands[1])
        elif name in OVER:
            dims = _dims(name, operands[0].dim(), args, kwargs)
            summed_up = name == "sum" and [self.stacked.get(operands[0])] == dims
            text = "add" if summed_up else self.over(OVER[name], operands[0], dims)
        elif "pool" in name:
            text = self.pool(name, operands[0], results[0], args[1] if len(args) > 1 else kwargs.get("kernel_size"))
        elif name == "unfold" and len(args) == 4:
            text = f"windows of {args[2]}"
        elif name == "einsum":
            text = self.einsum(args[0], operands)
        else:
            text = WORDS.get(name, name.replace("_", " "))
        self.add(kind, text, operands, results, roles=ROLES.get(name, ()))
        if name == "stack":
            self.stacked[results[0]] = _dims(name, results[0].dim(), args, {"dim": 0, **kwargs})[0]

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
    ) -> None:
        """Add a node that makes the `results` from the `inputs`; a constant among them has no arrow."""
        results = _tensors(results)
        roles = [*roles, *[""] * len(inputs)]
        pairs = [(x, role) for x, role in zip(inputs, roles, strict=False) if isinstance(x, Tensor) and x in self.made]
        sources = list(dict.fromkeys(self.source(x, role if len(pairs) > 1 else "") for x, role in pairs))
        stacks = kind in ("step", "layer") and len(pairs) == 1 and pairs[0][0].shape == results[0].shape
        site = site or (id(self.inside[-1]) if self.inside else None, _line())
        node = Node(kind, [(text, name)], self.shape(results[0]), sources, site, stacks)
        self.nodes.append(node)
        self.made.update((tensor, (node, tensor)) for tensor in results)

    def pass_on(self, inputs: Sequence[Tensor], results: Sequence[Tensor]) -> None:
        """Let the results come from where the inputs come from: each from its own, or all from the first."""
        origins = inputs if len(inputs) == len(results) else [inputs[0]] * len(results)
        self.made.update((result, self.made[x]) for result, x in zip(results, origins, strict=True))

    def source(self, tensor: Tensor, role: str) -> Node:
        """The node that a tensor comes from, or a note on the way where that needs words."""
        node, made = self.made[tensor]
        words = [role] if role and not any(role in name for _, name in node.rows) else []
        if tensor.numel() < made.numel():
            words.append(self.shape(tensor))
        elif tensor.numel() == made.numel() and tensor.shape[-1:] == made.shape[-1:] and tensor is not made:
            # the last axis stayed where it was: if the rest no longer reads in the old order, channels were shuffled
            words += [] if torch.equal(tensor.reshape(made.shape), made.to(tensor.dtype)) else ["reordered"]
        if not words:
            return node
        note = Node("note", [(" ".join(words), "")], self.shape(tensor), [node], " ".join(words))
        self.nodes.append(note)
        if not role:
            self.made[tensor] = note, tensor
        return note

    def enter(self, module: nn.Module, args: Any) -> None:
        self.inside.append(module)
        self.hidden += self.is_box(module)

    def leave(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        self.inside.pop()
        self.hidden -= self.is_box(module)
        kind, inputs, results = type(module).__name__, _tensors((args, kwargs)), _tensors(output)
        if self.hidden or not results:
            return
        name, site = self.modules[module], id(module)
        if isinstance(module, Tap):
            self.add("tap", name, inputs, output, site=site)
        elif not inputs:
            self.constants.update((tensor, name) for tensor in results)
        elif kind.startswith(("Identity", "Dropout", "Flatten", "Unflatten")) and inputs[0] in self.made:
            self.pass_on(inputs, results)
        elif self.is_box(module) or not any(tensor in self.made for tensor in results):
            learnt = any(True for _ in module.parameters())
            text = self.layer(module, inputs[0], results[0])
            self.add("layer" if learnt else "step", text, inputs, output, name=name if learnt else "", site=site)
            self.nodes[-1].stacks &= not learnt or "Norm" in kind
            self.nodes[-1].rows += [
                ("", f"map {self.modules[tap]}") for tap in module.modules() if isinstance(tap, Tap)
            ]

    def is_box(self, module: nn.Module) -> bool:
        """Whether a module is drawn as one box: torch's own, and what lies too deep."""
        family = set(type(module).__mro__) - {nn.Module, nn.Sequential}
        name = self.modules[module]
        deep = name and module._modules and name.count(".") + 1 >= self.depth and not isinstance(module, nn.Sequential)
        return bool(deep) or any(kind.__module__.startswith("torch.nn.modules") for kind in family)

    def watched_ops(self) -> AbstractContextManager[None]:
        """The ops of the library, each in words of its own, whatever it does inside."""

        def hide(op: Op, *args: Any) -> Any:
            self.hidden += 1
            result = op.reference(*args)
            self.hidden -= 1
            return result

        def watched(op: Op, *args: Any) -> Any:
            if self.hidden or op.name in ("agree", "selfgate"):  # these step by step
                return op.reference(*args)
            if op.name in ("attend", "cross") and args[-1] is not None:
                return attend(op, *args)
            result = hide(op, *args)
            if op.name == "squeeze":
                x, dims, kinds, factors = args
                for (axes, kind), squeezed in zip(product(dims, kinds), result[1:], strict=True):
                    times = f"times {self.names(factors)}, " if factors else ""
                    self.add("step", times + self.over(OVER[kind], x, axes), [x, *factors], squeezed)
            elif op.name == "gate":
                x, gates, mean, shift = args
                words = [f"times {'the mean of ' * mean}{self.names(gates)}"] if gates else []
                words += ["add"] * (shift is not None)
                self.add("step", ", ".join(words), [x, *gates, shift], result)
            elif op.name == "convolve":
                x, weight = args
                name = self.constants.get(weight, "").removesuffix(".weight")
                kind = "Conv" if x.dim() == 4 else f"Conv{x.dim() - 2}d"
                self.add("layer", f"{kind} {_by(weight.shape[2:])}, {len(x[0])} → 1", [x], result, name=name)
            elif op.name == "attend":
                self.compute("scaled_dot_product_attention", (*args[:3], args[4]), {}, [result])
            else:
                self.add("step", op.name, args, result)
            return result

        def attend(op: Op, *args: Any) -> Tensor:
            query, key, value, *options, watch = args
            bias = options[1:]  # scale, bias
            seen: list[Tensor] = []

            def show(weights: Tensor) -> Tensor:
                self.hidden -= 1
                self.add("step", "softmax(query · key)", [query, key, *bias], weights, roles=("query", "key", "bias"))
                seen.append(watch(weights))
                self.hidden += 1
                return seen[0]

            result: Tensor = hide(op, query, key, value, *options, show)
            self.add("step", "weighted sum", [seen[0], value], result, roles=("", "value"))
            return result

        return answered(watched)

    def names(self, factors: Sequence[Tensor]) -> str:
        """What a map is multiplied by: taps, weights, or a gate."""
        return " and ".join(
            str(self.made[x][0]) if self.is_map(x) else "gate" if x in self.made else self.constants.get(x, "weight")
            for x in factors
        )

    def is_map(self, tensor: Any) -> bool:
        return isinstance(tensor, Tensor) and tensor in self.made and self.made[tensor][0].kind == "tap"

    def size(self, length: int) -> str:
        return self.letters.get(length, str(length))

    def shape(self, tensor: Tensor) -> str:
        sizes = [self.size(length) for length in tensor.shape]
        first = tensor.shape[0] if sizes else 0
        if sizes and sizes[0].isdigit() and first % self.batch == 0 and first > self.batch > 1:
            rest = self.size(first // self.batch)  # heads or windows, joined to the batch
            sizes[0] = f"{rest}B" if rest.isdigit() else f"B{rest}"
        return f"({', '.join(sizes)})"

    def number(self, number: float) -> str:
        # small numbers are themselves, not the length of an axis
        letters = self.letters.get(int(number), "") if number > 9 and number == int(number) else ""
        return f"({letters})" if " " in letters else letters or f"{number:.3g}"

    def over(self, what: str, x: Tensor, dims: Iterable[int]) -> str:
        sizes = [self.size(x.shape[dim]) for dim in dims]
        return f"{what} over {', '.join(f'the {size}' if size.isdigit() else size for size in sizes)}"

    def pair(self, name: str, left: Any, right: Any) -> str:
        """What an operation of two operands does, of which one may be a number or a constant."""
        sign, word = PAIRS[name]
        known = [isinstance(operand, Tensor) and operand in self.made for operand in (left, right)]
        if all(known):
            gates = [str(self.made[operand][0]) for operand in (left, right) if self.is_map(operand)]
            if left is right:
                return {"mul": "square", "add": "× 2"}.get(name, word)
            if name == "matmul":
                return f"{word} over {self.size(left.shape[-1])}"
            return f"times {gates[0]}" if name == "mul" and gates else word
        other = right if known[0] else left
        what = self.constants.get(other, "constant") if isinstance(other, Tensor) else self.number(other)
        if name == "pow" and known[0]:
            return {"2": "square", "0.5": "square root"}.get(what, f"{sign} {what}")
        return f"{sign} {what}" if known[0] or name in ("add", "mul", "maximum", "minimum") else f"{what} {sign} it"

    def einsum(self, equation: str, operands: Sequence[Tensor]) -> str:
        terms, _, kept = equation.replace(" ", "").partition("->")
        lengths: dict[str, int] = {}
        for term, x in zip(terms.split(","), operands, strict=False):
            left, _, right = term.partition("...")
            lengths |= dict(zip(left, x.shape, strict=False)) | dict(zip(right[::-1], x.shape[::-1], strict=False))
        gone = [self.size(length) for letter, length in lengths.items() if letter not in kept]
        return f"matrix product over {', '.join(gone)}" if gone else "multiply"

    def pool(self, name: str, x: Tensor, result: Tensor, kernel: Any) -> str:
        what = "max" if "max" in name.lower() else "mean"
        if set(result.shape[2:]) == {1}:
            return self.over(what, x, range(2, x.dim()))
        if "daptive" in name:
            return f"{what} pool to {_by(result.shape[2:])}"
        return f"{what} pool {_by(kernel if isinstance(kernel, tuple) else [kernel] * (x.dim() - 2))}"

    def layer(self, module: nn.Module, x: Tensor, result: Tensor) -> str:
        """What a module does, in a few words."""
        kind = re.sub(r"[123]d$", "", type(module).__name__)
        if isinstance(module, nn.Linear):
            return f"{kind} {module.in_features} → {module.out_features}"
        if isinstance(module, _ConvNd):
            kind = "Conv" if isinstance(module, nn.Conv2d) else type(module).__name__
            words = [f"{kind} {_by(module.kernel_size)}, {module.in_channels} → {module.out_channels}"]
            words += [f"{what} {_by(n)}" for what in ("stride", "dilation") if set(n := getattr(module, what)) != {1}]
            if module.groups > 1:
                words.append("depthwise" if module.groups == module.in_channels else f"{module.groups} groups")
            return ", ".join(words)
        if isinstance(module, nn.GroupNorm):
            return f"group norm, {module.num_groups} groups"
        if isinstance(module, nn.Softmax) and module.dim is not None:
            return self.over("softmax", x, [module.dim])
        room = type(module).__module__.removeprefix("torch.nn.modules.")
        if room == "pooling":
            return self.pool(kind, x, result, getattr(module, "kernel_size", None))
        if room == "activation" and not module._modules:
            return kind.lower()
        if not type(module).__module__.startswith(("torch.nn", "regard.layers.norm")):
            return type(module).__name__
        words = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z0-9]+", kind)
        return " ".join(word if word.isupper() else word.lower() for word in words)


def _sizes(letters: Mapping[int, str]) -> dict[int, str]:
    """Names for the lengths of axes, also of those that were joined or halved."""
    sizes = {length: letter for length, letter in letters.items() if length > 1}
    sides = sorted((letter, length) for length, letter in sizes.items() if letter in "DHW")
    for count in range(2, len(sides) + 1):
        for group in combinations(sides, count):
            names, lengths = zip(*group, strict=True)
            joined = "".join(names), math.prod(lengths)
            added = " + ".join(names), sum(lengths)
            halves = f"{joined[0]}/{2**count}", math.prod(-(-length // 2) for length in lengths)
            for name, length in (joined, added, halves):
                sizes.setdefault(length, name)
            for name, length in (joined, added):
                sizes.setdefault(length - 1, f"{name} − 1")
    for letter, length in sides:
        sizes.setdefault(-(-length // 2), f"{letter}/2")
    for length in [length for length, letter in sizes.items() if letter == "C"]:
        sizes.setdefault(length * math.prod(side for _, side in sides), "C" + "".join(letter for letter, _ in sides))
    return sizes


def _dims(name: str, rank: int, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[int]:
    """The axes that a function of torch works over, counted from 0."""
    place = 2 if "norm" in name else 1
    dims = args[place] if len(args) > place else kwargs.get("dim", 1 if name == "normalize" else None)
    return [dim % rank for dim in ([dims] if isinstance(dims, int) else dims or range(rank))]


def _by(sizes: Iterable[int]) -> str:
    return "×".join(map(str, sizes))


def _does_nothing(name: str, inputs: list[Tensor], results: list[Tensor]) -> bool:
    """Whether one tensor was joined to no other, or pooled over single pixels."""
    return (name in ("cat", "stack") and len(inputs) == 1) or ("pool" in name and torch.equal(inputs[0], results[0]))


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _line() -> tuple[str, int]:
    """The line that calls torch or an op."""
    frame = sys._getframe()
    while frame.f_back and frame.f_globals["__name__"].startswith(("torch.", __name__, "regard.ops")):
        frame = frame.f_back
    return frame.f_code.co_filename, frame.f_lineno


# What of it is drawn


def _rolled(nodes: list[Node]) -> list[Node]:
    """Every round of a loop on its first: what one place computes again, from something the same, is one node."""
    order = {node: place for place, node in enumerate(nodes)}
    stands: dict[Node, Node] = {}  # node -> the one that is kept for it
    first: dict[Any, list[Node]] = defaultdict(list)
    notes: list[Node] = []
    for node in nodes:
        node.sources = list(dict.fromkeys(stands[source] for source in node.sources))
        # a module is the same whatever it reads; a line may stand in a loop over modules
        alike = [
            other
            for other in first[node.site, str(node)]
            if isinstance(node.site, int) or not node.sources or {*node.sources} & {*other.sources}
        ]
        stands[node] = alike[0] if alike and node.kind not in ("input", "output") else node
        if stands[node] is node:
            first[node.site, str(node)].append(node)
            continue
        kept = stands[node]
        kept.rounds += 1
        later = [source for source in node.sources if order[source] >= order[kept]]
        kept.sources += [source for source in node.sources if source not in (*later, *kept.sources)]
        if later and not {*notes} & {*kept.sources}:
            notes.append(Node("note", [("from the round before", "")], "", []))
            kept.sources.append(notes[-1])
    return notes + [node for node in nodes if stands[node] is node]


def _tidied(nodes: list[Node]) -> list[Node]:
    """Without what reaches neither output nor map; sums of sums as one, and chains of small steps in one box."""
    wanted: set[Node] = set()
    for node in reversed(nodes):
        if node in wanted or node.kind in ("input", "tap", "output"):
            wanted.update((node, *node.sources))
    nodes = [node for node in nodes if node in wanted]
    uses = Counter(source for node in nodes for source in node.sources)
    stands: dict[Node, Node] = {}  # node -> the one that it was put into
    for node in nodes:
        node.sources = list(dict.fromkeys(stands.get(source, source) for source in node.sources))
        terms = ("add", "stack") if len(node.sources) == 1 else ("add",)
        for source in [source for source in node.sources if str(node) == "add" and str(source) in terms]:
            if uses[source] == 1:
                place = node.sources.index(source)
                node.sources[place : place + 1] = source.sources
                stands[source] = node
        above = node.sources[0] if node.stacks and len(node.sources) == 1 else node
        if above.kind in ("step", "layer") and above is not node and uses[above] == 1 and above.rounds == node.rounds:
            above.rows += node.rows
            above.shape = node.shape
            above.kind = "layer" if "layer" in (above.kind, node.kind) else "step"
            stands[node] = above
            uses[above] = uses[node]
    return [node for node in nodes if node not in stands]


# Where it stands: Sugiyama's layers, ordered by barycentres, in the columns of Brandes and Köpf (2001)


@dataclass(eq=False)
class _Spot:
    """A node in its layer, or a point where a long arrow passes a layer."""

    node: Node | None
    width: float = 0
    height: float = 0
    above: list[_Spot] = field(default_factory=list)
    below: list[_Spot] = field(default_factory=list)
    x: float = 0  # of the middle
    ceiling: float = 0  # of the layer
    floor: float = 0

    @property
    def top(self) -> float:
        return (self.ceiling + self.floor - self.height) / 2 if self.node else self.ceiling

    @property
    def bottom(self) -> float:
        return self.top + self.height


Layers = list[list[_Spot]]


def _layout(nodes: list[Node]) -> Layers:
    """Every node as early as it can be, or where that is too wide as late."""
    found = []
    for late in (False, True):
        layers = _ordered(_layers(nodes, late))
        _set_columns(layers)
        if _width(layers) <= ROOM:
            return layers
        found.append(layers)
    return min(found, key=_width)


def _width(layers: Layers) -> float:
    return max(spot.x + spot.width / 2 for layer in layers for spot in layer)


def _layers(nodes: list[Node], late: bool) -> Layers:
    """Every node below its sources; the arrows of one source share the points that they pass."""
    level: dict[Node, int] = {}
    for node in nodes:
        level[node] = max((level[source] + 1 for source in node.sources), default=0)
    last = max(level.values())
    for node in reversed(nodes):
        users = [level[other] for other in nodes if node in other.sources]
        if node.kind == "output" or (node.kind != "input" and (late or not node.sources)):
            level[node] = min(users, default=last + 1) - 1
    layers: Layers = [[] for _ in range(last + 1)]
    spots: dict[tuple[Node, int], _Spot] = {}

    def put(node: Node, here: int, spot: _Spot) -> None:
        spots[node, here] = spot
        layers[here].append(spot)

    def link(upper: _Spot, lower: _Spot) -> None:
        upper.below.append(lower)
        lower.above.append(upper)

    for node in nodes:
        put(node, level[node], _Spot(node, *_extent(node)))
    for node in nodes:
        for source in node.sources:
            for here in range(level[source] + 1, level[node]):
                if (source, here) not in spots:
                    put(source, here, _Spot(None))
                    link(spots[source, here - 1], spots[source, here])
            link(spots[source, level[node] - 1], spots[node, level[node]])
    return layers


def _ordered(layers: Layers) -> Layers:
    """Each layer in an order in which few arrows cross."""
    best = layers
    for sweep in range(16):
        layers = [list(layer) for layer in layers]
        for fixed, free in pairwise(layers if sweep % 2 == 0 else layers[::-1]):
            near, now = _places([fixed]), _places([free])
            pulls = {spot: [near[other] for other in (*spot.above, *spot.below) if other in near] for spot in free}
            middles = {spot: sum(pull) / len(pull) if pull else now[spot] for spot, pull in pulls.items()}
            free.sort(key=middles.__getitem__)
        best = min(best, layers, key=lambda layers: len(_crossings(layers)))
    return best


def _places(layers: Layers) -> dict[_Spot, int]:
    return {spot: place for layer in layers for place, spot in enumerate(layer)}


def _crossings(layers: Layers) -> list[tuple[tuple[_Spot, _Spot], tuple[_Spot, _Spot]]]:
    """Every two arrows that cross between two layers."""
    place = _places(layers)
    arrows = [[(upper, lower) for upper in layer for lower in upper.below] for layer in layers]
    return [
        (one, other)
        for layer in arrows
        for one, other in combinations(layer, 2)
        if (place[one[0]] - place[other[0]]) * (place[one[1]] - place[other[1]]) < 0
    ]


def _set_columns(layers: Layers) -> None:
    """Set every x: the mean of the two middle ones of four layouts, each aligned towards another corner."""
    bent = set()  # arrows that cross a long one: the long one stays straight
    for arrows in _crossings(layers):
        short = [arrow for arrow in arrows if any(spot.node for spot in arrow)]
        bent.update(short if len(short) == 1 else [])
    found = []
    for down, right in product((True, False), repeat=2):
        turned = [layer if right else layer[::-1] for layer in (layers if down else layers[::-1])]
        columns = _packed(turned, _aligned(turned, down, bent))
        left = min(x - spot.width / 2 for spot, x in columns.items())
        width = max(x + spot.width / 2 for spot, x in columns.items()) - left
        found.append((width, right, {spot: x - left for spot, x in columns.items()}))
    narrowest = min(width for width, _, _ in found)
    for spot in _places(layers):
        xs = sorted(columns[spot] if right else narrowest - columns[spot] for _, right, columns in found)
        spot.x = (xs[1] + xs[2]) / 2
    left = min(spot.x - spot.width / 2 for spot in _places(layers))
    for spot in _places(layers):
        spot.x -= left


def _aligned(layers: Layers, down: bool, bent: set[tuple[_Spot, _Spot]]) -> dict[_Spot, _Spot]:
    """Every spot's block, named by its first: each spot joins the middle one of its neighbours in the layer before."""
    place = _places(layers)
    block = {spot: spot for spot in place}
    joined = set()
    for layer in layers:
        last = -1
        for spot in layer:
            near = sorted(spot.above if down else spot.below, key=place.__getitem__)
            for other in near[(len(near) - 1) // 2 : len(near) // 2 + 1]:
                arrow = (other, spot) if down else (spot, other)
                if block[spot] is spot and other not in joined and last < place[other] and arrow not in bent:
                    block[spot] = block[other]
                    joined.add(other)
                    last = place[other]
    return block


def _packed(layers: Layers, block: dict[_Spot, _Spot]) -> dict[_Spot, float]:
    """The x of every spot, each block as far left as it can be, then back to the right where there is room."""
    left: dict[_Spot, list[tuple[_Spot, float]]] = defaultdict(list)
    right: dict[_Spot, list[tuple[_Spot, float]]] = defaultdict(list)
    for layer in layers:
        for one, other in pairwise(layer):
            gap = (one.width + other.width) / 2 + (GAP if one.node and other.node else GAP / 2)
            left[block[other]].append((block[one], gap))
            right[block[one]].append((block[other], gap))
    x: dict[_Spot, float] = {}

    def place(spot: _Spot) -> float:
        if spot not in x:
            x[spot] = max((place(other) + gap for other, gap in left[spot]), default=0.0)
        return x[spot]

    for spot in sorted(dict.fromkeys(block.values()), key=place, reverse=True):
        x[spot] = max(x[spot], min((x[other] - gap for other, gap in right[spot]), default=x[spot]))
    return {spot: x[first] for spot, first in block.items()}


def _set_rows(layers: Layers) -> None:
    """Set every ceiling and floor."""
    floor = -DROP
    for layer in layers:
        ceiling, floor = floor + DROP, floor + DROP + max(spot.height for spot in layer)
        for spot in layer:
            spot.ceiling, spot.floor = ceiling, floor


# How it looks

GAP, DROP, PAD = 26.0, 26.0, 12  # between columns, between layers, beside a text
LINE, LONG = 17, 26  # height of a line of text, and its most letters
EYE, LENS = 22, "M-8 0Q0-9 8 0Q0 9-8 0zM-2.5 0a2.5 2.5 0 1 0 5 0a2.5 2.5 0 1 0-5 0"  # the sign of a map
LEGEND = {"layer": "learnt weights", "tap": "a map that can be recorded"}


def draw(flow: Flow, title: str) -> str:
    """The flow as an SVG picture, from top to bottom.

    Args:
        flow: from `trace`.
        title: what the picture shows, for those who cannot see it.
    """
    layers = _layout(flow.nodes)
    kinds = {node.kind for node in flow.nodes}
    words = [Node(kind, [("", words)], "", []) for kind, words in LEGEND.items() if kind in kinds]
    legend = [_Spot(node, *_extent(node)) for node in words]
    for place, spot in enumerate(legend):
        spot.x = spot.width / 2 + sum(other.width + PAD for other in legend[:place])
    layers += [legend] if legend else []
    _set_rows(layers)
    spots = [spot for layer in layers for spot in layer]
    arrows = [_arrow(upper, lower) for upper in spots for lower in upper.below]
    boxes = "\n".join(_box(spot, spot.node) for spot in spots if spot.node)
    body = f"""<path class="arrow" d="{"".join(line for line, _ in arrows)}"/>
<path class="head" d="{"".join(head for _, head in arrows)}"/>
{boxes}"""
    return svg.page(body, _width(layers), layers[-1][0].floor, title=title, description=str(flow))


def _lines(node: Node) -> list[list[tuple[str, int]]]:
    """The text of a box, each line in pieces with their sizes; the shape where it is not that of a source."""
    lines = []
    for text, name in node.rows:
        row = [[(piece, SMALL if node.kind == "note" else LARGE)] for piece in _wrapped(text)]
        if name and row and len(f"{row[-1][0][0]} {name}") <= LONG:
            row[-1].append((name, SMALL))
        elif name:
            row.append([(name, SMALL)])
        lines += row
    if node.kind == "note":
        return lines
    changes = all(source.shape != node.shape for source in node.sources)
    shape = node.shape if changes or node.kind in ("tap", "output") else ""
    below = ", ".join(filter(None, (shape, f"{node.rounds} times" if node.rounds > 1 else "")))
    return [*lines, [(below, SMALL)]] if below else lines


def _wrapped(text: str) -> list[str]:
    if "," in text:  # rather there than elsewhere
        text = re.sub("(?<!,) ", "\N{NO-BREAK SPACE}", text)
    return wrap(text, LONG, break_long_words=False)


def _extent(node: Node) -> tuple[int, int]:
    lines = _lines(node)
    length = max(sum(svg.length(text, size) for text, size in line) + (len(line) - 1) * SMALL / 2 for line in lines)
    if node.kind == "note":
        return round(length) + PAD, LINE * len(lines) + 2
    return max(36, round(length)) + (EYE if node.kind == "tap" else 0) + 2 * PAD, LINE * len(lines) + PAD


def _box(spot: _Spot, node: Node) -> str:
    parts = []
    left, middle = spot.x - spot.width / 2, spot.x
    if node.kind != "note":
        corner = 4 if node.kind in ("step", "layer") else 13
        size = f'width="{spot.width}" height="{spot.height}" rx="{corner}"'
        parts.append(f'<rect class="{node.kind}" x="{svg.number(left)}" y="{svg.number(spot.top)}" {size}/>')
    if node.kind == "tap":
        middle += EYE / 2
        eye = svg.at(left + PAD + 7, (spot.top + spot.bottom) / 2)
        parts.append(f'<path class="eye" transform="translate({eye})" d="{LENS}"/>')
    lines = _lines(node)
    y = (spot.top + spot.bottom - LINE * (len(lines) - 1)) / 2 + 4.5
    for place, line in enumerate(lines):
        pieces = [escape(text) if at == LARGE else f'<tspan class="s">{escape(text)}</tspan>' for text, at in line]
        parts.append(f'<text x="{svg.number(middle)}" y="{svg.number(y + LINE * place)}">{" ".join(pieces)}</text>')
    return "".join(parts)


def _arrow(upper: _Spot, lower: _Spot) -> tuple[str, str]:
    """The line between two spots of neighbouring layers, and its head where it ends at a box."""
    ends = [spot.node is not None and spot.node.kind != "note" for spot in (upper, lower)]
    reach = [spot.width / 2 - PAD if end else 0 for spot, end in zip((upper, lower), ends, strict=True)]
    low = max(upper.x - reach[0], lower.x - reach[1])
    high = min(upper.x + reach[0], lower.x + reach[1])
    if low <= high:
        start = end = min(max((upper if reach[0] < reach[1] else lower).x, low), high)
    else:
        start = upper.x if len(upper.below) == 1 else min(max(lower.x, upper.x - reach[0]), upper.x + reach[0])
        end = lower.x if len(lower.above) == 1 else min(max(upper.x, lower.x - reach[1]), lower.x + reach[1])
    line = f"M{svg.at(start, upper.bottom)}" + ("" if upper.node else f"V{svg.number(upper.floor)}")
    if start != end:
        middle = (upper.floor + lower.ceiling) / 2
        line += f"V{svg.number(upper.floor)}C{svg.at(start, middle)} {svg.at(end, middle)} {svg.at(end, lower.ceiling)}"
    line += f"V{svg.number(lower.top - 3 * ends[1])}"
    return line, f"M{svg.at(end, lower.top)}l-4-7h8z" if ends[1] else ""
