"""A user's folder of images: what is in it, and how any common image file becomes one square array."""

from __future__ import annotations

import itertools
import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from regard.base.errors import UserError, near
from regard.base.images import (
    below,
    deep,
    formats,
    is_image,
    middle_square,
    once,
    reading,
    subfolders,
    upright,
    why_unreadable,
)

SIZES = {"fashion": 28, "cluttered": 56}  # the embedded sets, and the side of their images in pixels
UNASSIGNED, TRAIN, VALIDATION, TEST = -1, 0, 1, 2
PART_FOLDERS = {
    **dict.fromkeys(("train", "training"), TRAIN),
    **dict.fromkeys(("val", "valid", "validation"), VALIDATION),
    **dict.fromkeys(("test", "testing"), TEST),
}
BATCH = 256  # files handed to the decoding threads at a time


class File(NamedTuple):
    path: Path
    name: str  # relative, as text
    label: int
    part: int

    @property
    def stamp(self) -> tuple[str, int, int, int]:
        """What changes when the file does."""
        try:
            stat = self.path.stat()
        except OSError:  # a link to nowhere; decoding it will say so
            return self.name, self.part, -1, -1
        return self.name, self.part, stat.st_size, stat.st_mtime_ns


def existing(source: str | Path, embedded: Sequence[str]) -> Path:
    """The folder called `source`; the names of the embedded sets are for the hint."""
    path = Path(source).expanduser()
    if path.is_dir():
        return path.resolve()
    if path.exists():
        raise UserError(f"{str(source)!r} is a file; name the folder that holds one folder of images for each class.")
    if isinstance(source, Path) or path.name != source:
        raise UserError(f"the folder {str(source)!r} does not exist; name one that holds a folder for each class.")
    hint = near(source, list(embedded)) or f"; name a folder or one of {', '.join(embedded)}."
    raise UserError(f"there are no images called {source!r}, neither a folder nor embedded{hint}")


def find(root: Path) -> tuple[tuple[str, ...], list[File]]:
    """The classes of a folder and its image files, in the order of their names."""
    parts = _part_folders(root)
    held: dict[tuple[Path, str], list[Path]] = {}  # (part, class) -> files
    for part, _ in parts:
        inside = {(part, folder.name): list(below(folder)) for folder in subfolders(part)}
        if not any(inside.values()):
            if any(is_image(path) for path in part.iterdir()):
                raise UserError(f"the images lie directly in {str(part)!r}; put them into one folder for each class.")
            raise UserError(f"{str(part)!r} holds no images; it needs a folder for each class with images in it.")
        held |= inside

    # what links lead to counts once, also where they lead to another class or part
    own = set(once(file for files in held.values() for file in files))
    held = {place: [file for file in files if file in own] for place, files in held.items()}
    names = sorted({name for _, name in held})
    for part, _ in parts:
        if missing := [repr(name) for name in names if (part, name) not in held]:
            raise UserError(
                f"the parts of {str(root)!r} differ in their classes: {part.name!r} has no folder {listed(missing)}; "
                "give every part the same classes, or remove these from the others."
            )
    if empty := [repr(str((part / name).relative_to(root))) for (part, name), files in held.items() if not files]:
        raise UserError(f"no images in the class folder {listed(empty)} of {str(root)!r}; fill or remove it.")
    if len(names) == 1:
        raise UserError(
            f"{str(root)!r} has a single class, {names[0]!r}, and a comparison needs two or more; "
            "if the classes are folders inside that one, name it instead."
        )
    return tuple(map(text, names)), [
        File(file, text(file.relative_to(root).as_posix()), label, number)
        for part, number in parts
        for label, name in enumerate(names)
        for file in held[part, name]
    ]


def _part_folders(root: Path) -> list[tuple[Path, int]]:
    """The folders that hold class folders, with their part: those called train, val and test, or the root itself."""
    folders = subfolders(root)
    named = [
        (folder, PART_FOLDERS[folder.name.casefold()]) for folder in folders if folder.name.casefold() in PART_FOLDERS
    ]
    others = [folder for folder in folders if folder.name.casefold() not in PART_FOLDERS]
    found = [part for _, part in named]
    # a class may be called "train" (beside "bus"): it is a part only beside another part, or alone
    if not named or (others and (TRAIN not in found or len(named) == 1)):
        return [(root, UNASSIGNED)]
    names = " and ".join(repr(folder.name) for folder, _ in named)
    if TRAIN not in found:
        raise UserError(f"{str(root)!r} has {names} but no 'train'; add it, or name the folder whose classes to split.")
    if len(set(found)) < len(found):
        raise UserError(f"{str(root)!r} has {names}, two of them for the same part; keep one of each.")
    extra = [repr(folder.name) for folder in others if next(below(folder), None)]
    if extra:
        raise UserError(f"{str(root)!r} has {names} and beside them images in {listed(extra)}; move those out.")
    if found == [TRAIN]:
        return [(named[0][0], UNASSIGNED)]
    if TEST not in found:
        return [(folder, TEST if part == VALIDATION else part) for folder, part in named]
    return named


def decode_all(
    paths: list[Path], pixels: np.ndarray, progress: Callable[[int, int], None] | None, *, skip_broken: bool = True
) -> tuple[dict[int, str], list[int], int | None]:
    """Decode every file into its row of `pixels`; returns row -> reason of those that cannot be read, the rows that
    were left (with a broken file that is not skipped, nothing is decoded a second time), and the largest number in
    files of more than 8 bits a value, None without such files."""
    steps, side = itertools.count(1), pixels.shape[-1]
    peaks: dict[int, int] = {}
    reasons: dict[int, str] = {}

    def attempt(row: int) -> np.ndarray | int | str:
        try:
            return _decode(paths[row], side, max(peaks.values()) if row in peaks else None)
        except Exception as error:  # whatever a decoder stumbles over, the file is broken
            return why_unreadable(error, paths[row])

    def decode(rows: Sequence[int]) -> None:
        for start in range(0, len(rows), BATCH):
            batch = rows[start : start + BATCH]
            for row, outcome in zip(batch, pool.map(attempt, batch), strict=True):
                if isinstance(outcome, int):
                    peaks[row] = outcome
                    continue
                if isinstance(outcome, str):
                    reasons[row] = outcome
                else:
                    pixels[row] = outcome
                if progress:
                    progress(next(steps), len(paths))

    formats()  # before the threads, which would load the plugins all at once
    with warnings.catch_warnings(), ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        warnings.simplefilter("ignore")  # of sloppy metadata and large images; what matters is an error
        decode(range(len(paths)))
        deep = list(peaks)
        if reasons and not skip_broken:
            return reasons, deep, None
        decode(deep)  # more than 8 bits: again, now that the largest value of them all is known
    return reasons, [], max(peaks.values(), default=None)


def _decode(path: Path, side: int, peak: int | None) -> np.ndarray | int:
    """One file as uint8 (3, side, side): upright, over white where it is transparent, its middle square.

    Of a file with more than 8 bits a value, only its largest value is returned as long as `peak`, the largest of the
    whole set, is None.
    """
    with reading(path) as file:
        file.draft(None, (2 * side, 2 * side))  # JPEG decodes several times faster where it can skip detail
        image = upright(file, peak)
        if deep(file) and peak is None:
            return int(np.asarray(file).max())
        return np.asarray(middle_square(image, side)).transpose(2, 0, 1)


def text(name: str) -> str:
    """A file's name as text that can be written anywhere: bytes that are no UTF-8 are replaced."""
    return os.fsencode(name).decode("utf-8", "replace")


def listed(items: Sequence[str], most: int = 5) -> str:
    """The first few, and how many more."""
    rest = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(items[:most]) + rest
