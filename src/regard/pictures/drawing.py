"""`draw`: a map of any kind, on its image where it has places there, with a scale."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from regard.base.arrays import array
from regard.base.errors import UserError
from regard.maps.recording import Map
from regard.pictures import charts
from regard.pictures.captions import CAPTIONS
from regard.pictures.charts import Chart
from regard.pictures.marks import Marked, Point, cross
from regard.pictures.overlay import colours, overlay
from regard.pictures.picture import Picture, resize
from regard.pictures.query import view_from

CHARTS: dict[str, Callable[[np.ndarray, int], Chart]] = {"branch": charts.shares, "kernel": charts.moments}


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
        return Marked(colours(values, (size, size), low, high, smooth=False), scale=(low, high))
    if found.kind == "frame":
        return _frame(picture, values)
    if found.kind == "path":
        return _path(picture, values)
    place, pixels = None, values
    if found.kind in ("position", "token", "criss-cross"):
        pixels, place = view_from(found, values, query, head)
    elif values.ndim > 2:
        pixels = values.mean(0)
    low, high = limits or (float(pixels.min()), float(pixels.max()))
    drawn = overlay(picture, pixels, alpha=alpha, smooth=smooth, limits=(low, high))
    return Marked(drawn, lines=() if place is None else cross(drawn, place), scale=(low, high))


def can_draw(found: Map) -> bool:
    """Whether `draw` knows its kind, and where on a picture it lies."""
    return found.kind in CAPTIONS and not (found.kind == "token" and found.layout is None)


def _frame(picture: Image.Image, frame: np.ndarray) -> Marked:
    """The part of the picture that a spatial transformer takes: its upper edge is the thick one."""
    if frame.shape != (2, 3):
        raise UserError(f"draw: a frame on a picture is (2, 3), got {frame.shape}")
    corners = frame @ np.array([[-1, 1, 1, -1], [-1, -1, 1, 1], [1, 1, 1, 1]])
    points = _on(picture, corners.T)
    return Marked(picture, lines=(((*points, points[0]), 2), (points[:2], 5)))


def _path(picture: Image.Image, path: np.ndarray) -> Marked:
    """The places of a path, numbered in their order."""
    points = _on(picture, path)
    return Marked(picture, lines=((points, 2),) if len(points) > 1 else (), steps=points)


def _on(picture: Image.Image, places: np.ndarray) -> tuple[Point, ...]:
    """Places of -1..1 in pixels."""
    return tuple((float(x + 1) / 2 * picture.width, float(y + 1) / 2 * picture.height) for x, y in places)
