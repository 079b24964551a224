"""The user's pictures: which files are meant, and how each is read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from regard.base.errors import UserError
from regard.base.images import below, deep, once, reading, upright, why_unreadable
from regard.pictures.picture import rgb

PIXELS = 100_000_000  # of a picture, at most


def expand(words: Iterable[str | Path]) -> list[Path]:
    """The pictures that are meant by files, folders and patterns, in order.

    Raises:
        UserError: one is an address, or nothing is there.
    """
    paths: list[Path] = []
    for word in map(str, words):
        if "://" in word:
            raise UserError(f"{word} is an address, and nothing is fetched: save the picture and name its file")
        paths += _meant(word)
    return once(paths)


def _meant(word: str) -> list[Path]:
    path = Path(word)
    if path.is_dir():
        inside = sorted(below(path))
        if not inside:
            raise UserError(f"the folder {path} holds no pictures, such as .jpg or .png files")
        return inside
    if path.exists():
        return [path]
    pattern = str(path.relative_to(path.anchor)) if path.anchor else word
    matches = sorted(Path(path.anchor or ".").glob(pattern))
    if not matches:
        raise UserError(f"there is no picture {word}")
    return [match for match in matches if not match.is_dir()]


def read(
    path: str | Path,
    *,
    called: str = "this file",
    pixels: int = PIXELS,
    longest: int | None = None,
    peak: int | None = None,
) -> Image.Image:
    """A picture from a stranger's file, as RGB.

    Of several frames the first is taken, what is transparent becomes white, and what has more than 8 bits is scaled, as
    `compare` does it with the images that it trains on.

    Args:
        path: of the file.
        called: what an error calls it; a page for strangers does not tell its paths.
        pixels: more are refused, before anything is decoded.
        longest: its longer side at most, in pixels.
        peak: see `regard.base.images.upright`.

    Raises:
        UserError: it is no picture, broken, or too large.
    """
    try:
        with reading(path, pixels=pixels) as image:
            if longest:
                image.draft("RGB", (longest, longest))
            picture = upright(image, peak, fractions=True)
    except Exception as error:  # what a decoder raises for a broken file differs with every format
        raise UserError(f"{called} cannot be read as a picture: {why_unreadable(error, path, pixels)}") from error
    if longest:
        picture.thumbnail((longest, longest))
    return picture


@dataclass(frozen=True)
class Pictures:
    """The pictures that could be read.

    Attributes:
        names: of the files.
        images: RGB, as they came.
        notes: which files were left out, and why.
    """

    names: list[str]
    images: list[Image.Image]
    notes: list[str]


def read_all(given: str | Path | Sequence[Any], peak: int | None = None) -> Pictures:
    """Every picture that can be read.

    Args:
        given: files, folders and patterns, or pictures as `regard.overlay` takes them.
        peak: see `regard.base.images.upright`; of all files if not said.

    Raises:
        UserError: none can be read.
    """
    given = [given] if isinstance(given, str | Path) else list(given)
    peak = peak or _peak(expand([item for item in given if isinstance(item, str | Path)]))
    pictures = Pictures([], [], [])
    for number, item in enumerate(given, start=1):
        if isinstance(item, str | Path):
            for path in expand([item]):
                _take(pictures, path, peak)
        else:
            pictures.names.append(f"picture {number}")
            pictures.images.append(rgb(item))
    if not pictures.images:
        left_out = " ".join(pictures.notes)
        raise UserError(f"no picture could be read: {left_out}" if left_out else "no pictures to look at: name some")
    return pictures


def _take(pictures: Pictures, path: Path, peak: int | None) -> None:
    try:
        pictures.images.append(read(path, called=str(path), peak=peak))
        pictures.names.append(path.name)
    except UserError as error:
        pictures.notes.append(f"Left out: {error}.")


def _peak(paths: Sequence[Path]) -> int | None:
    """The largest number in those of the files that have more than 8 bits; None where none has."""
    peaks = []
    for path in paths:
        with suppress(Exception), reading(path) as image:  # a broken one is told when it is read
            if deep(image):
                peaks.append(int(np.asarray(image).max()))
    return max(peaks, default=None)
