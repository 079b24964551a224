"""The visitors' pictures: each file is read once and deleted; a cross marks the query location."""

from __future__ import annotations

import threading
from pathlib import Path

from PIL import Image, ImageDraw

from regard.base.errors import UserError
from regard.gallery.images import read
from regard.pictures.picture import resize

PIXELS = 60_000_000  # of a picture, at most: more than a usual phone's
KEPT = 1024  # pixels of its longer side that are kept
DRAWN_AT = 400  # pixels of the longer side


class Pictures:
    """The pictures in the files that were sent, each deleted once it is read.

    Equal files of several visitors are one file of the server: who comes second is given what the first was.

    Args:
        peak: see `regard.app.networks.Networks`.
        remembered: so many files.
    """

    def __init__(self, peak: int | None = None, remembered: int = 8) -> None:
        self.peak, self.remembered = peak, remembered
        self._lock = threading.Lock()
        self._read: dict[Path, Image.Image | str] = {}  # or why it is none

    def take(self, path: Path) -> Image.Image:
        """The picture in a file, as RGB.

        Raises:
            UserError: see `regard.gallery.images.read`.
        """
        with self._lock:
            if path.exists() or path not in self._read:
                self._remember(path, self._taken(path))
            picture = self._read[path]
        if isinstance(picture, str):
            raise UserError(picture)
        return picture

    def _taken(self, path: Path) -> Image.Image | str:
        try:
            return read(path, called="This file", pixels=PIXELS, longest=KEPT, peak=self.peak)
        except UserError as error:
            return str(error)
        finally:
            path.unlink(missing_ok=True)

    def _remember(self, path: Path, picture: Image.Image | str) -> None:
        self._read.pop(path, None)
        self._read[path] = picture
        for old in [*self._read][: -self.remembered]:
            del self._read[old]


def marked(picture: Image.Image, query: tuple[float, float]) -> Image.Image:
    """The picture, small, with a cross at the query location.

    Args:
        picture: RGB.
        query: (row, column) as fractions of its sides.
    """
    small = resize(picture, DRAWN_AT)
    y, x = query[0] * (small.height - 1), query[1] * (small.width - 1)
    pen, arm = ImageDraw.Draw(small), DRAWN_AT // 24
    for colour, width in (("black", 4), ("white", 2)):
        pen.line([(x - arm, y), (x + arm, y)], fill=colour, width=width)
        pen.line([(x, y - arm), (x, y + arm)], fill=colour, width=width)
    return small


def clicked(picture: Image.Image, index: tuple[float, float]) -> tuple[int, int] | None:
    """The place (row, column), in per cent of the sides, of a click on a drawing of the picture; None beside it.

    Args:
        picture: RGB.
        index: (x, y) in pixels of the drawing.
    """
    (x, y), (width, height) = index, resize(picture, DRAWN_AT).size
    if not (0 <= x <= width and 0 <= y <= height):
        return None
    return round(100 * y / height), round(100 * x / width)
