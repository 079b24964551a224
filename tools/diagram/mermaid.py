"""A flow as a flowchart of Mermaid, which GitHub and most viewers of Markdown draw."""

from __future__ import annotations

import re
from collections.abc import Iterator

from diagram.flow import Flow, Node

CONFIG = """---
config:
  themeVariables: {fontSize: 13px}
  flowchart: {nodeSpacing: 24, rankSpacing: 26, padding: 7}
---
flowchart TD"""
ROUND = ("input", "tap", "output")
STYLES = {
    "input": "fill:#e6eaef,stroke:#818b98,color:#1f2328",
    "step": "fill:#ffffff,stroke:#818b98,color:#1f2328",
    "layer": "fill:#dbe9fb,stroke:#4a7bb7,color:#1f2328",
    "tap": "fill:#fdeebb,stroke:#a67800,color:#1f2328",
    "note": "fill:none,stroke:none",
    "output": "fill:#e6eaef,stroke:#818b98,color:#1f2328",
}
LONG = 26  # letters of a line of a box; a module's name that would make it longer stands below


def draw(flow: Flow, title: str) -> str:
    """Write the chart, on a background of any colour.

    Args:
        flow: from `trace`.
        title: what it shows, for those who cannot see it; the flow as text is added.
    """
    nodes = [node for node in flow.nodes if not _is_on_an_arrow(node)]
    names = {node: f"n{number}" for number, node in enumerate(nodes)}
    boxes = [f"{names[node]}{_box(node)}:::{node.kind}" for node in nodes]
    arrows = [
        f"{names[start]} -->{words} {names[node]}"
        for node in nodes
        for source in node.sources
        for start, words in _arrows(source)
    ]
    kinds = {node.kind for node in nodes}
    styles = [f"classDef {kind} {style}" for kind, style in STYLES.items() if kind in kinds]
    lines = [f"accTitle: {title}", f"accDescr: {flow}", *boxes, *arrows, *styles]
    return "\n    ".join([CONFIG, *lines])


def _is_on_an_arrow(node: Node) -> bool:
    return node.kind == "note" and bool(node.sources)


def _arrows(source: Node, *notes: str) -> Iterator[tuple[Node, str]]:
    """Where the arrows from a source start, and the words on them."""
    if _is_on_an_arrow(source):
        for before in source.sources:
            yield from _arrows(before, _escaped(str(source)), *notes)
    else:
        yield source, f'|"{", ".join(notes)}"|' if notes else ""


def _box(node: Node) -> str:
    left, right = ('(["', '"])') if node.kind in ROUND else ('["', '"]')
    return left + "<br>".join(_lines(node)) + right


def _lines(node: Node) -> list[str]:
    """The text of a box; the shape where it is not that of a source."""
    lines = []
    for text, name in node.rows:
        gap = "<br>" if len(f"{text} {name}") > LONG else " "
        lines.append(gap.join(filter(None, (_escaped(text), name and _small(name)))))
    changes = all(source.shape != node.shape for source in node.sources)
    shape = node.shape if changes or node.kind in ("tap", "output") else ""
    rounds = f"{node.rounds} times" if node.rounds > 1 else ""
    below = ", ".join(filter(None, (shape, rounds)))
    return [*lines, _small(below)] if below else lines


def _small(text: str) -> str:
    return f"<small>{_escaped(text)}</small>"


def _escaped(text: str) -> str:
    """Text that is no tag and ends no string: Mermaid's own way to write such letters, by their numbers."""
    return re.sub('["#<>]', lambda letter: f"#{ord(letter[0])};", text)
