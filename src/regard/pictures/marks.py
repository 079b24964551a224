"""A picture with what is drawn over it: lines, numbered steps, the scale of its colours."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageDraw

from regard.pictures.overlay import colours
from regard.pictures.picture import INK, Picture, data_uri, font

SCALE_WIDTH = 70  # pixels

Point = tuple[float, float]
Line = tuple[tuple[Point, ...], int]  # its points (x, y) in pixels, and how wide it is


@dataclass(frozen=True)
class Marked(Picture):
    """A picture and what is drawn over it, as pixels or as SVG, in which lines and words stay sharp at any size.

    Attributes:
        picture: RGB.
        lines: points (x, y) in pixels, and how wide.
        steps: places (x, y), numbered from 1.
        scale: the values of the darkest and the brightest colour.
    """

    picture: Image.Image
    lines: tuple[Line, ...] = ()
    steps: tuple[Point, ...] = ()
    scale: tuple[float, float] | None = None

    def image(self) -> Image.Image:
        page = self.picture
        if self.scale:
            page = Image.new("RGB", (self.picture.width + SCALE_WIDTH, self.picture.height), "white")
            page.paste(self.picture)
            page.paste(_ramp(self.picture.height), (self.picture.width + 6, 0))
        elif self.lines or self.steps:
            page = self.picture.copy()
        pen, letters = ImageDraw.Draw(page), font(10)
        for value, top, anchor in self._ends("la", "ld"):
            pen.text((self.picture.width + 19, top), value, fill=INK, font=letters, anchor=anchor)
        for points, width in self.lines:  # white on black, so that it is seen on any picture
            pen.line(points, fill="black", width=width + 2, joint="curve")
            pen.line(points, fill="white", width=width, joint="curve")
        for step, (x, y) in enumerate(self.steps, start=1):
            pen.ellipse((x - 8, y - 8, x + 8, y + 8), fill="white", outline="black")
            pen.text((x, y), str(step), fill=INK, font=letters, anchor="mm")
        return page

    def svg(self) -> str:
        width, height = self.picture.size
        wide = width + (SCALE_WIDTH if self.scale else 0)
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{wide}" height="{height}" viewBox="0 0 {wide} {height}">',
            f"<style>text{{font:10px Helvetica,Arial,sans-serif;fill:rgb{INK}}}</style>",
            f'<image width="{width}" height="{height}" href="{data_uri(self.picture, "PNG")}"/>',
        ]
        if self.scale:
            ramp = data_uri(_ramp(height), "PNG")
            parts.append(f'<rect x="{width}" width="{SCALE_WIDTH}" height="{height}" fill="white"/>')
            parts.append(f'<image x="{width + 6}" width="10" height="{height}" href="{ramp}"/>')
        for value, top, base in self._ends("hanging", "auto"):
            parts.append(f'<text x="{width + 19}" y="{top or 2}" dominant-baseline="{base}">{value}</text>')
        for points, thick in self.lines:
            along = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
            for colour, more in (("black", 2), ("white", 0)):
                parts.append(
                    f'<polyline points="{along}" fill="none" stroke="{colour}" stroke-width="{thick + more}" '
                    'stroke-linejoin="round"/>'
                )
        for step, (x, y) in enumerate(self.steps, start=1):
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="8" fill="white" stroke="black"/>')
            parts.append(
                f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="middle" dominant-baseline="central">{step}</text>'
            )
        return "\n".join([*parts, "</svg>\n"])

    def _ends(self, upper: str, lower: str) -> list[tuple[str, int, str]]:
        if not self.scale:
            return []
        low, high = self.scale
        return [(f"{high:.3g}", 0, upper), (f"{low:.3g}", self.picture.height, lower)]


def without_scale(picture: Picture) -> Image.Image:
    """The pixels without the scale, where that is said elsewhere."""
    return (replace(picture, scale=None) if isinstance(picture, Marked) else picture).image()


def _ramp(height: int) -> Image.Image:
    return colours(np.linspace(1, 0, height).reshape(-1, 1), (10, height), 0, 1, smooth=True)


def cross(picture: Image.Image, place: Point) -> tuple[Line, ...]:
    """Two lines that cross at a place (row, column) in shares of the sides."""
    y, x = place[0] * picture.height, place[1] * picture.width
    arm = max(5, min(picture.size) // 24)
    return (((x - arm, y), (x + arm, y)), 2), (((x, y - arm), (x, y + arm)), 2)
