"""One forward pass of a user's model, watched: what comes from where, and which tensors hold a map."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from regard.base.errors import ExampleError, UserError, brief
from regard.base.functions import MIXTURES, Call, word
from regard.insertion.layout import LAYOUTS, Layout
from regard.insertion.positions import Positions, follow, whole
from regard.networks.replica import borrowed, call
from regard.networks.weights import weights_kept

CHILD = "regard"
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Output:
    """What a module gave in one call.

    Attributes:
        shape: of the tensor; empty where it is none, or cannot hold a map.
        layout: how it holds a map; None where it holds none, or the dry run cannot tell how.
        words: what it is, for a sentence.
        followed: whether its pixels were followed this far.
    """

    shape: tuple[int, ...]
    layout: Layout | None
    words: str
    followed: bool = False

    @property
    def map(self) -> tuple[int, ...]:
        """(B, C, *spatial), empty where there is no map."""
        return self.layout.shape(self.shape) if self.layout else ()

    @property
    def kind(self) -> tuple[Layout | None, int, tuple[int, ...]]:
        """What must be the same in every call that one mechanism serves: layout, axes and channels."""
        return self.layout, len(self.shape), self.map[1:2]


@dataclass
class _Origin:
    """Where a tensor of the dry run comes from."""

    depth: int = 0  # operations on the longest way from the input
    layers: int = 0  # convolutions and matrix products among them
    ancestors: int = 0  # a bit for every tensor it was computed from
    bit: int = 0
    source: _Module | None = None  # the last on its way that has parameters, or changed the form of the map, or pooled
    added: tuple[int, int] = (0, 0)  # when the module was entered in which it became a sum, and when; 0 behind a layer
    last: _Module | None = None  # the last that computed anything
    axis: int | None = None  # of the channels, where that is known
    positions: Positions | None = None  # of its numbers on the picture, where those are known
    convolution: _Module | None = None  # the last one on its way, if it looks at neighbours
    pooled: _Module | None = None  # the source before it was pooled, where nothing with parameters came since
    into: tuple[_Module, _Module, _Module] | None = None  # that, its norm and its activation, before the next one
    widened: str = ""  # "pointwise": the last convolution was 1x1 and added channels; "depthwise": one followed that


@dataclass(frozen=True)
class _Module:
    """A call of a module, and the map that it gave."""

    name: str
    entered: int
    map: tuple[int, ...] = ()


@dataclass
class _Call:
    name: str
    entered: int
    inputs: int = 0  # bits of the maps that came in
    before: int = 0  # bits of these and of all they were computed from
    layers: int = 0  # on the way to them


@dataclass
class Survey(TorchFunctionMode):
    """One forward pass, watched.

    Attributes:
        layout: of maps that do not tell it by themselves.
        outputs: what each module gave, in every call.
        order: of the calls' ends.
        branches: ends of the branches of residual additions; blocks: the modules that add them.
        convolutions: the last convolution over neighbours in each of these branches.
        beside: the last unit of a convolution over neighbours with its norm and its activation that another layer
            follows in the branch: from its end to the convolution.
        expansions: ends of the wide part of each inverted residual, before it is narrowed.
        unread: modules behind which only other tokens are read than those of the pixels.
    """

    layout: str | None = None
    outputs: dict[str, list[Output]] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)
    branches: list[str] = field(default_factory=list)
    blocks: list[str] = field(default_factory=list)
    convolutions: list[str] = field(default_factory=list)
    beside: dict[str, str] = field(default_factory=dict)
    expansions: list[str] = field(default_factory=list)
    unread: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        super().__init__()
        self._origins: Any = WeakIdKeyDictionary()
        self._stack: list[_Call] = []
        self._clock = 0
        self._paused = False
        self._pictures = False  # whether any positions are known
        self._projected: dict[int, tuple[_Origin, bool]] = {}
        self._additions: list[tuple[_Call, _Origin, bool]] = []
        self._parts: set[int] = set()  # when the modules were entered whose sums are parts that are joined
        self._narrowed: list[tuple[str, int]] = []  # ends of wide parts, and bits of what they were narrowed to
        self._weighted = 0  # bits of all that layers gave
        self._followed_by = 0  # bits of all from which a layer went on
        self._bits: dict[str, int] = {}  # of each module's output
        self._units: list[tuple[_Module, _Module, _Module]] = []  # in branches
        self._followed: list[tuple[_Module, _Module, _Module]] = []  # anywhere

    def enter(self, name: str, inputs: Any) -> None:
        self._clock += 1
        call = _Call(name, self._clock)
        if not self._stack:
            for tensor in _tensors(inputs):
                if tensor.dim() > 3:
                    self._origin(tensor).positions = whole(tensor.shape)
        maps = [self._origin(tensor) for tensor in _tensors(inputs) if tensor.dim() > 2]
        for origin in maps:
            call.inputs |= origin.bit
            call.before |= origin.bit | origin.ancestors
        call.layers = max((origin.layers for origin in maps), default=0)
        self._stack.append(call)

    def leave(self, name: str, module: nn.Module, output: Any) -> None:
        call = self._stack.pop()
        self.order.append(name)
        tensor = output if isinstance(output, Tensor) else None
        seen = Output((), None, f"a {type(output).__name__}") if tensor is None else self._describe(tensor)
        self.outputs.setdefault(name, []).append(seen)
        this = _Module(name, call.entered, seen.map)
        projected = self._projected.pop(call.entered, None)
        if projected and tensor is not None and self._origin(tensor).added[0] == call.entered:
            self._additions.append((call, *projected))
        for part in _tensors(output):
            origin = self._origin(part)
            self._bits[name] = self._bits.get(name, 0) | origin.bit
            if not origin.bit & call.inputs:
                origin.last = this
            # a map that comes out of a tuple, or in another form than from the last layer, ends its way here
            if (
                module._parameters
                or module._buffers
                or origin.source is None
                or (seen.map and origin.source.map != seen.map)
            ):
                origin.source = this
            if module._parameters or module._buffers:
                origin.pooled = None
            if isinstance(module, CONVOLUTIONS) and max(module.kernel_size) > 1:
                origin.convolution = this

    def pass_over(self, output: Tensor | None, x: Tensor) -> None:
        """What is attached already is no part of the network: its map comes from where the site's came from."""
        self._paused = output is None
        if output is not None:
            self._origins[output] = self._origin(x)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self._paused:
            return func(*args, **(kwargs or {}))
        incoming = [(self._origin(tensor), tensor.shape) for tensor in _tensors((args, kwargs))]
        name = getattr(func, "__name__", "")
        name = (func.__self__.__name__ if name == "__get__" else name).strip("_")  # x.mT is a property
        adds = name in ("add", "radd", "iadd") and len(args) > 1 and self._see_addition(args[0], args[1])
        result = func(*args, **(kwargs or {}))
        if incoming:
            depth = 1 + max(origin.depth for origin, _ in incoming)
            layers = max(origin.layers for origin, _ in incoming)
            ancestors = 0
            for origin, _ in incoming:
                ancestors |= origin.ancestors | origin.bit
            main, _ = _continued(incoming, _first_shape(result), product=name in ("mul", "rmul", "imul"))
            known = lambda tensor: self._origins[tensor].positions if tensor in self._origins else None  # noqa: E731
            where = follow(Call(word(func), func, args, kwargs or {}, result), main.positions, known)
            for tensor, positions in zip(_tensors(result, every=True), where, strict=True):
                main, shape = _continued(incoming, tensor.shape, product=name in ("mul", "rmul", "imul"))
                new = replace(main, depth=depth, layers=layers, ancestors=ancestors, bit=self._bit())
                new.axis = _channel_axis(name, args, kwargs or {}, main, shape, tensor)
                new.positions = positions
                self._pictures = self._pictures or positions is not None
                if name.startswith("conv") or name == "linear" or name in MIXTURES:
                    new.layers += 1
                    new.added = 0, 0
                    self._weighted |= new.bit
                    self._followed_by |= ancestors
                if name.startswith("conv"):
                    self._convolve(main, new, shape, tensor, _second(args, kwargs or {}))
                elif name == "linear":
                    self._follow(main, new)
                elif adds:
                    new.convolution = None
                    shortcut = min((pair[0] for pair in incoming if pair[1] == tensor.shape), key=lambda o: o.depth)
                    if shortcut.positions:  # the longer way may have mixed pixels
                        new.axis, new.positions = shortcut.axis, shortcut.positions
                    new.added = self._stack[-1].entered, new.bit
                    if adds == "parallel":  # the sum of two ways is the end of neither
                        new.source = None
                elif name in ("cat", "concat", "concatenate"):
                    sums = [entered for entered, _ in {origin.added for origin, _ in incoming} if entered]
                    self._parts.update(entered for entered in sums if sums.count(entered) > 1)
                elif 2 < tensor.dim() == len(shape) and tensor.numel() * shape[1] < math.prod(shape) * tensor.shape[1]:
                    new.widened = ""  # pooled: a gate begins here
                if "pool" in name:
                    new.source, new.pooled = None, main.source or main.pooled
                self._origins[tensor] = new
        return result

    def _follow(self, before: _Origin, after: _Origin) -> None:
        """A layer follows what was done since the last convolution."""
        source = before.pooled or before.source
        if before.convolution and before.last and source:
            after.into = before.convolution, source, before.last
            self._followed.append(after.into)
        after.convolution = after.pooled = None

    def _convolve(self, before: _Origin, after: _Origin, shape: Any, tensor: Tensor, weight: Tensor) -> None:
        """Follow a map through a convolution: what ends before it, and what it makes of the width."""
        self._follow(before, after)
        pointwise = max(weight.shape[2:]) == 1
        channels, width = shape[1], tensor.shape[1]
        if pointwise and before.widened == "depthwise" and width < channels and before.last:
            self._narrowed.append((before.last.name, after.bit))
        if pointwise:
            after.widened = "pointwise" if width > channels else ""
        else:
            depthwise = before.widened and weight.shape[1] == 1 and width == channels
            after.widened = "depthwise" if depthwise else ""

    def _see_addition(self, left: Any, right: Any) -> str:
        """Tell an addition of two maps: ``"residual"``, where one is computed from the other or both from their block's
        one input, or ``"parallel"``; empty where it is none."""
        if not (isinstance(left, Tensor) and isinstance(right, Tensor)) or left.shape != right.shape:
            return ""
        if left.dim() < 3 or not self._stack:
            return ""
        shortcut, branch = sorted((self._origin(left), self._origin(right)), key=lambda origin: origin.depth)
        block = self._stack[-1]
        if branch.source is None or branch.source.entered <= block.entered:
            return "parallel"
        if branch.axis is None:
            branch.axis = shortcut.axis
        # not where attention works on windows that are joined outside of it
        ends = branch.source.map == self._describe(left if self._origin(left) is branch else right).map
        if branch.ancestors & shortcut.bit:
            self._projected.pop(block.entered, None)
            self._additions.append((block, branch, ends))
            return "residual"
        # a shortcut that was projected before the block, or in it from the one map that came in (what takes several
        # merges them, and is no block); of several such additions in one block only the last can be the residual one
        one = block.inputs.bit_count() == 1
        apart = not branch.ancestors & shortcut.ancestors & self._weighted & ~block.before
        longer = branch.layers > max(shortcut.layers, block.layers + 1)
        if branch.ancestors & block.inputs and (
            shortcut.bit & block.inputs or (one and shortcut.ancestors & block.inputs and apart and longer)
        ):
            self._projected[block.entered] = branch, ends
            return "residual"
        return "parallel"

    def _add(self, block: str, branch: _Origin, ends: bool) -> None:
        if branch.source and ends:
            self.branches.append(branch.source.name)
        if block:
            self.blocks.append(block)
        inside = block + "." if block else ""
        if branch.convolution and branch.convolution.name.startswith(inside):
            self.convolutions.append(branch.convolution.name)
        elif branch.into and branch.into[0].name.startswith(inside):
            self.convolutions.append(branch.into[0].name)
        if branch.into and branch.into[0].name.startswith(inside):
            self._units.append(branch.into)

    def goes_on(self, name: str) -> bool:
        """Whether another layer works on what a module gives: else it is a prediction, not a feature."""
        return bool(self._bits.get(name, 0) & self._followed_by)

    def finish(self, modules: Mapping[str, nn.Module]) -> None:
        """What only the whole pass tells: an activation that serves several layers is no end of a unit."""
        for block, branch, ends in self._additions:
            if block.entered not in self._parts:
                self._add(block.name, branch, ends)
        # what is narrowed to a prediction is no inverted residual
        self.expansions = [name for name, narrow in self._narrowed if narrow & self._followed_by]
        plain = [unit for unit in self._followed if max(unit[0].map[2:], default=1) > 1]
        for convolution, norm, activation in self._units or plain * (not self.branches):
            if not _keeps_sides(modules[convolution.name]):
                continue
            for end in (activation, norm):
                if end.map == convolution.map and len(self.outputs[end.name]) == 1:
                    self.beside[innermost(end.name, modules)] = convolution.name
                    break

    def _describe(self, tensor: Tensor) -> Output:
        shape, origin = tuple(tensor.shape), self._origin(tensor)
        words = f"a tensor of shape {shape}"
        if not tensor.is_floating_point() or not 3 <= tensor.dim() <= 5:
            return Output((), None, f"{words}, {str(tensor.dtype).removeprefix('torch.')}")
        ends = (1, tensor.dim() - 1)
        axes = [axis for axis in ends if origin.axis == axis] or [axis for axis in ends if origin.positions]
        for axis in axes:
            picture = origin.positions.picture(axis) if origin.positions else None
            if picture and tensor.dim() == 3 and axis == 2 and len(picture[1]) > 1:
                return Output(shape, Layout("tokens", *picture), words)
            # tokens whose pixels are not known are those of no map, where the network has maps
            if picture or not (origin.positions or (tensor.dim() == 3 and self._pictures)):
                return Output(shape, Layout("channels_first" if axis == 1 else "channels_last"), words)
        return Output(shape, None if axes else layout_of(self.layout, shape), words, bool(origin.positions))

    def _origin(self, tensor: Tensor) -> _Origin:
        if tensor not in self._origins:
            # an image comes with its channels first
            self._origins[tensor] = _Origin(bit=self._bit(), axis=1 if tensor.dim() > 2 else None)
        return self._origins[tensor]

    def _bit(self) -> int:
        self._clock += 1
        return 1 << self._clock


def _keeps_sides(convolution: Any) -> bool:
    """Whether it pads so that, but for its stride, the map keeps its sides."""
    if type(convolution).forward not in (kind.forward for kind in CONVOLUTIONS):
        return True  # one that pads by itself
    sizes = zip(convolution.kernel_size, convolution.dilation, strict=True)
    wanted = tuple(dilation * (size - 1) / 2 for size, dilation in sizes)
    return len(set(wanted)) == 1 and convolution.padding in ("same", wanted)


def layout_of(word: str | None, shape: tuple[int, ...]) -> Layout | None:
    """What a word says of a tensor of this shape; tokens are then the pixels of a square, behind a few others."""
    if word != "tokens":
        return Layout(word) if word else None
    side = math.isqrt(shape[1])
    return Layout("tokens", shape[1] - side * side, (side, side)) if len(shape) == 3 else None


def _continued(
    incoming: list[tuple[_Origin, torch.Size]], shape: torch.Size, product: bool
) -> tuple[_Origin, torch.Size]:
    """The one that an operation's result continues: a map times a gate is still the map, not the longer way."""
    sign = -1 if product else 1
    return max(incoming, key=lambda pair: (pair[1] == shape, pair[0].source is not None, sign * pair[0].depth))


def _channel_axis(
    name: str, args: Any, kwargs: Mapping[str, Any], main: _Origin, before: torch.Size, after: Tensor
) -> int | None:
    """Which axis of a result holds the channels, from where they were before."""
    rank = after.dim()
    if name.startswith("conv") or "pool" in name or name in ("batch_norm", "instance_norm", "group_norm"):
        return 1
    if name == "linear" or (name in ("layer_norm", "rms_norm") and len(_second(args, kwargs)) == 1):
        return rank - 1
    axis = main.axis
    if axis is None or (name in MIXTURES and after.shape != before):
        return None
    if name == "permute":
        order = args[1] if len(args) > 1 and not isinstance(args[1], int) else args[1:] or kwargs["dims"]
        return [place % rank for place in order].index(axis)
    if name in ("transpose", "swapaxes", "swapdims", "movedim", "moveaxis"):
        # told by an empty tensor whose sides are its axes' numbers
        return list(getattr(torch.empty(*range(rank), device="meta"), name)(*args[1:], **kwargs).shape).index(axis)
    if name in ("mT", "mH", "T"):
        return {rank - 1: rank - 2, rank - 2: rank - 1}.get(axis, axis)
    if len(before) == rank:
        return axis
    # reshaped: the channels are where they were if that side and those before it, or behind it, are what they were
    if axis == len(before) - 1 and after.shape[-1:] == before[-1:]:
        return rank - 1
    return axis if axis == 1 and rank > 2 and after.shape[:2] == before[:2] else None


def _second(args: Any, kwargs: Mapping[str, Any]) -> Any:
    return args[1] if len(args) > 1 else next(iter(kwargs.values()))


def _tensors(tree: Any, every: bool = False) -> list[Tensor]:
    """The tensors in a tree; parameters only with `every`."""
    leaves = [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
    return leaves if every else [leaf for leaf in leaves if not isinstance(leaf, nn.Parameter)]


def _first_shape(result: Any) -> torch.Size:
    return next((tensor.shape for tensor in _tensors(result)), torch.Size())


def dry_run(model: nn.Module, example: Any, layout: str | None = None) -> Survey:
    """Watch one forward pass; `layout` is that of the maps whose layout it does not tell."""
    if layout not in (*LAYOUTS, None):
        raise UserError(f"layout is None or one of {', '.join(map(repr, LAYOUTS))}, got {layout!r}")
    survey = Survey(layout)
    with borrowed(model) as twin:
        modules = {name: module for name, module in twin.named_modules() if CHILD not in name.split(".")}
        for name, module in modules.items():
            enter = lambda _, args, kwargs, name=name: survey.enter(name, (args, kwargs))  # noqa: E731
            leave = lambda module, _, output, name=name: survey.leave(name, module, output)  # noqa: E731
            module.register_forward_pre_hook(enter, with_kwargs=True)
            module.register_forward_hook(leave)
        for name, module in twin.named_modules():
            if name.split(".")[-1] == CHILD:
                module.register_forward_pre_hook(lambda _, args: survey.pass_over(None, args[0]))
                module.register_forward_hook(lambda _, args, y: survey.pass_over(y, args[0]))
        with torch.no_grad(), survey:
            try:
                call(twin, example)
            except Exception as error:
                raise ExampleError(
                    f"the dry run failed ({brief(error)})",
                    needed="that the model accepts (a tuple is several arguments, a dict keyword arguments)",
                ) from error
    survey.finish(modules)
    layouts = {name: outputs[0].layout for name, outputs in survey.outputs.items()}
    prefixes = {name: layout.prefix for name, layout in layouts.items() if layout and layout.prefix}
    if prefixes:
        survey.unread = _unread(model, example, prefixes)
    return survey


def _unread(model: nn.Module, example: Any, prefixes: Mapping[str, int]) -> set[str]:
    """Of modules that give tokens, those whose pixels do not matter: in a last block only the class token is read."""
    probes: dict[str, Tensor] = {}

    def add(name: str) -> Callable[..., Tensor]:
        def probe(_: nn.Module, args: Any, output: Tensor) -> Tensor:
            probes[name] = torch.zeros_like(output, requires_grad=True)
            return output + probes[name]

        return probe

    # some networks have no backward pass
    with borrowed(model) as twin, weights_kept(twin), torch.enable_grad(), suppress(RuntimeError, UserError):
        for name in prefixes:
            twin.get_submodule(name).register_forward_hook(add(name))
        outputs = [y for y in tree_leaves(call(twin, example)) if isinstance(y, Tensor) and y.requires_grad]
        # weighed unevenly: the sum behind a layer norm has no gradient
        weights = [torch.linspace(1, 2, y.numel()).to(y).reshape(y.shape) for y in outputs]
        gradients = torch.autograd.grad(outputs, list(probes.values()), weights, allow_unused=True)
        found = dict(zip(probes, gradients, strict=True))
        if any(gradient is not None and gradient.any() for gradient in found.values()):  # no classifier of zeros
            return {n for n, gradient in found.items() if gradient is None or not gradient[:, prefixes[n] :].any()}
    return set()


def innermost(name: str, modules: Mapping[str, nn.Module]) -> str:
    """A Sequential would run the new child as one of its own: its last child stands for it."""
    module = modules[name]
    while type(module).forward is nn.Sequential.forward and len(module._modules):
        module = [child for key, child in module._modules.items() if key != CHILD and child is not None][-1]
    # one that has several names is known by its first
    return name if module is modules[name] else next(own for own, other in modules.items() if other is module)
