"""The folder of decoded images: arrays written whole, and read as what anybody may have written."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from regard.base.errors import UserError
from regard.base.files import opened, whole, write_text
from regard.base.schema import read
from regard.comparison.records import Meta

AGAIN = "remove the folder {}, and `regard compare` decodes the images anew"
DECODER = 1  # raise it when the same files would be decoded to other pixels: prepared folders are then made again


def key(folder: Path) -> dict[str, Any] | None:
    """What a whole folder was made from."""
    return meta(folder)["key"] if (folder / "meta.json").exists() else None


def meta(folder: Path) -> Any:
    return read(folder / "meta.json", Meta, AGAIN.format(folder))


def array(
    path: Path, dtype: Any, shape: tuple[int | None, ...], most: int, *, least: int = 0, mapped: bool = False
) -> np.ndarray:
    """An array of a file that anybody may have written; of a mapped one the values are not looked at.

    Args:
        path: of the file.
        dtype: of its numbers.
        shape: with None for any size but 0.
        least, most: of its numbers.
        mapped: whether it stays on the disk.
    """
    try:
        opened(path).close()
        array = np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
        if not isinstance(array, np.ndarray) or array.dtype != dtype:
            raise ValueError(f"its numbers should be {np.dtype(dtype).name}")
        if len(array.shape) != len(shape) or any(
            n == 0 or m not in (None, n) for n, m in zip(array.shape, shape, strict=True)
        ):
            sizes = " x ".join("any" if size is None else str(size) for size in shape)
            raise ValueError(f"it is {' x '.join(map(str, array.shape))} and should be {sizes}")
        if not mapped and not (least <= array.min() and array.max() <= most):
            raise ValueError(f"its numbers go from {array.min()} to {array.max()}, beyond {least} to {most}")
    except UserError:
        raise
    except Exception as error:  # what numpy raises for a broken file differs with every kind of damage
        reason = (str(error).splitlines() or [""])[0] or type(error).__name__
        raise UserError(f"{path} is damaged ({reason}): {AGAIN.format(path.parent)}") from error
    return array


def fingerprint(classes: Sequence[str], pixels: np.ndarray, labels: np.ndarray, parts: np.ndarray) -> str:
    digest = hashlib.sha256(json.dumps([list(classes), pixels.shape]).encode())
    for array in (pixels, labels, parts):
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def finish(
    folder: Path,
    key: dict[str, Any],
    classes: Sequence[str],
    files: Sequence[str],
    labels: Sequence[int] | np.ndarray,
    parts: Sequence[int] | np.ndarray,
    *,
    masks: np.ndarray | None = None,
    broken: Sequence[tuple[str, str]] = (),
    peak: int | None = None,
) -> None:
    """Write what belongs to the finished `images.npy`, `meta.json` last."""
    labels, parts = np.asarray(labels, np.int64), np.asarray(parts, np.int8)
    save(folder / "labels.npy", labels)
    save(folder / "parts.npy", parts)
    if masks is not None:
        save(folder / "masks.npy", masks)
    pixels = np.load(folder / "images.npy", mmap_mode="r")
    meta = {
        "name": key["source"],
        "classes": classes,
        "files": files,
        "broken": broken,
        "peak": peak,
        "fingerprint": fingerprint(classes, pixels, labels, parts),
        "key": key,
    }
    write_text(folder / "meta.json", json.dumps(meta))


def allocate(path: Path) -> None:
    """Take the room of a mapped file now: a page that finds none later would kill the process."""
    if hasattr(os, "posix_fallocate"):
        with path.open("rb+") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


def save(path: Path, array: np.ndarray) -> None:
    with whole(path) as temporary, temporary.open("wb") as file:
        np.save(file, array)


def shorten(path: Path, rows: int) -> None:
    """Cut a .npy file to its first rows in place; numpy pads its header so that the number of rows may change."""
    array = np.load(path, mmap_mode="r")
    header = {"descr": array.dtype.str, "fortran_order": False, "shape": (rows, *array.shape[1:])}
    with path.open("rb+") as file:
        np.lib.format.write_array_header_1_0(file, header)
        file.truncate(file.tell() + rows * array[0].nbytes)
