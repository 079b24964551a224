"""`sheet`: images and their maps as a labelled grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from regard.base.errors import UserError
from regard.pictures.overlay import as_map, overlay
from regard.pictures.picture import INK, font, resize


def sheet(
    images: Sequence[Any],
    maps: Mapping[str, Sequence[Any]],
    *,
    labels: Sequence[str] | None = None,
    size: int = 128,
    alpha: float = 0.5,
    smooth: bool = True,
    limits: tuple[float, float] | None = None,
) -> Image.Image:
    """Draw a labelled grid: a row for each image, a column for the image itself and one for each kind of map.

    Args:
        images: K images, at least one, as `overlay` takes them.
        maps: the columns: name -> K maps of that name, one for each image.
        labels: K words for the rows; by default numbers.
        size: the longer side of one picture in pixels.
        alpha, smooth: as in `overlay`.
        limits: the values drawn darkest and brightest; by default each column's own lowest and highest.

    Raises:
        UserError: when a column or the labels do not match the number of images, or as `overlay` raises.
    """
    words = [str(i) for i in range(len(images))] if labels is None else labels
    for name, entries in [("labels", words), *maps.items()]:
        if len(entries) != len(images):
            raise UserError(f"sheet: {name!r} has {len(entries)} entries for {len(images)} images; give one for each.")
    columns = {"image": [resize(image, size) for image in images]}
    for name, entries in maps.items():
        values = [as_map(map) for map in entries]
        shared = limits or (min(v.min() for v in values), max(v.max() for v in values))
        columns[name] = [
            overlay(*pair, alpha=alpha, smooth=smooth, limits=shared)
            for pair in zip(columns["image"], values, strict=True)
        ]
    return grid(columns, words)


def grid(columns: Mapping[str, Sequence[Image.Image]], labels: Sequence[str]) -> Image.Image:
    """Pictures in columns with a head each, and words for the rows."""
    gap, head, letters = 8, 26, font(13)
    left = max(int(letters.getlength(word)) for word in labels) + 2 * gap
    tall = [max(column[row].height for column in columns.values()) for row in range(len(labels))]
    wide = [max(picture.width for picture in column) for column in columns.values()]
    page = Image.new("RGB", (left + sum(wide) + gap * len(wide), head + sum(tall) + gap * len(tall)), "white")
    pen = ImageDraw.Draw(page)
    tops = [head + sum(tall[:row]) + gap * row for row in range(len(tall))]
    for word, top, height in zip(labels, tops, tall, strict=True):
        pen.text((gap, top + height // 2), word, fill=INK, font=letters, anchor="lm")
    for (name, column), width in zip(columns.items(), wide, strict=True):
        pen.text((left, head // 2), _cut(name, letters, width), fill=INK, font=letters, anchor="lm")
        for picture, top in zip(column, tops, strict=True):
            page.paste(picture, (left, top))
        left += width + gap
    return page


def _cut(text: str, letters: ImageFont.FreeTypeFont, width: int) -> str:
    """The text, shortened in front until it fits: the end of a tap's dotted name tells more than its start."""
    kept = text
    while letters.getlength(kept) > width and len(kept) > 2:
        kept = "…" + kept[2:]
    return kept
