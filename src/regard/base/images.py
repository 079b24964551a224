"""Image files from users: which are taken, where they are found, how they are opened, and why one cannot be read."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from regard.base.files import regular

# decoders without other programs behind them; what Pillow was built without, or a plugin that is not there, is left out
FORMATS = (
    *("AVIF", "BMP", "DIB", "GIF", "HEIF", "JPEG", "JPEG2000", "MPO", "PCX", "PNG", "PPM", "QOI", "SGI", "TGA"),
    *("TIFF", "WEBP"),
)
SUFFIXES = (
    *(".apng", ".avif", ".bmp", ".dib", ".gif", ".heic", ".heif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg"),
    *(".jpx", ".pbm", ".pcx", ".pgm", ".png", ".pnm", ".ppm", ".qoi", ".sgi", ".tga", ".tif", ".tiff", ".webp"),
)
PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 2**26)  # of one image, at most


def is_image(path: Path) -> bool:
    """Whether a path is called as an image is, and is no folder."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and not path.is_dir()


def subfolders(folder: Path) -> list[Path]:
    """The folders in a folder, in the order of their names; hidden ones are passed over."""
    return [path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith((".", "__MACOSX"))]


def below(folder: Path, above: frozenset[Path] = frozenset()) -> Iterator[Path]:
    """The image files in a folder and in its folders, links followed but never in a circle."""
    above |= {folder.resolve()}
    for inner in subfolders(folder):
        if inner.resolve() not in above:
            yield from below(inner, above)
    yield from (path for path in sorted(folder.iterdir()) if is_image(path))


def once(paths: Iterable[Path]) -> list[Path]:
    """The paths in their order, each file once: where it lies itself, or else where a link leads to it first."""
    given = list(dict.fromkeys(paths))
    kept: dict[object, Path] = {}
    for path in given:
        try:
            found = path.stat()
            file: object = (found.st_dev, found.st_ino)
        except OSError:  # a link to nowhere; reading it will say so
            file = path
        if file not in kept or (_lies(path) and not _lies(kept[file])):
            kept[file] = path
    chosen = set(kept.values())
    return [path for path in given if path in chosen]


def _lies(path: Path) -> bool:
    """Whether no link leads there."""
    return path.resolve() == path.absolute()


@contextmanager
def reading(path: str | Path, *, pixels: int = PIXELS) -> Iterator[Image.Image]:
    """An image whose header is read and whose pixels are not.

    Args:
        path: of a regular file; what it holds is told by its content, not by its name.
        pixels: more are refused, before anything is decoded.

    Raises:
        DecompressionBombError: it has more pixels.
        Exception: as the decoder of its format does, or there is no such file, or it is not a regular file.
    """
    with regular(path) as file:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit is below
            image = Image.open(file, formats=formats())
        with image:
            if image.width * image.height > pixels:
                raise Image.DecompressionBombError
            yield image


def why_unreadable(error: Exception, path: str | Path, pixels: int = PIXELS) -> str:
    """Why an image cannot be read, in a line that does not name the file.

    Args:
        error: that a decoder raised, or `reading` or `upright`.
        path: of the file.
        pixels: more were refused.
    """
    if isinstance(error, Image.DecompressionBombError):
        return f"it has more than {pixels / 1e6:.0f} megapixels"
    if isinstance(error, UnidentifiedImageError):
        return "it is empty" if Path(path).stat().st_size == 0 else "it is no image that Pillow can read"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).partition("\n")[0] or type(error).__name__


def middle_square(image: Image.Image, side: int) -> Image.Image:
    """The largest square in the middle of an image, scaled."""
    edge = min(image.size)
    left, top = ((length - edge) / 2 for length in image.size)
    return image.resize((side, side), Image.Resampling.LANCZOS, box=(left, top, left + edge, top + edge))


def deep(image: Image.Image) -> bool:
    """Whether it has whole numbers of more than 8 bits, of which only the largest says how many are used."""
    return image.mode.startswith("I")


def upright(image: Image.Image, peak: int | None = None, *, fractions: bool = False) -> Image.Image:
    """An image as it is meant to be seen, with 8 bits: turned as its header says, over white where it is transparent.

    Args:
        image: whose pixels may not be read yet.
        peak: of a `deep` image, the largest number in the set that it belongs to, its own otherwise: white is the
            largest that has as many bits.
        fractions: whether numbers with fractions are taken, from the smallest, black, to the largest, white.

    Raises:
        ValueError: it holds fractions that are not taken, or negative numbers, of no known range.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        if not fractions:
            raise ValueError("its values are floating point, of no known range; save it with 8 or 16 bits")
        values = np.asarray(image)
        low, high = values.min(), values.max()
        image = Image.fromarray(np.rint((values - low) * (255 / max(high - low, 1e-30))).astype(np.uint8))
    if deep(image):
        values = np.asarray(image)
        if values.min() < 0:
            raise ValueError("it has negative values; save it with 8 or 16 bits and no sign")
        full = 2 ** max(1, int(values.max() if peak is None else peak).bit_length()) - 1
        image = Image.fromarray(np.rint(values * (255 / full)).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


@cache
def formats() -> tuple[str, ...]:
    """Those of `FORMATS` that can be read here."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)
