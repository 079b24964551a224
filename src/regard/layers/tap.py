"""Tap: an identity inside a mechanism that marks a map, so that it can be read. Blend: fades a whole mechanism in.
Constant: in the place of a tap, a map that looks at nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules import module as anywhere

from regard.base.blocks import Blocks
from regard.base.errors import UserError

Query = int | tuple[float, float]

GLOBAL = (
    anywhere._global_forward_hooks,
    anywhere._global_forward_pre_hooks,
    anywhere._global_backward_hooks,
    anywhere._global_backward_pre_hooks,
)
LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
KINDS = (
    *("channel", "spatial", "axis", "element", "position", "criss-cross", "pair", "branch", "frame", "path", "kernel"),
    *("query", "window", "token"),
)
PAIRWISE = ("position", "pair", "criss-cross", "query", "window")  # kinds of weights that sum to 1 over the last axes
LEAST = 1e-3  # a mean below this divides nothing


reading: Blocks[object] = Blocks("regard.record")


class Reader:
    """A forward hook that reads a tap, where its block of `reading` is open alone: another thread's calls are its own.

    Args:
        block: what was entered.
        tell: called with the tap and its map.
        queries: of weights between positions only these are asked for.
    """

    def __init__(
        self, block: object, tell: Callable[[Tap, Tensor], None], queries: Sequence[Query] | None = None
    ) -> None:
        self.block, self.tell, self.queries = block, tell, queries

    def __call__(self, tap: Tap, args: tuple[Tensor, ...], value: Tensor) -> None:
        if self.here and not recomputing():
            self.tell(tap, value)

    def __deepcopy__(self, memo: object) -> Reader:
        return self  # whoever copies a network inside the block, as Ultralytics does, and calls the copy is seen

    @property
    def here(self) -> bool:
        return self.block in reading


def recomputing() -> bool:
    """Whether this is a backward pass, which under checkpointing calls modules again: that is no second call."""
    return torch._C._current_graph_task_id() != -1


def hooked(module: nn.Module) -> bool:
    """Whether anybody is told of a module's calls, and would miss one that is not made in the ordinary way."""
    if "forward" in module.__dict__:  # as those who load weights for each call put another in its place
        return True
    own = module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks
    if not (any(own) or any(GLOBAL)):
        return False
    return any(not isinstance(hook, Reader) or hook.here for hooks in (*own, *GLOBAL) for hook in [*hooks.values()])


class Tap(nn.Module):
    """Pass a map on unchanged; a forward hook on the tap sees it.

    A tap may also *fade in* its map: a gate ``g`` becomes ``1 + strength * (g - 1)`` with one learnable number that
    starts at 0, so that the mechanism starts as the identity and costs nothing more (the arithmetic is done on the
    small gate). What a hook sees is the gate that is really applied: with a strength below 0 or above 1 that learnt to
    press down what the mechanism lifts, or the other way round, it leaves the range of `low` and `high`.

    Or it *keeps the scale* of what its gate multiplies: ``g`` becomes ``scale * g`` with one number that is measured
    once and never learnt, so that the gate starts with a mean of `rest`.

    Args:
        kind: what the map speaks of; with *spatial* as in the mechanism's input:
            ``"channel"`` (B, C, 1, ...); ``"spatial"`` (B, 1 or groups, \\*spatial); ``"axis"`` (B, C or 1, each axis
            whole or 1); ``"element"`` (B, C, \\*spatial); ``"position"`` (B, heads, \\*spatial of the queries,
            \\*spatial of the keys), or (B, heads, Q, \\*spatial of the keys) where Q queries were asked for;
            ``"criss-cross"`` (B, H, W, H + W): a pixel's column, then its row; ``"pair"`` (B, N, N): of channels or
            layers; ``"branch"`` (B, branches, C, 1, ...); ``"frame"`` (B, d, d + 1): an affine transform; ``"path"``
            (B, T, 2): places x, y in -1..1; ``"kernel"`` (B, C, k): weights over time; ``"query"`` (B, Q, K): of
            queries over keys.
        low, high: the values the map can take before it is faded in.
        rest: the gate that leaves the map as it is; None for a map that multiplies nothing and is never faded in.
    """

    strength: nn.Parameter | None
    scale: Tensor | None

    def __init__(self, kind: str, *, low: float = 0.0, high: float = 1.0, rest: float | None = 1.0) -> None:
        super().__init__()
        self.kind = kind
        self.low, self.high, self.rest = low, high, rest
        self.register_parameter("strength", None)
        self.register_buffer("scale", None)

    @property
    def limits(self) -> tuple[float, float]:
        """The values the map can take as it is applied, before it is faded in."""
        scale = 1.0 if self.scale is None else float(self.scale)
        return scale * self.low, scale * self.high

    @property
    def applied(self) -> tuple[Tensor | None, bool]:
        """The number that a gate is multiplied with, if any, and whether 1 less that number is added."""
        return (self.strength, True) if self.scale is None else (self.scale, False)

    @property
    def pairwise(self) -> bool:
        """Whether the map is a softmax over things that are looked at: pixels, channels, keys."""
        return self.kind in PAIRWISE or (self.kind == "spatial" and self.rest is None)

    @property
    def watched(self) -> bool:
        """Whether somebody reads the map: one that grows with the square of the pixels is only built then."""
        return hooked(self)

    @property
    def queries(self) -> Sequence[Query] | None:
        """Of weights between positions only these are shown."""
        readers = [hook for hook in self._forward_hooks.values() if isinstance(hook, Reader) and hook.here]
        return readers[-1].queries if readers else None

    def fade_in(self) -> None:
        """Start from a gate at rest. The strength is not counted in a mechanism's published parameters."""
        if self.rest is not None:
            self.strength = _closed()

    def keep_scale(self) -> None:
        """Start as a gate with a factor, 1 until `measure` is told what the gate is."""
        if self.rest is not None:
            self.scale = torch.ones(1)

    @torch.no_grad()
    def measure(self, value: Tensor) -> None:
        """Let the factor be such that this gate has a mean of `rest`; one that takes both signs, its root mean square.

        A gate whose mean is not above 0 keeps the factor 1.
        """
        if self.scale is not None and self.rest is not None:
            value = value.float()
            mean = value.mean() if self.low >= 0 else value.square().mean().sqrt()
            self.scale.fill_(self.rest / mean if mean > LEAST else 1.0)

    def forward(self, value: Tensor) -> Tensor:
        if self.scale is not None:
            return self.scale.to(value.dtype) * value
        if self.strength is None or self.rest is None:
            return value
        return self.rest + self.strength.to(value.dtype) * (value - self.rest)

    def extra_repr(self) -> str:
        how = ", fades in" if self.strength is not None else ", keeps the scale" if self.scale is not None else ""
        return f"{self.kind}, {self.low:g}..{self.high:g}{how}"


class Constant(Tap):
    """In the place of a tap, a map of the same shape that looks at nothing: what is computed from the input is dropped.

    A gate, or any map that is no softmax between things, becomes a constant that learns, of one image's shape, with the
    tap's own start: its strength or scale. Weights that pairs of things have for each other become uniform.

    Args:
        tap: whose place it takes.
        value: what the constant starts with, the shape of the map less the batch; None where the tap is `pairwise`.
            Kept as a vector: it is no matrix that an optimiser should decay or orthogonalise.
    """

    value: nn.Parameter | None

    def __init__(self, tap: Tap, value: Tensor | None) -> None:
        super().__init__(tap.kind, low=tap.low, high=tap.high, rest=tap.rest)
        self.strength, self.scale = tap.strength, tap.scale
        started = None if value is None else nn.Parameter(value.detach().flatten().clone())
        self.register_parameter("value", started)
        self.train(tap.training)

    @property
    def watched(self) -> bool:
        return True  # or the map would be applied without coming here

    @property
    def queries(self) -> None:
        return None

    def forward(self, value: Tensor) -> Tensor:
        if self.value is None:
            return _uniform(self.kind, value.detach())
        if self.value.numel() != value.shape[1:].numel():
            raise UserError(
                f"this constant was made for maps of {self.value.numel()} numbers an image, and got "
                f"{tuple(value.shape[1:])}: give images of the size that it was made with"
            )
        return super().forward(self.value.to(value.dtype).view(1, *value.shape[1:]).expand(value.shape))

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {'uniform' if self.value is None else 'constant'}"


def _uniform(kind: str, weights: Tensor) -> Tensor:
    """Equal weights for all that may be looked at, in the shape of these."""
    if kind == "criss-cross":  # the pixel itself has no weight in its column
        height, width = weights.shape[1:3]
        equal = torch.full_like(weights, 1 / (height + width - 1))
        equal[..., :height].diagonal(dim1=1, dim2=3).zero_()
        return equal
    if kind == "window":  # what lies outside the map has no weight
        seen = (weights > 0).to(weights.dtype)
        return seen / seen.sum((-2, -1), keepdim=True)
    last = {"position": (weights.dim() - 2) // 2, "spatial": weights.dim() - 2}.get(kind, 1)
    return torch.full_like(weights, 1 / weights.shape[-last:].numel())


class Blend(nn.Module):
    """Pass on what a mechanism made of a map, or fade it in: ``x + strength * (y - x)``, from ``x`` on.

    For what is no gate: a mechanism that moves channels or pixels, or answers with another map. The result has the
    dtype and the memory layout of x.
    """

    strength: nn.Parameter | None

    def __init__(self) -> None:
        super().__init__()
        self.register_parameter("strength", None)

    def fade_in(self) -> None:
        """Start from the map as it came. The strength is not counted in a mechanism's published parameters."""
        self.strength = _closed()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        if self.strength is None:
            y = y.to(x.dtype)
            last = LAST.get(x.dim())
            return y.contiguous(memory_format=last) if last and x.is_contiguous(memory_format=last) else y.contiguous()
        return x + self.strength.to(x.dtype) * (y.to(x.dtype) - x)

    def extra_repr(self) -> str:
        return "fades in" if self.strength is not None else ""


def taps(module: nn.Module) -> Iterator[tuple[str, Tap]]:
    """Every tap inside a module with its dotted name."""
    for name, child in module.named_modules():
        if isinstance(child, Tap):
            yield name, child


def fade_in(module: nn.Module) -> None:
    """Let a mechanism start as the identity, exactly: as a whole where it has a `Blend`, else every gate from rest."""
    gates = [tap for _, tap in taps(module)]
    for part in [child for child in module.modules() if isinstance(child, Blend)] or gates:
        part.fade_in()


def keep_scale(module: nn.Module) -> None:
    """Let every gate of a mechanism start with a factor, which is still to be measured."""
    for _, tap in taps(module):
        tap.keep_scale()


def _closed() -> nn.Parameter:
    # one element, not none: sharding and some optimisers refuse scalars
    return nn.Parameter(torch.zeros(1))
