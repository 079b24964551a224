"""`regard list` and `regard info`: which mechanisms there are, and what is known of each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from regard.base.errors import UserError, near
from regard.base.tables import aligned
from regard.cli.options import Category, Mechanism
from regard.cli.output import print_json

if TYPE_CHECKING:
    from regard.registry.info import Info


def list_(
    *, category: Category | None = None, attention: Literal["soft", "hard", "self"] | None = None, json: bool = False
) -> None:
    """Show the mechanisms by category: name, kind of attention, where it attaches, parameters at 256 channels, paper.

    Parameters
    ----------
    category
        Only those of one category, e.g. channel.
    attention
        Only those of soft, hard or self-attention.
    json
        Print JSON instead of a table.

    Examples
    --------
    regard list
    regard list --category channel
    """
    from regard.registry.cards import cards

    every = [card for _, card in sorted(cards().items())]
    groups = sorted({card.category for card in every})
    if category is not None and category not in groups:
        hint = near(category, groups) or f": the categories are {', '.join(groups)}"
        raise UserError(f"there is no category {category!r}{hint}")
    chosen = [c for c in every if category in (None, c.category) and attention in (None, c.attention)]
    if json:
        print_json([_selected(c, "name", "category", "attention", "paper") | _parameters(c) for c in chosen])
    else:
        _print_table(chosen)


def _selected(card: Info, *keys: str) -> dict[str, Any]:
    return {key: getattr(card, key) for key in keys}


def _parameters(card: Info, **options: Any) -> dict[str, int]:
    return {"parameters_at_256": card.parameters(256, **options)}


def _print_table(cards: Sequence[Info]) -> None:
    """A line for each mechanism, below the name of its category."""
    cells = [[c.name, c.attention, c.place or "-", f"{c.parameters(256):,}", c.paper] for c in cards]
    titles = ["", "attention", "attaches at", "parameters at C=256", "paper"]
    first, *lines = aligned([titles, *cells], right={3})
    print("  " + first)
    groups: dict[str, list[str]] = {}
    for card, line in zip(cards, lines, strict=True):
        groups.setdefault(card.category, []).append("  " + line)
    for category in sorted(groups):
        print("\n".join([category, *groups[category]]))


def info(name: Mechanism, /, *, json: bool = False) -> None:
    """Show a mechanism's card: formula, shapes, cost, placement, how it differs from the paper and the authors' code.

    Parameters
    ----------
    name
        A registered name, with options where wanted: se, "cbam[squeeze=max]"; `regard list` shows the names.
    json
        Print JSON instead of text.

    Examples
    --------
    regard info cbam
    regard info "cbam[squeeze=max]"
    regard info cbam --json
    """
    from regard.registry.cards import card

    mechanism = card(name)
    if not json:
        print(mechanism)
        return
    options = dict(mechanism.options)
    print_json(
        _selected(mechanism, "name", "category", "attention", "paper", "place", "signature")
        | {"spatial_axes": list(mechanism.spatial), "exceptions": dict(mechanism.exceptions), "options": options}
        | _parameters(mechanism, **options)
        | {"card": dict(mechanism.slots)}
    )
