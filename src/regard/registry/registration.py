"""The mechanisms by name: what is known of each, and how to build one."""

from __future__ import annotations

import inspect
import math
import re
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from regard.base.errors import UserError, near

if TYPE_CHECKING:  # what is known of the mechanisms is told without loading torch, see `regard.registry.cards`
    import torch
    from torch import Tensor, nn

SLOTS = ("Paper", "Category", "Formula", "Shape", "Cost", "Place", "Differs", "Maps")
PLACES = ("branches", "convolutions", "expansions", "kernels", "blocks", "stages", "transitions", "head")
ATTENTIONS = ("soft", "hard", "self")
SAME = "(B, C, *spatial) -> same"
RANKS = (1, 2, 3)  # spatial axes of sequences, images and volumes


def fade_in(module: nn.Module) -> None:
    """As `regard.layers.tap.fade_in`."""
    from regard.layers import tap

    tap.fade_in(module)


# What the authors' checkpoint asks for: our channels, our options, and their names for our parameters.
Translation = tuple[int | None, dict[str, Any], dict[str, str]]
Factory = TypeVar("Factory", bound="Callable[..., nn.Module]")


@dataclass(frozen=True)
class Info:
    """What is known of a mechanism.

    Attributes:
        name: registered name; also the file, the test id and the docs page.
        factory: ``factory(channels, **options) -> nn.Module``.
        category: what it weighs: channel, spatial, temporal, branch, channel and spatial, ...
        attention: ``"soft"`` (weights from a small network or formula), ``"hard"`` (one choice, not differentiable) or
            ``"self"`` (weights from comparing what is weighed).
        paper: first author, year, arXiv number.
        place: the word that ``at="auto"`` stands for; None when `attach` cannot put it into a network.
        parameters: published formula, ``parameters(channels, **options) -> int``; options left out have their defaults.
        signature: shapes of inputs and outputs, see `shapes`; most are ``(B, C, *spatial) -> same``.
        spatial: numbers of spatial axes that it works with.
        beside: for one that takes a convolution of the network, with its norm and activation, for its first branch:
            from that convolution to the options with which it is built; it is called with what goes into the
            convolution and what the activation gives.
        identity: what makes a fresh module the identity, exactly; None when it is so by itself, or never.
        hidden: of a module the layers whose results pass a ReLU on the way to the gate, or the norms behind them.
        official: golden key -> ``(tensors, channels, **their_args) -> Translation``; it may rewrite the tensors it is
            given, a dict of its own.
        exceptions: what the contract asks and this mechanism does not give -> the reason.
        options: option name -> default value.
        slots: the docstring's slots, by name, and ``"Summary"``.
    """

    name: str
    factory: Callable[..., nn.Module] = field(repr=False)
    category: str
    attention: str
    paper: str
    place: str | None
    parameters: Callable[..., int] = field(repr=False)
    signature: str
    spatial: tuple[int, ...]
    beside: Callable[[nn.Module], dict[str, Any]] | None = field(repr=False)
    identity: Callable[[nn.Module], None] | None = field(repr=False)
    hidden: Callable[[Any], list[nn.Module]] | None = field(repr=False)
    official: Mapping[str, Callable[..., Translation]] = field(repr=False)
    exceptions: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    slots: Mapping[str, str] = field(default_factory=dict, repr=False)

    def said(self, slot: str) -> str:
        """What the docstring says in a slot, on one line; in its stead, why it says nothing."""
        nothing = "no docstring says more" + (", since python -OO takes them away" if sys.flags.optimize > 1 else "")
        return " ".join(self.slots.get(slot, "").split()) or nothing

    def __str__(self) -> str:
        options = ", ".join(f"{name}={value!r}" for name, value in self.options.items())
        lines = [f"{self.name}: {self.slots.get('Summary') or self.said('Summary')}", ""]
        for slot in SLOTS if any(self.slots.values()) else ():
            text = self.slots.get(slot, "").replace("\n", "\n" + " " * 12)
            lines.append(f"  {slot + ':':<10}{text}")
        if self.signature != SAME:
            lines.append(f"  {'Takes:':<10}{self.signature}")
        lines.append(f"  {'Options:':<10}{options}")
        if self.official:
            lines.append(f"  {'Weights:':<10}load_official({' or '.join(map(repr, self.official))}, ...)")
        lines += [f"  {'Not:':<10}{column}, because {reason}" for column, reason in self.exceptions.items()]
        return "\n".join(lines)


_registry: dict[str, Info] = {}


def register(
    name: str,
    *,
    category: str,
    paper: str,
    place: str | None,
    parameters: Callable[..., int],
    attention: str = "soft",
    signature: str = SAME,
    spatial: tuple[int, ...] | None = None,
    beside: Callable[[nn.Module], dict[str, Any]] | None = None,
    identity: Callable[[nn.Module], None] | None = fade_in,
    hidden: Callable[[Any], list[nn.Module]] | None = None,
    official: Mapping[str, Callable[..., Translation]] | None = None,
    exceptions: Mapping[str, str] | None = None,
) -> Callable[[Factory], Factory]:
    """Make a mechanism known under a name; a decorator for its class or factory function.

    Args:
        name: lower-case identifier.
        parameters: see `Info`; called with every option, given or default: take what matters, and ``**_``.
        spatial: see `Info`; by default what the signature says: 2 for ``H, W``, 1, 2 and 3 for ``*spatial``.
        category, paper, place, attention, signature, beside, identity, hidden, official, exceptions: see `Info`. Most
            gates can leave all after the parameters alone.

    Raises:
        UserError: the name is taken by another mechanism or is no lower-case identifier, or the place is unknown.

    Example:
        >>> import regard, torch
        >>> @regard.register("halve", category="channel", paper="-", place="branches", parameters=lambda channels: 0)
        ... class Halve(torch.nn.Module):
        ...     def __init__(self, channels): super().__init__()
        ...     def forward(self, x): return x / 2
        >>> regard.create("halve", 8)
        Halve()
    """
    return _adds(
        _registry, name, category=category, paper=paper, place=place, parameters=parameters, attention=attention,
        signature=signature, spatial=spatial, beside=beside, identity=identity, hidden=hidden, official=official,
        exceptions=exceptions,
    )  # fmt: skip


def registering(into: dict[str, Info]) -> Callable[..., Callable[[Factory], Factory]]:
    """A `register` whose mechanisms go elsewhere than among those that can be built."""

    def register(name: str, **known: Any) -> Callable[[Factory], Factory]:
        return _adds(into, name, **known)

    return register


def _adds(
    registry: dict[str, Info],
    name: str,
    *,
    category: str,
    paper: str,
    place: str | None,
    parameters: Callable[..., int],
    attention: str = "soft",
    signature: str = SAME,
    spatial: tuple[int, ...] | None = None,
    beside: Callable[[nn.Module], dict[str, Any]] | None = None,
    identity: Callable[[nn.Module], None] | None = fade_in,
    hidden: Callable[[Any], list[nn.Module]] | None = None,
    official: Mapping[str, Callable[..., Translation]] | None = None,
    exceptions: Mapping[str, str] | None = None,
) -> Callable[[Factory], Factory]:
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise UserError(f"a mechanism's name is a lower-case identifier such as 'se', got {name!r}")
    if place not in (*PLACES, None):
        raise UserError(f"{name}: the place is None or one of {', '.join(PLACES)}, got {place!r}")
    if attention not in ATTENTIONS:
        raise UserError(f"{name}: attention is one of {', '.join(ATTENTIONS)}, got {attention!r}")

    takes = signature.partition(" -> ")[0]
    ranks = spatial or ((2,) if "H, W" in takes else RANKS if "*spatial" in takes else ())

    def add(factory: Factory) -> Factory:
        known = registry.get(name)
        if known and (known.factory.__module__, known.factory.__qualname__) != (
            factory.__module__,
            factory.__qualname__,
        ):
            where = f"{known.factory.__module__}.{known.factory.__qualname__}"
            raise UserError(f"the name {name!r} is taken by {where}: register this one under another name")
        options = {
            parameter.name: parameter.default
            for parameter in list(inspect.signature(factory).parameters.values())[1:]
            if parameter.kind is parameter.KEYWORD_ONLY
        }

        def count(channels: int, **chosen: Any) -> int:
            if unknown := chosen.keys() - options.keys():
                raise UserError(f"{name} has no option {min(unknown)!r}")
            return parameters(channels, **{**options, **chosen})

        registry[name] = Info(
            name, factory, category, attention, paper, place, count, signature, ranks, beside, identity, hidden,
            official or {}, exceptions or {}, options, _slots(factory),
        )  # fmt: skip
        return factory

    return add


def names(category: str | None = None, *, attention: str | None = None) -> list[str]:
    """The registered names, sorted; of one category, or of ``"soft"``, ``"hard"`` or ``"self"`` attention, if given."""
    return sorted(
        name
        for name, known in _registry.items()
        if category in (None, known.category) and attention in (None, known.attention)
    )


def info(name: str) -> Info:
    """What is known of a mechanism; ``print(info("cbam"))`` shows its card."""
    if "[" in name:
        raise UserError(f"options are keyword arguments here: pass {name.partition('[')[0]!r} and option=value")
    return among(_registry, name)


def among(registry: Mapping[str, Info], name: str) -> Info:
    """The mechanism of this name, or a sentence with the names that are like it."""
    if name not in registry:
        known = sorted(registry)
        hint = near(name, known) or near(name.lower(), known) or f": the names are {', '.join(known)}"
        raise UserError(f"there is no mechanism {name!r}{hint}")
    return registry[name]


def wrong_axes(name: str, axes: int, where: str = "this map") -> UserError:
    """What to say of a map with a number of spatial axes that a mechanism does not work with."""
    known = " or ".join(map(str, info(name).spatial))
    return UserError(f"{name} works on maps with {known} spatial axes, and {where} has {axes}")


def create(
    name: str,
    channels: int,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    **options: Any,
) -> nn.Module:
    """Build a mechanism as its authors start it.

    Args:
        name: a registered name, see `names`.
        channels: channels of the map it will see.
        device, dtype: of its parameters; torch's defaults otherwise.
        options: the mechanism's own, see ``info(name).options``.

    Raises:
        UserError: unknown name or option, or a value the mechanism cannot take.

    Example:
        >>> import regard, torch
        >>> cbam = regard.create("cbam", 256, reduction=8)
        >>> cbam(torch.randn(2, 256, 14, 14)).shape
        torch.Size([2, 256, 14, 14])
    """
    known = info(name)
    if isinstance(channels, bool) or not isinstance(channels, int) or channels < 1:
        raise UserError(f"{name}: channels is a positive whole number, got {channels!r}")
    check_options(known, options)
    try:
        module = known.factory(channels, **options)
    except UserError:
        raise
    except (TypeError, ValueError, RuntimeError, LookupError, AttributeError) as error:  # of a value it did not expect
        said = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(f"{spell(name, options)} cannot be built with {channels} channels: {said}") from error
    return module.to(device=device, dtype=dtype)


def check_options(known: Info, options: Mapping[str, Any]) -> None:
    """Refuse options that a mechanism does not have, and values of another type than their default."""
    for option, value in options.items():
        if option not in known.options:
            hint = near(option, list(known.options)) or f": its options are {', '.join(known.options) or 'none'}"
            if option == "spatial_dims" and value not in known.spatial:
                hint = f": it works on maps with {' or '.join(map(str, known.spatial))} spatial axes"
            raise UserError(f"{known.name} has no option {option!r}{hint}")
        default = known.options[option]
        if isinstance(default, bool) and not isinstance(value, bool):
            raise UserError(f"{known.name}: {option} is True or False, got {value!r}")
        if type(default) is int and default > 0 and (type(value) is not int or value < 1):
            raise UserError(f"{known.name}: {option} is a positive whole number, got {value!r}")
        if type(default) is int and default <= 0 and (type(value) is not int or value < 0):
            raise UserError(f"{known.name}: {option} is a whole number from 0, got {value!r}")
        if isinstance(default, float) and (type(value) not in (int, float) or not math.isfinite(value)):
            raise UserError(f"{known.name}: {option} is a number, got {value!r}")


def load_official(
    key: str, tensors: Mapping[str, Tensor], *, channels: int | None = None, **their_args: Any
) -> nn.Module:
    """Build our module from the authors' own weights; it computes their function.

    Args:
        key: name of the authors' module, e.g. ``"cbam"``, ``"se_nobias"``, ``"coord_attention"``.
        tensors: their state dict.
        channels: where neither the tensors nor the arguments tell it.
        their_args: their own constructor's arguments, under their own names.

    Returns:
        The module, with the dtype and on the device of the tensors, in training mode.

    Raises:
        UserError: unknown key, missing or left-over tensors, or shapes that do not fit.
    """
    translators = {key: (known, translate) for known in _registry.values() for key, translate in known.official.items()}
    if key not in translators:
        known_keys = sorted(translators)
        raise UserError(f"there is no official key {key!r}{near(key, known_keys) or ': ' + ', '.join(known_keys)}")
    from torch import Tensor

    known, translate = translators[key]
    said = f"load_official({key!r})"
    if not isinstance(tensors, Mapping) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in tensors.items()
    ):
        raise UserError(f"{said} takes names and their tensors: pass the state dict, such as module.state_dict()")
    theirs = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    given = ", ".join(list(theirs)[:5]) + (", ..." if len(theirs) > 5 else "")
    try:
        inspect.signature(translate).bind(theirs, channels, **their_args)
        channels, options, renamed = translate(theirs, channels, **their_args)
        if channels is None:
            raise UserError(f"{said}: neither the tensors nor the arguments tell the channels: pass channels=")
        module = create(known.name, channels, **options)
    except KeyError as error:
        raise UserError(f"{said}: the tensors lack {error}; they have {given}") from error
    except (TypeError, ValueError) as error:
        raise error if isinstance(error, UserError) else UserError(f"{said}: {error}") from error
    except (ArithmeticError, AttributeError, LookupError, RuntimeError) as error:
        raise UserError(
            f"{said}: these are not the shapes or arguments of the authors' {key} ({type(error).__name__}: {error})"
        ) from error
    floating = next((tensor for tensor in theirs.values() if tensor.is_floating_point()), None)
    if floating is not None:
        module.to(device=floating.device, dtype=floating.dtype)
    own = module.state_dict()
    for name, tensor in theirs.items():
        ours = _rename(name, renamed)
        if ours not in own:
            raise UserError(f"{said}: tensor {name!r} has no place in {known.name}")
        if tensor.squeeze().shape != own[ours].squeeze().shape:
            raise UserError(
                f"{said}: {name!r} has shape {tuple(tensor.shape)}, "
                f"{known.name} with {channels} channels needs {tuple(own[ours].shape)}: check their arguments"
            )
        # a 1x1 convolution of theirs may be a linear layer of ours
        own[ours] = tensor.reshape(own[ours].shape)
    missing = set(module.state_dict()) - {_rename(name, renamed) for name in theirs}
    # checkpoints older than torch 0.4.1 lack the counter
    missing = {name for name in missing if not name.endswith("num_batches_tracked")}
    if missing:
        raise UserError(f"{said}: the tensors do not give {', '.join(sorted(missing))}")
    module.load_state_dict(own)
    return module


def shapes(
    known: Info, channels: int, *, batch: int = 2, size: tuple[int, ...] = (7, 9), **options: Any
) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """The shapes that a mechanism's signature stands for, of its inputs and of its outputs.

    A signature reads ``(B, C, *spatial), (B, gating, *coarse) -> same``: B is the batch, C the channels, ``*spatial``
    the size, ``*coarse`` half of it, H and W its two sides, an option's name its value (C where that is None), any
    other letter a number of the caller's choice, and a word beside a word their product; ``same`` is the first input.

    Args:
        known: the mechanism.
        channels, batch, size: sizes to fill in.
        options: those that differ from their defaults.

    Example:
        >>> import regard
        >>> shapes(regard.info("se"), 8)
        ([(2, 8, 7, 9)], [(2, 8, 7, 9)])
    """
    chosen = {name: channels if value is None else value for name, value in {**known.options, **options}.items()}
    free = {letter: 3 + place for place, letter in enumerate("KLQV")}
    numbers = free | chosen | {"B": batch, "C": channels, "H": size[0], "W": size[-1]}
    sizes = {"*spatial": size, "*coarse": tuple(-(-side // 2) for side in size)}

    def read(text: str) -> list[tuple[int, ...]]:
        groups = [[axis.strip() for axis in group.split(",")] for group in re.findall(r"\(([^)]*)\)", text)]
        return [
            tuple(n for axis in group for n in sizes.get(axis) or [math.prod(numbers[word] for word in axis.split())])
            for group in groups
        ]

    takes, _, gives = known.signature.partition(" -> ")
    inputs = read(takes)
    return inputs, inputs[:1] if gives == "same" else read(gives)


def example_inputs(known: Info, channels: int = 20, **others: Any) -> tuple[Tensor, ...]:
    """Random inputs of the shapes that a mechanism takes; see `shapes` for the other arguments."""
    import torch

    return tuple(torch.randn(shape) for shape in shapes(known, channels, **others)[0])


def parse(text: str, what: str = "arm") -> tuple[str, dict[str, Any]]:
    """Read ``name[option=value,...]``: numbers, ``true``, ``false`` and ``none`` become what they say, else text.

    Args:
        text: of an arm.
        what: the word for it in sentences.

    Example:
        >>> parse("cbam[squeeze=max,reduction=8]")
        ('cbam', {'squeeze': 'max', 'reduction': 8})
    """
    match = re.fullmatch(r"\s*([A-Za-z0-9_]+)\s*(?:\[(.*)\])?\s*", text)
    if not match:
        raise UserError(f"cannot read the {what} {text!r}: write a name, or name[option=value,option=value]")
    options: dict[str, Any] = {}
    for part in filter(None, map(str.strip, (match[2] or "").split(","))):
        option, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not option or not value:
            raise UserError(f"cannot read {part!r} in the {what} {text!r}: write option=value")
        if option in options:
            raise UserError(f"the {what} {text!r} gives {option!r} twice")
        options[option] = _value(value)
    return match[1], options


def spell(name: str, options: Mapping[str, Any]) -> str:
    """The one way to write a mechanism with its options, which `parse` reads.

    Example:
        >>> spell("cbam", {"squeeze": "max", "reduction": 8})
        'cbam[reduction=8,squeeze=max]'
    """
    words = {True: "true", False: "false", None: "none"}
    parts = [
        f"{option}={words[value] if value is None or isinstance(value, bool) else value}"
        for option, value in sorted(options.items())
    ]
    return f"{name}[{','.join(parts)}]" if parts else name


def _value(text: str) -> Any:
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    for number in (int, float) if re.fullmatch(r"[-+.0-9eE]+", text) else ():
        with suppress(ValueError):
            return number(text)
    return text


def _rename(name: str, renamed: Mapping[str, str]) -> str:
    for theirs in sorted(renamed, key=len, reverse=True):
        if name == theirs or name.startswith(theirs + "."):
            return renamed[theirs] + name[len(theirs) :]
    return name


def _slots(factory: Callable[..., Any]) -> dict[str, str]:
    text = inspect.cleandoc(factory.__doc__ or "")
    summary = text.partition("\n\n")[0]
    slots = {"Summary": " ".join(summary.split())}
    for match in re.finditer(r"^(\w+):[ \t]+(.*(?:\n[ \t]+.*)*)", text, re.MULTILINE):
        if match[1] in SLOTS:
            slots[match[1]] = inspect.cleandoc(match[2])
    return slots
