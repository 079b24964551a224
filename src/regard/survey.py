"""Places in a user's model where a mechanism can go, found by one watched forward pass."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from regard.errors import UserError, near
from regard.registry import PLACES

CHILD = "regard"
WORDS = ("auto", *PLACES)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)

At = str | Sequence[str] | Callable[[str, nn.Module, tuple[int, ...]], bool]


@dataclass(frozen=True)
class Site:
    """A place in a model where a mechanism can go.

    Attributes:
        name: dotted name of the module whose output is weighed.
        kind: its class.
        shape: of its output in the dry run, (B, C, *spatial).
        calls: how often one forward pass calls it.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    calls: int


@contextmanager
def borrowed(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while; afterwards every mode, buffer and random state is as it was."""
    modes = {module: module.training for module in model.modules()}
    buffers = {module: dict(module._buffers) for module in modes}
    copies = [(buffer, buffer.clone()) for held in buffers.values() for buffer in held.values() if buffer is not None]
    try:
        for module in modes:
            module.training = False  # the attribute: a model's own train() may do more
        with same_randomness():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for module, held in buffers.items():
            module._buffers.clear()
            module._buffers.update(held)
        with torch.no_grad():
            for buffer, copy in copies:
                if not buffer.is_meta and not torch.equal(
                    buffer, copy
                ):  # batch norm writes without a new version number
                    buffer.copy_(copy)


@contextmanager
def same_randomness() -> Iterator[None]:
    """Afterwards every global random state is as it was."""
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        random.setstate(states[1])
        np.random.set_state(states[2])  # noqa: NPY002
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)


@dataclass
class _Origin:
    """Where a tensor of the dry run comes from."""

    depth: int = 0  # operations on the longest way from the input
    ancestors: int = 0  # a bit for every tensor it was computed from
    bit: int = 0
    source: tuple[str, int] | None = None  # the last module with parameters on its way, and when that was called
    width: int | None = None  # of its last axis, when the last layer on its way works on the last axis


@dataclass
class _Call:
    name: str
    entered: int
    inputs: int = 0  # bits of the maps that came in


@dataclass
class Survey(TorchFunctionMode):
    """One forward pass, watched: every module's outputs, and every addition of a branch to its shortcut."""

    outputs: dict[str, list[Any]] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)
    branches: list[str] = field(default_factory=list)
    blocks: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self._origins: Any = WeakIdKeyDictionary()
        self._stack: list[_Call] = []
        self._clock = 0
        self._projected: dict[int, tuple[str, str]] = {}

    def enter(self, name: str, inputs: Any) -> None:
        self._clock += 1
        bits = 0
        for tensor in _tensors(inputs):
            if tensor.dim() > 2:
                bits |= self._origin(tensor).bit
        self._stack.append(_Call(name, self._clock, bits))

    def leave(self, name: str, module: nn.Module, output: Any) -> None:
        call = self._stack.pop()
        addition = self._projected.pop(call.entered, None)
        if addition:
            self._add(*addition)
        self.order.append(name)
        if isinstance(output, Tensor):
            origin = self._origin(output)
            if module._parameters:
                origin.source = name, call.entered
            self.outputs.setdefault(name, []).append(_describe(output, origin.width))
        else:
            self.outputs.setdefault(name, []).append(f"a {type(output).__name__}")

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        incoming = [(self._origin(tensor), tensor.shape) for tensor in _tensors((args, kwargs))]
        name = getattr(func, "__name__", "").strip("_")
        if name in ("add", "radd", "iadd") and len(args) > 1:
            self._see_addition(args[0], args[1])
        result = func(*args, **(kwargs or {}))
        if incoming:
            depth = 1 + max(origin.depth for origin, _ in incoming)
            ancestors = 0
            for origin, _ in incoming:
                ancestors |= origin.ancestors | origin.bit
            for tensor in _tensors(result):
                main = _continued(incoming, tensor.shape, product=name in ("mul", "rmul", "imul"))
                width = main.width
                if name in ("linear", "layer_norm"):
                    width = tensor.shape[-1]
                elif name.startswith("conv") or name.endswith("_norm"):
                    width = None
                self._origins[tensor] = _Origin(depth, ancestors, self._bit(), main.source, width)
        return result

    def _see_addition(self, left: Any, right: Any) -> None:
        """A residual addition: two maps of one shape, one of them computed from the other or from its block's input."""
        if not (isinstance(left, Tensor) and isinstance(right, Tensor)) or left.shape != right.shape:
            return
        if left.dim() < 3 or not self._stack:
            return
        shortcut, branch = sorted((self._origin(left), self._origin(right)), key=lambda origin: origin.depth)
        block = self._stack[-1]
        if branch.source is None or branch.source[1] <= block.entered:
            return
        if branch.ancestors & shortcut.bit:
            self._projected.pop(block.entered, None)
            self._add(block.name, branch.source[0])
        elif branch.ancestors & block.inputs:
            # a shortcut that was projected before the block, or in it from the one map that came in (what takes several
            # merges them, and is no block); of several such additions in one block only the last is the residual one
            one = block.inputs.bit_count() == 1
            if shortcut.bit & block.inputs or (one and shortcut.ancestors & block.inputs):
                self._projected[block.entered] = block.name, branch.source[0]

    def _add(self, block: str, branch: str) -> None:
        self.branches.append(branch)
        if block:
            self.blocks.append(block)

    def _origin(self, tensor: Tensor) -> _Origin:
        if tensor not in self._origins:
            self._origins[tensor] = _Origin(bit=self._bit())
        return self._origins[tensor]

    def _bit(self) -> int:
        self._clock += 1
        return 1 << self._clock


def _continued(incoming: list[tuple[_Origin, torch.Size]], shape: torch.Size, product: bool) -> _Origin:
    """The one that an operation's result continues: a map times a gate is still the map, not the longer way."""
    sign = -1 if product else 1
    return max(incoming, key=lambda pair: (pair[1] == shape, pair[0].source is not None, sign * pair[0].depth))[0]


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor) and not isinstance(leaf, nn.Parameter)]


def _describe(output: Tensor, width: int | None) -> tuple[int, ...] | str:
    """The shape of a feature map (B, C, *spatial), or what stands in its place."""
    shape = tuple(output.shape)
    if not output.is_floating_point() or not 3 <= output.dim() <= 5:
        return f"a tensor of shape {shape}, {str(output.dtype).removeprefix('torch.')}"
    if width == shape[-1] != shape[1]:
        return f"{shape} with the channels in the last axis"
    return shape


def call(model: nn.Module, example: Any) -> Any:
    if isinstance(example, tuple):
        return model(*example)
    if isinstance(example, Mapping):
        return model(**example)
    return model(example)


def brief(error: Exception) -> str:
    """An exception in one line."""
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


def dry_run(model: nn.Module, example: Any) -> Survey:
    survey = Survey()
    handles = []
    modules = {name: module for name, module in model.named_modules() if CHILD not in name.split(".")}
    try:
        for name, module in modules.items():
            enter = lambda _, args, kwargs, name=name: survey.enter(name, (args, kwargs))  # noqa: E731
            leave = lambda module, _, output, name=name: survey.leave(name, module, output)  # noqa: E731
            handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
            handles.append(module.register_forward_hook(leave))
        with borrowed(model), torch.no_grad(), survey:
            try:
                call(model, example)
            except Exception as error:
                raise UserError(
                    f"the dry run failed ({brief(error)}): pass an `example` that the model accepts (a tuple is "
                    "several arguments, a dict keyword arguments)"
                ) from error
    finally:
        for handle in handles:
            handle.remove()
    return survey


def sites(model: nn.Module, at: At = "auto", *, example: Any) -> list[Site]:
    """Find the places of a model where a mechanism can go, by one dry run.

    Args:
        model: any module; it is left exactly as it was.
        at: ``"branches"`` (the end of each residual branch, before the addition: its last norm, where it has one),
            ``"blocks"`` (each residual block), ``"stages"`` (the last block of each resolution and width), ``"auto"``
            (branches, or stages where there are none); a glob over dotted names (``*`` stays within a dot, ``**``
            crosses); a list of names; or a function ``(name, module, shape) -> bool``.
        example: input of the dry run; a tuple is positional arguments, a dict keyword arguments, anything else one.

    Returns:
        The sites in the order of the forward pass.

    Raises:
        UserError: the model is compiled, the dry run fails, or nothing matches.

    Example:
        >>> import regard, torch
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU())
        >>> [site.name for site in regard.sites(net, "1", example=torch.randn(1, 3, 9, 9))]
        ['1']
    """
    refuse_unhookable(model)
    return choose(model, at, dry_run(model, example))


def is_compiled(module: nn.Module) -> bool:
    # by name: naming the class itself would load torch's whole compiler, which takes seconds
    return type(module).__name__ == "OptimizedModule" or module._compiled_call_impl is not None


def refuse_unhookable(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise UserError(f"the model must be a torch.nn.Module, got {type(model).__name__}")
    for name, module in model.named_modules():
        where = f"{name!r}" if name else "the model"
        if is_compiled(module):
            raise UserError(
                f"{where} is already compiled, and torch ignores hooks added after that: attach first, compile then"
            )
        if isinstance(module, torch.jit.ScriptModule):
            raise UserError(f"{where} is a TorchScript module, which takes no hooks: attach to the Python model")
        if isinstance(module, nn.parallel.DistributedDataParallel):
            raise UserError("the model is wrapped in DistributedDataParallel already: attach first, wrap then")
        if any(map(is_lazy, (*module._parameters.values(), *module._buffers.values()))):
            raise UserError(f"{where} is lazy and has no weights yet: run the model once, then attach")


def choose(model: nn.Module, at: At, survey: Survey) -> list[Site]:
    modules = dict(model.named_modules())
    if isinstance(at, str) and at in WORDS:
        found = find(at, modules, survey)
        if not found:
            reason = "the dry run saw no stacked convolutions with feature maps (B, C, ...)"
            if at != "stages":
                reason = "the dry run saw no residual addition that ends in a module with a feature map (B, C, ...)"
            others = [word for word in PLACES if word != at and find(word, modules, survey)]
            hint = f"try at={' or at='.join(map(repr, others))}, or " if others else ""
            raise UserError(
                f"at={at!r} finds nothing in this {type(model).__name__}: {reason}; {hint}give names or a pattern, "
                f"such as {_some(survey)}"
            )
    elif isinstance(at, str):
        pattern = _glob(at)
        found = [name for name in survey.outputs if name and pattern.fullmatch(name)]
        if not found:
            uncalled = [name for name in modules if name and pattern.fullmatch(name)]
            if uncalled:
                raise UserError(f"at={at!r} matches {uncalled[0]!r}, but the dry run never called it: try another site")
            raise UserError(f"at={at!r} matches no module{_near(at, survey) or '; there are ' + _some(survey)}")
    elif callable(at):
        found = [
            name
            for name, outputs in survey.outputs.items()
            if name and isinstance(outputs[0], tuple) and at(name, modules[name], outputs[0])
        ]
        if not found:
            raise UserError(f"the function given as `at` chose none of the modules, such as {_some(survey)}")
    else:
        if not isinstance(at, Iterable):
            raise UserError(f"`at` is a word, a pattern, a list of names or a function, got {at!r}")
        found = list(dict.fromkeys(at))
        for name in found:
            if name not in modules or not name:
                raise UserError(f"there is no module {name!r}{_near(name, survey) or '; there are ' + _some(survey)}")
            if name not in survey.outputs:
                raise UserError(f"the dry run never called {name!r}: try another site")
        if not found:
            raise UserError("`at` is an empty list: name at least one site")
    found = list(dict.fromkeys(_innermost(name, modules) for name in found))
    return [_site(name, modules, survey) for name in sorted(found, key=survey.order.index)]


def _site(name: str, modules: Mapping[str, nn.Module], survey: Survey) -> Site:
    outputs = survey.outputs[name]
    kind = type(modules[name]).__name__
    for output in outputs:
        if isinstance(output, str):
            raise UserError(
                f"site {name!r} ({kind}) gives {output}, not a feature map (B, C, ...): choose another site"
            )
        if len(output) == 3 and not any(isinstance(module, nn.Conv1d) for module in modules.values()):
            raise UserError(
                f"site {name!r} ({kind}) gives {output}, which looks like tokens (B, N, C), not a feature map "
                "(B, C, ...): choose another site"
            )
    return Site(name, kind, outputs[0], len(outputs))


def _innermost(name: str, modules: Mapping[str, nn.Module]) -> str:
    """A Sequential would run the new child as one of its own: its last child stands for it."""
    while type(modules[name]).forward is nn.Sequential.forward and len(modules[name]._modules):
        children = [child for child in modules[name]._modules if child != CHILD]
        name = f"{name}.{children[-1]}"
    return name


def find(word: str, modules: Mapping[str, nn.Module], survey: Survey) -> list[str]:
    if word == "auto":
        return find("branches", modules, survey) or find("stages", modules, survey)
    if word == "branches":
        return [name for name in dict.fromkeys(survey.branches) if _is_map(name, survey, modules)]
    blocks = set(survey.blocks)
    kinds = {type(modules[name]) for name in blocks}
    blocks |= {name for name in survey.outputs if type(modules[name]) in kinds and name}
    in_order = [name for name in dict.fromkeys(survey.order) if name in blocks and _is_map(name, survey, modules)]
    if word == "blocks":
        return in_order
    if in_order:
        groups = _runs(in_order, key=lambda name: survey.outputs[name][0][1:])
    else:
        units = [name for name in _units("", modules, survey) if _is_map(name, survey, modules)]
        units = [name for name in units if max(survey.outputs[name][0][2:]) > 1]
        groups = _runs(units, key=lambda name: survey.outputs[name][0][2:])
        groups = [group for group in groups if _convolutions(group, modules)]
        if _convolutions(units, modules) < 2:  # the patch embedding of a transformer is no stage
            groups = []
    return [group[-1] for group in groups]


def _units(name: str, modules: Mapping[str, nn.Module], survey: Survey) -> list[str]:
    """What a network without residual blocks is made of: its parts, each seen as a whole while it stays at one or two
    resolutions."""
    units = []
    for child, module in modules[name].named_children():
        inside = f"{name}.{child}".removeprefix(".")
        sizes = {
            output[2:]
            for called, outputs in survey.outputs.items()
            for output in outputs
            if called.startswith(inside + ".") and isinstance(output, tuple)
        }
        whole = inside in survey.outputs and type(module).forward is not nn.Sequential.forward and len(sizes) <= 2
        units += [inside] if whole or not module._modules else _units(inside, modules, survey)
    called = [unit for unit in units if unit in survey.outputs]
    return sorted(called, key=survey.order.index)


def _convolutions(names: list[str], modules: Mapping[str, nn.Module]) -> int:
    return sum(isinstance(module, CONVOLUTIONS) for name in names for module in modules[name].modules())


def _is_map(name: str, survey: Survey, modules: Mapping[str, nn.Module]) -> bool:
    output = survey.outputs[name][0]
    ranks = {
        len(convolution.kernel_size) + 2 for convolution in modules.values() if isinstance(convolution, CONVOLUTIONS)
    }
    return isinstance(output, tuple) and len(output) in ranks


def _runs(items: list[str], key: Callable[[str], Any]) -> list[list[str]]:
    groups: list[list[str]] = []
    for item in items:
        if groups and key(groups[-1][-1]) == key(item):
            groups[-1].append(item)
        else:
            groups.append([item])
    return groups


def _glob(pattern: str) -> re.Pattern[str]:
    """``*`` and ``?`` stay within a dot, ``**`` crosses dots, ``[ab]`` is a set, ``[!ab]`` its opposite."""
    pieces = {"**": ".*", "*": "[^.]*", "?": "[^.]"}
    parts = re.split(r"(\*\*|\*|\?|\[[^\]]+\])", pattern)
    sets = {part: part.replace("[!", "[^") for part in parts if part.startswith("[")}
    return re.compile("".join(pieces.get(part) or sets.get(part) or re.escape(part) for part in parts))


def _near(pattern: str, survey: Survey) -> str:
    return near(pattern, [name for name in survey.outputs if name])


def _some(survey: Survey) -> str:
    names = [name for name, outputs in survey.outputs.items() if name and isinstance(outputs[0], tuple)]
    return ", ".join(repr(name) for name in names[:: max(1, len(names) // 4)][:5]) or "(none that gives a feature map)"
