"""What the page answers when a visitor sends a picture, clicks or chooses: the new values of its components.

Components whose value does not change are skipped: meanwhile the visitor may have changed it again.
"""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from regard.app.networks import Networks
from regard.app.panel import OVERLAID, WARNING, Panel, look_into
from regard.app.pictures import Pictures, clicked, marked
from regard.base.errors import UserError

NOTHING = "nothing"  # in the place of a network
MEAN = "mean"  # in the place of a head
WAITING = "Waiting for a picture."


class Events:
    """A method for each event, with the components' values as gradio gives them.

    Args:
        networks: that are offered.
    """

    def __init__(self, networks: Networks) -> None:
        self.networks = networks
        self.pictures = Pictures(networks.peak)

    def upload(self, path: str | None) -> tuple[Any, Any, Any]:
        """The upload, emptied; the picture; what is wrong with the file."""
        if path is None:
            return gr.skip(), gr.skip(), gr.skip()
        try:
            return None, self.pictures.take(Path(path)), paragraphs([])
        except UserError as error:
            return None, gr.skip(), paragraphs([], fault=f"{error}.")

    def mark(self, picture: Image.Image | None, row: float | None, column: float | None) -> tuple[Any, Any]:
        """The picture with a cross at the query location, and where that is."""
        if picture is None:
            return gr.skip(), gr.skip()
        query = _fractions(row, column)
        where = paragraphs([f"The cross: {100 * query[0]:.3g} % from the top, {100 * query[1]:.3g} % from the left."])
        return gr.update(value=marked(picture, query), visible=True), where

    def click_picture(self, picture: Image.Image | None, event: gr.SelectData) -> tuple[Any, Any]:
        """Row and column of the query location, in per cent."""
        place = None if picture is None else clicked(picture, event.index)
        return place or (gr.skip(), gr.skip())

    def click_map(self, picture: Image.Image | None, key: str | None, event: gr.SelectData) -> tuple[Any, Any]:
        """As a click on the picture, where the map lies over it."""
        overlaid = key is not None and key.partition("/")[0] in OVERLAID
        return self.click_picture(picture if overlaid else None, event)

    def show(
        self,
        picture: Image.Image | None,
        row: float | None,
        column: float | None,
        network: str,
        mechanism: str,
        key: str | None,
        head: str,
    ) -> tuple[Any, Any, Any, Any]:
        """The maps to choose from, the heads, the map that is drawn, and sentences."""
        panel, fault = Panel(), ""
        if picture is None and network != NOTHING:
            panel = Panel(sentences=[WAITING])
        elif picture is not None and network != NOTHING:
            number = int(head) if str(head).isdecimal() else None
            try:
                panel = look_into(self.networks, network, mechanism, key, number, picture, _fractions(row, column))
            except UserError as error:
                fault = str(error)
            except Exception as error:  # networks are other people's code
                traceback.print_exc()
                fault = f"Looking into this network failed ({type(error).__name__}); the terminal says where."
        heads = [MEAN, *map(str, range(panel.heads))]
        return (
            _choice(panel.maps, key, panel.key),
            _choice([(word, word) for word in heads] if panel.heads else [], head, head if head in heads else MEAN),
            gr.update(value=panel.drawn, visible=panel.drawn is not None),
            paragraphs(panel.sentences, fault),
        )

    def show_attached(self, *values: Any) -> tuple[Any, Any, Any, Any]:
        """As `show`, for another mechanism: it brings maps of its own."""
        picture, row, column, network, mechanism, _, head = values
        return self.show(picture, row, column, network, mechanism, None, head)


def paragraphs(sentences: Sequence[str], fault: str = "") -> str:
    """Sentences as HTML, those that warn and the one that says what went wrong marked as such."""
    lines = []
    for sentence in sentences:
        warns = ' class="warn"' if sentence.startswith(WARNING) else ""
        lines.append(f"<p{warns}>{escape(sentence.removeprefix(WARNING))}</p>")
    if fault:
        lines.append(f'<p class="fault" role="alert">{escape(fault)}</p>')
    return "".join(lines)


def _choice(choices: list[tuple[str, str]], before: str | None, now: str | None) -> Any:
    value = {"value": now} if now != before else {}
    return gr.update(choices=choices, visible=bool(choices), **value)


def _fractions(row: float | None, column: float | None) -> tuple[float, float]:
    """Per cent as fractions; an emptied box is 0."""
    y, x = (min(1.0, max(0.0, float(at or 0) / 100)) for at in (row, column))
    return y, x
