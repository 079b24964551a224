"""A module's data flow as a picture: what one forward pass computes, watched and written as a flowchart of Mermaid.

`trace` follows the tensors of one forward pass, `draw` writes what it saw. Both give the same answer every time, so
that a picture can be kept in a page and compared with the code.
"""

from diagram.flow import Flow, Node
from diagram.mermaid import draw
from diagram.tracing import trace

__all__ = ["Flow", "Node", "draw", "trace"]
