"""Options that several commands share: each is explained once, and says what the shell may complete."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from cyclopts import Parameter

from regard.registry.info import PLACES


def mechanisms(_: Any) -> dict[str, str]:
    """Every mechanism with its summary, for the shell."""
    from regard.registry.cards import cards

    return {name: card.slots["Summary"] for name, card in sorted(cards().items())}


def attachable(_: Any) -> dict[str, str]:
    """The mechanisms that can be attached to a network, for the shell."""
    from regard.registry.cards import cards

    return {name: card.slots["Summary"] for name, card in sorted(cards().items()) if card.place}


def categories(_: Any) -> list[str]:
    """The categories of mechanisms, for the shell."""
    from regard.registry.cards import cards

    return sorted({card.category for card in cards().values()})


def site_words(_: Any) -> list[str]:
    """The words for sites, for the shell."""
    return ["auto", *PLACES]


Mechanism = Annotated[str, Parameter(completer=mechanisms)]
Attachable = Annotated[str, Parameter(completer=attachable)]
Category = Annotated[str, Parameter(completer=categories)]
Model = Annotated[
    str,
    Parameter(
        help="small_resnet, a network of timm, torchvision/NAME, or file.py:function, which runs that file and calls "
        "the function; it returns a model, or a model and an example."
    ),
]
Sites = Annotated[
    str,
    Parameter(
        help=f'Sites: {", ".join(("auto", *PLACES))}; a pattern such as "layer4.*.bn2"; or names joined by commas.',
        completer=site_words,
    ),
]
Layout = Annotated[
    Literal["channels_first", "channels_last", "tokens"],
    Parameter(help="Layout of the network's maps, where it cannot be inferred."),
]
Size = Annotated[int, Parameter(help="Side of the images in pixels; by default the network's own.")]
Device = Annotated[str, Parameter(help="cpu or cuda.")]
