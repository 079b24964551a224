"""Pictures of attention maps: one over its image, many in a sheet, any kind with its scale."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from regard.base.arrays import array
from regard.base.errors import UserError
from regard.maps.recording import Map
from regard.pictures import charts
from regard.pictures.charts import Chart, Picture

PALETTE = "viridis"  # light grows evenly along it, so it reads in grey and with any kind of colour vision
INK = (40, 40, 40)
BESIDE = 70  # pixels for a scale

Point = tuple[float, float]


def overlay(
    image: Any,
    map: Any,
    *,
    alpha: float = 0.5,
    smooth: bool = True,
    limits: tuple[float, float] | None = None,
) -> Image.Image:
    """Lay a map over an image, dark where it is low and bright where it is high.

    Args:
        image: uint8, (H, W), (H, W, 1) or (H, W, 3), or a PIL image.
        map: array or tensor of (h, w), any size; leading axes of length one are dropped.
        alpha: the share of the map's colour, from 0 (only the image) to 1 (only the map).
        smooth: blend between the map's values; otherwise each value is one block.
        limits: the values drawn darkest and brightest; by default the map's own lowest and highest.

    Returns:
        An RGB image of (H, W).

    Raises:
        UserError: for another shape or dtype, or a map that holds NaN or infinity.
    """
    picture = rgb(image)
    values = _values(map)
    low, high = limits if limits is not None else (float(values.min()), float(values.max()))
    unit = np.clip((values - low) / (high - low), 0, 1) if high > low else np.zeros_like(values)
    way = Image.Resampling.BILINEAR if smooth else Image.Resampling.NEAREST
    spread = np.asarray(Image.fromarray(unit.astype(np.float32)).resize(picture.size, way))
    colours = matplotlib.colormaps[PALETTE](spread)[..., :3] * 255
    blended = (1 - alpha) * np.asarray(picture, dtype=np.float64) + alpha * colours
    return Image.fromarray(np.rint(blended).astype(np.uint8))


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
        values = [_values(map) for map in entries]
        shared = limits or (min(v.min() for v in values), max(v.max() for v in values))
        columns[name] = [
            overlay(*pair, alpha=alpha, smooth=smooth, limits=shared)
            for pair in zip(columns["image"], values, strict=True)
        ]
    return grid(columns, words)


def grid(columns: Mapping[str, Sequence[Image.Image]], labels: Sequence[str]) -> Image.Image:
    """Pictures in columns with a head each, and words for the rows."""
    font, gap, head = _font(13), 8, 26
    left = max(int(font.getlength(word)) for word in labels) + 2 * gap
    tall = [max(column[row].height for column in columns.values()) for row in range(len(labels))]
    wide = [max(picture.width for picture in column) for column in columns.values()]
    page = Image.new("RGB", (left + sum(wide) + gap * len(wide), head + sum(tall) + gap * len(tall)), "white")
    pen = ImageDraw.Draw(page)
    tops = [head + sum(tall[:row]) + gap * row for row in range(len(tall))]
    for word, top, height in zip(labels, tops, tall, strict=True):
        pen.text((gap, top + height // 2), word, fill=INK, font=font, anchor="lm")
    for (name, column), width in zip(columns.items(), wide, strict=True):
        pen.text((left, head // 2), _cut(name, font, width), fill=INK, font=font, anchor="lm")
        for picture, top in zip(column, tops, strict=True):
            page.paste(picture, (left, top))
        left += width + gap
    return page


@dataclass(frozen=True)
class Drawing(Picture):
    """A picture and what is drawn over it, as pixels or as SVG, in which lines and words stay sharp at any size.

    Attributes:
        picture: RGB.
        lines: points (x, y) in pixels, and how wide.
        steps: places (x, y), numbered from 1.
        scale: the values of the darkest and the brightest colour.
    """

    picture: Image.Image
    lines: tuple[tuple[tuple[Point, ...], int], ...] = ()
    steps: tuple[Point, ...] = ()
    scale: tuple[float, float] | None = None

    def image(self) -> Image.Image:
        page = self.picture
        if self.scale:
            page = Image.new("RGB", (self.picture.width + BESIDE, self.picture.height), "white")
            page.paste(self.picture)
            page.paste(_ramp(self.picture.height), (self.picture.width + 6, 0))
        elif self.lines or self.steps:
            page = self.picture.copy()
        pen, font = ImageDraw.Draw(page), _font(10)
        for value, top, anchor in self._ends("la", "ld"):
            pen.text((self.picture.width + 19, top), value, fill=INK, font=font, anchor=anchor)
        for points, width in self.lines:  # white on black, so that it is seen on any picture
            pen.line(points, fill="black", width=width + 2, joint="curve")
            pen.line(points, fill="white", width=width, joint="curve")
        for step, (x, y) in enumerate(self.steps, start=1):
            pen.ellipse((x - 8, y - 8, x + 8, y + 8), fill="white", outline="black")
            pen.text((x, y), str(step), fill=INK, font=font, anchor="mm")
        return page

    def svg(self) -> str:
        width, height = self.picture.size
        wide = width + (BESIDE if self.scale else 0)
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{wide}" height="{height}" viewBox="0 0 {wide} {height}">',
            f"<style>text{{font:10px Helvetica,Arial,sans-serif;fill:rgb{INK}}}</style>",
            f'<image width="{width}" height="{height}" href="{data_uri(self.picture, "PNG")}"/>',
        ]
        if self.scale:
            ramp = data_uri(_ramp(height), "PNG")
            parts.append(f'<rect x="{width}" width="{BESIDE}" height="{height}" fill="white"/>')
            parts.append(f'<image x="{width + 6}" width="10" height="{height}" href="{ramp}"/>')
        for value, top, base in self._ends("hanging", "auto"):
            parts.append(f'<text x="{width + 19}" y="{top or 2}" dominant-baseline="{base}">{value}</text>')
        for points, thick in self.lines:
            along = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
            for colour, more in (("black", 2), ("white", 0)):
                parts.append(
                    f'<polyline points="{along}" fill="none" stroke="{colour}" stroke-width="{thick + more}" '
                    'stroke-linejoin="round"/>'
                )
        for step, (x, y) in enumerate(self.steps, start=1):
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="8" fill="white" stroke="black"/>')
            parts.append(
                f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="middle" dominant-baseline="central">{step}</text>'
            )
        return "\n".join([*parts, "</svg>\n"])

    def _ends(self, upper: str, lower: str) -> list[tuple[str, int, str]]:
        if not self.scale:
            return []
        low, high = self.scale
        return [(f"{high:.3g}", 0, upper), (f"{low:.3g}", self.picture.height, lower)]


def draw(
    found: Map,
    image: Any,
    *,
    number: int = 0,
    query: tuple[float, float] | int = (0.5, 0.5),
    head: int | None = None,
    size: int = 224,
    alpha: float = 0.5,
    smooth: bool = True,
    limits: tuple[float, float] | None = None,
    usual: Any = None,
) -> Picture:
    """Draw a map of any kind, on its image where it has places there, with a scale.

    Of pixels: laid over the image (groups, channels and the gates of an axis as their mean). Between positions: where
    one query looks, with a cross at the query. Channels, branches, weights over time: a curve or bars. A frame or a
    path: on the image. Pairs and queries: a table of colours.

    Args:
        found: as `regard.record` or `regard.explain` gave it.
        image: that was looked at, as `overlay` takes it.
        number: of the image in the batch.
        query: of weights between positions, the place (row, column) that looks, as shares of the picture's height and
            width, or the number of a token; of a map that was recorded for some queries, the number of one of them.
        head: of these weights; None is the mean of the heads.
        size: the longer side of the picture in pixels.
        alpha, smooth, limits: as in `overlay`.
        usual: of channels, the mean gates of many images, drawn beside these.

    Returns:
        What has ``.image()`` (a PIL image), ``.svg()`` and ``.save(path)``.

    Raises:
        UserError: the map has no such image, head or query, or as `overlay` raises.
    """
    if not 0 <= number < len(found.value):
        raise UserError(f"draw: the map is of {len(found.value)} images, there is no number {number}")
    values = array(found.value[number])
    picture = resize(image, size)
    if found.kind == "channel":
        return charts.gates(values, size, usual=None if usual is None else array(usual))
    if found.kind in CHARTS:
        return CHARTS[found.kind](values, size)
    if found.kind in ("pair", "query"):
        low, high = limits or (float(values.min()), float(values.max()))
        return Drawing(_coloured(values, (size, size), low, high, smooth=False), scale=(low, high))
    if found.kind == "frame":
        return _framed(picture, values)
    if found.kind == "path":
        return _trodden(picture, values)
    place, places = None, values
    if found.kind in ("position", "token", "criss-cross"):
        places, place = _looked_at(found, values, query, head)
    elif values.ndim > 2:
        places = values.mean(0)
    low, high = limits or (float(places.min()), float(places.max()))
    drawn = overlay(picture, places, alpha=alpha, smooth=smooth, limits=(low, high))
    return Drawing(drawn, lines=() if place is None else _cross(drawn, place), scale=(low, high))


def bare(drawing: Picture) -> Image.Image:
    """Without its scale, where that is said elsewhere."""
    return (replace(drawing, scale=None) if isinstance(drawing, Drawing) else drawing).image()


CAPTIONS = {
    "channel": "How much each channel is let through.",
    "spatial": "How much each place is let through",
    "axis": "How much each row and column is let through, their product",
    "element": "How much each place is let through, mean of the channels",
    "token": "Where the place with the cross looks",
    "criss-cross": "Where the place with the cross looks, in its row and column",
    "branch": "How much each branch counts, mean of the channels.",
    "kernel": "How much each moment counts, mean of the channels.",
    "pair": "What each channel or layer (row) takes from the others (column).",
    "query": "What each query (row) takes from the keys (column).",
    "frame": "The part of the picture that is taken; the thick edge becomes the upper one.",
    "path": "The places that were looked at, in their order.",
}


def can_draw(found: Map) -> bool:
    """Whether `draw` knows its kind, and where on a picture it lies; windows are on none."""
    return found.kind in CAPTIONS and not (found.kind == "token" and found.layout is None)


CHARTS: dict[str, Callable[[np.ndarray, int], Chart]] = {"branch": charts.shares, "kernel": charts.moments}


def _looked_at(
    found: Map, values: np.ndarray, query: tuple[float, float] | int, head: int | None
) -> tuple[np.ndarray, tuple[float, float] | None]:
    """Where a query looks, as (h, w), and its own place as shares of the sides."""
    if found.kind == "criss-cross":
        height, width = values.shape[:2]
        row, column = _cell(query, (height, width))
        places = np.zeros((height, width))
        places[:, column] += values[row, column, :height]
        places[row] += values[row, column, height:]
        return places, ((row + 0.5) / height, (column + 0.5) / width)
    if head is not None and not 0 <= head < len(values):
        raise UserError(f"draw: the map has {len(values)} heads, there is no number {head}")
    values = values.mean(0) if head is None else values[head]
    if found.kind == "position":
        sides = values.shape[: values.ndim // 2]
        if len(sides) != 2:
            raise UserError(f"draw: weights between the positions of {len(sides)} axes have no picture")
        cell = _cell(query, sides)
        return values[cell], tuple((at + 0.5) / side for at, side in zip(cell, sides, strict=True))
    if found.layout is None:
        raise UserError(
            f"draw: the tokens of {found.name} are those of windows or of no picture, and cannot be drawn on it"
        )
    prefix, grid = found.layout.prefix, found.layout.grid
    every = len(values) == values.shape[1]  # else those that were asked for
    if isinstance(query, tuple):
        cell = _cell(query, grid)
        at = prefix + cell[0] * grid[1] + cell[1] if every else 0
    else:
        cell, at = divmod(query - prefix, grid[1]), query
    if not 0 <= at < len(values):
        raise UserError(f"draw: the map has {len(values)} queries, there is no number {at}")
    known = isinstance(query, tuple) or (every and query >= prefix)
    place = ((cell[0] + 0.5) / grid[0], (cell[1] + 0.5) / grid[1]) if known else None
    return values[at, prefix:].reshape(grid), place


def _cell(query: tuple[float, float] | int, sides: tuple[int, ...]) -> tuple[int, int]:
    if isinstance(query, int):
        return divmod(min(query, sides[0] * sides[1] - 1), sides[1])
    return min(sides[0] - 1, int(query[0] * sides[0])), min(sides[1] - 1, int(query[1] * sides[1]))


def _coloured(values: np.ndarray, size: tuple[int, int], low: float, high: float, smooth: bool) -> Image.Image:
    return overlay(
        Image.new("RGB", size), values.reshape(values.shape[-2:]), alpha=1, smooth=smooth, limits=(low, high)
    )


def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf")), size)


def _ramp(height: int) -> Image.Image:
    return _coloured(np.linspace(1, 0, height).reshape(-1, 1), (10, height), 0, 1, smooth=True)


def _cross(picture: Image.Image, place: Point) -> tuple[tuple[tuple[Point, ...], int], ...]:
    y, x = place[0] * picture.height, place[1] * picture.width
    arm = max(5, min(picture.size) // 24)
    return (((x - arm, y), (x + arm, y)), 2), (((x, y - arm), (x, y + arm)), 2)


def _framed(picture: Image.Image, frame: np.ndarray) -> Drawing:
    """The part of the picture that a spatial transformer takes: its upper edge is the thick one."""
    if frame.shape != (2, 3):
        raise UserError(f"draw: a frame on a picture is (2, 3), got {frame.shape}")
    corners = frame @ np.array([[-1, 1, 1, -1], [-1, -1, 1, 1], [1, 1, 1, 1]])
    points = _on(picture, corners.T)
    return Drawing(picture, lines=(((*points, points[0]), 2), (points[:2], 5)))


def _trodden(picture: Image.Image, path: np.ndarray) -> Drawing:
    """The places of a path, numbered in their order."""
    points = _on(picture, path)
    return Drawing(picture, lines=((points, 2),) if len(points) > 1 else (), steps=points)


def _on(picture: Image.Image, places: np.ndarray) -> tuple[Point, ...]:
    """Places of -1..1 in pixels."""
    return tuple((float(x + 1) / 2 * picture.width, float(y + 1) / 2 * picture.height) for x, y in places)


def resize(image: Any, size: int) -> Image.Image:
    """The image as RGB with its longer side at `size` pixels, larger or smaller."""
    picture = rgb(image)
    ratio = size / max(picture.size)
    wide, tall = (max(1, round(side * ratio)) for side in picture.size)
    return picture.resize((wide, tall), Image.Resampling.BICUBIC)


def data_uri(picture: Image.Image, kind: str = "WEBP") -> str:
    """A picture inside a page, as text."""
    buffer = io.BytesIO()
    picture.save(buffer, kind, quality=82)
    return f"data:image/{kind.lower()};base64," + base64.b64encode(buffer.getvalue()).decode()


def _values(map: Any) -> np.ndarray:
    """The map as (h, w), of finite floats."""
    values = array(map).astype(np.float64)
    while values.ndim > 2 and len(values) == 1:
        values = values[0]
    if values.ndim != 2 or not values.size:
        raise UserError(f"overlay: a map has the shape (h, w), not {values.shape}; pass one map of one image.")
    if not np.isfinite(values).all():
        raise UserError("overlay: the map holds NaN or infinity, which has no colour; look at the run that made it.")
    return values


def rgb(image: Any) -> Image.Image:
    """An image as RGB.

    Args:
        image: as `overlay` takes it.

    Raises:
        UserError: it is none.
    """
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    pixels = np.asarray(image.cpu() if hasattr(image, "cpu") else image)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    if pixels.dtype != np.uint8 or not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3)):
        raise UserError(
            f"overlay: an image is uint8 of (H, W), (H, W, 1) or (H, W, 3), not {pixels.dtype} of {pixels.shape}; "
            "scale it to 0..255 and put the channels last."
        )
    return Image.fromarray(np.ascontiguousarray(pixels)).convert("RGB")


def _cut(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """The text, shortened in front until it fits: the end of a tap's dotted name tells more than its start."""
    kept = text
    while font.getlength(kept) > width and len(kept) > 2:
        kept = "…" + kept[2:]
    return kept
