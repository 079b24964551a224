"""What a forward pass computes: boxes, and where the arrows of each come from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(eq=False)
class Node:
    """One box of the picture.

    Attributes:
        kind: ``"input"``, ``"step"`` (no weights), ``"layer"`` (learnt weights), ``"tap"``, ``"note"`` (words on an
            arrow) or ``"output"``.
        rows: what it computes, step after step, each with its name in the module, or "".
        shape: of its result, in letters.
        sources: the nodes that its arrows come from.
        site: where it was computed, the same in every round of a loop.
        stacks: whether it may stand in the box of its only source.
        rounds: how many rounds of a loop it stands for.
    """

    kind: str
    rows: list[tuple[str, str]]
    shape: str
    sources: list[Node]
    site: object = None
    stacks: bool = False
    rounds: int = 1

    def __str__(self) -> str:
        return ", ".join(text or name for text, name in self.rows)


@dataclass
class Flow:
    """What a forward pass computes: its nodes, each after its sources. As text: its steps in their order."""

    nodes: list[Node]

    def __str__(self) -> str:
        return "; ".join(str(node) for node in self.nodes if node.kind != "note")
