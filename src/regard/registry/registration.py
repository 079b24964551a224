"""The mechanisms by name: how one becomes known, and what is known of each."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from regard.base.errors import UserError, near
from regard.registry.info import ATTENTIONS, PLACES, RANKS, SAME, Factory, Info, Translation, Unkept, read_slots

if TYPE_CHECKING:
    from torch import Tensor, nn

registered: dict[str, Info] = {}


def fade_in(module: nn.Module) -> None:
    """As `regard.layers.tap.fade_in`."""
    from regard.layers import tap

    tap.fade_in(module)


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
    formula: Callable[..., Tensor] | None = None,
    exceptions: Mapping[str, Unkept] | None = None,
    cannot_export: Mapping[str, str] | None = None,
    letters: Callable[[Any], dict[str, int]] | None = None,
    try_channels: int = 64,
    goals: Mapping[tuple[str, str], float] | None = None,
    registry: dict[str, Info] | None = None,
) -> Callable[[Factory], Factory]:
    """Make a mechanism known under a name; a decorator for its class or factory function.

    Args:
        name: lower-case identifier.
        parameters: see `Info`; called with every option, given or default: take what matters, and ``**_``.
        spatial: see `Info`; by default what the signature says: 2 for ``H, W``, 1, 2 and 3 for ``*spatial``.
        official, formula: see `Info`; what names a paper gives one of them, so that it is held to what the paper says.
        category, paper, place, attention, signature, beside, identity, hidden, exceptions, cannot_export, letters,
            try_channels, goals: see `Info`. Most gates can leave all after the parameters alone.
        registry: where it becomes known, instead of among those that `create` builds.

    Raises:
        UserError: the name is taken by another mechanism or is no lower-case identifier, the place or the attention is
            unknown, or a paper is named and nothing given that the mechanism is held to.

    Example:
        >>> import regard, torch
        >>> @regard.register("halve", category="channel", paper="-", place="branches", parameters=lambda channels: 0)
        ... class Halve(torch.nn.Module):
        ...     def __init__(self, channels): super().__init__()
        ...     def forward(self, x): return x / 2
        >>> regard.create("halve", 8)
        Halve()
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise UserError(f"a mechanism's name is a lower-case identifier such as 'se', got {name!r}")
    if place not in (*PLACES, None):
        raise UserError(f"{name}: the place is None or one of {', '.join(PLACES)}, got {place!r}")
    if attention not in ATTENTIONS:
        raise UserError(f"{name}: attention is one of {', '.join(ATTENTIONS)}, got {attention!r}")
    if paper != "-" and not official and formula is None:
        raise UserError(
            f"{name} names a paper and nothing that shows it computes what the paper says: give formula=, that of the "
            "paper in plain torch, or official=, where the authors' numbers are known; an own idea has the paper '-'"
        )
    known = registered if registry is None else registry

    def add(factory: Factory) -> Factory:
        refuse_taken(known, name, factory)
        options = read_options(factory)

        def count(channels: int, **chosen: Any) -> int:
            if unknown := chosen.keys() - options.keys():
                raise UserError(f"{name} has no option {min(unknown)!r}")
            return parameters(channels, **{**options, **chosen})

        known[name] = Info(
            name=name, factory=factory, category=category, attention=attention, paper=paper, place=place,
            parameters=count, signature=signature, spatial=spatial or ranks(signature), beside=beside,
            identity=identity, hidden=hidden, official=official or {}, formula=formula, exceptions=exceptions or {},
            cannot_export=cannot_export or {}, letters=letters, try_channels=try_channels, goals=goals,
            options=options, slots=read_slots(factory),
        )  # fmt: skip
        return factory

    return add


def refuse_taken(registry: Mapping[str, Info], name: str, factory: Factory) -> None:
    """Refuse a name that is another mechanism's; the same one again is what a notebook's cell does."""
    if name in registry:
        holder, newcomer = (f"{each.__module__}.{each.__qualname__}" for each in (registry[name].factory, factory))
        if holder != newcomer:
            raise UserError(f"the name {name!r} is taken by {holder}: register this one under another name")


def read_options(factory: Factory) -> dict[str, Any]:
    """The keyword arguments of a factory behind its first argument, and their defaults."""
    return {
        parameter.name: parameter.default
        for parameter in list(inspect.signature(factory).parameters.values())[1:]
        if parameter.kind is parameter.KEYWORD_ONLY
    }


def ranks(signature: str) -> tuple[int, ...]:
    """The numbers of spatial axes that a signature speaks of."""
    takes = signature.partition(" -> ")[0]
    return (2,) if "H, W" in takes else RANKS if "*spatial" in takes else ()


def names(category: str | None = None, *, attention: str | None = None) -> list[str]:
    """The registered names, sorted; of one category, or of ``"soft"``, ``"hard"`` or ``"self"`` attention, if given."""
    return sorted(
        name
        for name, known in registered.items()
        if category in (None, known.category) and attention in (None, known.attention)
    )


def info(name: str) -> Info:
    """What is known of a mechanism; ``print(info("cbam"))`` shows its card."""
    if "[" in name:
        raise UserError(f"options are keyword arguments here: pass {name.partition('[')[0]!r} and option=value")
    return among(registered, name)


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
