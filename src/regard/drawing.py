"""Pictures of attention maps: one over its image, many in a sheet, and whether a map says anything at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from regard.errors import UserError

PALETTE = "viridis"  # light grows evenly along it, so it reads in grey and with any kind of colour vision
FLAT = 0.02  # of the mean value
SAME = 0.01  # of the variance over pixels
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

    font = ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf")), 13)
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


def resize(image: Any, size: int) -> Image.Image:
    """The image as RGB with its longer side at `size` pixels, larger or smaller."""
    picture = _picture(image)
    ratio = size / max(picture.size)
    wide, tall = (max(1, round(side * ratio)) for side in picture.size)
    return picture.resize((wide, tall), Image.Resampling.BICUBIC)


def says_nothing(maps: Any) -> str | None:
    """Judge whether maps of one tap carry information, before anybody reads a meaning into their colours.

    Flat: half of the maps or more have their 5th and 95th percentile closer together than 2 % of the map's mean
    absolute value. The same for every image: the variance over images, averaged over pixels, is under 1 % of the
    variance over pixels of the average map (so the standard deviation is under a tenth); not judged for one image.

    Args:
        maps: array or tensor of (K, ...): one map for each of K images, of pixels or of channels.

    Returns:
        "flat: says nothing", "the same for every image", or None when neither holds.
    """
    values = _array(maps).astype(np.float64)
    values = values.reshape(len(values), -1)
    low, high = np.percentile(values, (5, 95), axis=1)
    if np.median(high - low - FLAT * np.abs(values).mean(axis=1)) <= 0:
        return "flat: says nothing"
    if len(values) > 1 and values.var(axis=0).mean() <= SAME * values.mean(axis=0).var():
        return "the same for every image"
    return None


def _array(values: Any) -> np.ndarray:
    """A NumPy array of an array, a list, or a tensor of any device and dtype."""
    return values.detach().float().cpu().numpy() if hasattr(values, "detach") else np.asarray(values)


def _values(map: Any) -> np.ndarray:
    """The map as (h, w), of finite floats."""
    values = _array(map).astype(np.float64)
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
