"""What every picture can do, and what is done with plain images: colours, sizes, text inside a page."""

from __future__ import annotations

import base64
import io
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFont

from regard.base.errors import UserError
from regard.base.files import whole, write_text

INK = (40, 40, 40)


class Picture(ABC):
    """Something drawn, as pixels or as SVG."""

    @abstractmethod
    def image(self) -> Image.Image:
        """RGB."""

    @abstractmethod
    def svg(self) -> str:
        """The same text every time."""

    def save(self, path: str | Path) -> Path:
        """Write it whole; the suffix says how: .svg, or of pixels .png, .webp, .jpg.

        Raises:
            UserError: the suffix is not known.
        """
        path = Path(path)
        if path.suffix.lower() == ".svg":
            return write_text(path, self.svg())
        kind = Image.registered_extensions().get(path.suffix.lower())
        if kind is None:
            raise UserError(f"{path}: a picture is written as .svg, .png, .webp or .jpg")
        with whole(path) as temporary:
            self.image().save(temporary, kind)
        return path


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


def font(size: int) -> ImageFont.FreeTypeFont:
    """The one font of all pixels, which comes with matplotlib."""
    import matplotlib

    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf")), size)
