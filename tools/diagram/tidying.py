"""What of a forward pass is drawn: loops once, sums as one, small steps in one box, and nothing that leads nowhere."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

from diagram.flow import Node


def rolled(nodes: list[Node]) -> list[Node]:
    """Every round of a loop on its first: what one place computes again, from something the same, is one node."""
    order = {node: place for place, node in enumerate(nodes)}
    stands: dict[Node, Node] = {}  # node -> the one that is kept for it
    first: dict[Any, list[Node]] = defaultdict(list)
    notes: list[Node] = []
    for node in nodes:
        node.sources = list(dict.fromkeys(stands[source] for source in node.sources))
        kept = stands[node] = _alike(node, first[node.site, str(node)])
        if kept is node:
            first[node.site, str(node)].append(node)
            continue
        kept.rounds += 1
        later = [source for source in node.sources if order[source] >= order[kept]]
        kept.sources += [source for source in node.sources if source not in (*later, *kept.sources)]
        if later and not {*notes} & {*kept.sources}:
            notes.append(Node("note", [("from the round before", "")], "", []))
            kept.sources.append(notes[-1])
    return notes + [node for node in nodes if stands[node] is node]


def _alike(node: Node, earlier: list[Node]) -> Node:
    """The node of an earlier round that computes the same, or the node itself."""
    if node.kind in ("input", "output"):
        return node
    for other in earlier:
        # a module is the same whatever it reads; a line may stand in a loop over modules
        if isinstance(node.site, int) or not node.sources or {*node.sources} & {*other.sources}:
            return other
    return node


def tidied(nodes: list[Node]) -> list[Node]:
    """Without what reaches neither output nor map; sums of sums as one, and chains of small steps in one box."""
    nodes = _leading_somewhere(nodes)
    uses = Counter(source for node in nodes for source in node.sources)
    stands: dict[Node, Node] = {}  # node -> the one that it was put into
    for node in nodes:
        node.sources = list(dict.fromkeys(stands.get(source, source) for source in node.sources))
        for term in _terms(node, uses):
            place = node.sources.index(term)
            node.sources[place : place + 1] = term.sources
            stands[term] = node
        if _fits_above(node, uses):
            above = node.sources[0]
            above.rows += node.rows
            above.shape = node.shape
            above.kind = "layer" if "layer" in (above.kind, node.kind) else "step"
            stands[node] = above
            uses[above] = uses[node]
    return [node for node in nodes if node not in stands]


def _leading_somewhere(nodes: list[Node]) -> list[Node]:
    wanted: set[Node] = set()
    for node in reversed(nodes):
        if node in wanted or node.kind in ("input", "tap", "output"):
            wanted.update((node, *node.sources))
    return [node for node in nodes if node in wanted]


def _terms(node: Node, uses: Counter[Node]) -> list[Node]:
    """The sums, or the one stack, that a sum adds up and nothing else uses."""
    if str(node) != "add":
        return []
    terms = ("add", "stack") if len(node.sources) == 1 else ("add",)
    return [source for source in node.sources if str(source) in terms and uses[source] == 1]


def _fits_above(node: Node, uses: Counter[Node]) -> bool:
    """Whether it may stand in the box of its only source."""
    if not node.stacks or len(node.sources) != 1:
        return False
    above = node.sources[0]
    return above.kind in ("step", "layer") and uses[above] == 1 and above.rounds == node.rounds
