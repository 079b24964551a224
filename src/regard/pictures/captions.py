"""What a picture of a map shows, for a reader who has never seen one."""

from __future__ import annotations

from regard.maps.gradcam import METHODS, PAPERS
from regard.maps.recording import Map

CAPTIONS = {
    "channel": "Channel gates: how much of each channel is let through.",
    "spatial": "Spatial gate: how much of each place is let through",
    "axis": "Gates of rows and columns: how much of each place is let through, their product",
    "element": "Gates of all elements: how much of each place is let through, mean of the channels",
    "token": "Where the place with the cross looks",
    "criss-cross": "Where the place with the cross looks, in its row and column",
    "branch": "How much each branch counts, mean of the channels.",
    "kernel": "How much each moment counts, mean of the channels.",
    "pair": "What each channel or layer (row) takes from the others (column).",
    "query": "What each query (row) takes from the keys (column).",
    "frame": "The part of the picture that is taken; the thick edge becomes the upper one.",
    "path": "The places that were looked at, in their order.",
}


def caption(
    recorded: Map, kind: str, head: int | None = None, smooth: bool = True, target: str = "the predicted class"
) -> str:
    """What a picture of a map shows, in sentences.

    Args:
        recorded: that is drawn.
        kind: its kind, or of evidence the method.
        head, smooth: as in `regard.draw`.
        target: of evidence, the class in words.
    """
    words = f"Evidence for {target} ({PAPERS[kind]} at {recorded.name})" if kind in METHODS else CAPTIONS[kind]
    if words.endswith("."):
        return words
    if kind == "token" and recorded.value.shape[1] > 1:
        words += f", {'mean of the heads' if head is None else f'head {head}'}"
    sides = recorded.layout.grid if recorded.layout else recorded.value.shape[-2:]
    return f"{words}. {' x '.join(map(str, sides))} values, {'interpolated' if smooth else 'as blocks'}."
