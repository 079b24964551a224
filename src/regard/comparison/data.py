"""Images for a fair comparison: decoded once, split by the seed, the same stream of them for every arm."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from filelock import FileLock
from PIL import Image, ImageOps, UnidentifiedImageError

from regard.errors import UserError, near
from regard.files import whole, write_text

FASHION_CLASSES = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
SIZES = {"fashion": 28, "cluttered": 56}  # the embedded sets, and the side of their images in pixels
FASHION_TRAINING = 10_000  # the rest are the test images
PIECES, PIECE = 10, 9  # Cluttered Fashion: how many pieces of other items, and their side in pixels

UNASSIGNED, TRAIN, VALIDATION, TEST = -1, 0, 1, 2
PART_FOLDERS = {
    **dict.fromkeys(("train", "training"), TRAIN),
    **dict.fromkeys(("val", "valid", "validation"), VALIDATION),
    **dict.fromkeys(("test", "testing"), TEST),
}
SUFFIXES = {
    *(".apng", ".avif", ".bmp", ".dib", ".gif", ".heic", ".heif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg"),
    *(".jpx", ".pbm", ".pcx", ".pgm", ".png", ".pnm", ".ppm", ".qoi", ".sgi", ".tga", ".tif", ".tiff", ".webp"),
}
ROOM = 1.125  # how much larger than trained a folder's images are stored, so that random crops have somewhere to go
LEAST = 5  # images of a class where the seed cuts all three parts out of it
BATCH = 256  # files handed to the decoding threads at a time
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
        UserError: when there is no such source, when its classes do not make a fair split, or when files cannot be
            read and `skip_broken` is not set.
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
        root = _existing(source)
        if folder.resolve().is_relative_to(root):
            raise UserError(
                f"the results would lie among the images of {str(root)!r}; choose a folder outside with --out."
            )
        try:
            classes, files = _find(root)
        except OSError as error:
            raise UserError(f"{error.filename!r} cannot be read ({error.strerror}); ask for access to it.") from error
        _check_counts(classes, np.array([file.label for file in files]), np.array([file.part for file in files]))
        stamps = _digest([file.stamp for file in files])
        key |= {"source": _text(root.name), "side": math.ceil((size or 64) * ROOM), "files": stamps}
        write = partial(_write_decoded, classes=classes, files=files, progress=progress)

    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        if _key(folder) != key:
            # without meta.json the folder counts as empty, so being killed from here on only costs the work;
            # what an earlier killed process had half written goes too
            for stale in (folder / "meta.json", folder / "masks.npy", *folder.glob(".*.npy.*")):
                stale.unlink(missing_ok=True)
            write(folder, key)
        images = load(folder)

    if images.broken and not skip_broken:
        raise UserError(_broken_sentence(images.broken, len(images.files) + len(images.broken)))
    _check_counts(images.classes, images.labels, images.parts, len(images.broken))
    return images


def load(folder: Path) -> Images:
    """The images that `prepare` wrote into `folder`; processes that load the same folder share its memory.

    Raises:
        UserError: when the folder is not whole.
    """
    folder = Path(folder)
    if not (folder / "meta.json").is_file():
        raise UserError(
            f"{str(folder)!r} holds no prepared images (no meta.json); run the comparison again to make them."
        )
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    return Images(
        name=meta["name"],
        classes=tuple(meta["classes"]),
        pixels=np.load(folder / "images.npy", mmap_mode="r"),
        labels=np.load(folder / "labels.npy"),
        parts=np.load(folder / "parts.npy"),
        files=tuple(meta["files"]),
        masks=np.load(folder / "masks.npy", mmap_mode="r") if (folder / "masks.npy").exists() else None,
        broken=tuple((file, reason) for file, reason in meta["broken"]),
        fingerprint=meta["fingerprint"],
    )


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


def augment(pixels: torch.Tensor, size: int, generator: torch.Generator) -> torch.Tensor:
    """Crop each image at a random place and mirror every other one at random.

    Args:
        pixels: uint8 (B, C, S, S), S >= size, on any device. Where S == size, a black border of size // 14 is added
            first, so that there is something to crop.
        size: the side of the crop in pixels.
        generator: on the CPU, whatever the device of `pixels`, so that every device sees the same crops.

    Returns:
        (B, C, size, size) in 0..1, float32, channels last in memory.
    """
    if pixels.shape[-1] == size:
        pixels = torch.nn.functional.pad(pixels, [size // 14] * 4)
    count, room = len(pixels), pixels.shape[-1] - size
    top, left = torch.randint(0, room + 1, (2, count, 1), generator=generator)
    mirrored = torch.rand(count, 1, generator=generator) < 0.5
    span = torch.arange(size)
    rows = (top + span).to(pixels.device)
    columns = (left + torch.where(mirrored, span.flip(0), span)).to(pixels.device)
    image = torch.arange(count, device=pixels.device)
    crops = pixels.permute(0, 2, 3, 1)[image[:, None, None], rows[:, :, None], columns[:, None, :]]
    return crops.permute(0, 3, 1, 2).float().div_(255)


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
    with np.load(Path(__file__).with_name("fashion.npz")) as stored:
        pixels, labels = stored["images"], stored["labels"].astype(np.int64)
    training = np.arange(len(pixels)) < FASHION_TRAINING
    masks = None
    if key["source"] == "cluttered":
        # the pieces in a test image come from test images
        both = [_clutter(pixels[training], "train"), _clutter(pixels[~training], "test")]
        pixels, masks = (np.concatenate(arrays) for arrays in zip(*both, strict=True))
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


# ---- a user's folder: what is in it


class _File(NamedTuple):
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


def _existing(source: str | Path) -> Path:
    path = Path(source).expanduser()
    if path.is_dir():
        return path.resolve()
    if path.exists():
        raise UserError(f"{str(source)!r} is a file; name the folder that holds one folder of images for each class.")
    if isinstance(source, Path) or path.name != source:
        raise UserError(f"the folder {str(source)!r} does not exist; name one that holds a folder for each class.")
    hint = near(source, list(SIZES)) or f"; name a folder or one of {', '.join(SIZES)}."
    raise UserError(f"there are no images called {source!r}, neither a folder nor embedded{hint}")


def _find(root: Path) -> tuple[tuple[str, ...], list[_File]]:
    """The classes of a folder and its image files, in the order of their names."""
    parts = _part_folders(root)
    held: dict[tuple[Path, str], list[Path]] = {}  # (part, class) -> files
    for part, _ in parts:
        inside = {(part, folder.name): list(_images_below(folder)) for folder in _folders(part)}
        if not any(inside.values()):
            if any(_is_image(path) for path in part.iterdir()):
                raise UserError(f"the images lie directly in {str(part)!r}; put them into one folder for each class.")
            raise UserError(f"{str(part)!r} holds no images; it needs a folder for each class with images in it.")
        held |= inside

    names = sorted({name for _, name in held})
    for part, _ in parts:
        if missing := [repr(name) for name in names if (part, name) not in held]:
            raise UserError(
                f"the parts of {str(root)!r} differ in their classes: {part.name!r} has no folder {_listed(missing)}; "
                "give every part the same classes, or remove these from the others."
            )
    if empty := [repr(str((part / name).relative_to(root))) for (part, name), files in held.items() if not files]:
        raise UserError(f"no images in the class folder {_listed(empty)} of {str(root)!r}; fill or remove it.")
    if len(names) == 1:
        raise UserError(
            f"{str(root)!r} has a single class, {names[0]!r}, and a comparison needs two or more; "
            "if the classes are folders inside that one, name it instead."
        )
    return tuple(map(_text, names)), [
        _File(file, _text(file.relative_to(root).as_posix()), label, number)
        for part, number in parts
        for label, name in enumerate(names)
        for file in held[part, name]
    ]


def _part_folders(root: Path) -> list[tuple[Path, int]]:
    """The folders that hold class folders, with their part: those called train, val and test, or the root itself."""
    folders = _folders(root)
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
    extra = [repr(folder.name) for folder in others if next(_images_below(folder), None)]
    if extra:
        raise UserError(f"{str(root)!r} has {names} and beside them images in {_listed(extra)}; move those out.")
    if found == [TRAIN]:
        return [(named[0][0], UNASSIGNED)]
    if TEST not in found:
        return [(folder, TEST if part == VALIDATION else part) for folder, part in named]
    return named


def _folders(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith((".", "__MACOSX"))]


def _images_below(folder: Path, above: frozenset[Path] = frozenset()) -> Iterator[Path]:
    """The image files in a folder and in its folders, links followed but never in a circle."""
    above |= {folder.resolve()}
    for inner in _folders(folder):
        if inner.resolve() not in above:
            yield from _images_below(inner, above)
    yield from (path for path in sorted(folder.iterdir()) if _is_image(path))


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and not path.is_dir()


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
                f"the split needs at least {least} images of each class{where[part]}, but {_listed(short)}{out}; "
                "add images or remove the class."
            )


# ---- a user's folder: decoding it


def _write_decoded(
    folder: Path,
    key: dict[str, Any],
    *,
    classes: tuple[str, ...],
    files: list[_File],
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
        reasons = _decode_all([file.path for file in files], pixels, progress)
        broken = [(files[row].name, reason) for row, reason in sorted(reasons.items())]
        kept = [row for row in range(len(files)) if row not in reasons]
        if not kept:
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
    _finish(folder, key, classes, names, labels, parts, broken=broken)


def _decode_all(paths: list[Path], pixels: np.ndarray, progress: Callable[[int, int], None] | None) -> dict[int, str]:
    """Decode every file into its row of `pixels`; returns row -> reason of those that cannot be read."""
    steps, side = itertools.count(1), pixels.shape[-1]
    peaks: dict[int, int] = {}
    reasons: dict[int, str] = {}

    def attempt(row: int) -> np.ndarray | int | str:
        try:
            return _decode(paths[row], side, max(peaks.values()) if row in peaks else None)
        except Exception as error:  # whatever a decoder stumbles over, the file is broken
            return _reason(error, paths[row])

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

    Image.init()  # before the threads, which would load the plugins all at once
    with warnings.catch_warnings(), ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        warnings.simplefilter("ignore")  # of sloppy metadata and large images; what matters is an error
        decode(range(len(paths)))
        decode(list(peaks))  # deeper than 8 bits: again, now that the largest value of them all is known
    return reasons


def _decode(path: Path, side: int, peak: int | None) -> np.ndarray | int:
    """One file as uint8 (3, side, side): upright, over white where it is transparent, its middle square.

    Of a file with more than 8 bits a value, only its largest value is returned as long as `peak`, the largest of the
    whole set, is None.
    """
    with Image.open(path) as file:
        file.draft(None, (2 * side, 2 * side))  # JPEG decodes several times faster where it can skip detail
        image: Image.Image = file
        ImageOps.exif_transpose(image, in_place=True)
        if image.mode == "F":
            raise ValueError("its values are floating point, of no known range; save it with 8 or 16 bits")
        if image.mode.startswith("I"):
            values = np.asarray(image)
            if values.min() < 0:
                raise ValueError("it has negative values; save it with 8 or 16 bits and no sign")
            if peak is None:
                return int(values.max())
            full = 2 ** max(1, peak.bit_length()) - 1
            image = Image.fromarray(np.rint(values * (255 / full)).astype(np.uint8))
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        width, height = image.size
        edge = min(width, height)
        left, top = (width - edge) / 2, (height - edge) / 2
        square = (left, top, left + edge, top + edge)
        small = image.convert("RGB").resize((side, side), Image.Resampling.LANCZOS, box=square)
    return np.asarray(small).transpose(2, 0, 1)


def _reason(error: Exception, path: Path) -> str:
    if isinstance(error, Image.DecompressionBombError):
        return f"it has more than {2 * (Image.MAX_IMAGE_PIXELS or 0) / 1e6:.0f} megapixels"
    if isinstance(error, UnidentifiedImageError):
        return "it is empty" if path.stat().st_size == 0 else "it is no image that Pillow can read"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"{error}" or type(error).__name__


def _broken_sentence(broken: Sequence[tuple[str, str]], total: int) -> str:
    shown = [f"{file!r} ({reason})" for file, reason in broken]
    return (
        f"{len(broken)} of {total} images cannot be read: {_listed(shown)}; "
        "mend or remove them, or leave them out with --skip-broken (skip_broken=True)."
    )


# ---- on disk


def _key(folder: Path) -> dict[str, Any] | None:
    """What a whole folder was made from."""
    meta = folder / "meta.json"
    return json.loads(meta.read_text(encoding="utf-8"))["key"] if meta.is_file() else None


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
) -> None:
    """Write what belongs to the finished `images.npy`, `meta.json` last."""
    labels, parts = np.asarray(labels, np.int64), np.asarray(parts, np.int8)
    _save(folder / "labels.npy", labels)
    _save(folder / "parts.npy", parts)
    if masks is not None:
        _save(folder / "masks.npy", masks)
    pixels = np.load(folder / "images.npy", mmap_mode="r")
    digest = hashlib.sha256(json.dumps([list(classes), pixels.shape]).encode())
    for array in (pixels, labels, parts):
        digest.update(array.data)
    meta = {
        "name": key["source"],
        "classes": classes,
        "files": files,
        "broken": broken,
        "fingerprint": digest.hexdigest(),
        "key": key,
    }
    write_text(folder / "meta.json", json.dumps(meta))


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


def _text(name: str) -> str:
    """A file's name as text that can be written anywhere: bytes that are no UTF-8 are replaced."""
    return os.fsencode(name).decode("utf-8", "replace")


def _listed(items: Sequence[str], most: int = 5) -> str:
    """The first few, and how many more."""
    rest = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(items[:most]) + rest
