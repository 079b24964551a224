"""Pictures of attention maps: one over its image, many in a sheet, any kind with its scale."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from regard.errors import UserError
from regard.recording import Map

PALETTE = "viridis"  # light grows evenly along it, so it reads in grey and with any kind of colour vision
INK = (40, 40, 40)


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
    picture = _picture(image)
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
    pictures = [resize(image, size) for image in images]
    columns = [("image", pictures)]
    for name, entries in maps.items():
        values = [_values(map) for map in entries]
        shared = limits or (min(v.min() for v in values), max(v.max() for v in values))
        drawn = [
            overlay(*pair, alpha=alpha, smooth=smooth, limits=shared) for pair in zip(pictures, values, strict=True)
        ]
        columns.append((name, drawn))

    font = _font(13)
    gap, head = 8, 26
    side = max(int(font.getlength(word)) for word in words) + 2 * gap
    page = Image.new("RGB", (side + len(columns) * (size + gap), head + len(images) * (size + gap)), "white")
    pen = ImageDraw.Draw(page)
    for row, word in enumerate(words):
        pen.text((gap, head + row * (size + gap) + size // 2), word, fill=INK, font=font, anchor="lm")
    for column, (name, cells) in enumerate(columns):
        left = side + column * (size + gap)
        pen.text((left, head // 2), _cut(name, font, size), fill=INK, font=font, anchor="lm")
        for row, cell in enumerate(cells):
            page.paste(cell, (left, head + row * (size + gap)))
    return page


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
) -> Image.Image:
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

    Raises:
        UserError: the map has no such image, head or query, or as `overlay` raises.
    """
    if not 0 <= number < len(found.value):
        raise UserError(f"draw: the map is of {len(found.value)} images, there is no number {number}")
    values = array(found.value[number])
    picture = resize(image, size)
    if found.kind in CHARTS:
        return _chart(found.kind, values, size)
    if found.kind in ("pair", "query"):
        low, high = limits or (float(values.min()), float(values.max()))
        return _with_scale(_coloured(values, (size, size), low, high, smooth=False), low, high)
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
    return _with_scale(drawn if place is None else _crossed(drawn, place), low, high)


CHARTS = {
    "channel": "channels, by their gate",
    "branch": "branches, mean of their channels",
    "kernel": "time, mean of the channels",
}


def _chart(kind: str, values: np.ndarray, size: int) -> Image.Image:
    """Channels sorted by their gate; the branches' shares; weights over time."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.25 * size / 100, size / 100), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    if kind == "channel":
        line = np.sort(values.ravel())[::-1]
        axes.fill_between(range(len(line)), line, step="mid", color="0.8")
        axes.step(range(len(line)), line, where="mid", color="black", linewidth=1)
        axes.set_ylim(min(0, line.min()), max(1, line.max()))
    elif kind == "branch":
        shares = values.reshape(len(values), -1).mean(1)
        axes.bar(range(len(shares)), shares, color="0.6", edgecolor="black")
        axes.set_xticks(range(len(shares)))
    else:
        weights = values.mean(0)
        axes.plot(range(len(weights)), weights, "o-", color="black", linewidth=1, markersize=3)
        axes.set_xticks(range(len(weights)))
    axes.set_xlabel(CHARTS[kind], fontsize=7)
    axes.tick_params(labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())


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


def _with_scale(picture: Image.Image, low: float, high: float) -> Image.Image:
    """The picture with the colours' values beside it."""
    page = Image.new("RGB", (picture.width + 70, picture.height), "white")
    page.paste(picture)
    ramp = np.linspace(high, low, picture.height).reshape(-1, 1)
    page.paste(_coloured(ramp, (10, picture.height), low, high, smooth=True), (picture.width + 6, 0))
    pen, font = ImageDraw.Draw(page), _font(10)
    for value, y, anchor in ((high, 0, "la"), (low, picture.height, "ld")):
        pen.text((picture.width + 19, y), f"{value:.3g}", fill=INK, font=font, anchor=anchor)
    return page


def _lines(picture: Image.Image, points: list[tuple[float, float]], width: int = 2) -> None:
    """White on black, so that it is seen on any picture."""
    pen = ImageDraw.Draw(picture)
    pen.line(points, fill="black", width=width + 2, joint="curve")
    pen.line(points, fill="white", width=width, joint="curve")


def _crossed(picture: Image.Image, place: tuple[float, float]) -> Image.Image:
    y, x = place[0] * picture.height, place[1] * picture.width
    arm = max(5, min(picture.size) // 24)
    _lines(picture, [(x - arm, y), (x + arm, y)])
    _lines(picture, [(x, y - arm), (x, y + arm)])
    return picture


def _framed(picture: Image.Image, frame: np.ndarray) -> Image.Image:
    """The part of the picture that a spatial transformer takes: its upper edge is the thick one."""
    if frame.shape != (2, 3):
        raise UserError(f"draw: a frame on a picture is (2, 3), got {frame.shape}")
    corners = frame @ np.array([[-1, 1, 1, -1], [-1, -1, 1, 1], [1, 1, 1, 1]])
    points = [((x + 1) / 2 * picture.width, (y + 1) / 2 * picture.height) for x, y in corners.T]
    _lines(picture, [*points, points[0]])
    _lines(picture, points[:2], width=5)
    return picture


def _trodden(picture: Image.Image, path: np.ndarray) -> Image.Image:
    """The places of a path, numbered in their order."""
    points = [((x + 1) / 2 * picture.width, (y + 1) / 2 * picture.height) for x, y in path]
    if len(points) > 1:
        _lines(picture, points)
    pen, font = ImageDraw.Draw(picture), _font(10)
    for step, (x, y) in enumerate(points, start=1):
        pen.ellipse((x - 8, y - 8, x + 8, y + 8), fill="white", outline="black")
        pen.text((x, y), str(step), fill=INK, font=font, anchor="mm")
    return picture


def resize(image: Any, size: int) -> Image.Image:
    """The image as RGB with its longer side at `size` pixels, larger or smaller."""
    picture = _picture(image)
    ratio = size / max(picture.size)
    wide, tall = (max(1, round(side * ratio)) for side in picture.size)
    return picture.resize((wide, tall), Image.Resampling.BICUBIC)


def data_uri(picture: Image.Image) -> str:
    """A picture inside a page: WebP, as text."""
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=82)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def array(values: Any) -> np.ndarray:
    """A NumPy array of an array, a list, or a tensor of any device and dtype."""
    return values.detach().float().cpu().numpy() if hasattr(values, "detach") else np.asarray(values)


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


def _picture(image: Any) -> Image.Image:
    """The image as RGB."""
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
