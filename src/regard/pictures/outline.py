"""A network as a picture: its maps as a row of boxes, and below them where mechanisms go."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from textwrap import wrap
from xml.sax.saxutils import escape

from torch import nn

from regard.insertion.survey import Survey
from regard.insertion.surveyed import Surveyed
from regard.insertion.words import find
from regard.pictures import svg

SEVERAL = 8  # blocks; where there are more, equal ones that follow each other share a box


@dataclass(frozen=True)
class Step:
    """One map on the way through a network, or several equal ones.

    Attributes:
        names: dotted names of the modules that give it.
        kind: class of the first.
        shape: (B, C, *spatial).
        is_block: whether it is a residual block.
    """

    names: tuple[str, ...]
    kind: str
    shape: tuple[int, ...]
    is_block: bool

    def holds(self, site: str) -> bool:
        """Whether a site is one of its modules or inside of one."""
        return any(f"{site}.".startswith(f"{name}.") for name in self.names)


def trace(model: nn.Module, survey: Survey) -> tuple[Step, ...]:
    """The maps of a network in the order of the forward pass.

    Args:
        model: the network.
        survey: of its dry run.
    """
    modules = dict(model.named_modules())
    blocks = set(find("blocks", Surveyed(model, survey)))
    steps = []
    for name in sorted(set(_parts("", modules, blocks, survey)), key=survey.order.index):
        shape = survey.outputs[name][0].map
        if shape:
            steps.append(Step((name,), type(modules[name]).__name__, shape, name in blocks))
    share = sum(step.is_block for step in steps) > SEVERAL

    def alike(step: Step) -> object:
        return (step.shape, step.kind, share or step.names) if step.is_block else step.shape

    joined = [list(group) for _, group in groupby(steps, key=alike)]
    return tuple(replace(group[0], names=tuple(name for step in group for name in step.names)) for group in joined)


def _parts(name: str, modules: Mapping[str, nn.Module], blocks: set[str], survey: Survey) -> Iterator[str]:
    """What a module is made of, down to residual blocks, or to parts that hold none."""
    for child in modules[name]._modules:
        inside = f"{name}.{child}".removeprefix(".")
        if inside not in modules:  # registered as None, or a module that stands elsewhere, too
            continue
        called = inside in survey.outputs and type(modules[inside]).forward is not nn.Sequential.forward
        if inside in blocks or (called and not any(block.startswith(f"{inside}.") for block in blocks)):
            yield inside
        else:
            yield from _parts(inside, modules, blocks, survey)


# How it looks

ROOM, GAP, MARGINAL = 860.0, 12.0, 26.0  # of a row, between boxes, for the letters before them
TALL, THIN, LOW, WIDE = 96.0, 10.0, 6.0, 50.0  # height of the largest map, and what a box has at least and at most
LINE, BAND, ABOVE = 15, 24, 18  # heights of a line of text, of a band of marks, of the words over a box
STYLE = f"""{svg.STYLE}
.l{{text-anchor:start}}
.b{{font-weight:bold}}
.mark{{fill:#fdeebb;stroke:#7a5900;stroke-width:1.3}}
.band{{stroke:#d1d9e0}}"""


def draw(steps: Sequence[Step], marks: Mapping[str, Sequence[str]], title: str) -> str:
    """The network as an SVG picture, from left to right in as many rows as it takes.

    Args:
        steps: from `trace`.
        marks: text -> its sites; each gets a band below the boxes, with a letter that is explained at the end.
        title: what the picture shows.
    """
    bands = {
        chr(ord("A") + place): [sum(step is _place(site, steps) for site in sites) for step in steps]
        for place, sites in enumerate(marks.values())
    }
    parts = [_text(0, 4, title, "l b")]
    y = 24.0
    for row in _rows(steps):
        widths = [_room(steps[place]) for place in row]
        middles = [MARGINAL + sum(widths[:k]) + GAP * k + width / 2 for k, width in enumerate(widths)]
        right = middles[-1] + widths[-1] / 2
        tall = max(_size(steps[place], steps)[1] for place in row)
        centre, below = y + ABOVE + tall / 2, y + ABOVE + tall
        parts.append(f'<path class="arrow" d="M{svg.at(MARGINAL, centre)}H{svg.number(right)}"/>')
        for place, middle in zip(row, middles, strict=True):
            parts += _box(steps[place], steps, middle, centre)
            parts += [
                _text(middle, below + LINE * (line + 1), words, style)
                for line, (words, style) in enumerate(_lines(steps[place]))
            ]
        across = below + 3 * LINE - 7
        for letter, counts in bands.items():
            marked = [(middle, counts[place]) for place, middle in zip(row, middles, strict=True) if counts[place]]
            if marked:
                across += BAND
                parts.append(f'<path class="band" d="M{svg.at(MARGINAL, across)}H{svg.number(right)}"/>')
                parts.append(_text(8, across + 4.5, letter, "b"))
                parts += [_mark(middle, across, count) for middle, count in marked]
        y = across + 31
    for words in _key(marks):
        parts.append(_text(0, y, words, "l"))
        y += LINE + 2
    for words in _legend(steps, marks):
        parts.append(_text(0, y + 2, words, "l s"))
        y += LINE
    listed = ", ".join(f"{_name(step)} {_shape(step)}" for step in steps)
    return svg.page(
        "\n".join(parts), MARGINAL + ROOM, y + 4 - LINE, title=title, description=f"{title}: {listed}", style=STYLE
    )


def _place(site: str, steps: Sequence[Step]) -> Step | None:
    """The step that a site belongs to: the one that holds it, else the last of those inside of it."""
    holding = [step for step in steps if step.holds(site)]
    inside = [step for step in steps if step.names[-1].startswith(f"{site}.")]
    return next(iter(holding or inside[::-1]), None)


def _rows(steps: Sequence[Step]) -> list[list[int]]:
    """As many boxes in a row as there is room for."""
    rows: list[list[int]] = []
    x = math.inf
    for place, step in enumerate(steps):
        if x + _room(step) > ROOM:
            rows.append([])
            x = 0.0
        rows[-1].append(place)
        x += _room(step) + GAP
    return rows


def _room(step: Step) -> float:
    return max(WIDE, *(svg.length(words, svg.SMALL) for words, _ in _lines(step)))


def _box(step: Step, steps: Sequence[Step], middle: float, centre: float) -> list[str]:
    width, height = _size(step, steps)
    top = centre - height / 2
    sizes = f'width="{svg.number(width)}" height="{svg.number(height)}" rx="2"'
    kind = "layer" if step.is_block else "step"
    box = f'<rect class="{kind}" x="{svg.number(middle - width / 2)}" y="{svg.number(top)}" {sizes}/>'
    several = step.is_block and len(step.names) > 1
    return [box, _text(middle, top - 5, f"× {len(step.names)}", "b")] if several else [box]


def _size(step: Step, steps: Sequence[Step]) -> tuple[float, float]:
    """Width and height of a step's box."""
    channels = [other.shape[1] for other in steps]
    doublings = math.log2(max(channels) / min(channels))
    width = THIN + (WIDE - THIN) * (math.log2(step.shape[1] / min(channels)) / doublings if doublings else 1)
    return width, max(LOW, TALL * math.sqrt(_side(step) / max(map(_side, steps))))


def _mark(x: float, y: float, count: int) -> str:
    circle = f'<circle class="mark" cx="{svg.number(x)}" cy="{svg.number(y)}" r="10"/>'
    return circle + _text(x, y + 4, str(count), "s b")


def _text(x: float, y: float, words: str, style: str) -> str:
    return f'<text class="{style}" x="{svg.number(x)}" y="{svg.number(y)}">{escape(words)}</text>'


def _lines(step: Step) -> list[tuple[str, str]]:
    kind = step.kind if step.is_block or len(step.names) == 1 else ""
    return [(_name(step), "s b"), (_shape(step), "s"), (kind, "s")]


def _name(step: Step) -> str:
    """``layer1.0``, or ``layer1.0 – 5`` for several."""
    first, last = step.names[0], step.names[-1]
    if first == last:
        return first
    parent = first.rpartition(".")[0] + "."
    return f"{first} – {last.removeprefix(parent)}"


def _shape(step: Step) -> str:
    return f"{step.shape[1]} · {'×'.join(map(str, step.shape[2:]))}"


def _side(step: Step) -> float:
    return math.prod(step.shape[2:]) ** (1 / len(step.shape[2:]))


def _legend(steps: Sequence[Step], marks: Mapping[str, Sequence[str]]) -> list[str]:
    blue = " Blue: residual blocks." if any(step.is_block for step in steps) else ""
    counted = " Number in a circle: sites in the box above it." if marks else ""
    return [
        "Boxes: maps in the order of calls; connections are not shown.",
        f"Height: side of the map. Width: its channels.{blue}{counted}",
    ]


def _key(marks: Mapping[str, Sequence[str]]) -> list[str]:
    lines = []
    for place, (text, sites) in enumerate(marks.items()):
        letter = chr(ord("A") + place)
        count = f"{len(sites)} site{'s' * (len(sites) != 1)}"
        lines += wrap(f"{letter}: {count} of {text}", 120, subsequent_indent="\N{NO-BREAK SPACE}" * 4)
    return lines
