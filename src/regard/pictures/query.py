"""Weights between positions, seen from one of them: where a query looks, and where it stands itself."""

from __future__ import annotations

import numpy as np

from regard.base.errors import UserError
from regard.insertion.layout import Layout
from regard.layers.tap import Query
from regard.maps.recording import Map

View = tuple[np.ndarray, tuple[float, float] | None]  # (h, w) of weights; the query's own place, where that is known


def view_from(recorded: Map, values: np.ndarray, query: Query, head: int | None) -> View:
    """Where a query looks.

    Args:
        recorded: of the kind ``"position"``, ``"token"`` or ``"criss-cross"``.
        values: of one image.
        query: whose view it is: a place (row, column) as shares of the sides, or the number of a token; of a map that
            was recorded for some queries, the number of one of them.
        head: of the weights; None is the mean of the heads.

    Raises:
        UserError: there is no such head or query, or the weights lie on no picture.
    """
    if recorded.kind == "criss-cross":
        return _criss_cross(values, query)
    if head is not None and not 0 <= head < len(values):
        raise UserError(f"draw: the map has {len(values)} heads, there is no number {head}")
    values = values.mean(0) if head is None else values[head]
    if recorded.kind == "position":
        return _position(values, query)
    if recorded.layout is None:
        raise UserError(
            f"draw: the tokens of {recorded.name} are those of windows or of no picture, and cannot be drawn on it"
        )
    return _token(values, recorded.layout, query)


def _criss_cross(values: np.ndarray, query: Query) -> View:
    height, width = values.shape[:2]
    row, column = _cell(query, (height, width))
    weights = np.zeros((height, width))
    weights[:, column] += values[row, column, :height]
    weights[row] += values[row, column, height:]
    return weights, _centre((row, column), (height, width))


def _position(values: np.ndarray, query: Query) -> View:
    sides = values.shape[: values.ndim // 2]
    if len(sides) != 2:
        raise UserError(f"draw: weights between the positions of {len(sides)} axes have no picture")
    cell = _cell(query, sides)
    return values[cell], _centre(cell, sides)


def _token(values: np.ndarray, layout: Layout, query: Query) -> View:
    prefix, grid = layout.prefix, layout.grid
    all_queries = len(values) == values.shape[1]  # else those that were recorded
    if isinstance(query, tuple):
        cell = _cell(query, grid)
        row = prefix + cell[0] * grid[1] + cell[1] if all_queries else 0
    else:
        cell, row = divmod(query - prefix, grid[1]), query
    if not 0 <= row < len(values):
        raise UserError(f"draw: the map has {len(values)} queries, there is no number {row}")
    on_picture = isinstance(query, tuple) or (all_queries and query >= prefix)
    return values[row, prefix:].reshape(grid), _centre(cell, grid) if on_picture else None


def _cell(query: Query, sides: tuple[int, ...]) -> tuple[int, int]:
    if isinstance(query, int):
        return divmod(min(query, sides[0] * sides[1] - 1), sides[1])
    return min(sides[0] - 1, int(query[0] * sides[0])), min(sides[1] - 1, int(query[1] * sides[1]))


def _centre(cell: tuple[int, int], sides: tuple[int, ...]) -> tuple[float, float]:
    return (cell[0] + 0.5) / sides[0], (cell[1] + 0.5) / sides[1]
