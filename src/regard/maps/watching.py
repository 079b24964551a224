"""Attention in modules that nobody prepared: gates that multiply a map, weights between tokens, seen while they work.

No class is known by name. A gate is what a sigmoid or a softmax made and what then multiplies a map; weights are what a
softmax made and what then weighs tokens, or what `scaled_dot_product_attention` would have made.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from threading import get_ident
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack, _pop_mode, _push_mode
from torch.utils._pytree import tree_leaves

from regard.insertion.layout import Layout
from regard.insertion.positions import REGROUPINGS
from regard.layers.tap import Query, Tap, reading, recomputing
from regard.maps.batches import LISTED, TURNS, Batches, Images, went
from regard.maps.noted import Noted
from regard.maps.windows import Place, Windows

Tell = Callable[[str, str, Tensor, Layout | None, bool], None]

SQUASHES = {"sigmoid", "hardsigmoid", "softmax", "gumbel_softmax", "tanh", "relu6", "hardtanh", "clamp", "clip"}
# what spreads a gate over more numbers that are all the same
SPREADS = {"repeat", "tile", "repeat_interleave"}
SUMS = {"add", "radd", "iadd", "sub", "rsub", "isub", "maximum", "minimum", "max", "min"}
PRODUCTS = {"mul", "rmul", "imul", "multiply"}
QUOTIENTS = {"div", "truediv", "itruediv", "idiv"}
# what changes the form of a gate, or moves it by a number, and leaves it a gate
FORMS = SPREADS | SUMS | PRODUCTS | QUOTIENTS | {
    "view", "reshape", "expand", "expand_as", "broadcast_to", "unsqueeze", "squeeze", "flatten", "unflatten",
    "contiguous", "clone", "to", "type_as", "float", "half", "bfloat16", "getitem", "chunk", "split", "unbind",
    "interpolate", "dropout", "nan_to_num", "masked_fill", "pow", "sqrt",
}  # fmt: skip
SUMMED = FORMS | {"mean", "sum", "amax"}
MATRICES = {"matmul", "rmatmul", "bmm"}
ADDED = {"baddbmm", "addbmm", "addmm"}  # to a first tensor
UNREAD = {"tensordot", "linalg_multi_dot", "multi_dot", "lerp"}  # products whose factors are not told apart
APPLIED = PRODUCTS | QUOTIENTS | MATRICES | ADDED | UNREAD | {
    "scaled_dot_product_attention", "multi_head_attention_forward", "addcmul", "einsum", "linear",
}  # fmt: skip
FOLLOWED = SQUASHES | TURNS | REGROUPINGS | FORMS | LISTED | {"linear"}
NAMES = {"special_softmax": "softmax", "special_expit": "sigmoid", "linalg_matmul": "matmul", "mm": "matmul",
         "true_divide": "div", "divide": "div"}  # fmt: skip
# tensors that are given by name, in the order in which they would be given without
BY_NAME = ("input", "mat1", "batch1", "tensor1", "other", "mat2", "batch2", "tensor2")
# most of what is called: what a tensor is, no other tensor
QUESTIONS = {
    "shape", "size", "dim", "ndim", "ndimension", "numel", "nelement", "len", "stride", "storage_offset", "dtype",
    "device", "layout", "requires_grad", "is_cuda", "is_cpu", "is_mkldnn", "is_nested", "is_sparse", "is_quantized",
    "is_leaf", "grad_fn", "is_contiguous", "is_floating_point", "is_complex", "data_ptr", "is_inference", "item",
    "bool",
}  # fmt: skip
CALL = nn.Module._call_impl.__code__
REGISTERS = (0, 1, 2, 4, 5, 8)  # tokens in front of those of the pixels: class, distillation, registers


@dataclass(frozen=True)
class _Mark:
    """What a squashed tensor is: made by what, along which axis, and of what.

    Attributes:
        by: ``"softmax"`` or ``"bound"``.
        dim: of a softmax, counted from the end.
        roots: numbers of the tensors it is an elementwise function of: x sigmoid(x) is an activation, no gate.
        last: whether a layer made it that works on the last axis, which is that of the channels then.
        spread: whether its numbers were repeated along some axes.
    """

    by: str
    dim: int | None
    roots: frozenset[int]
    last: bool = False
    spread: bool = False


class Watch(TorchFunctionMode):
    """While it is entered, tells of every gate and of all weights between tokens.

    Args:
        model: whose modules are meant.
        tell: called with the dotted name of the module that applies it, the kind (see `regard.layers.tap.Tap`;
            ``"token"`` (B, heads, queries, keys) for weights between tokens), the values, how the keys hold the
            picture's pixels, where that is known, and whether they are those of windows.
        queries: of weights only these, so that the others are never built: numbers of tokens, or places
            (row, column) as shares of the picture's height and width. None is all.
        kinds: tell of these only; None is all.
    """

    def __init__(
        self,
        model: nn.Module,
        tell: Tell,
        *,
        queries: Sequence[Query] | None = None,
        kinds: frozenset[str] | None = None,
    ) -> None:
        super().__init__()
        self.tell, self.queries, self.kinds = tell, queries, kinds
        self.thread = get_ident()
        self.model, self.depth = model, 0  # how many of its calls are open
        self._names: dict[int, str] = {}
        # windows have a picture only where a place in it is asked for
        asked = [query for query in queries or () if not isinstance(query, int)]
        self.batches = Batches()
        self.windows = Windows() if asked and (kinds is None or "token" in kinds) else None
        self.marks = Noted()
        self.numbers = Noted()  # of tensors: an id is given again once its tensor is gone
        self.linear = Noted()  # the results of layers that work on the last of several axes
        self.crossed = Noted()  # maps whose columns come before their rows
        self.columnwise: set[int] = set()  # numbers of tokens that were made of such
        self.shifted = Noted()  # tensor -> roots of what it is moved by a number from
        self.batch, self.sides = 0, (1, 1)  # of the pictures that came in
        self.maps: dict[tuple[int, int], int] = {}  # sides of every map that was made of them -> when, last
        self.calls, self.count = 0, 0
        self.dropped: dict[str, None] = {}  # modules whose products look like attention of no kind that is known

    @property
    def here(self) -> bool:
        """Whether it is this watch's thread that calls, inside its block: hooks on a model are everybody's."""
        return self in reading and self.thread == get_ident()

    def enter(self, model: nn.Module, inputs: Any) -> None:
        """The model begins to run, or the copy of it that is called in its place."""
        if self.here:
            if model is not self.model:
                self.model, self._names = model, {}
            if not self.depth:
                self._names = {}  # modules may have changed
                self._pictures(inputs)
            self.depth += 1

    def leave(self) -> None:
        if self.here:
            self.depth -= 1

    def _pictures(self, inputs: Any) -> None:
        pictures = [tensor for tensor in _tensors(inputs) if tensor.dim() == 4]
        if pictures:
            self.batch, *_, height, width = max((tensor.shape for tensor in pictures), key=lambda shape: shape[0])
            self.sides = (height, width)

    @property
    def module(self) -> str | None:
        """Dotted name of the module that is running; None where it is another network, or has taps of its own."""
        name, module, _ = next(self._running(), ("", None, ()))
        return None if module is None or type(module).__module__.startswith("regard.mechanisms") else name

    def _running(self) -> Iterator[tuple[str, Any, Any]]:
        """The model's modules that run, the innermost first: name, module, what it was called with.

        Read from the interpreter: hooks on all modules would cost more than all else that is done here.
        """
        if not self._names:
            # those that apply no attention are left out
            self._names = {
                id(module): name
                for name, module in self.model.named_modules()
                if module._modules or not (isinstance(module, Tap) or type(module).__module__.startswith("torch.nn"))
            }
        frame: FrameType | None = sys._getframe()
        while frame:
            code = frame.f_code
            if code is CALL or (code.co_name == "forward" and code.co_argcount):  # some call forward themselves
                held = frame.f_locals
                module = held.get(code.co_varnames[0])
                if (name := self._names.get(id(module))) is not None:
                    yield (
                        name,
                        module,
                        [held.get(word) for word in (*code.co_varnames[1 : code.co_argcount], "args", "kwargs")],
                    )
            frame = frame.f_back

    def forget(self, value: Any) -> None:
        """A gate that a tap has told of already."""
        for tensor in _tensors(value):
            self.marks.pop(tensor, None)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = _word(func)
        if name in QUESTIONS or self not in reading or recomputing():
            return func(*args, **kwargs)
        if not self.depth:  # a part of the model may have been called by itself
            calls = [called for *_, called in self._running()]
            self._pictures(calls[-1] if calls else ())
        given = (*args, *[kwargs[word] for word in BY_NAME if word in kwargs]) if kwargs else args
        if name in APPLIED:
            self._apply(name, given, args, kwargs)
        result = func(*args, **kwargs)
        with torch._C.DisableTorchFunction():
            if isinstance(result, Tensor):
                shape = result.shape
                if len(shape) == 4:
                    self.calls += 1
                    self.maps[shape[1:3]] = self.maps[shape[2:]] = self.calls
                if len(shape) > 2 and (name == "linear" or (name in SUMMED and self._from_linear(given, len(shape)))):
                    self.linear[result] = True
            if self.windows:
                self.windows.follow(name, func, args, kwargs, result)
            self.batches.follow(name, func, args, kwargs, result)
        if name not in FOLLOWED:
            return result
        if name in SQUASHES:
            self._mark(name, given, kwargs, result)
        elif name in TURNS:
            self._turn(func, args, kwargs, result)
        elif name in REGROUPINGS and self.crossed.ids:
            self._merge(given, result)
        if name in FORMS and self.marks.ids:
            self._follow(name, given, result)
        elif (name == "linear" or name in LISTED) and self.marks.ids:
            self._mix(name, given, result)
        elif name in ("add", "radd") and isinstance(result, Tensor):
            self._shift(given, result)
        return result

    def _apply(self, name: str, given: Any, args: Any, kwargs: Any) -> None:
        if name == "scaled_dot_product_attention":
            self._attend(*args, **kwargs)
        elif name == "multi_head_attention_forward":
            self._attend_heads(*args, **kwargs)
        elif not self.marks.ids:
            return
        elif name in PRODUCTS and len(given) > 1:
            self._multiply(given[0], given[1])
        elif name == "addcmul" and len(given) > 2:
            self._multiply(*given[1:3])
        elif name in QUOTIENTS:
            if len(given) > 1 and self._marked(given[1:2]) and not self._marked(given[:1]):
                self._drop()
        elif (marked := self._marked(given, name)) and not self._weighed(name, given, args):
            parameters = any(isinstance(arg, nn.Parameter) for arg in given)
            if not parameters or any(self.marks[tensor].by == "softmax" for tensor in marked if name != "linear"):
                self._drop()

    def _weighed(self, name: str, given: Any, args: Any) -> bool:
        """Whether the weights in a product of matrices were told."""
        if name in MATRICES and len(given) > 1:
            return self._weigh(given[0], given[1])
        if name in ADDED and len(given) > 2:
            return self._weigh(*given[1:3])
        if name == "einsum" and len(args) == 2 and isinstance(args[1], list | tuple):
            args = (args[0], *args[1])
        return name == "einsum" and len(args) == 3 and self._weigh_summed(*args)

    def _marked(self, given: Any, name: str = "") -> list[Tensor]:
        """The gates and weights among what an operation is given; some are given them in lists."""
        tensors = _tensors(given) if name in LISTED or name in UNREAD or name == "einsum" else given
        return [tensor for tensor in tensors if isinstance(tensor, Tensor) and tensor in self.marks]

    # --- which tensors are gates

    def _from_linear(self, args: Any, dims: int) -> bool:
        made = args[0] if args else None
        return isinstance(made, Tensor) and made.dim() == dims and made in self.linear

    def _roots(self, tensor: Tensor) -> frozenset[int]:
        return self.shifted.get(tensor, frozenset({self._number(tensor)}))

    def _number(self, tensor: Tensor) -> int:
        """Which tensor this is, of all that were ever asked for."""
        if tensor not in self.numbers:
            self.count += 1
            self.numbers[tensor] = self.count
        return self.numbers[tensor]

    def _mark(self, name: str, args: Any, kwargs: Any, result: Any) -> None:
        if not isinstance(result, Tensor) or not args or not isinstance(args[0], Tensor):
            return
        bounds = [bound for bound in (*args[1:], *kwargs.values()) if bound is not None]
        if name in ("clamp", "clip") and len(bounds) < 2:
            return  # bounded on one side
        dim = None
        if name.endswith("softmax"):
            at = 1 if name == "softmax" else 4
            dim = kwargs.get("dim", args[at] if len(args) > at else -1)
            dim = dim - result.dim() if dim is not None and dim >= 0 else dim
        by, last = "softmax" if name.endswith("softmax") else "bound", args[0] in self.linear
        self.marks[result] = _Mark(by, dim, self._roots(args[0]), last)

    def _follow(self, name: str, given: Any, result: Any) -> None:
        tensors = [arg for arg in given if isinstance(arg, Tensor)]
        marked = [tensor for tensor in tensors if tensor in self.marks]
        if len(marked) == len(tensors) == 2:
            self._join(name, tensors[0], tensors[1], result)
            return
        if len(marked) != 1 or not (len(tensors) == 1 or self._continues(name, marked[0], tensors, result)):
            if name in ("add", "radd") and isinstance(result, Tensor):
                self._shift(given, result)
            return
        for tensor in _tensors(result):
            mark = self.marks[marked[0]]
            if mark.by == "softmax" and tensor.dim() != marked[0].dim() and name != "dropout":
                mark = replace(mark, dim=_moved(name, mark.dim, marked[0], tensor))
            self.marks[tensor] = replace(mark, spread=True) if name in SPREADS else mark

    def _continues(self, name: str, marked: Tensor, tensors: list[Tensor], result: Any) -> bool:
        """Whether a gate or weights stay such beside another tensor: with a number, a mask, or what is smaller."""
        if name == "expand_as":
            return True
        (other,) = (tensor for tensor in tensors if tensor is not marked) if len(tensors) == 2 else (marked,)
        if not isinstance(result, Tensor) or result.shape != marked.shape:
            return False
        smaller = other.numel() < marked.numel() and self.marks[marked].by == "softmax"
        return other.numel() == 1 or other.dtype == torch.bool or (smaller and name in PRODUCTS | QUOTIENTS)

    def _join(self, name: str, left: Tensor, right: Tensor, result: Any) -> None:
        """One gate of two, or weights that are mixed or weighed by gates."""
        first, second = self.marks[left], self.marks[right]
        if not isinstance(result, Tensor):
            return
        if first.by == second.by == "bound" and name not in QUOTIENTS:
            self.marks[result] = replace(first, roots=first.roots | second.roots, last=first.last or second.last)
        elif first.by == second.by and name in SUMS and first.dim == second.dim and result.shape == left.shape:
            self.marks[result] = first
        elif first.by != second.by and name in PRODUCTS | QUOTIENTS:
            weights, mark = (left, first) if first.by == "softmax" else (right, second)
            if result.shape == weights.shape:
                self.marks[result] = mark

    def _mix(self, name: str, given: Any, result: Any) -> None:
        """Gates side by side, or heads whose weights are mixed by a layer."""
        marked = self._marked(given, name)
        if not marked or not isinstance(result, Tensor):
            return
        mark = self.marks[marked[0]]
        if name in LISTED and len(marked) == len(_tensors(given)) and all(self.marks[t].by == "bound" for t in marked):
            self.marks[result] = replace(mark, roots=frozenset().union(*(self.marks[t].roots for t in marked)))
        elif name == "linear" and marked[0] is given[0] and mark.by == "softmax" and mark.dim not in (None, -1):
            self.marks[result] = mark

    def _turn(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        x = args[0] if args else None
        if not isinstance(x, Tensor) or not isinstance(result, Tensor) or isinstance(x, nn.Parameter):
            return
        if x.dim() == 4 and not kwargs:
            rows, columns = (1, 2) if x in self.linear else (2, 3)
            with torch._C.DisableTorchFunction():
                row, column, channel = (went(func, x.shape, axis, *args[1:])[0] for axis in (rows, columns, 1))
            if row is not None and column is not None and (row > column) != (x in self.crossed):
                self.crossed[result] = x.shape[rows] * x.shape[columns]
            if channel == 3 and rows == 2:
                self.linear[result] = True
        mark = self.marks.get(x)
        if mark is None:
            return
        if mark.dim is not None:
            with torch._C.DisableTorchFunction():
                axis, _ = went(func, x.shape, x.dim() + mark.dim, *args[1:], **kwargs)
            mark = replace(mark, dim=None if axis is None else axis - result.dim())
        self.marks[result] = mark

    def _merge(self, given: Any, result: Any) -> None:
        """Tokens of a map whose columns were turned into rows do not follow each other row by row."""
        pixels = self.crossed.get(given[0]) if isinstance(given[0], Tensor) else None
        if pixels and isinstance(result, Tensor):
            if pixels in result.shape[1:]:
                self.columnwise.add(pixels)
            else:
                self.crossed[result] = pixels

    def _shift(self, args: Any, result: Tensor) -> None:
        tensors = [arg for arg in args if isinstance(arg, Tensor)]
        if len(tensors) == 1:
            self.shifted[result] = self._roots(tensors[0])

    # --- what they are applied to

    def _multiply(self, left: Any, right: Any) -> None:
        if not (isinstance(left, Tensor) and isinstance(right, Tensor)):
            return
        if left.numel() == right.numel() and left in self.marks and right in self.marks:
            return  # neither is the gate of the other
        gate, x = (left, right) if left in self.marks else (right, left)
        if left in self.marks and right in self.marks:  # a bounded activation may well be weighed
            gate, x = sorted((left, right), key=Tensor.numel)
        mark, other = self.marks.get(gate), self.marks.get(x)
        if mark is None or (other and (other.by, mark.by) == ("softmax", "bound")):
            return  # weights that are weighed are weights
        if gate.dim() <= x.dim() and self._number(x) not in mark.roots:
            with torch._C.DisableTorchFunction(), torch.no_grad():
                images = self.batches.of(x)
                gate = _plain(gate, x, mark.spread)
                if images and images.axis and images.before * images.after == 1:
                    gate, x = gate.movedim(images.axis, 0), x.movedim(images.axis, 0)
                gate, x = self._channels_first(gate, x, mark)
            kind = _kind(gate, x, mark) if images else ""
            if kind:
                self._tell(kind, gate.clone())  # what is multiplied in place afterwards is no gate any more
            elif x.dim() > 2 and gate.numel() > 1 and x.numel() >= gate.numel() and not other:
                self._drop()

    def _channels_first(self, gate: Tensor, x: Tensor, mark: _Mark) -> tuple[Tensor, Tensor]:
        """A gate and its map with the channels before the pixels, of whatever layout they are.

        Told by which sides are a picture's. Where two of them could be: what a layer on the last axis made gates
        channels that lie there, and no gate is one of columns alone.
        """
        last = mark.last or not any(side > 1 for side in gate.shape[1:-1])
        if x.dim() == 4 and mark.by == "bound":
            here, there = self._alike(x.shape[2:]), self._alike(x.shape[1:3])
            if (there and (last or not here)) or (mark.last and not here):
                return gate.movedim(-1, 1), x.movedim(-1, 1)
        elif x.dim() == 3 and mark.by == "bound":
            layout = self._grid(x.shape[1])
            if layout and (last or not self._grid(x.shape[2])):
                pixels = Layout("tokens", 0, layout.grid)
                gate, x = (t if t.shape[1] == 1 else t[:, layout.prefix :] for t in (gate, x))
                return (gate.movedim(-1, 1).unsqueeze(-1) if gate.shape[1] == 1 else pixels.map(gate)), pixels.map(x)
        return gate, x

    def _alike(self, sides: Sequence[int]) -> bool:
        """Whether these are the picture's, smaller in one proportion."""
        (height, width), (rows, columns) = self.sides, sides
        return rows > 1 and columns > 1 and abs(rows * width - columns * height) <= max(height, width)

    def _weigh(self, left: Any, right: Any) -> bool:
        """A product of weights and values; of which the queries are the rows, or the columns. Whether it was one."""
        if not (isinstance(left, Tensor) and isinstance(right, Tensor)):
            return False
        mark = self.marks.get(left)
        if mark and mark.by == "softmax" and mark.dim == -1:
            self._tell_weights(left, self.batches.of(left), right)
            return True
        mark = self.marks.get(right)
        if mark and mark.by == "softmax" and mark.dim == -2:
            self._tell_weights(right.transpose(-1, -2), self.batches.of(right))
            return True
        return False

    def _weigh_summed(self, equation: Any, left: Any, right: Any) -> bool:
        """Einstein's sum: the axis of the softmax is summed over, and of the others one is that of the queries."""
        if not isinstance(equation, str) or "->" not in equation or "." in equation:
            return False
        factors, kept = equation.replace(" ", "").split("->")
        first, second = factors.split(",")
        for weights, ours, values, theirs in ((left, first, right, second), (right, second, left, first)):
            mark = self.marks.get(weights) if isinstance(weights, Tensor) else None
            if mark is None or mark.by != "softmax" or mark.dim is None or not isinstance(values, Tensor):
                continue
            key = ours[mark.dim]
            queries = [letter for letter in ours if letter in kept and letter not in theirs]
            content = [letter for letter in theirs if letter in kept and letter not in ours]
            shared = [letter for letter in ours if letter in theirs and letter in kept]
            images = self.batches.of(weights)
            counted = ours[images.axis] if images else ""
            shared.sort(key=lambda letter: letter != counted)  # the images first
            if key not in theirs or key in kept or len(queries) != 1 or len(ours) != len(shared) + 2:
                continue
            flat = len(content) == 1 and len(theirs) == len(shared) + 2
            held = _ordered(values, theirs, [*shared, key, *content]) if flat else None
            ordered = [*shared, *queries, key]
            where = images and replace(images, axis=ordered.index(counted))
            self._tell_weights(_ordered(weights, ours, ordered), where, held)
            return True
        return False

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        *,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> None:
        if self.kinds is not None and "token" not in self.kinds:
            return
        with torch.no_grad(), torch._C.DisableTorchFunction():
            bias, given = attn_mask, query
            if is_causal:
                bias = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device).tril()
            if enable_gqa:
                key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
            factor = query.shape[-1] ** -0.5 if scale is None else scale

            def weights(query: Tensor, key: Tensor, bias: Tensor | None) -> Tensor:
                logits = query @ key.transpose(-1, -2) * factor
                if bias is not None:
                    logits = logits.masked_fill(~bias, -math.inf) if bias.dtype == torch.bool else logits + bias
                return logits.float().softmax(-1)

            def seen(place: Place) -> Tensor:
                near = None if bias is None else place.token(bias.expand(*query.shape[:-1], key.shape[-2]))[:, :, None]
                return weights(place.token(query)[:, :, None], place.tokens(key), near)[:, :, 0]

            if query.shape[:-1] == key.shape[:-1] == value.shape[:-1] and self._tell_windows(value, seen):
                return
            images = [self.batches.of(tensor) for tensor in (query, key, value)]
            if any(where is None for where in images):
                self._tell_weights(weights(query, key, bias), None, own=True)
                return
            query, key, value = (
                self.batches.first(tensor, where)
                for tensor, where in zip((query, key, value), images, strict=True)
                if where is not None
            )
            where = images[0] if query is given else Images(0, len(query))
            rows = self._rows(query.shape[-2], query.shape[0], query.dim())
            if rows is not None:
                query = query[..., rows, :]
                bias = bias[..., rows, :] if bias is not None and bias.shape[-2] > 1 else bias
            self._tell_weights(weights(query, key, bias), where, value, chosen=rows is not None, own=True)

    def _attend_heads(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        width: int,
        heads: int,
        weight: Any,
        bias: Any,
        *others: Any,
        **named: Any,
    ) -> None:
        """`torch.nn.MultiheadAttention`, which is one function for a mode; (tokens, B, width)."""
        if weight is None or others[:3] != (None, None, False) or query.dim() != 3:
            self._drop()  # keys of other widths, or keys and values that it adds
            return
        mask, padding = named.get("attn_mask"), named.get("key_padding_mask")
        with torch.no_grad(), torch._C.DisableTorchFunction():
            weights, biases = weight.chunk(3), (None,) * 3 if bias is None else bias.chunk(3)
            q, k = (
                nn.functional.linear(x, w, b).unflatten(2, (heads, -1)).permute(1, 2, 0, 3)
                for x, w, b in zip((query, key), weights, biases, strict=False)
            )
            if mask is not None and mask.dim() == 3:
                mask = mask.unflatten(0, (-1, heads))
            total = q.new_zeros(q.shape[2], k.shape[2])
            for hidden in (mask, None if padding is None else padding[:, None, None]):
                if hidden is not None:
                    true = hidden.dtype == torch.bool
                    total = total.masked_fill(hidden, -math.inf) if true else total + hidden
            self._attend(q, k, k, total)

    # --- telling

    def _tell(self, kind: str, value: Tensor, layout: Layout | None = None, windows: bool = False) -> None:
        """Of values that nobody else writes into."""
        if (self.kinds is None or kind in self.kinds) and (module := self.module) is not None:
            with torch._C.DisableTorchFunction():
                self.tell(module, kind, value.detach(), layout, windows)

    def _drop(self) -> None:
        if (module := self.module) is not None:
            self.dropped[module] = None

    def _tell_weights(
        self,
        weights: Tensor,
        images: Images | None,
        values: Tensor | None = None,
        chosen: bool = False,
        own: bool = False,
    ) -> None:
        """Weights between tokens, (\\*others, queries, keys).

        Args:
            images: where they are in the weights; None where that cannot be told.
            values: what is weighed.
            chosen: whether these are the rows that are asked for alone.
            own: whether the weights were made here: the network may write over its own.
        """
        if self.kinds is not None and "token" not in self.kinds:
            return
        with torch._C.DisableTorchFunction():
            square = values is not None and weights.shape == (*values.shape[:-1], values.shape[-2])
            if values is not None and square and self._tell_windows(values, lambda place: place.token(weights)):
                return
            if images is None:
                self._tell("token", weights if own else weights.clone()) if weights.dim() == 4 else self._drop()
                return
            first = self.batches.first(weights, images)
            if first is not weights and values is not None:
                beside = self.batches.of(values)
                values = self.batches.first(values, beside) if beside else None
            weights = first
            if weights.dim() == 3:
                weights = weights.unflatten(0, (images.count, -1))
            if weights.dim() != 4:
                self._drop()
                return
            layout = self._grid(weights.shape[3]) if len(weights) == self.batch else None
            queries = weights.shape[2]
            if layout and not chosen and values is not None:  # do channels look at one another, over all places?
                across = self._grid(values.shape[-1])
                if across and not across.prefix and self._when(across) > self._when(layout):
                    self._tell("token", weights if own else weights.clone())
                    return
            if not chosen and layout and queries == 1:  # of a class, or of the whole map: no place looks
                seen = weights[:, :, 0, layout.prefix :].unflatten(2, layout.grid)
                self._tell("spatial", seen.clone())
            elif not chosen and layout and queries != weights.shape[3] and not self._grid(queries):
                self._tell("query", weights.mean(1))
            else:
                rows = None if chosen else self._rows(queries, len(weights), 4)
                held = weights[:, :, rows] if rows is not None else weights if own else weights.clone()
                self._tell("token", held, layout)

    def _tell_windows(self, values: Tensor, seen: Callable[[Place], Tensor]) -> bool:
        """The views from the places that are asked for, where the tokens are those of windows.

        Args:
            values: of all windows.
            seen: gives the weights (B, heads, N) with which a place looks at its window.
        """
        queries = [query for query in self.queries or () if not isinstance(query, int)]
        places = self.windows.of(values, self.batch, queries) if self.windows and self.batch else []
        if not places:
            return False
        views = torch.cat([place.view(seen(place)) for place in places], 2)
        self._tell("token", views, Layout("tokens", 0, places[0].sides), windows=True)
        return True

    def _grid(self, tokens: int) -> Layout | None:
        """How so many tokens hold the pictures that came in."""
        height, width = self.sides
        for prefix in REGISTERS:
            rows = round(math.sqrt(max(0, tokens - prefix) * height / width))
            columns = round(rows * width / height)
            fits = rows > 1 and columns > 1 and rows * columns == tokens - prefix and tokens not in self.columnwise
            if fits and (rows, columns) in self.maps:  # 64 may as well be channels, which look at one another
                return Layout("tokens", prefix, (rows, columns))
        return None

    def _when(self, layout: Layout) -> int:
        """When a map of these sides was made last."""
        rows, columns = layout.grid
        return self.maps[rows, columns]

    def _rows(self, tokens: int, batch: int, dims: int) -> list[int] | None:
        """Numbers of the queries that are asked for."""
        if self.queries is None:
            return None
        layout = self._grid(tokens)
        found = []
        for query in self.queries:
            if isinstance(query, int):
                found.append(min(query, tokens - 1))
            elif layout:
                (rows, columns), (row, column) = layout.grid, query
                found.append(
                    layout.prefix + min(rows - 1, int(row * rows)) * columns + min(columns - 1, int(column * columns))
                )
        return found or None


@contextmanager
def watched(watch: Watch) -> Iterator[None]:
    """Enter a watch; afterwards its model is as it was."""
    model = watch.model
    handles = [
        model.register_forward_pre_hook(lambda model, *inputs: watch.enter(model, inputs), with_kwargs=True),
        model.register_forward_hook(lambda *_: watch.leave(), always_call=True),
    ]
    try:
        watch.__enter__()
        try:
            yield
        finally:
            _leave(watch)
    finally:
        for handle in handles:
            handle.remove()


def _leave(mode: TorchFunctionMode) -> None:
    """Take a mode out of the stack, also from below others: the blocks of tasks that take turns overlap."""
    above = _get_current_function_mode_stack()
    above = above[above.index(mode) :]
    for _ in above:
        _pop_mode()
    for other in above[1:]:
        _push_mode(other)


@lru_cache(maxsize=1024)
def _word(func: Any) -> str:
    name = getattr(func, "__name__", "")
    name = func.__self__.__name__ if name == "__get__" else name
    return NAMES.get(name.strip("_"), name.strip("_"))


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _moved(name: str, dim: int | None, before: Tensor, after: Tensor) -> int | None:
    """Where the axis of a softmax is in another form of it, counted from the end; None where that is not known."""
    if dim is None:
        return None
    if before.shape[dim:] == after.shape[dim:] and after.dim() >= -dim:
        return dim
    # an axis of one was added behind, or taken away
    if name == "unsqueeze" and before.shape[dim:] == after.shape[dim - 1 : -1] and after.shape[-1] == 1:
        return dim - 1
    return None


def _ordered(tensor: Tensor, letters: str, wanted: Sequence[str]) -> Tensor:
    """The axes in another order; the tensor itself where they lie so."""
    if [*letters] == [*wanted]:
        return tensor
    with torch._C.DisableTorchFunction():
        return tensor.permute([letters.index(letter) for letter in wanted])


def _plain(gate: Tensor, x: Tensor, spread: bool) -> Tensor:
    """A gate without the axes along which it was expanded, or `spread` in another way."""
    gate = gate.view(*[1] * (x.dim() - gate.dim()), *gate.shape) if gate.dim() < x.dim() else gate
    for axis, stride in enumerate(gate.stride()):
        if axis and gate.shape[axis] > 1:
            first = gate.narrow(axis, 0, 1)
            if stride == 0 or (spread and torch.equal(first.expand_as(gate), gate)):
                gate = first
    return gate


def _kind(gate: Tensor, x: Tensor, mark: _Mark) -> str:
    """What a gate speaks of when it multiplies a map; empty where that is no attention to a map."""
    if x.dim() < 3 or gate.numel() == 1:
        return ""
    whole = tuple(side == full for side, full in zip(gate.shape, x.shape, strict=True))
    if any(side not in (1, full) for side, full in zip(gate.shape, x.shape, strict=True)):
        return ""
    channels, spatial = whole[1], [w for w, full in zip(whole[2:], x.shape[2:], strict=True) if full > 1]
    if mark.by == "softmax" and x.dim() == 5 and gate.shape[1] > 1:
        return "branch"
    if not any(spatial):
        return "channel" if channels and gate.shape[1] > 1 else ""
    if x.dim() < 4:
        return ""
    if all(spatial):
        return "element" if channels and gate.shape[1] > 1 else "spatial"
    return "axis"
