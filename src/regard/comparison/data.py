"""Images for a fair comparison: decoded once, split by the seed, the same stream of them for every arm."""

from __future__ import annotations

import hashlib
import json
import lzma
import math
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from filelock import FileLock
from PIL import Image

from regard.base.errors import UserError
from regard.base.files import opened, whole, write_text
from regard.base.schema import read
from regard.comparison.embedded import packaged
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
from regard.comparison.records import Meta

FASHION_CLASSES = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
FASHION_TRAINING, FASHION_TEST = 10_000, 10_000
GROUP = 2_000  # of Cluttered Fashion's first test images, whose pieces come from one another
PIECES, PIECE = 10, 9  # Cluttered Fashion: how many pieces of other items, and their side in pixels

ROOM = 1.125  # how much larger than trained a folder's images are stored, so that random crops have somewhere to go
LEAST = 5  # images of a class where the seed cuts all three parts out of it
AGAIN = "remove the folder {}, and `regard compare` decodes the images anew"
DECODER = 1  # raise it when the same files would be decoded to other pixels: prepared folders are then made again


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
    key: dict[str, Any] = {"decoder": DECODER}
    write: Callable[[Path, dict[str, Any]], None]
    if source in SIZES:
        key |= {"source": source, "side": size or SIZES[str(source)]}
        write = _write_embedded
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
        stamps = _digest([file.stamp for file in files])
        key |= {"source": text(root.name), "side": math.ceil((size or 64) * ROOM), "files": stamps}
        write = partial(_write_decoded, classes=classes, files=files, skip_broken=skip_broken, progress=progress)

    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        if _key(folder) != key:
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
    meta = _meta(folder)
    count, classes = len(meta["files"]), len(meta["classes"])
    pixels = _array(folder / "images.npy", np.uint8, (count, None, None, None), 255, mapped=True)
    images = Images(
        name=meta["name"],
        classes=tuple(meta["classes"]),
        pixels=pixels,
        labels=_array(folder / "labels.npy", np.int64, (count,), classes - 1),
        parts=_array(folder / "parts.npy", np.int8, (count,), TEST, least=UNASSIGNED),
        files=tuple(meta["files"]),
        masks=_array(folder / "masks.npy", np.bool_, (count, *pixels.shape[2:]), 1, mapped=True)
        if (folder / "masks.npy").exists()
        else None,
        broken=tuple((file, reason) for file, reason in meta["broken"]),
        fingerprint=meta["fingerprint"],
        peak=meta.get("peak"),
    )
    if sure and _fingerprint(images.classes, images.pixels, images.labels, images.parts) != images.fingerprint:
        raise UserError(
            f"{folder} was changed since its images were decoded (images.npy, labels.npy or parts.npy is not what the "
            f"fingerprint in meta.json says), and runs may have seen the change: {AGAIN.format(folder)}"
        )
    return images


# ---- what training takes


def normalisation(images: Images, index: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, as fractions of 1, over at most 2,000 of the indexed images."""
    chosen = index[np.linspace(0, len(index) - 1, min(len(index), 2000)).astype(np.int64)]
    channels = images.pixels.shape[1]
    counts = np.zeros((channels, 256))
    for i in chosen:
        for channel in range(channels):
            counts[channel] += np.bincount(images.pixels[i, channel].ravel(), minlength=256)
    shares = counts / counts.sum(axis=1, keepdims=True)
    values = np.arange(256) / 255
    means = shares @ values
    deviations = np.sqrt((shares * (values - means[:, None]) ** 2).sum(axis=1))
    # a channel of one value everywhere is divided by one step, not by zero
    return tuple(means.tolist()), tuple(np.maximum(deviations, 1 / 255).tolist())


def augment(
    pixels: torch.Tensor, size: int, generator: torch.Generator, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """Crop each image at a random place and mirror every other one at random.

    The crops are cut on the CPU, so that every device sees the same and only they travel to it.

    Args:
        pixels: uint8 (B, C, S, S), S >= size, on the CPU. Where S == size, a black border of size // 28 is added first,
            so that there is something to crop.
        size: the side of the crop in pixels.
        generator: on the CPU.
        device: where the result goes.

    Returns:
        (B, C, size, size) in 0..1, float32.
    """
    if pixels.shape[-1] == size:
        pixels = torch.nn.functional.pad(pixels, [size // 28] * 4)
    count, room = len(pixels), pixels.shape[-1] - size
    top, left = torch.randint(0, room + 1, (2, count), generator=generator).tolist()
    mirrored = (torch.rand(count, generator=generator) < 0.5).tolist()
    crops = torch.empty(*pixels.shape[:2], size, size, dtype=torch.uint8)
    # whole windows in a loop: an index for every pixel takes five times as long
    for crop, image, y, x, mirror in zip(crops.numpy(), pixels.numpy(), top, left, mirrored, strict=True):
        window = image[:, y : y + size, x : x + size]
        crop[:] = window[:, :, ::-1] if mirror else window
    return crops.to(device).float().div_(255)


def centre(pixels: torch.Tensor, size: int) -> torch.Tensor:
    """The middle of each image, for evaluation: uint8 (B, C, S, S) to float32 (B, C, size, size) in 0..1."""
    margin = (pixels.shape[-1] - size) // 2
    return pixels[..., margin : margin + size, margin : margin + size].float().div_(255)


def order(index: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """The indices in the order of that epoch: a pure function, so that a resumed run needs no random state."""
    return index[np.argsort(_draws(len(index), seed, epoch, "order"))]


def stream(seed: int, epoch: int, what: str) -> torch.Generator:
    """A generator on the CPU that depends on nothing but its arguments."""
    return torch.Generator().manual_seed(int(_digest([seed, epoch, what])[:15], 16))


def _draws(count: int, *what: int | str) -> np.ndarray:
    """Random 64-bit numbers that depend on nothing but the arguments; numpy keeps raw bits the same for ever."""
    return np.random.PCG64(int(_digest(what), 16)).random_raw(count)


def _digest(parts: Sequence[Any]) -> str:
    return hashlib.sha256("/".join(map(str, parts)).encode()).hexdigest()


def _cut(index: np.ndarray, labels: np.ndarray, share: float, seed: int, what: str) -> tuple[np.ndarray, np.ndarray]:
    """(rest, cut): a share of every class, of each at least one image, drawn at random out of `index`."""
    by_class = index[np.lexsort((_draws(len(index), seed, what), labels[index]))]
    counts = np.bincount(labels[index])
    rank = np.arange(len(index)) - np.repeat(np.cumsum(counts) - counts, counts)
    taken = rank < np.repeat(np.maximum(1, np.rint(share * counts)), counts)
    return np.sort(by_class[~taken]), np.sort(by_class[taken])


# ---- the embedded images


def _write_embedded(folder: Path, key: dict[str, Any]) -> None:
    count, side = FASHION_TRAINING + FASHION_TEST, SIZES["fashion"]
    stored = np.frombuffer(lzma.decompress(packaged().read_bytes()), np.uint8)
    pixels, labels = stored[:-count].reshape(count, side, side), stored[-count:].astype(np.int64)
    training = np.arange(count) < FASHION_TRAINING
    masks = None
    if key["source"] == "cluttered":
        # the pieces in a test image come from test images
        parts = np.split(pixels, [FASHION_TRAINING, FASHION_TRAINING + GROUP])
        cluttered = [_clutter(part, what) for part, what in zip(parts, ("train", "test", "more test"), strict=True)]
        pixels, masks = (np.concatenate(arrays) for arrays in zip(*cluttered, strict=True))
    if pixels.shape[-1] != key["side"]:
        pixels = _resized(pixels, key["side"])
        masks = _resized(masks * np.uint8(255), key["side"]) > 127 if masks is not None else None
    _save(folder / "images.npy", pixels[:, None])
    names = [f"train/{i}" for i in range(training.sum())] + [f"test/{i}" for i in range((~training).sum())]
    _finish(folder, key, FASHION_CLASSES, names, labels, np.where(training, TRAIN, TEST), masks=masks)


def _clutter(items: np.ndarray, what: str) -> tuple[np.ndarray, np.ndarray]:
    """Cluttered Fashion: each item at a random place on a larger image, among pieces of other items.

    Args:
        items: uint8 (N, s, s), black around the item.
        what: names the random stream.

    Returns:
        The images, uint8 (N, S, S), and where the item is, bool of the same shape.
    """
    count, side = items.shape[:2]
    room = SIZES["cluttered"]
    # one row for the item's place (y, x), then five for each piece: which item, from (y, x), to (y, x)
    draws = iter(_draws((2 + 5 * PIECES) * count, what, "clutter").reshape(-1, count))

    def draw(choices: int) -> np.ndarray:
        return (next(draws) % np.uint64(choices)).astype(np.int64)

    def places(image: np.ndarray, within: int, edge: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The index of one square of `edge` pixels in each image of `within` pixels, at a place drawn for it."""
        top, left = (draw(within - edge + 1)[:, None] + np.arange(edge) for _ in range(2))
        return image[:, None, None], top[:, :, None], left[:, None, :]

    each = np.arange(count)
    canvas = np.zeros((count, room, room), np.uint8)
    for _ in range(PIECES):
        other = (each + 1 + draw(count - 1)) % count
        pieces = items[places(other, side, PIECE)]
        target = places(each, room, PIECE)
        canvas[target] = np.maximum(canvas[target], pieces)
    mask = np.zeros(canvas.shape, bool)
    target = places(each, room, side)
    mask[target] = items > 0
    canvas[target] = np.where(items > 0, items, canvas[target])
    return canvas, mask


def _resized(pixels: np.ndarray, side: int) -> np.ndarray:
    return np.stack([np.asarray(Image.fromarray(p).resize((side, side), Image.Resampling.LANCZOS)) for p in pixels])


# ---- a user's folder


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
        _allocate(path)
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
            _shorten(path, len(kept))
    names = [files[row].name for row in kept]
    labels, parts = ([getattr(files[row], what) for row in kept] for what in ("label", "part"))
    _finish(folder, key, classes, names, labels, parts, broken=broken, peak=peak)


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


# ---- on disk


def _key(folder: Path) -> dict[str, Any] | None:
    """What a whole folder was made from."""
    return _meta(folder)["key"] if (folder / "meta.json").exists() else None


def _meta(folder: Path) -> Any:
    return read(folder / "meta.json", Meta, AGAIN.format(folder))


def _array(
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


def _fingerprint(classes: Sequence[str], pixels: np.ndarray, labels: np.ndarray, parts: np.ndarray) -> str:
    digest = hashlib.sha256(json.dumps([list(classes), pixels.shape]).encode())
    for array in (pixels, labels, parts):
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _finish(
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
    _save(folder / "labels.npy", labels)
    _save(folder / "parts.npy", parts)
    if masks is not None:
        _save(folder / "masks.npy", masks)
    pixels = np.load(folder / "images.npy", mmap_mode="r")
    meta = {
        "name": key["source"],
        "classes": classes,
        "files": files,
        "broken": broken,
        "peak": peak,
        "fingerprint": _fingerprint(classes, pixels, labels, parts),
        "key": key,
    }
    write_text(folder / "meta.json", json.dumps(meta))


def _allocate(path: Path) -> None:
    """Take the room of a mapped file now: a page that finds none later would kill the process."""
    if hasattr(os, "posix_fallocate"):
        with path.open("rb+") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


def _save(path: Path, array: np.ndarray) -> None:
    with whole(path) as temporary, temporary.open("wb") as file:
        np.save(file, array)


def _shorten(path: Path, rows: int) -> None:
    """Cut a .npy file to its first rows in place; numpy pads its header so that the number of rows may change."""
    array = np.load(path, mmap_mode="r")
    header = {"descr": array.dtype.str, "fortran_order": False, "shape": (rows, *array.shape[1:])}
    with path.open("rb+") as file:
        np.lib.format.write_array_header_1_0(file, header)
        file.truncate(file.tell() + rows * array[0].nbytes)
