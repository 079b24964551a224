"""Tables as plain text."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def aligned(rows: Sequence[Sequence[str]], *, right: Collection[int] = (), first: int | None = None) -> list[str]:
    """Rows of cells as lines of text, the columns two spaces apart.

    Args:
        rows: one list of cells each, the head among them, all of the same length.
        right: the columns whose cells end at the right, as numbers do.
        first: the width of the first column; a cell that is longer has a line of its own. None fits the longest.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    if first is not None:
        widths[0] = min(widths[0], first)
    lines = []
    for row in rows:
        if len(row[0]) > widths[0]:
            lines.append(row[0])
            row = ["", *row[1:]]
        cells = [
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return lines
