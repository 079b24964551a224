"""How an advice reads: the cells of its table, its titled lists, numbers with their units."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import fill

from regard.base.tables import aligned
from regard.costs.timing import Spread

WIDTH = 100  # columns


def table(rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns; a name that is too long has a line of its own."""
    widths = [max(len(row[column]) for row in rows) for column in range(1, len(rows[0]))]
    first = max(len(rows[0][0]), WIDTH - sum(widths) - 2 * len(widths))
    return "\n".join(aligned(rows, right=range(1, len(rows[0])), first=first))


def section(title: str, lines: Sequence[tuple[str, str | None]]) -> list[str]:
    """A titled list, or nothing; a sentence that several arms share is said once."""
    arms: dict[str, list[str]] = {}
    for arm, sentence in lines:
        arms.setdefault(sentence or "", []).append(arm)
    texts = [": ".join(filter(None, (", ".join(named), sentence))) for sentence, named in arms.items()]
    wrapped = [fill(text, WIDTH, initial_indent="  ", subsequent_indent="    ") for text in texts]
    return ["\n".join([f"{title}:", *wrapped])] if wrapped else []


def ratio(spread: Spread) -> str:
    """Median, and the quartiles around it."""
    low, median, high = spread
    return f"{median:.2f} ({low:.2f}-{high:.2f})"


def milliseconds(spread: Spread) -> str:
    low, median, high = (f"{value:,.0f}" if value >= 10 else f"{value:.2g}" for value in spread)
    return f"{median} ms ({low}-{high})"


def added(part: int, whole: int) -> str:
    """What was added, and how much that is of what there was before."""
    share = 100 * part / (whole - part) if whole > part else 0.0
    percent = f"{share:.0f}%" if share >= 10 else f"{share:.1f}%" if share >= 0.05 or not part else "<0.1%"
    return (
        f"{part:+d} {percent:>5}" if abs(part) < 1000 else f"{'+' if part > 0 else '-'}{short(abs(part))} {percent:>5}"
    )


def short(number: int) -> str:
    """About how many, in four letters."""
    for scale, letter in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if number >= scale:
            return f"{number / scale:.3g}{letter}" if number < 1000 * scale else f"{number / scale:,.0f}{letter}"
    return str(number)


def bytes_text(number: float) -> str:
    for scale, unit in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if number >= scale:
            return f"{number / scale:.3g} {unit}" if number < 1000 * scale else f"{number / scale:,.0f} {unit}"
    return f"{number:.0f} bytes"
