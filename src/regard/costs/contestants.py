"""What a benchmark times: a mechanism or an op's case, by one of our implementations or from another library; and the
lower bound."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

import regard
from regard import ops
from regard.costs import support
from regard.costs.other_libraries import OTHER_LIBRARIES
from regard.ops.dispatch import Op
from regard.registry.signatures import shapes
from regard.registry.spelling import parse

AXES = ("batch", "channels", "side")

Step = Callable[[], object]


@dataclass(frozen=True)
class Setting:
    """What all contestants have in common; `name` is a mechanism with options, or an op's case."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    layout: str
    device: str
    threads: int
    pass_: str

    def __str__(self) -> str:
        return f"{self.pass_} {self.name} {'x'.join(map(str, self.shape))} {self.dtype} {self.layout}"

    @property
    def training(self) -> bool:
        return self.pass_ == "training"

    def to_json(self) -> dict[str, Any]:
        return {key.rstrip("_"): value for key, value in vars(self).items()}

    def along(self, axis: str) -> int:
        """Images, channels, or pixels of the first side."""
        return self.shape[AXES.index(axis)]

    def grown(self, axis: str, factor: float) -> Setting:
        """The same with so many times the images, channels, or pixels of every side."""
        first, last = (2, len(self.shape)) if axis == "side" else (AXES.index(axis), AXES.index(axis) + 1)
        shape = [round(n * factor) if first <= place < last else n for place, n in enumerate(self.shape)]
        return replace(self, shape=tuple(shape))


@dataclass(frozen=True)
class Contestant:
    """One that is timed.

    Attributes:
        source: "ours", or the library it comes from.
        implementation: which of ours is asked for; None for another library.
        compiled: under `torch.compile`.
    """

    source: str
    implementation: str | None
    compiled: bool = False

    def module(self, setting: Setting) -> nn.Module:
        """Built anew, always with the same weights."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            module = (
                _ours(setting)
                if self.source == "ours"
                else OTHER_LIBRARIES[setting.name][self.source](setting.shape[1])
            )
        module = module.to(setting.device, getattr(torch, setting.dtype)).train(setting.training)
        return torch.compile(module, dynamic=False) if self.compiled else module  # type: ignore[return-value]

    def call(self, module: nn.Module, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Every tensor that the module returns."""
        with ops.use_impl(self.implementation or "auto"):
            return [leaf for leaf in tree_leaves(module(*inputs)) if isinstance(leaf, Tensor)]

    def step(self, module: nn.Module, inputs: Sequence[Tensor], *, training: bool) -> Step:
        """One call, and in training the way back."""
        if not training:

            def infer() -> None:
                with torch.no_grad():
                    self.call(module, inputs)

            return infer

        learning = [*inputs, *module.parameters()]
        upstream = [torch.randn_like(y) for y in self.call(module, inputs)]

        def train() -> None:
            torch.autograd.backward(self.call(module, inputs), upstream)
            for tensor in learning:
                tensor.grad = None

        return train

    def kept(self, module: nn.Module, inputs: Sequence[Tensor]) -> float:
        """Bytes that wait for the backward pass, over those of the map; the map counts, weights do not."""
        weights = {tensor.untyped_storage().data_ptr() for tensor in chain(module.parameters(), module.buffers())}
        kept: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            outputs = self.call(module, inputs)
        del outputs  # until here what they keep had an address of its own
        return sum(kept.values()) / inputs[0].nbytes


def inputs_of(setting: Setting) -> list[Tensor]:
    """Random inputs, the map first; the same whenever asked."""
    dtype = getattr(torch, setting.dtype)
    if ":" in setting.name:
        arguments = support.find(setting.name)[1](dtype, setting.device)
        drawn = [leaf for leaf in tree_leaves(arguments) if isinstance(leaf, Tensor)]
    else:
        name, options = parse(setting.name)
        batch, channels, *size = setting.shape
        wanted, _ = shapes(regard.info(name), channels, batch=batch, size=tuple(size), **options)
        generator = torch.Generator().manual_seed(1)
        drawn = [_laid_out(torch.randn(shape, generator=generator).to(dtype), setting.layout) for shape in wanted]
    return [x.to(setting.device).detach().requires_grad_(setting.training) for x in drawn]


def lower_bound(x: Tensor, *, training: bool) -> Step:
    """The passes over memory that a gate cannot do without."""
    if not training:
        return lambda: (x.sum(), x.clone())
    dy = torch.randn_like(x)
    return lambda: (x.sum(), x.clone(), x.sum(), dy.sum(), dy.clone())


def _ours(setting: Setting) -> nn.Module:
    if ":" in setting.name:
        op, draw = support.find(setting.name)
        return _Case(op, draw(torch.float32, "cpu"))
    name, options = parse(setting.name)
    module = regard.create(name, setting.shape[1], **options)
    with torch.no_grad():
        for parameter in module.parameters():  # what starts at 0 would hide what lies behind it
            parameter.add_(0.1 * torch.randn_like(parameter))
    return module


class _Case(nn.Module):
    """An op as a module that takes the tensors among its arguments."""

    def __init__(self, op: Op, arguments: tuple[Any, ...]) -> None:
        super().__init__()
        self.op = op
        self.leaves, self.form = tree_flatten(arguments)
        self.places = [place for place, leaf in enumerate(self.leaves) if isinstance(leaf, Tensor)]

    def forward(self, *tensors: Tensor) -> Any:
        given = dict(zip(self.places, tensors, strict=True))
        return self.op(*tree_unflatten([given.get(n, leaf) for n, leaf in enumerate(self.leaves)], self.form))


def _laid_out(x: Tensor, layout: str) -> Tensor:
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return x.contiguous(memory_format=formats[x.dim()]) if layout == "channels_last" and x.dim() in formats else x
