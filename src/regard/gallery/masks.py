"""Masks of the object in each picture, from white areas, labels or transparency."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from regard.base.errors import UserError
from regard.base.images import is_image, reading
from regard.gallery.images import read

BORDER = 255  # a label that says neither object nor background


def read_masks(folder: Path, names: Sequence[str]) -> list[Image.Image]:
    """The object in each picture, 255 on it, from the file of the same name.

    Args:
        folder: of the masks.
        names: of the pictures' files.

    Raises:
        UserError: a mask is missing, cannot be read, or shows no object.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder} of masks")
    files = {path.stem: path for path in sorted(folder.glob("*")) if is_image(path)}
    missing = [name for name in names if Path(name).stem not in files]
    if missing:
        raise UserError(f"{folder} holds no mask for {missing[0]}: a picture of the same name, white on the object")
    return [_object(files[Path(name).stem]) for name in names]


def on_grid(masks: Sequence[Image.Image], size: tuple[int, int]) -> np.ndarray:
    """(K, height, width), true on the object."""
    small = [np.asarray(mask.resize(size[::-1], Image.Resampling.NEAREST)) for mask in masks]
    return np.stack([mask > mask.max() / 2 for mask in small])  # 0 and 255, or 0 and 1


def _object(path: Path) -> Image.Image:
    """A mask, 255 on the object: of a picture the lighter half of its greys, of labels all but 0 and their border, 255.

    Labels are the numbers of a palette with colours, or grey values of which none is light but 255. What is transparent
    in some places is a mask by that.
    """
    picture = read(path, called=f"the mask {path}")
    with reading(path) as file:
        upright = ImageOps.exif_transpose(file)
        alpha = np.asarray(upright.getchannel("A")) if "A" in upright.getbands() else None
        palette = np.asarray(file.getpalette() or [], np.uint8).reshape(-1, 3)
        coloured = file.mode == "P" and bool((palette != palette[:, :1]).any())
        values = np.asarray(upright) if coloured else np.asarray(picture.convert("L"))
    if alpha is not None and alpha.min() < alpha.max():
        chosen = alpha > BORDER // 2
    elif coloured or not ((values > BORDER // 2) & (values < BORDER)).any():
        labels = (values > 0) & (values < BORDER)
        chosen = labels if labels.any() else values > 0
    else:
        chosen = values > values.max() / 2
    if not chosen.any():
        raise UserError(f"the mask {path} is black everywhere: an object is white, or 1")
    return Image.fromarray(255 * chosen.astype(np.uint8))
