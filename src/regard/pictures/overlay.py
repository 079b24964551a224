"""`overlay`: a map laid over its image as colours."""

from __future__ import annotations

from typing import Any

import matplotlib
import numpy as np
from PIL import Image

from regard.base.arrays import array
from regard.base.errors import UserError
from regard.pictures.picture import rgb

PALETTE = "viridis"  # light grows evenly along it, so it reads in grey and with any kind of colour vision


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
    values = as_map(map)
    low, high = limits if limits is not None else (float(values.min()), float(values.max()))
    unit = np.clip((values - low) / (high - low), 0, 1) if high > low else np.zeros_like(values)
    way = Image.Resampling.BILINEAR if smooth else Image.Resampling.NEAREST
    spread = np.asarray(Image.fromarray(unit.astype(np.float32)).resize(picture.size, way))
    coloured = matplotlib.colormaps[PALETTE](spread)[..., :3] * 255
    blended = (1 - alpha) * np.asarray(picture, dtype=np.float64) + alpha * coloured
    return Image.fromarray(np.rint(blended).astype(np.uint8))


def colours(values: np.ndarray, size: tuple[int, int], low: float, high: float, smooth: bool) -> Image.Image:
    """A map (h, w) as colours alone, (width, height) pixels large."""
    return overlay(Image.new("RGB", size), values, alpha=1, smooth=smooth, limits=(low, high))


def as_map(map: Any) -> np.ndarray:
    """The map as (h, w), of finite floats."""
    values = array(map).astype(np.float64)
    while values.ndim > 2 and len(values) == 1:
        values = values[0]
    if values.ndim != 2 or not values.size:
        raise UserError(f"overlay: a map has the shape (h, w), not {values.shape}; pass one map of one image.")
    if not np.isfinite(values).all():
        raise UserError("overlay: the map holds NaN or infinity, which has no colour; look at the run that made it.")
    return values
