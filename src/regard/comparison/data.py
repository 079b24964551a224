"""Images for a fair comparison: decoded once, split by the seed, the same stream of them for every arm."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from filelock import FileLock

from regard.base.errors import UserError
from regard.base.files import whole
from regard.comparison import storage
from regard.comparison.draws import digest, draws
from regard.comparison.embedded import packaged
from regard.comparison.fashion import write_embedded
from regard.comparison.folders import (
    SIZES,
    TEST,
    TRAIN,
    UNASSIGNED,
    VALIDATION,
    File,
    decode_all,
    existing,
    find,
    listed,
    text,
)

ROOM = 1.125  # how much larger than trained a folder's images are stored, so that random crops have somewhere to go
LEAST = 5  # images of a class where the seed cuts all three parts out of it


class Split(NamedTuple):
    """Indices of the images of each part, ascending, int64."""

    train: np.ndarray
    val: np.ndarray
    test: np.ndarray


@dataclass(frozen=True, eq=False)
class Images:
    """A labelled set of N decoded images.

    Attributes:
        name: "fashion", "cluttered" or the name of the user's folder.
        classes: the name of every class; a label is an index into it.
        pixels: uint8 (N, C, S, S), mapped from the disk and read-only.
        labels: int64 (N,).
        parts: int8 (N,): 0 train, 1 validation, 2 test, -1 where the seed decides.
        files: where each image came from, relative to the folder; made up ("test/17") for the embedded sets.
        masks: bool (N, S, S), true on the object, or None where that is not known.
        broken: (file, reason) of every file that could not be read and was left out.
        fingerprint: sha256 of pixels, labels, parts and classes.
        peak: the largest number in files of more than 8 bits a value, by which they were scaled; None without such.
    """

    name: str
    classes: tuple[str, ...]
    pixels: np.ndarray = field(repr=False)
    labels: np.ndarray = field(repr=False)
    parts: np.ndarray = field(repr=False)
    files: tuple[str, ...] = field(repr=False)
    masks: np.ndarray | None = field(repr=False)
    broken: tuple[tuple[str, str], ...] = field(repr=False)
    fingerprint: str
    peak: int | None = None

    def split(self, seed: int) -> Split:
        """Cut the images into parts, each class by the same shares; a pure function of the images and `seed`.

        Parts that the images came with are kept. Missing validation is a tenth of the training part. Where no parts
        are given, 70 % train, 10 % validate and 20 % test.
        """
        train, val, test = (np.flatnonzero(self.parts == part) for part in (TRAIN, VALIDATION, TEST))
        if UNASSIGNED in self.parts:
            train, test = _cut(np.arange(len(self.parts)), self.labels, 0.2, seed, "test")
            train, val = _cut(train, self.labels, 0.1 / 0.8, seed, "validation")
        elif len(val) == 0:
            train, val = _cut(train, self.labels, 0.1, seed, "validation")
        return Split(train, val, test)

    @property
    def varies(self) -> str:
        """What the seed varies of the split, as a phrase."""
        if UNASSIGNED in self.parts:
            return "the whole split"
        return "nothing" if VALIDATION in self.parts else "the validation part"


def prepare(
    source: str | Path,
    folder: Path,
    *,
    size: int | None = None,
    skip_broken: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Images:
    """Decode a set of images into `folder` once; where that is done already, only load it.

    Args:
        source: "fashion", "cluttered", or a folder of class folders, directly or below train/, val/ and test/.
        folder: where `images.npy` and its neighbours go; one process at a time works in it, others wait.
        size: the side in pixels the network will see. A folder's images (64 by default) are stored an eighth larger,
            as RGB, their shorter side scaled and the middle cut out. The embedded ones are stored at 28 (fashion) or
            56 (cluttered) or, when given, exactly at `size`.
        skip_broken: leave out files that cannot be read, and list them in `Images.broken`.
        progress: called with (done, total) after each decoded file.

    Raises:
        UserError: when there is no such source or its package is not installed, when its classes do not make a fair
            split, or when files cannot be read and `skip_broken` is not set.
    """
    folder = Path(folder)
    if size is not None and size < 8:
        raise UserError(f"size is the side of an image in pixels and at least 8, got {size}.")
    key: dict[str, Any] = {"decoder": storage.DECODER}
    write: Callable[[Path, dict[str, Any]], None]
    if source in SIZES:
        key |= {"source": source, "side": size or SIZES[str(source)]}
        write = write_embedded
    else:
        root = existing(source, tuple(SIZES))
        if folder.resolve().is_relative_to(root):
            raise UserError(
                f"the results would lie among the images of {str(root)!r}; choose a folder outside with --out."
            )
        try:
            classes, files = find(root)
        except OSError as error:
            raise UserError(f"{error.filename!r} cannot be read ({error.strerror}); ask for access to it.") from error
        _check_counts(classes, np.array([file.label for file in files]), np.array([file.part for file in files]))
        stamps = digest([file.stamp for file in files])
        key |= {"source": text(root.name), "side": math.ceil((size or 64) * ROOM), "files": stamps}
        write = partial(_write_decoded, classes=classes, files=files, skip_broken=skip_broken, progress=progress)

    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        if storage.key(folder) != key:
            if source in SIZES:
                packaged()  # or refused, while the old images are still there
            # without meta.json the folder counts as empty, so being killed from here on only costs the work;
            # what an earlier killed process had half written goes too
            for stale in (folder / "meta.json", folder / "masks.npy", *folder.glob(".*.npy.*")):
                stale.unlink(missing_ok=True)
            write(folder, key)
            images = load(folder)
        else:
            images = load(folder, sure=True)

    if images.broken and not skip_broken:
        raise UserError(_broken_sentence(images.broken, len(images.files) + len(images.broken)))
    _check_counts(images.classes, images.labels, images.parts, len(images.broken))
    return images


def load(folder: Path, *, sure: bool = False) -> Images:
    """The images that `prepare` wrote into `folder`; processes that load the same folder share its memory.

    Args:
        folder: see `prepare`.
        sure: whether they are read once and held to their fingerprint.

    Raises:
        UserError: when the folder is not whole, a file of it is damaged, or the images are not those it was made with.
    """
    folder = Path(folder)
    if not (folder / "meta.json").exists():
        raise UserError(
            f"{str(folder)!r} holds no prepared images (no meta.json); run the comparison again to make them."
        )
    meta = storage.meta(folder)
    count, classes = len(meta["files"]), len(meta["classes"])
    pixels = storage.array(folder / "images.npy", np.uint8, (count, None, None, None), 255, mapped=True)
    images = Images(
        name=meta["name"],
        classes=tuple(meta["classes"]),
        pixels=pixels,
        labels=storage.array(folder / "labels.npy", np.int64, (count,), classes - 1),
        parts=storage.array(folder / "parts.npy", np.int8, (count,), TEST, least=UNASSIGNED),
        files=tuple(meta["files"]),
        masks=storage.array(folder / "masks.npy", np.bool_, (count, *pixels.shape[2:]), 1, mapped=True)
        if (folder / "masks.npy").exists()
        else None,
        broken=tuple((file, reason) for file, reason in meta["broken"]),
        fingerprint=meta["fingerprint"],
        peak=meta.get("peak"),
    )
    if sure and storage.fingerprint(images.classes, images.pixels, images.labels, images.parts) != images.fingerprint:
        raise UserError(
            f"{folder} was changed since its images were decoded (images.npy, labels.npy or parts.npy is not what the "
            f"fingerprint in meta.json says), and runs may have seen the change: {storage.AGAIN.format(folder)}"
        )
    return images


def _cut(index: np.ndarray, labels: np.ndarray, share: float, seed: int, what: str) -> tuple[np.ndarray, np.ndarray]:
    """(rest, cut): a share of every class, of each at least one image, drawn at random out of `index`."""
    by_class = index[np.lexsort((draws(len(index), seed, what), labels[index]))]
    counts = np.bincount(labels[index])
    rank = np.arange(len(index)) - np.repeat(np.cumsum(counts) - counts, counts)
    taken = rank < np.repeat(np.maximum(1, np.rint(share * counts)), counts)
    return np.sort(by_class[~taken]), np.sort(by_class[taken])


def _write_decoded(
    folder: Path,
    key: dict[str, Any],
    *,
    classes: tuple[str, ...],
    files: list[File],
    skip_broken: bool,
    progress: Callable[[int, int], None] | None,
) -> None:
    shape = (len(files), 3, key["side"], key["side"])
    if math.prod(shape) > shutil.disk_usage(folder).free:  # a mapped file that outgrows the disk kills the process
        raise UserError(
            f"the decoded images need {math.prod(shape) / 1e9:.1f} GB and {str(folder)!r} has "
            f"{shutil.disk_usage(folder).free / 1e9:.1f} GB left; make room or choose a smaller size."
        )
    with whole(folder / "images.npy") as path:
        pixels = np.lib.format.open_memmap(path, "w+", np.uint8, shape)
        storage.allocate(path)
        reasons, left, peak = decode_all([file.path for file in files], pixels, progress, skip_broken=skip_broken)
        broken = [(files[row].name, reason) for row, reason in sorted(reasons.items())]
        kept = [row for row in range(len(files)) if row not in reasons]
        if not kept or left:
            raise UserError(_broken_sentence(broken, len(files)))
        if broken:
            for new, old in enumerate(kept):
                pixels[new] = pixels[old]
        pixels.flush()
        del pixels
        if broken:
            storage.shorten(path, len(kept))
    names = [files[row].name for row in kept]
    labels, parts = ([getattr(files[row], what) for row in kept] for what in ("label", "part"))
    storage.finish(folder, key, classes, names, labels, parts, broken=broken, peak=peak)


def _check_counts(classes: Sequence[str], labels: np.ndarray, parts: np.ndarray, broken: int = 0) -> None:
    """Refuse when a class has fewer images in a part than the split needs."""
    needed = {UNASSIGNED: LEAST, TRAIN: 1 if VALIDATION in parts else 2, VALIDATION: 1, TEST: 1}
    where = {UNASSIGNED: "", TRAIN: " in the training part", VALIDATION: " for validation", TEST: " in the test part"}
    out = f" ({broken} broken ones are left out)" if broken else ""
    for part, least in needed.items():
        counts = np.bincount(labels[parts == part], minlength=len(classes))
        short = [f"{name!r} has {number}" for name, number in zip(classes, counts, strict=True) if number < least]
        if part in parts and short:
            raise UserError(
                f"the split needs at least {least} images of each class{where[part]}, but {listed(short)}{out}; "
                "add images or remove the class."
            )


def _broken_sentence(broken: Sequence[tuple[str, str]], total: int) -> str:
    shown = [f"{file!r} ({reason})" for file, reason in broken]
    return (
        f"{len(broken)} of {total} images cannot be read: {listed(shown)}; "
        "mend or remove them, or leave them out with skip_broken=True."
    )
