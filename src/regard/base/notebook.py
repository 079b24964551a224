"""What a notebook shows of an object: a little HTML, every word escaped, no script, nothing fetched."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from html import escape

import numpy as np

SIDE = 96  # how wide a picture is, in pixels
PICTURES = 8


def paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>"


def points(texts: Iterable[str]) -> str:
    """A list; nothing where there is nothing to list."""
    items = "".join(f"<li>{escape(text)}</li>" for text in texts)
    return f"<ul>{items}</ul>" if items else ""


def table(rows: Sequence[Mapping[str, str]]) -> str:
    """One line for each row under the column names; columns without a word are left out."""
    columns = [column for column in rows[0] if any(row[column] for row in rows)] if rows else []
    if not columns:
        return ""
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "".join(f"<tr>{''.join(f'<td>{escape(row[column])}</td>' for column in columns)}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def plain(text: str) -> str:
    """Text whose columns are aligned by spaces."""
    return f"<pre>{escape(text)}</pre>"


def pictures(maps: np.ndarray, name: str) -> str:
    """Maps (N, h, w) as grey pictures, the first few: black is the least of all values, white the greatest."""
    values = np.nan_to_num(maps[:PICTURES].astype(np.float64))
    if not values.size:
        return ""
    low, high = values.min(), values.max()
    grey = np.rint((values - low) / ((high - low) or 1) * 255).astype(np.uint8)
    images = "".join(
        f'<img alt="{escape(name)}, image {i}" width="{SIDE}" style="image-rendering: pixelated; margin: 2px" '
        f'src="data:image/png;base64,{base64.b64encode(_png(one)).decode()}">'
        for i, one in enumerate(grey)
    )
    return f"<div>{images}</div>"


def _png(grey: np.ndarray) -> bytes:
    """A grey picture, uint8 (h, w), as a PNG file: no library of pictures has to be installed."""
    height, width = grey.shape
    rows = b"".join(b"\0" + row.tobytes() for row in grey)
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
