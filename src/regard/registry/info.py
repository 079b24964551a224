"""Info: what is known of a mechanism; the words that it is told in."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:  # what is known of the mechanisms is told without loading torch, see `regard.registry.cards`
    from torch import Tensor, nn

SLOTS = ("Paper", "Category", "Formula", "Shape", "Cost", "Place", "Differs", "Maps")
PLACES = ("branches", "convolutions", "expansions", "kernels", "blocks", "stages", "transitions", "head")
ATTENTIONS = ("soft", "hard", "self")
SAME = "(B, C, *spatial) -> same"
RANKS = (1, 2, 3)  # spatial axes of sequences, images and volumes

# What the authors' checkpoint asks for: our channels, our options, and their names for our parameters.
Translation = tuple[int | None, dict[str, Any], dict[str, str]]
Factory = TypeVar("Factory", bound="Callable[..., nn.Module]")


class Unkept(str):
    """Why a mechanism does not keep a promise of the contract; and words of the error in which that shows.

    Args:
        reason: for the card.
        error: a regular expression that the message of the error holds, so that no other failure passes for this one.
    """

    error: str

    def __new__(cls, reason: str, *, error: str) -> Unkept:
        made = super().__new__(cls, reason)
        made.error = error
        return made


@dataclass(frozen=True, kw_only=True)
class Info:
    """What is known of a mechanism.

    Attributes:
        name: registered name; also the file, the test id and the docs page.
        factory: ``factory(channels, **options) -> nn.Module``.
        category: what it weighs: channel, spatial, temporal, branch, channel and spatial, ...
        attention: ``"soft"`` (weights from a small network or formula), ``"hard"`` (one choice, not differentiable) or
            ``"self"`` (weights from comparing what is weighed).
        paper: first author, year, arXiv number; ``"-"`` for an idea of one's own.
        place: the word that ``at="auto"`` stands for; None when `attach` cannot put it into a network.
        parameters: published formula, ``parameters(channels, **options) -> int``; options left out have their defaults.
        signature: shapes of inputs and outputs, see `regard.registry.signatures.shapes`; most are
            ``(B, C, *spatial) -> same``.
        spatial: numbers of spatial axes that it works with.
        beside: for one that takes a convolution of the network, with its norm and activation, for its first branch:
            from that convolution to the options with which it is built; it is called with what goes into the
            convolution and what the activation gives.
        identity: what makes a fresh module the identity, exactly; None when it is so by itself, or never.
        hidden: of a module the layers whose results pass a ReLU on the way to the gate, or the norms behind them.
        official: golden key -> ``(tensors, channels, **their_args) -> Translation``; it may rewrite the tensors it is
            given, a dict of its own.
        formula: ``formula(*inputs, weights) -> output``, what the module computes in evaluation, in plain torch by
            the paper's formula; ``weights`` is its state dict. None where the authors' numbers stand for it.
        exceptions: what the contract asks and this mechanism does not give -> the reason.
        cannot_export: column of docs/export.md -> the reason why it says no there.
        letters: of a module what the letters in its Cost slot stand for, where they are neither C, an option nor M, the
            hidden width.
        try_channels: a number of channels with which it can be built, whatever its options.
        goals: size of the map and pass -> times the lower bound that the benchmark aims at; None for a gate's own.
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
    formula: Callable[..., Tensor] | None = field(repr=False)
    exceptions: Mapping[str, Unkept] = field(default_factory=dict)
    cannot_export: Mapping[str, str] = field(default_factory=dict)
    letters: Callable[[Any], dict[str, int]] | None = field(default=None, repr=False)
    try_channels: int = 64
    goals: Mapping[tuple[str, str], float] | None = None
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


def read_slots(factory: Callable[..., Any]) -> dict[str, str]:
    """The slots of a mechanism's docstring, by name, and ``"Summary"``."""
    text = inspect.cleandoc(factory.__doc__ or "")
    slots = {"Summary": " ".join(text.partition("\n\n")[0].split())}
    for match in re.finditer(r"^(\w+):[ \t]+(.*(?:\n[ \t]+.*)*)", text, re.MULTILINE):
        if match[1] in SLOTS:
            slots[match[1]] = inspect.cleandoc(match[2])
    return slots
