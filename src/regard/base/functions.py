"""torch's functions by name: one word for all that do the same, and groups of words."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

# words that torch has for the same thing; those in front of which the operands change places keep their own
SYNONYMS = {
    "radd": "add", "iadd": "add", "subtract": "sub", "isub": "sub",
    "rmul": "mul", "imul": "mul", "multiply": "mul",
    "truediv": "div", "itruediv": "div", "idiv": "div", "true_divide": "div", "divide": "div",
    "linalg_matmul": "matmul", "mm": "matmul", "linalg_multi_dot": "multi_dot",
    "concat": "cat", "concatenate": "cat", "swapaxes": "transpose", "swapdims": "transpose", "moveaxis": "movedim",
    "special_softmax": "softmax", "special_expit": "sigmoid", "clip": "clamp",
}  # fmt: skip

# what a tensor is, no other tensor: most of what is called
QUESTIONS = frozenset({
    "shape", "size", "dim", "ndim", "ndimension", "numel", "nelement", "len", "stride", "storage_offset", "dtype",
    "device", "layout", "requires_grad", "is_cuda", "is_cpu", "is_mkldnn", "is_nested", "is_sparse", "is_quantized",
    "is_leaf", "grad_fn", "is_contiguous", "is_floating_point", "is_complex", "data_ptr", "is_inference", "item",
    "bool",
})  # fmt: skip

# layers
CONVOLUTIONS = frozenset({
    "convolution", *(f"conv{kind}{rank}d" for kind in ("", "_transpose") for rank in (1, 2, 3)),
})  # fmt: skip
POOLINGS = frozenset(
    f"{kind}{rank}d{more}"
    for kind in ("avg_pool", "max_pool", "lp_pool", "adaptive_avg_pool", "adaptive_max_pool", "fractional_max_pool",
                 "max_unpool")
    for rank in (1, 2, 3)
    for more in ("", "_with_indices")
)  # fmt: skip
RESIZES = frozenset({"interpolate", "upsample", "pixel_shuffle", "pixel_unshuffle", "grid_sample"})

# sums and products, number by number
SUMS = frozenset({"add", "sub", "rsub", "maximum", "minimum", "max", "min"})
PRODUCTS = frozenset({"mul"})
QUOTIENTS = frozenset({"div"})
# products of matrices: of two; of two, added to a first tensor; those whose factors are not told apart
MATRIX_PRODUCTS = frozenset({"matmul", "rmatmul", "bmm"})
ADDED_PRODUCTS = frozenset({"baddbmm", "addbmm", "addmm"})
OTHER_PRODUCTS = frozenset({"tensordot", "multi_dot", "lerp"})
ATTENTION = frozenset({"scaled_dot_product_attention", "multi_head_attention_forward"})
MIXTURES = MATRIX_PRODUCTS - {"rmatmul"} | ATTENTION | {"baddbmm", "einsum"}  # what mixes tokens

# what is done to the form of a tensor: the same numbers in other axes; axes in another order; parts of it, or axes of
# one; several, given in a list, as one
REGROUPINGS = frozenset({
    "view", "reshape", "reshape_as", "view_as", "flatten", "unflatten", "squeeze", "unsqueeze",
})  # fmt: skip
TURNS = frozenset({"permute", "transpose", "movedim", "mT", "mH", "T", "H", "t", "adjoint"})
PARTS = frozenset({"getitem", "unbind", "chunk", "split", "tensor_split", "select", "narrow", "squeeze", "unsqueeze"})
LISTED = frozenset({"cat", "stack"})
MOVES = REGROUPINGS | PARTS | LISTED | {"permute", "transpose", "movedim", "mT", "T", "roll", "flip", "expand", "pad"}

# what repeats numbers; what changes the form of a tensor or works number by number, and leaves a gate what it is
SPREADS = frozenset({"repeat", "tile", "repeat_interleave"})
FORMS = SPREADS | SUMS | PRODUCTS | QUOTIENTS | {
    "view", "reshape", "expand", "expand_as", "broadcast_to", "unsqueeze", "squeeze", "flatten", "unflatten",
    "contiguous", "clone", "to", "type_as", "float", "half", "bfloat16", "getitem", "chunk", "split", "unbind",
    "interpolate", "dropout", "nan_to_num", "masked_fill", "pow", "sqrt",
}  # fmt: skip

# tensors that are given by name, in the order in which they would be given without
BY_NAME = ("input", "mat1", "batch1", "tensor1", "other", "mat2", "batch2", "tensor2")
NAMED = frozenset(BY_NAME)


@lru_cache(maxsize=4096)
def word(function: Any) -> str:
    """What a function of torch does, in one word: ``"add"`` for `torch.add`, `Tensor.__iadd__` and the others."""
    if getattr(function, "__name__", "") == "__get__":  # a property, such as x.mT
        function = function.__self__
    name = getattr(function, "__name__", "").strip("_")
    return SYNONYMS.get(name, name)


class Call:
    """One call of a function of torch.

    Attributes:
        word: of the function.
        function, args, kwargs: what is called with what.
        operands: the arguments, tensors that are given by name in the places that they would have without.
        result: what it gave; None before.
        notes: what is known of the operands, for those who keep notes.
    """

    __slots__ = ("args", "function", "kwargs", "notes", "operands", "result", "word")

    def __init__(self, word: str, function: Any, args: Any, kwargs: Mapping[str, Any], result: Any = None) -> None:
        self.word, self.function, self.args, self.kwargs, self.result = word, function, args, kwargs, result
        self.operands = args
        if kwargs and not NAMED.isdisjoint(kwargs):
            self.operands = (*args, *[kwargs[name] for name in BY_NAME if name in kwargs])
        self.notes: Any = ()

    def option(self, place: int, name: str, default: Any = None) -> Any:
        """An argument that may be given by its place or by its name; for ``dim`` torch takes NumPy's word, too."""
        given = self.kwargs.get(name, self.kwargs.get("axis") if name == "dim" else None)
        return given if given is not None else self.args[place] if len(self.args) > place else default


def tensors(tree: Any) -> list[Tensor]:
    """The tensors in a tree of tuples, lists and dictionaries."""
    if isinstance(tree, Tensor):
        return [tree]
    if isinstance(tree, tuple | list):  # mostly it is nothing more
        flat = [leaf for leaf in tree if isinstance(leaf, Tensor)]
        if len(flat) == len(tree):
            return flat
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
