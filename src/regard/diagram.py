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
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, combinations, pairwise, product
from typing import Any
from unittest import mock
from xml.sax.saxutils import escape

import torch
from torch import Tensor, nn
from torch.nn import modules as layers
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten_with_path, tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from regard.ops.dispatch import Op, use_impl
from regard.survey import borrowed
from regard.tap import Tap

MOST = 40  # boxes; what would take more is drawn coarser

# What only changes how a tensor is stored or seen; an arrow says so where it takes a part or changes the order.
HOUSEKEEPING = set(
    [
        "view",
        "reshape",
        "flatten",
        "unflatten",
        "ravel",
        "squeeze",
        "unsqueeze",
        "transpose",
        "permute",
        "movedim",
        "swapaxes",
        "t",
        "contiguous",
        "clone",
        "detach",
        "to",
        "type",
        "type_as",
        "float",
        "double",
        "half",
        "bfloat16",
        "expand",
        "expand_as",
        "broadcast_to",
        "view_as",
        "reshape_as",
        "get",
        "getitem",
        "split",
        "chunk",
        "unbind",
        "narrow",
        "select",
        "flip",
        "dropout",
        "dropout1d",
        "dropout2d",
        "dropout3d",
        "requires_grad",
    ]
)
SIGNS = {"mul": "×", "add": "+", "sub": "−", "div": "÷", "matmul": "·"}
PAIRS = {
    "mul": "multiply", "add": "add", "sub": "subtract", "div": "divide", "matmul": "matrix product",
    "bmm": "matrix product", "maximum": "larger of both", "minimum": "smaller of both",
}  # fmt: skip
SPELLINGS = {"truediv": "div", "rtruediv": "rdiv", "iadd": "add", "imul": "mul", "isub": "sub", "itruediv": "div"}
OVER = {
    "mean": "mean", "sum": "sum", "max": "max", "amax": "max", "min": "min", "amin": "min", "softmax": "softmax",
    "log_softmax": "log-softmax", "std": "deviation", "var": "variance", "norm": "length", "logsumexp": "log-sum-exp",
    "vector_norm": "length", "argmax": "place of the max", "cumsum": "running sum", "normalize": "unit length",
    "avg": "mean", "lp": "length", "lse": "log-sum-exp",
}  # fmt: skip
WORDS = {
    "scaled_dot_product_attention": "softmax(query · key) · value", "cat": "concat", "neg": "negative",
    "interpolate": "resize", "grid_sample": "sample at the grid", "multi_head_attention_forward": "attention",
    "normal": "draw from a normal", "setitem": "write into", "pow": "power", "abs": "absolute value",
}  # fmt: skip
ROLES = {"sub": ("", "subtracted"), "div": ("", "divisor"), "scaled_dot_product_attention": ("query", "key", "value")}


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
    """

    kind: str
    rows: list[tuple[str, str]]
    shape: str
    sources: list[Node]
    site: object = None
    stacks: bool = False

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
        letters: length of an axis -> its name, by default (B, C, H, W) of the first input. Lengths that differ from
            each other and from the widths inside the module are told apart.

    Example:
        >>> import regard, torch
        >>> print(trace(regard.create("eca", 64), [torch.randn(2, 64, 7, 9)]))
        x; mean over H, W; Conv 3, 1 → 1, sigmoid; gate; times gate; y
    """
    if letters is None:
        shape = inputs[0].shape
        letters = dict(reversed(list(zip(shape, "BCHW" if len(shape) < 5 else "BCDHW", strict=False))))
    depths = {name.count(".") + 1 for name, child in module.named_modules() if name and child._modules}
    for depth, loops in product((sys.maxsize, *sorted(depths, reverse=True)), (False, True)):
        nodes = _Watch(module, inputs, letters, depth).nodes
        nodes = _tidied(_rolled(nodes) if loops else nodes)
        if len(nodes) <= MOST:
            break
    return Flow(nodes)


# What one forward pass computes


class _Watch(TorchFunctionMode):
    """One forward pass, as nodes."""

    def __init__(self, module: nn.Module, inputs: Sequence[Tensor], letters: Mapping[int, str], depth: int) -> None:
        super().__init__()
        self.nodes: list[Node] = []
        self.letters = _sizes(letters)
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
        hooks = [child.register_forward_pre_hook(self.enter) for child in self.modules]
        hooks += [child.register_forward_hook(self.leave, with_kwargs=True) for child in self.modules]
        try:
            with borrowed(module), torch.no_grad(), use_impl("reference"), self.watched_ops():
                torch.manual_seed(0)
                with self:
                    result = module(*inputs)
        finally:
            for hook in hooks:
                hook.remove()
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
        if not traced or name.startswith("new_") or name.endswith("_like"):
            for constant in (tensor for tensor in inputs if tensor in self.constants):
                self.constants.update((tensor, self.constants[constant]) for tensor in results)
        elif name in HOUSEKEEPING:
            self.made.update((tensor, self.made[traced[0]]) for tensor in results)
        else:
            self.compute(SPELLINGS.get(name, name), args, kwargs, results)
        return result

    def compute(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], results: list[Tensor]) -> None:
        """Add what a function of torch computes."""
        operands: list[Any] = _tensors((args, kwargs))
        learnt = any(self.constants.get(tensor) in self.learnt for tensor in operands)
        if name in ("max", "min") and len(operands) == 2:
            name += "imum"
        swapped = name in ("rsub", "rdiv", "rpow")
        name = name.removeprefix("r") if swapped else name
        if name in PAIRS and len(args) > 1:
            operands = [args[1], args[0]] if swapped else [args[0], args[1]]
            text = self.pair(name, operands[0], operands[1])
        elif name in OVER:
            dims = _dims(name, args, kwargs)
            summed_up = name == "sum" and [self.stacked.get(operands[0])] == dims
            text = "add" if summed_up else self.over(OVER[name], operands[0], dims)
        elif "pool" in name:
            text = self.pool(name, operands[0], results[0], args[1] if len(args) > 1 else kwargs.get("kernel_size"))
        elif name == "einsum":
            text = f"einsum {args[0]}"
        else:
            text = WORDS.get(name, name.replace("_", " "))
        self.add("layer" if learnt else "step", text, operands, results, roles=ROLES.get(name, ()))
        if name == "stack":
            self.stacked[results[0]] = _dims(name, args, {"dim": 0} | dict(kwargs))[0]

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
        """Add a node that makes the `results` from the `inputs`; those not computed from the arguments have no arrow."""
        results = _tensors(results)
        roles = [*roles, *[""] * len(inputs)]
        pairs = [(x, role) for x, role in zip(inputs, roles, strict=False) if isinstance(x, Tensor) and x in self.made]
        sources = list(dict.fromkeys(self.source(x, role if len(pairs) > 1 else "") for x, role in pairs))
        stacks = kind in ("step", "layer") and len(pairs) == 1 and pairs[0][0].shape == results[0].shape
        site = site or (id(self.inside[-1]) if self.inside else None, _line())
        node = Node(kind, [(text, name)], self.shape(results[0]), sources, site, stacks)
        self.nodes.append(node)
        self.made.update((tensor, (node, tensor)) for tensor in results)

    def source(self, tensor: Tensor, role: str) -> Node:
        """The node that a tensor comes from, or a note on the way where that needs words."""
        node, made = self.made[tensor]
        words = [role] if role and not any(role in name for _, name in node.rows) else []
        if tensor.numel() < made.numel():
            words.append(self.shape(tensor))
        elif tensor is not made and tensor.shape == made.shape and tensor.dtype == made.dtype:
            words += [] if torch.equal(tensor, made) else ["reordered"]
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
        if self.hidden or not results or kind.startswith(("Identity", "Dropout")):
            return
        name, site = self.modules[module], id(module)
        if isinstance(module, Tap):
            self.add("tap", name, inputs, output, site=site)
        elif self.is_box(module) or not any(tensor in self.made for tensor in results):
            learnt = any(True for _ in module.parameters())
            text = self.layer(module, inputs[0], results[0])
            self.add("layer" if learnt else "step", text, inputs, output, name=name, site=site)
            self.nodes[-1].stacks &= not learnt or "Norm" in kind
            self.nodes[-1].rows += [
                ("", f"map {self.modules[tap]}") for tap in module.modules() if isinstance(tap, Tap)
            ]

    def is_box(self, module: nn.Module) -> bool:
        """Whether a module is drawn as one box: torch's own, and what lies too deep."""
        family = set(type(module).__mro__) - {nn.Module, nn.Sequential}
        deep = self.modules[module].count(".") + 1 >= self.depth
        return any(kind.__module__.startswith("torch.nn.modules") for kind in family) or (
            deep and bool(module._modules)
        )

    def watched_ops(self) -> Any:
        """The ops of the library, each one step or, where its weights are watched, two, whatever they do inside."""
        call = Op.__call__

        def hide(function: Callable[..., Any], *args: Any) -> Any:
            self.hidden += 1
            result = function(*args)
            self.hidden -= 1
            return result

        def watched(op: Op, *args: Any) -> Any:
            if self.hidden:
                return call(op, *args)
            if op.name == "attending" and args[-1] is not None:
                return attend(op, *args)
            result = hide(call, op, *args)
            if op.name == "squeezing":
                for kind, squeezed in zip(args[2], result, strict=True):
                    self.add("step", self.over(OVER[kind], args[0], list(args[1])), [args[0]], squeezed)
            elif op.name == "gating":
                gates = [str(self.made[gate][0]) if self.is_map(gate) else "gate" for gate in args[1:]]
                self.add("step", f"times {' and '.join(gates)}", args, result)
            elif op.name == "attending":
                self.compute("scaled_dot_product_attention", (*args[:3], args[4]), {}, [result])
            else:
                self.add("step", op.name, args, result)
            return result

        def attend(op: Op, query: Tensor, key: Tensor, value: Tensor, scale: float, bias: Any, watch: Any) -> Tensor:
            seen: list[Tensor] = []

            def show(weights: Tensor) -> Tensor:
                self.hidden -= 1
                self.add("step", "softmax(query · key)", [query, key, bias], weights, roles=("query", "key", "bias"))
                seen.append(watch(weights))
                self.hidden += 1
                return seen[0]

            result: Tensor = hide(call, op, query, key, value, scale, bias, show)
            self.add("step", "weighted sum", [seen[0], value], result, roles=("", "value"))
            return result

        return mock.patch.object(Op, "__call__", watched)

    def is_map(self, tensor: Any) -> bool:
        return isinstance(tensor, Tensor) and tensor in self.made and self.made[tensor][0].kind == "tap"

    # words

    def size(self, length: int) -> str:
        batch = next(iter(self.letters), 0)
        if length in self.letters or length < 2 or batch < 2 or length % batch:
            return self.letters.get(length, str(length))
        rest = self.size(length // batch)
        return f"{rest}{self.letters[batch]}" if rest.isdigit() else f"{self.letters[batch]}{rest}"

    def shape(self, tensor: Tensor) -> str:
        return f"({', '.join(map(self.size, tensor.shape))})"

    def over(self, what: str, x: Tensor, dims: Iterable[int]) -> str:
        sizes = [(dim, self.size(x.shape[dim])) for dim in dims]
        return f"{what} over " + ", ".join(f"{n} channels" if dim == 1 and n.isdigit() else n for dim, n in sizes)

    def pair(self, name: str, left: Any, right: Any) -> str:
        """What an operation of two operands does, of which one may be a number or a constant."""
        operands = (left, right)
        known = [isinstance(operand, Tensor) and operand in self.made for operand in operands]
        if all(known):
            gates = [str(self.made[operand][0]) for operand in operands if self.is_map(operand)]
            if left is right:
                return {"mul": "square", "add": "× 2"}.get(name, PAIRS[name])
            return f"times {gates[0]}" if name == "mul" and gates else PAIRS[name]
        other = operands[known[0]]
        word = self.constants.get(other, "constant") if isinstance(other, Tensor) else f"{other:.3g}"
        if name == "pow" and known[0]:
            return {"2": "square", "0.5": "root"}.get(word, f"power {word}")
        if known[0] or name in ("mul", "add", "maximum", "minimum"):
            return f"{SIGNS.get(name, PAIRS[name])} {word}"
        return f"{word} {SIGNS.get(name, PAIRS[name])} it"

    def pool(self, name: str, x: Tensor, result: Tensor, kernel: Any) -> str:
        what = "max" if "max" in name.lower() else "mean"
        sides = range(x.dim() - result[0, 0].dim(), x.dim())
        if result[0, 0].numel() == 1:
            return self.over(what, x, sides)
        if "daptive" in name:
            return f"{what} pool to {_by(result.shape[side] for side in sides)}"
        return f"{what} pool {_by(kernel if isinstance(kernel, tuple) else [kernel] * len(sides))}"

    def layer(self, module: nn.Module, x: Tensor, result: Tensor) -> str:
        """What one module does, in a few words."""
        kind = re.sub(r"[123]d$", "", type(module).__name__)
        if isinstance(module, nn.Linear):
            return f"Linear {module.in_features} → {module.out_features}"
        if isinstance(module, layers.conv._ConvNd):
            extras = [
                f"{word} {_by(getattr(module, word))}"
                for word in ("stride", "dilation")
                if set(getattr(module, word)) != {1}
            ]
            if module.groups > 1:
                extras.append("depthwise" if module.groups == module.in_channels else f"{module.groups} groups")
            size = _by(module.kernel_size)
            what = "transposed conv" if module.transposed else "Conv"
            return ", ".join([f"{what} {size}, {module.in_channels} → {module.out_channels}", *extras])
        if "Pool" in kind:
            return self.pool(kind, x, result, getattr(module, "kernel_size", None))
        if kind in ("Softmax", "LogSoftmax"):
            return self.over(kind.lower(), x, [module.dim])
        if isinstance(module, nn.GroupNorm):
            return f"group norm, {module.num_groups} groups"
        if kind in ("ReLU", "SiLU", "GELU", "ELU", "PReLU") or (not module._parameters and not module._modules):
            return kind.lower()
        return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", kind).lower() if kind.upper() != kind else kind


def _sizes(letters: Mapping[int, str]) -> dict[int, str]:
    """Names for the lengths of axes, also of those that were joined or halved."""
    sizes = {length: letter for length, letter in letters.items() if length > 1}
    sides = [(length, letter) for length, letter in sizes.items() if letter in "DHW"]
    joined = [sides[i:j] for i in range(len(sides)) for j in range(i + 2, len(sides) + 1)]
    for group in joined:
        lengths, names = [length for length, _ in group], [letter for _, letter in group]
        sizes.setdefault(math.prod(lengths), "".join(names))
        sizes.setdefault(sum(lengths), " + ".join(names))
        sizes.setdefault(sum(lengths) - 1, " + ".join(names) + " − 1")
        sizes.setdefault(math.prod(-(-length // 2) for length in lengths), f"{''.join(names)}/{2 ** len(group)}")
    for length, letter in sides:
        sizes.setdefault(-(-length // 2), f"{letter}/2")
    return sizes


def _dims(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[int]:
    """The axes that a function of torch works over, counted from 0."""
    place = 2 if "norm" in name else 1
    dims = args[place] if len(args) > place else kwargs.get("dim", 1 if name == "normalize" else None)
    rank = args[0][0].dim() + 1 if name == "stack" else args[0].dim()
    return [dim % rank for dim in ([dims] if isinstance(dims, int) else dims or range(rank))]


def _by(sizes: Iterable[int]) -> str:
    return "×".join(map(str, sizes))


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _line() -> tuple[str, int]:
    """The line of the user's code that is being run."""
    frame = sys._getframe()
    while frame.f_back and frame.f_globals.get("__name__", "").startswith(("torch.", "regard.diagram", "regard.ops")):
        frame = frame.f_back
    return frame.f_code.co_filename, frame.f_lineno


# What of it is drawn


def _rolled(nodes: list[Node]) -> list[Node]:
    """Every round of a loop on its first: what the same place computes again from the same is one node."""
    order = {node: place for place, node in enumerate(nodes)}
    kept: list[Node] = []
    stands: dict[Node, Node] = {}  # node -> the node of the first round that stands for it
    first: dict[Any, list[Node]] = defaultdict(list)
    rounds: Counter[Node] = Counter()
    for node in nodes:
        node.sources = list(dict.fromkeys(stands[source] for source in node.sources))
        for other in first[(node.site, str(node))] if node.kind not in ("input", "output") else ():
            if isinstance(node.site, int) or not node.sources or set(node.sources) & set(other.sources):
                stands[node] = other
                rounds[other] += 1
                back = [source for source in node.sources if order[source] >= order[other]]
                other.sources += [source for source in node.sources if source not in (*back, *other.sources)]
                if back and not any(source.kind == "note" and not source.sources for source in other.sources):
                    note = Node("note", [("from the round before", "")], "", [])
                    kept.insert(kept.index(other), note)
                    order[note] = order[other]
                    other.sources.append(note)
                break
        else:
            stands[node] = node
            first[(node.site, str(node))].append(node)
            kept.append(node)
    for node, more in rounds.items():
        text, name = node.rows[0]
        node.rows[0] = text, f"{name} {more + 1} times".strip()
    return kept


def _tidied(nodes: list[Node]) -> list[Node]:
    """Without what reaches neither output nor map; sums of sums as one, and chains of small steps in one box."""
    wanted: set[Node] = set()
    for node in reversed(nodes):
        if node in wanted or node.kind in ("input", "tap", "output"):
            wanted.update((node, *node.sources))
    nodes = [node for node in nodes if node in wanted]
    uses = Counter(source for node in nodes for source in node.sources)
    stands: dict[Node, Node] = {}
    for node in nodes:
        node.sources = list(dict.fromkeys(stands.get(source, source) for source in node.sources))
        for source in [source for source in node.sources if uses[source] == 1]:
            text = str(source)
            if str(node) == "add" and (text == "add" or (text == "stack" and len(node.sources) == 1)):
                place = node.sources.index(source)
                node.sources[place : place + 1] = source.sources
                stands[source] = node
        (source,) = node.sources if len(node.sources) == 1 else (None,)
        if node.stacks and source and source.kind in ("step", "layer") and uses[source] == 1:
            source.rows += node.rows
            source.shape = node.shape
            source.kind = "layer" if "layer" in (source.kind, node.kind) else "step"
            stands[node] = source
            uses[source] = uses[node]
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
        return self.ceiling + self.floor - self.top


Layers = list[list[_Spot]]


def _layers(nodes: list[Node]) -> Layers:
    """Every node below its sources; the arrows of one source share the points that they pass."""
    level: dict[Node, int] = {}
    for node in nodes:
        level[node] = max((level[source] + 1 for source in node.sources), default=0)
    for node in nodes:
        if node.kind == "note" and not node.sources:
            level[node] = min(level[user] for user in nodes if node in user.sources) - 1
        elif node.kind == "output":
            level[node] = max(level.values())
    layers: Layers = [[] for _ in range(max(level.values()) + 1)]
    spots: dict[tuple[Node, int], _Spot] = {}

    def put(node: Node, here: int, spot: _Spot) -> None:
        spots[node, here] = spot
        layers[here].append(spot)

    for node in nodes:
        put(node, level[node], _Spot(node, *_extent(node)))
    for node in nodes:
        for source in node.sources:
            for here in range(level[source] + 1, level[node]):
                if (source, here) not in spots:
                    put(source, here, _Spot(None))
                    _link(spots[source, here - 1], spots[source, here])
            _link(spots[source, level[node] - 1], spots[node, level[node]])
    return layers


def _link(upper: _Spot, lower: _Spot) -> None:
    upper.below.append(lower)
    lower.above.append(upper)


def _ordered(layers: Layers) -> Layers:
    """Each layer in an order in which few arrows cross."""
    best = layers
    for sweep in range(16):
        layers = [list(layer) for layer in layers]
        pairs = list(pairwise(layers)) if sweep % 2 else [(low, high) for high, low in pairwise(layers)][::-1]
        for fixed, free in pairs:
            near = _places([fixed])
            now = _places([free])
            beside = {spot: [near[other] for other in (*spot.above, *spot.below) if other in near] for spot in free}
            free.sort(key=lambda spot: sum(beside[spot]) / len(beside[spot]) if beside[spot] else now[spot])
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
    for one, other in _crossings(layers):
        long = [all(spot.node is None for spot in arrow) for arrow in (one, other)]
        if long[0] != long[1]:
            bent.add(other if long[0] else one)
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
    """Every spot's block, named by its first: each spot joins the middle of its neighbours in the layer before."""
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
    floor: float = -DROP
    for layer in layers:
        ceiling, floor = floor + DROP, floor + DROP + max(spot.height for spot in layer)
        for spot in layer:
            spot.ceiling, spot.floor = ceiling, floor


# How it looks

GAP, DROP, LINE, MARGIN, PAD = 26, 26, 17, 16, 12  # between columns, between layers; of text; around all, beside text
LARGE, SMALL = 13, 11
EYE = 22  # room for the sign of a map
STYLE = """text{font:13px Helvetica,Arial,sans-serif;fill:#1f2328;text-anchor:middle}
.s{font-size:11px;fill:#59636e}
.panel{fill:#fbfbfa;stroke:#d1d9e0}
.input,.output{fill:#e6eaef;stroke:#818b98}
.step{fill:#fff;stroke:#818b98}
.layer{fill:#dbe9fb;stroke:#4a7bb7}
.tap{fill:#fdeebb;stroke:#a67800}
.eye{fill:#fff;stroke:#7a5900;stroke-width:1.3}
.arrow{fill:none;stroke:#59636e;stroke-width:1.3}
.head{fill:#59636e}"""
LEGEND = {"layer": "learnt weights", "tap": "a map that can be recorded"}
EMS = {"ijlI|.,:;' ·": 0.34, "frt()[]/-!": 0.42, "mwMW%→×÷−+=": 0.98}  # of the widest common sans-serif font


def draw(flow: Flow, title: str) -> str:
    """The flow as an SVG picture, from top to bottom.

    Args:
        flow: from `trace`.
        title: what the picture shows, for those who cannot see it.
    """
    layers = _ordered(_layers(flow.nodes))
    _set_columns(layers)
    kinds = {node.kind for node in flow.nodes}
    legend = [Node(kind, [("", words)], "", []) for kind, words in LEGEND.items() if kind in kinds]
    layers.append(_in_a_row([_Spot(node, *_extent(node)) for node in legend]))
    _set_rows(layers)
    spots = [spot for layer in layers for spot in layer]
    width = math.ceil(max(spot.x + spot.width / 2 for spot in spots)) + 2 * MARGIN
    height = math.ceil(max(spot.bottom for spot in spots)) + 2 * MARGIN
    arrows = [_arrow(upper, lower) for upper in spots for lower in upper.below]
    boxes = "\n".join(_box(spot, spot.node) for spot in spots if spot.node)
    return f"""<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" \
viewBox="{-MARGIN} {-MARGIN} {width} {height}" role="img">
<title>{escape(title)}</title>
<desc>{escape(str(flow))}</desc>
<style>{STYLE}</style>
<rect class="panel" x="{0.5 - MARGIN}" y="{0.5 - MARGIN}" width="{width - 1}" height="{height - 1}" rx="6"/>
<path class="arrow" d="{"".join(line for line, _ in arrows)}"/>
<path class="head" d="{"".join(head for _, head in arrows)}"/>
{boxes}
</svg>
"""


def _in_a_row(layer: list[_Spot]) -> list[_Spot]:
    for spot, before in zip(layer, [0.0, *accumulate(spot.width + GAP / 2 for spot in layer)], strict=False):
        spot.x = before + spot.width / 2
    return layer


def _lines(node: Node) -> list[list[tuple[str, int]]]:
    """The text of a box, each line in pieces with their sizes; the shape where it is not that of a source."""
    size = SMALL if node.kind == "note" else LARGE
    lines = [[(text, at) for text, at in ((text, size), (name, SMALL)) if text] for text, name in node.rows]
    changes = all(source.shape != node.shape for source in node.sources)
    if node.shape and node.kind != "note" and (changes or node.kind in ("tap", "output")):
        lines.append([(node.shape, SMALL)])
    return lines


def _extent(node: Node) -> tuple[float, float]:
    lines = _lines(node)
    eye = EYE if node.kind == "tap" else 0
    width = max(sum(_length(text, size) for text, size in line) + (len(line) - 1) * SMALL / 2 for line in lines)
    return round(width + eye) + 2 * PAD, LINE * len(lines) + (2 if node.kind == "note" else PAD)


def _length(text: str, size: int) -> float:
    """How long a text is at most."""
    return size * sum(
        next((em for some, em in EMS.items() if letter in some), 0.8 if letter.isupper() else 0.64) for letter in text
    )


def _box(spot: _Spot, node: Node) -> str:
    parts = []
    left, middle = spot.x - spot.width / 2, spot.x
    if node.kind != "note":
        corner = 4 if node.kind in ("step", "layer") else 13
        size = f'width="{spot.width:g}" height="{spot.height:g}" rx="{corner}"'
        parts.append(f'<rect class="{node.kind}" x="{_number(left)}" y="{_number(spot.top)}" {size}/>')
    if node.kind == "tap":
        middle += EYE / 2
        where = _at(left + PAD + 7, spot.top + spot.height / 2)
        parts.append(
            f'<path class="eye" transform="translate({where})" d="M-8 0Q0-9 8 0Q0 9-8 0zM-2.5 0a2.5 2.5 0 1 0 5 0a2.5 2.5 0 1 0-5 0"/>'
        )
    lines = _lines(node)
    y = spot.top + spot.height / 2 - LINE * (len(lines) - 1) / 2 + 4.5
    for line in lines:
        pieces = [escape(text) if at == LARGE else f'<tspan class="s">{escape(text)}</tspan>' for text, at in line]
        parts.append(f'<text x="{_number(middle)}" y="{_number(y)}">{" ".join(pieces)}</text>')
        y += LINE
    return "".join(parts)


def _arrow(upper: _Spot, lower: _Spot) -> tuple[str, str]:
    """The line between two spots of neighbouring layers, and its head where it ends at a box."""
    reach = [
        max(0.0, spot.width / 2 - PAD) if spot.node and spot.node.kind != "note" else 0.0 for spot in (upper, lower)
    ]
    low = max(upper.x - reach[0], lower.x - reach[1])
    high = min(upper.x + reach[0], lower.x + reach[1])
    if low <= high:
        start = end = min(max((upper if reach[0] < reach[1] else lower).x, low), high)
    else:
        start = upper.x if len(upper.below) == 1 else min(max(lower.x, upper.x - reach[0]), upper.x + reach[0])
        end = lower.x if len(lower.above) == 1 else min(max(upper.x, lower.x - reach[1]), lower.x + reach[1])
    line = f"M{_at(start, upper.bottom if upper.node else upper.ceiling)}"
    if start != end:
        middle = (upper.floor + lower.ceiling) / 2
        line += f"V{_number(upper.floor)}C{_at(start, middle)} {_at(end, middle)} {_at(end, lower.ceiling)}"
    ends_here = lower.node and lower.node.kind != "note"
    line += f"V{_number(lower.top - (3 if ends_here else 0))}"
    return line, f"M{_at(end, lower.top)}l-4-7h8z" if ends_here else ""


def _number(length: float) -> str:
    return f"{round(length, 1):g}"


def _at(x: float, y: float) -> str:
    return f"{_number(x)} {_number(y)}"
