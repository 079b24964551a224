"""The page as gradio draws it: its texts, its components, and which of `regard.app.events` answers which event."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import gradio as gr

from regard.app.events import MEAN, NOTHING, WAITING, Events, paragraphs
from regard.app.networks import AS_IT_IS, Networks, attachable
from regard.maps.figures import FIGURES

ABOUT = """# What does a network look at?

Drop a picture. Each panel looks into one network: one of its attention maps is laid over the picture, dark where it is
low and bright where it is high. Click the picture, or a map, to move the query location; only attention between places
(ViT, non-local) answers differently for every location.
"""
MEANINGS = "".join(f"- **{name}**: {FIGURES[name].text}\n" for name in ("spread", "entropy", "edges"))
MEANINGS += """\
- **map**: where attention was found, with its kind: *view* is what the query location takes from all others, *channel*
  how much each feature is let through, *spatial* how much each place. *Evidence* is what raised the score of the
  predicted class (Grad-CAM and its relatives).
- **attached mechanism**: attention of this library, attached to the network here and now, as its authors start it.

Whether a map is the same for every picture, or with random weights, takes more pictures: `regard look` says it.
"""
CSS = """
.words p { margin: 0 0 .4rem; line-height: 1.45; overflow-wrap: anywhere; }
.words .warn { color: #8a3b00; font-weight: 600; }
.dark .words .warn { color: #ffb37a; }
.words .fault { color: #a40000; font-weight: 600; }
.dark .words .fault { color: #ff9d9d; }
.picture img { cursor: crosshair; }
"""
QUIET: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "trigger_mode": "always_last"}


class Query(NamedTuple):
    """The components of the picture and the query location."""

    upload: gr.File
    trouble: gr.HTML
    shown: gr.Image
    where: gr.HTML
    row: gr.Slider
    column: gr.Slider


class Controls(NamedTuple):
    """The components of a panel."""

    network: gr.Dropdown
    mechanism: gr.Dropdown
    key: gr.Dropdown
    head: gr.Dropdown
    drawn: gr.Image
    sentences: gr.HTML


def build(networks: Networks) -> gr.Blocks:
    """The page, for `regard.app.server.serve`."""
    names = list(networks.offered)
    with gr.Blocks(title="regard: what does a network look at?", fill_width=True, delete_cache=(300, 3600)) as page:
        gr.Markdown(ABOUT)
        picture = gr.State(None, time_to_live=3600)
        with gr.Row():
            query = _query()
            panels = [_panel("A", names, names[0]), _panel("B", names, names[1] if len(names) > 1 else NOTHING)]
        with gr.Accordion("What the words and figures say", open=False):
            gr.Markdown(MEANINGS)
        _connect(Events(networks), picture, query, panels)
    return page


def _query() -> Query:
    with gr.Column(min_width=300):
        return Query(
            upload=gr.File(label="Picture", file_types=["image"], height=140, elem_id="upload"),
            trouble=gr.HTML(elem_classes="words", elem_id="trouble"),
            shown=_picture("Your picture, with a cross at the query location", "shown"),
            where=gr.HTML(elem_classes="words", elem_id="where"),
            row=gr.Slider(0, 100, 50, step=1, label="Query: % from the top", elem_id="row", buttons=[]),
            column=gr.Slider(0, 100, 50, step=1, label="Query: % from the left", elem_id="column", buttons=[]),
        )


def _panel(letter: str, names: Sequence[str], first: str) -> Controls:
    def dropdown(id: str, label: str, choices: Sequence[str], value: str | None = None, **options: Any) -> gr.Dropdown:
        return gr.Dropdown([*choices], value=value, label=label, elem_id=f"{id}-{letter}", **options)

    with gr.Column(min_width=300, elem_id=f"panel-{letter}"):
        gr.Markdown(f"## {letter}")
        network = dropdown("network", "Network", [*names, NOTHING], first)
        mechanism = dropdown("mechanism", "Attached mechanism", [AS_IT_IS, *attachable()], AS_IT_IS)
        with gr.Row():
            key = dropdown("key", "Map", [], visible=False, min_width=200, scale=2)
            head = dropdown("head", "Head", [MEAN], MEAN, visible=False, min_width=130, scale=1)
        drawn = _picture("What it looks at", f"map-{letter}")
        sentences = gr.HTML(paragraphs([WAITING]), elem_classes="words", elem_id=f"words-{letter}")
    return Controls(network, mechanism, key, head, drawn, sentences)


def _picture(label: str, elem_id: str) -> gr.Image:
    return gr.Image(
        alt_text=label,
        show_label=False,
        elem_id=elem_id,
        elem_classes="picture",
        format="png",
        interactive=False,
        visible=False,
        buttons=[],
    )


def _connect(events: Events, picture: gr.State, query: Query, panels: Sequence[Controls]) -> None:
    place = [query.row, query.column]
    query.upload.upload(events.upload, [query.upload], [query.upload, picture, query.trouble], **QUIET)
    query.shown.select(events.click_picture, [picture], place, **QUIET)
    moved = [picture.change, query.row.change, query.column.change]
    # one after the other: of several events that a page begins at once, gradio loses answers on a slow machine
    last = gr.on(moved, events.mark, [picture, *place], [query.shown, query.where], preprocess=False, **QUIET)
    for panel in panels:
        panel.drawn.select(events.click_map, [picture, panel.key], place, **QUIET)
        inputs = [picture, *place, panel.network, panel.mechanism, panel.key, panel.head]
        outputs = [panel.key, panel.head, panel.drawn, panel.sentences]
        # what was chosen before the choices changed is no error: `look_into` takes what is there instead
        loud = QUIET | {"show_progress": "minimal", "show_progress_on": [panel.sentences], "preprocess": False}
        loud |= {"concurrency_limit": 1, "concurrency_id": "network"}
        last = last.then(events.show, inputs, outputs, **loud)
        gr.on([panel.network.input, panel.key.input, panel.head.input], events.show, inputs, outputs, **loud)
        panel.mechanism.input(events.show_attached, inputs, outputs, **loud)
