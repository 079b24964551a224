"""Look into a network: what its attention looks at in some pictures, what spoke for its decision, and what that is
worth, as a gallery."""

from __future__ import annotations

import base64
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn

from regard.base.errors import UserError
from regard.base.files import slug, whole, write_text
from regard.base.images import below, deep, formats, is_image, once, reading, upright
from regard.maps.deletion import Curves, deletion_insertion
from regard.maps.figures import FIGURES
from regard.maps.gradcam import METHODS
from regard.maps.layer_choice import find_layer
from regard.maps.meaning import Meaning, class_effect, judge, rank_correlation
from regard.maps.randomisation import can_be_randomised, randomised
from regard.maps.recording import Map, record, views
from regard.maps.saliency import evidence
from regard.maps.targets import class_scores
from regard.networks.borrowing import borrowed, brief, refuse_unseen
from regard.networks.models import open_model
from regard.pictures import charts
from regard.pictures.charts import Chart, Picture
from regard.pictures.drawing import CAPTIONS, can_draw, data_uri, draw, grid, resize, rgb
from regard.registry.named import Named

PIXELS = 100_000_000  # of a picture, at most
BORDER = 255  # a label that says neither object nor background
MAPS = 6  # columns, unless more are asked for
SIDE = 224
CHECKED = 8  # pictures, when the network is run again and again
STAGES = 6  # of drawing its weights anew
STEPS = 10  # of taking places away
CHART = 150  # pixels high
FOLLOWS = 0.5  # of a channel's variance is between classes: it is named
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # what networks for photos are trained with

SEED = re.compile(r"seed-[0-9]{4,10}\.safetensors")

Key = tuple[str, str, int]  # name, kind and call


@dataclass(frozen=True)
class Subject:
    """A network and how its pictures are prepared.

    Attributes:
        model: gives (B, classes), for what spoke for a class; any other is only recorded.
        name: as the user wrote it.
        size: (height, width) of its pictures.
        channels: of its pictures.
        mean, deviation: of each channel, as shares of 1.
        classes: their names; empty where they have none.
        random: whether its weights are known to be.
        note: what a reader must know of it.
        square: whether it is shown the middle square of a picture alone, as `compare` does it; else the whole picture,
            squeezed.
        peak: the largest number in the pictures of more than 8 bits a value that it was trained on, if it was.
    """

    model: nn.Module
    name: str
    size: tuple[int, int] = (SIDE, SIDE)
    channels: int = 3
    mean: Sequence[float] = MEAN
    deviation: Sequence[float] = DEVIATION
    classes: Sequence[str] = ()
    random: bool = False
    note: str = ""
    square: bool = False
    peak: int | None = None

    @classmethod
    def of(cls, model: nn.Module, name: str | None = None, sides: tuple[int, ...] | None = None) -> Subject:
        """A network with the size, mean and deviation of pictures that timm names, else those usual for ImageNet. The
        whole picture is squeezed to that size, not cut, so that maps cover it.

        Args:
            model: the network.
            name: its class's if not said.
            sides: (channels, height, width) of its pictures; timm's if not said, else 3 x 224 x 224.
        """
        config: Any = getattr(model, "pretrained_cfg", None) or {}
        channels, height, width = sides or config.get("input_size") or (3, SIDE, SIDE)
        mean, deviation = config.get("mean") or MEAN, config.get("std") or DEVIATION
        if len(mean) != channels:
            mean, deviation = (0.5,) * channels, (0.5,) * channels
        known = config.get("num_classes") == getattr(model, "num_classes", None) == 1000
        classes = _imagenet() if known else []
        return cls(model, name or type(model).__name__, (height, width), channels, mean, deviation, classes)

    def prepare(self, pictures: Iterable[Image.Image]) -> Tensor:
        """(B, channels, height, width) of RGB pictures of any size, which are brought to this one."""
        pictures = map(self.framed, pictures)
        height, width = self.size
        mode = "L" if self.channels == 1 else "RGB"
        resized = [p.convert(mode).resize((width, height), Image.Resampling.BICUBIC) for p in pictures]
        pixels = torch.from_numpy(np.stack([np.asarray(p, dtype=np.float32) / 255 for p in resized]))
        pixels = pixels.unsqueeze(1) if self.channels == 1 else pixels.movedim(-1, 1)
        mean, deviation = (torch.tensor(v, dtype=torch.float32).view(-1, 1, 1) for v in (self.mean, self.deviation))
        return (pixels - mean) / deviation

    def framed(self, picture: Image.Image) -> Image.Image:
        """What the network is shown of a picture, not yet scaled."""
        if not self.square:
            return picture
        edge = min(picture.size)
        left, top = ((side - edge) // 2 for side in picture.size)
        return picture.crop((left, top, left + edge, top + edge))

    @property
    def prepared(self) -> str:
        """How its pictures are prepared, in words."""
        height, width = self.size
        share = "the middle square of each picture, scaled" if self.square else "each whole picture, squeezed"
        grey = ", in grey" if self.channels == 1 else ""
        numbers = [", ".join(f"{value:.3g}" for value in values) for values in (self.mean, self.deviation)]
        return (
            f"The network is shown {share} to {height} x {width} pixels{grey}, less the mean ({numbers[0]}) and "
            f"divided by the deviation ({numbers[1]}) of each channel."
        )

    def called(self, number: int) -> str:
        """A class in words."""
        return self.classes[number] if number < len(self.classes) else f"class {number}"


@dataclass(frozen=True)
class Column:
    """One place in a network, on every picture.

    Attributes:
        name: of the tap, module or layer.
        kind: of its map, or the method for what spoke for the class.
        caption: what is drawn, for a reader who has never seen such a picture.
        pictures: one for each image.
        values: (K, ...) what is judged: of pixels (K, h, w), else (K, n).
        meaning: of these.
        charts: what each shows -> the chart: gates by class, the curves of the checks.
        figures: the numbers behind the charts.
    """

    name: str
    kind: str
    caption: str
    pictures: list[Picture] = field(repr=False)
    values: np.ndarray = field(repr=False)
    meaning: Meaning
    charts: dict[str, Picture] = field(default_factory=dict, repr=False)
    figures: dict[str, Any] = field(default_factory=dict, repr=False)

    def to_json(self) -> dict[str, Any]:
        named = {"name": self.name, "kind": self.kind, "caption": self.caption, "words": self.meaning.words}
        return named | asdict(self.meaning) | self.figures


@dataclass(frozen=True)
class View:
    """What one network looks at.

    Attributes:
        name: of the network.
        classes: what each picture is taken for, in words with its share.
        columns: places in the network, first layers first.
        notes: what a reader must know.
    """

    name: str
    classes: list[str]
    columns: list[Column]
    notes: list[str]


@dataclass(frozen=True)
class Gallery:
    """Pictures and figures; `save` writes them.

    Attributes:
        images: names of the pictures.
        pictures: as they came, small.
        views: of each network.
        notes: what a reader must know about the pictures.
    """

    images: list[str]
    pictures: list[Image.Image] = field(repr=False)
    views: list[View]
    notes: list[str]

    @property
    def name(self) -> str:
        return " and ".join(view.name for view in self.views)

    def to_json(self) -> dict[str, Any]:
        """Everything but the pictures."""
        return {
            "images": self.images,
            "networks": [
                {
                    "model": view.name,
                    "classes": view.classes,
                    "maps": [column.to_json() for column in view.columns],
                    "notes": view.notes,
                }
                for view in self.views
            ],
            "notes": self.notes,
        }

    def sheet(self) -> Image.Image:
        """All in one picture: a row for each image, a column for each place in each network."""
        columns = {"": self.pictures}
        for view in self.views:
            for column in view.columns:
                place = column.name or "the network"
                place = f"{column.kind} at {place}" if column.kind in METHODS else place
                name = place if len(self.views) == 1 else f"{view.name}: {place}"
                while name in columns:  # the same place, once more
                    name += " "
                columns[name] = [picture.image() for picture in column.pictures]
        return grid(columns, self.images)

    def save(self, folder: str | Path, *, pictures: str | None = None) -> Path:
        """Write gallery.html, one file without anything from elsewhere, and gallery.json; gives the page's path.

        Args:
            folder: is made.
            pictures: ``"png"``, ``"svg"``, ...: also every picture as a file of its own, in pictures/, and all of them
                in sheet.png.
        """
        import jinja2

        folder = Path(folder)
        environment = jinja2.Environment(
            loader=jinja2.PackageLoader("regard.gallery", "."), autoescape=True, undefined=jinja2.StrictUndefined
        )
        page = environment.get_template("gallery.html.jinja").render(
            gallery=self,
            uri=_uri,
            figures=FIGURES,
            shared=[note for note in self.views[0].notes if all(note in view.notes for view in self.views)],
            checked=CHECKED,
            charts=any(column.charts for view in self.views for column in view.columns),
            given={name for view in self.views for column in view.columns for name in column.meaning.figures},
        )
        if pictures:
            with whole(folder / "sheet.png") as path:
                self.sheet().save(path, "PNG")
            for number, view in enumerate(self.views):
                place = (
                    folder / "pictures" / (slug(view.name) if len(self.views) == 1 else f"{number}-{slug(view.name)}")
                )
                for column in view.columns:
                    for row, picture in enumerate(column.pictures):
                        shown = f"{row:03}-{slug(Path(self.images[row]).stem)}"
                        picture.save(place / f"{shown}-{slug(column.name)}-{slug(column.kind)}.{pictures}")
        write_text(folder / "gallery.json", json.dumps(self.to_json(), indent=1) + "\n")
        return write_text(folder / "gallery.html", page)

    def __str__(self) -> str:
        rows = [f"{len(self.images)} picture{'s' * (len(self.images) != 1)}"]
        for view in self.views:
            rows.append(view.name)
            for column in view.columns:
                said = "; ".join(column.meaning.words) or str(column.meaning)
                rows.append(f"  {column.kind:12} {column.name or 'the network'}: {said}")
            rows += view.notes
        return "\n".join([*rows, *self.notes])


def look(
    model: nn.Module | Subject | Sequence[nn.Module | Subject],
    paths: Sequence[str | Path | Image.Image],
    *,
    target: int | None = None,
    method: str = "grad-cam",
    layer: str = "auto",
    query: tuple[float, float] = (0.5, 0.5),
    head: int | None = None,
    every: bool = False,
    checks: bool = True,
    masks: str | Path | None = None,
    smooth: bool = True,
    size: int = 160,
    input_size: int | tuple[int, int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    batch: int = 8,
    progress: Callable[[str, int, int], None] | None = None,
) -> Gallery:
    """Show what a network's attention looks at in some pictures, what spoke for its decision, and what that is worth.

    Args:
        model: the network, or several to be seen side by side; its pictures are prepared as `Subject.of` says.
        paths: of the pictures, as `expand` takes them, or the pictures.
        target: the class whose reasons are shown; None is the one that each picture is taken for.
        method, layer: see `regard.explain`.
        query: the place (row, column) whose view is shown of weights between positions, as shares of the sides.
        head: of these weights; None is their mean.
        every: whether all places are shown, or the last of each kind and resolution.
        checks: whether the network is run again to see if the maps mean anything: with its weights drawn anew, layer by
            layer, and without the places that they show; both on the first few pictures.
        masks: a folder with a picture of the same name for each: white on the object, or labels, of which 0 is no
            object and 255 beside others is a border that counts as none.
        smooth: whether a map's values are blended or drawn as blocks.
        size: the longer side of a picture in the gallery.
        input_size, mean, std: height and width of what the network is shown, and the mean and standard deviation of
            each channel, as shares of 1, by which it is normalised, where they are others than `Subject.of` takes.
        batch: pictures at a time.
        progress: called with what is done, how much of it, and of how much.

    Raises:
        UserError: there is no picture, one is too large, or none can be read, or a mask is missing.
    """
    given = model if isinstance(model, Sequence) else [model]
    for one in given:
        refuse_unseen(one.model if isinstance(one, Subject) else one)
    if not all(0 <= at <= 1 for at in query):
        raise UserError(f"query is (row, column) as shares of the sides, from 0 to 1, got {query!r}")
    subjects = [one if isinstance(one, Subject) else Subject.of(one) for one in given]
    subjects = [_prepared(one, input_size, mean, std) for one in subjects]
    names, pictures, notes = _read(paths, max((one.peak for one in subjects if one.peak), default=None))
    objects = None if masks is None else _masks(Path(masks), names)
    asked = _Asked(target, method, layer, query, head, every, checks, smooth, size, batch)
    shown = []
    for subject in subjects:

        def tell(what: str, done: int, total: int, name: str = subject.name) -> None:
            if progress:
                progress(f"{name}: {what}", done, total)

        shown.append(_view(subject, pictures, objects, asked, tell))
    return Gallery(names, [resize(picture, size) for picture in pictures], shown, notes)


def _prepared(
    subject: Subject,
    size: int | tuple[int, int] | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> Subject:
    """The network with other pictures than those it is known by."""
    for name, values in (("mean", mean), ("std", std)):
        if values is not None and len(values) != subject.channels:
            raise UserError(f"{name} is one number for each of {subject.channels} channels, got {list(values)}")
        if values is not None and not all(map(math.isfinite, values)):
            raise UserError(f"{name} is made of finite numbers, got {list(values)}")
    if std is not None and min(std) <= 0:
        raise UserError(f"std is above 0, got {list(std)}")
    sides = (size, size) if isinstance(size, int) else size
    if sides is not None and not (len(sides) == 2 and all(type(side) is int and 1 <= side <= 4096 for side in sides)):
        raise UserError(f"input_size is a height and a width from 1 to 4096, got {size!r}")
    return replace(subject, size=sides or subject.size, mean=mean or subject.mean, deviation=std or subject.deviation)


@dataclass(frozen=True)
class _Asked:
    """How to look; see `look`."""

    target: int | None
    method: str
    layer: str
    query: tuple[float, float]
    head: int | None
    every: bool
    checks: bool
    smooth: bool
    size: int
    batch: int


# --- the pictures ----------------------------------------------------------------------------------------------------


def expand(words: Iterable[str | Path]) -> list[Path]:
    """The pictures that are meant by files, folders and patterns, in order.

    Raises:
        UserError: one is an address, or nothing is there.
    """
    found: list[Path] = []
    for word in map(str, words):
        if "://" in word:
            raise UserError(f"{word} is an address, and nothing is fetched: save the picture and name its file")
        path = Path(word)
        if path.is_dir():
            inside = sorted(below(path))
            if not inside:
                raise UserError(f"the folder {path} holds no pictures, such as .jpg or .png files")
            found += inside
        elif path.exists():
            found.append(path)
        else:
            base = Path(path.anchor or ".")
            matches = sorted(base.glob(str(path.relative_to(path.anchor)) if path.anchor else word))
            if not matches:
                raise UserError(f"there is no picture {word}")
            found += [match for match in matches if not match.is_dir()]
    return once(found)


def read(path: str | Path, *, pixels: int = PIXELS, longest: int | None = None, peak: int | None = None) -> Image.Image:
    """A picture from a stranger's file, as RGB.

    Of several frames the first is taken, what is transparent becomes white, and what has more than 8 bits is scaled, as
    `compare` does it with the images that it trains on.

    Args:
        path: of the file.
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
    except Image.DecompressionBombError:
        raise UserError(f"has more than {pixels:,} pixels: make it smaller first") from None
    except Exception as error:  # what a decoder raises for a broken file differs with every format
        reason = getattr(error, "strerror", None) or (str(error) if type(error) is ValueError else type(error).__name__)
        raise UserError(
            f"cannot be read as a picture ({reason}): it is broken, or none of {', '.join(formats())}"
        ) from error
    if longest:
        picture.thumbnail((longest, longest))
    return picture


def _peak(paths: Sequence[Path]) -> int | None:
    """The largest number in those of the files that have more than 8 bits; None where none has."""
    found = []
    for path in paths:
        with suppress(Exception), reading(path) as image:  # a broken one is told when it is read
            if deep(image):
                found.append(int(np.asarray(image).max()))
    return max(found, default=None)


def _read(paths: Sequence[Any], peak: int | None = None) -> tuple[list[str], list[Image.Image], list[str]]:
    names: list[str] = []
    pictures: list[Image.Image] = []
    notes: list[str] = []
    paths = [paths] if isinstance(paths, str | Path) else list(paths)
    peak = peak or _peak(expand([given for given in paths if isinstance(given, str | Path)]))
    for at, given in enumerate(paths):
        if not isinstance(given, str | Path):
            names.append(f"picture {at + 1}")
            pictures.append(rgb(given))
            continue
        for path in expand([given]):
            try:
                pictures.append(read(path, peak=peak))
                names.append(path.name)
            except UserError as error:
                notes.append(f"{path} was left out: it {error}.")
    if not pictures:
        raise UserError(
            "no picture could be read: " + " ".join(notes) if notes else "no pictures to look at: name some"
        )
    return names, pictures, notes


def _masks(folder: Path, names: Sequence[str]) -> list[Image.Image]:
    """The object in each picture, from the file of the same name."""
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder} of masks")
    found = {path.stem: path for path in sorted(folder.glob("*")) if is_image(path)}
    missing = [name for name in names if Path(name).stem not in found]
    if missing:
        raise UserError(f"{folder} holds no mask for {missing[0]}: a picture of the same name, white on the object")
    objects = []
    for name in names:
        path = found[Path(name).stem]
        try:
            objects.append(_object(path))
        except UserError as error:
            raise UserError(f"the mask {path} {error}") from error
        if objects[-1].getextrema()[1] == 0:
            raise UserError(f"the mask {path} is black everywhere: an object is white, or 1")
    return objects


def _object(path: Path) -> Image.Image:
    """A mask, 255 on the object: of a picture the lighter half of its greys, of labels all but 0 and their border, 255.

    Labels are the numbers of a palette with colours, or grey values of which none is light but 255. What is transparent
    in some places is a mask by that.
    """
    with reading(path) as file:
        alpha = np.asarray(ImageOps.exif_transpose(file).getchannel("A")) if "A" in file.getbands() else None
    if alpha is not None and alpha.min() < alpha.max():
        return Image.fromarray(255 * (alpha > BORDER // 2).astype(np.uint8))
    grey = read(path).convert("L")  # also the sentences on what is broken
    with reading(path) as file:
        palette = np.asarray(file.getpalette() or [], np.uint8).reshape(-1, 3)
        coloured = file.mode == "P" and bool((palette != palette[:, :1]).any())
        values = np.asarray(ImageOps.exif_transpose(file)) if coloured else np.asarray(grey)
    labels = (values > 0) & (values < BORDER)
    if coloured or not ((values > BORDER // 2) & (values < BORDER)).any():
        chosen = labels if labels.any() else values > 0
    else:
        chosen = values > values.max() / 2
    return Image.fromarray(255 * chosen.astype(np.uint8))


def _on_grid(masks: Sequence[Image.Image], size: tuple[int, int]) -> np.ndarray:
    """(K, height, width), true on the object."""
    small = [np.asarray(mask.resize(size[::-1], Image.Resampling.NEAREST)) for mask in masks]
    return np.stack([mask > mask.max() / 2 for mask in small])  # 0 and 255, or 0 and 1


# --- the maps --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Seen:
    """What a network's attention looks at in some pictures.

    Attributes:
        maps: in the order of the calls; the gates along the axes of one mechanism are one map, and of weights between
            positions there is one query. All on the CPU.
        classes: of each picture, the number of the class that it is taken for and its share; None without classes.
        hidden: names of what cannot be laid on the picture: tokens of unknown places, channels that look at others.
        dropped: see `regard.maps.recording.Maps`.
    """

    maps: list[Map]
    classes: list[tuple[int, float | None]]
    hidden: list[str]
    dropped: list[str]


class _Found:
    """The maps of each place, batch by batch."""

    def __init__(self) -> None:
        self.maps: dict[Key, list[Map]] = {}
        self.classes: list[tuple[int, float | None]] = []
        self.hidden: list[str] = []
        self.dropped: list[str] = []

    def add(self, found: Map, call: int = 0) -> None:
        self.maps.setdefault((found.name, found.kind, call), []).append(found)

    def take(self, seen: Seen) -> None:
        self.classes += seen.classes
        self.hidden, self.dropped = seen.hidden, seen.dropped
        calls: dict[tuple[str, str], int] = {}
        for found in seen.maps:
            call = calls[found.name, found.kind] = calls.get((found.name, found.kind), -1) + 1
            self.add(found, call)

    def chosen(self, every: bool) -> list[Key]:
        """All, or the last of each kind and resolution and of these the deepest few; what spoke comes last."""
        reasons = [key for key in self.maps if key[1] in METHODS]
        places = [key for key in self.maps if key[1] not in METHODS]
        if every:
            return places + reasons
        last = {(key[1], _sides(self.maps[key][0])): key for key in places}
        return [key for key in places if key in last.values()][-MAPS:] + reasons


def _sides(found: Map) -> tuple[int, ...]:
    return tuple(found.value.shape[2:]) if found.kind not in ("channel", "axis") else tuple(found.value.shape[1:2])


def see(subject: Subject, images: Tensor, query: tuple[float, float] = (0.5, 0.5)) -> Seen:
    """What the attention looks at, as maps that `regard.pictures.drawing.draw` takes.

    Args:
        subject: the network.
        images: as `Subject.prepare` gives them.
        query: the place (row, column) whose view is taken of weights between positions, as shares of the sides.
    """
    with torch.inference_mode(), borrowed(subject.model) as twin, record(twin, queries=[query]) as maps:
        output = twin(images)
    classes: list[tuple[int, float | None]] = [(0, None)] * len(images)
    scores = class_scores(output)
    if scores is not None:
        shares = scores.float().softmax(1).max(1)
        classes = list(zip(shares.indices.tolist(), shares.values.tolist(), strict=True))
    kept, hidden = [], []
    for found in views(maps, query):
        if len(found.value) == len(images) and can_draw(found):
            kept.append(found)
        else:
            hidden.append(found.name)
    return Seen(kept, classes, list(dict.fromkeys(hidden)), list(maps.dropped))


def _view(
    subject: Subject,
    pictures: Sequence[Image.Image],
    masks: Sequence[Image.Image] | None,
    asked: _Asked,
    tell: Callable[[str, int, int], None],
) -> View:
    """One network on every picture."""
    notes = ["The network's weights are random: pass --weights FILE or --pretrained."] if subject.random else []
    notes += [subject.note] if subject.note else []
    notes.append(subject.prepared)
    images = subject.prepare(pictures)
    pictures = [subject.framed(picture) for picture in pictures]
    masks = None if masks is None else [subject.framed(mask) for mask in masks]
    weights = next((one for one in subject.model.parameters() if one.is_floating_point()), images)
    images = images.to(weights.device, weights.dtype)
    where = _layer(subject.model, images, asked.layer, notes)
    found = _maps(subject, images, asked, where, asked.target, lambda done: tell("looking", done, len(images)))
    if found.hidden:
        some = ", ".join(found.hidden[:3]) + (", ..." if len(found.hidden) > 3 else "")
        notes.append(
            f"Attention at {len(found.hidden)} more places is not shown, as it cannot be laid on the picture (channels "
            f"that look at one another, or tokens whose places are not known): {some}. `regard.record` has it."
        )
    known = where is not None
    classes = [number for number, _ in found.classes]
    keys = found.chosen(asked.every)
    values = {key: np.concatenate([judged(one, asked.head) for one in found.maps[key]]) for key in keys}
    places = {key: inside(found.maps[key][0], values[key]) for key in keys}
    anew: dict[Key, list[float]] = {}
    last: dict[Key, np.ndarray] = {}
    curves: dict[Key, Curves] = {}
    if asked.checks:
        few = images[:CHECKED]
        targets = classes[:CHECKED] if asked.target is None else [asked.target] * len(few)
        anew, last = _drawn_anew(subject, few, asked, where, targets, values, places, tell)
        if known:
            curves = _erased(subject.model, few, targets, values, asked.batch, tell)
    columns = []
    for key in keys:
        channels = key[1] == "channel"
        meaning = judge(
            within(values[key], places[key]),
            images if places[key] is None else None,
            masks=None if masks is None else _on_grid(masks, subject.size),
            random=last.get(key),
            classes=classes if channels and known else None,
            curves=curves.get(key),
        )
        column = Column(
            key[0],
            key[1],
            caption(found.maps[key][0], key[1], asked.head, asked.smooth),
            list(_drawn(found.maps[key], key[1], pictures, values[key], asked)),
            values[key],
            meaning,
        )
        if channels and known:
            _by_class(column, classes, subject)
        if key in curves:
            left = {name: curve.mean(0).tolist() for name, curve in curves[key].all.items()}
            column.figures["score_left"] = left
            column.charts["what is left of the class without its places, and with them alone"] = charts.curves(
                left, CHART, over="share of the pixels"
            )
        if key in anew:
            column.figures["random_weights_by_layer"] = anew[key]
            column.charts["likeness to its map with random weights, layer by layer from the output on"] = charts.curves(
                {"": anew[key]}, CHART, over="layers drawn anew", ends=("none", "all")
            )
        columns.append(column)
    if not any(column.kind not in METHODS for column in columns) and not found.hidden:
        only = "there are only the reasons for its decisions" if columns else "there is nothing to show"
        notes.append(f"No attention that could be recognised was found in this network: {only}.")
        if found.dropped:
            some = ", ".join(found.dropped[:3]) + (", ..." if len(found.dropped) > 3 else "")
            notes.append(f"What is multiplied at {some} was seen, and is attention of no kind that is known here.")
    words = [
        "" if score is None else f"{subject.called(number)}, {100 * score:.{1 if score < 0.01 else 0}f} %"
        for number, score in found.classes
    ]
    return View(subject.name, words, columns, notes)


def _layer(model: nn.Module, images: Tensor, layer: str, notes: list[str]) -> str | None:
    """The layer whose map is explained, if the network gives classes."""
    try:
        with torch.inference_mode(), borrowed(model) as twin:
            output = twin(images[:1])
    except Exception as error:  # networks are other people's code
        raise UserError(
            f"the network cannot be run on pictures of {tuple(images.shape[1:])} ({brief(error)}): give it pictures of "
            "another size, or another network"
        ) from error
    if class_scores(output) is None:
        notes.append("The network gives no classes, so nothing is said about what spoke for them.")
        return None
    try:
        return find_layer(model, images, layer)
    except UserError:
        if layer != "auto":
            raise
    notes.append("No layer gives a map of more than one pixel, so nothing is said about what spoke for the classes.")
    return None


def _maps(
    subject: Subject,
    images: Tensor,
    asked: _Asked,
    layer: str | None,
    target: int | Sequence[int] | None,
    tell: Callable[[int], None] = lambda _: None,
) -> _Found:
    """What a network's attention looks at, and what spoke for its decisions."""
    found = _Found()
    for at in range(0, len(images), asked.batch):
        part = images[at : at + asked.batch]
        found.take(see(subject, part, asked.query))
        if layer is not None:
            of = target[at : at + asked.batch] if isinstance(target, Sequence) else target
            value = evidence(subject.model, part, of, method=asked.method, layer=layer).value
            found.add(Map(layer, asked.method, value.float().cpu()))
        tell(at + len(part))
    return found


def _drawn_anew(
    subject: Subject,
    images: Tensor,
    asked: _Asked,
    layer: str | None,
    targets: Sequence[int],
    values: dict[Key, np.ndarray],
    places: dict[Key, np.ndarray | None],
    tell: Callable[[str, int, int], None],
) -> tuple[dict[Key, list[float]], dict[Key, np.ndarray]]:
    """How like their maps with random weights the maps are, from no layer drawn anew to all; and the last of these."""
    likenesses = {key: [1.0] for key in values}
    last: dict[Key, np.ndarray] = {}
    layers = sum(map(can_be_randomised, subject.model.modules()))
    stages = sorted({round(layers * stage / STAGES) for stage in range(1, STAGES + 1)} - {0})
    for number, (_, copy) in enumerate(randomised(subject.model, images[:1]), start=1):
        if number not in stages:
            continue
        found = _maps(replace(subject, model=copy), images, asked, layer, targets)
        for key in values.keys() & found.maps.keys():
            drawn = np.concatenate([judged(one, asked.head) for one in found.maps[key]])
            last[key] = within(drawn, places[key])
            likenesses[key].append(rank_correlation(within(values[key][: len(images)], places[key]), last[key]))
        tell("drawing weights anew", stages.index(number) + 1, len(stages))
    return {key: one for key, one in likenesses.items() if len(one) > 1}, last


def _erased(
    model: nn.Module,
    images: Tensor,
    targets: Sequence[int],
    values: dict[Key, np.ndarray],
    batch: int,
    tell: Callable[[str, int, int], None],
) -> dict[Key, Curves]:
    """What the network loses with the places that a map shows, where the map is one of the whole picture."""
    curves: dict[Key, Curves] = {}
    keys = [key for key, value in values.items() if value.ndim == 3 and key[1] not in ("token", "criss-cross")]
    for number, key in enumerate(keys, start=1):
        maps = torch.from_numpy(values[key][: len(images)]).to(images.device)
        chance = next((curve.chance for curve in curves.values()), None)
        curves[key] = deletion_insertion(model, images, maps, targets, steps=STEPS, batch=batch, chance=chance)
        tell("taking places away", number, len(keys))
    return curves


def _by_class(column: Column, classes: Sequence[int], subject: Subject) -> None:
    """The gates of each class, and which channels follow it."""
    common = [number for number, _ in Counter(classes).most_common(len(charts.STYLES))]
    if len(common) < 2:
        return
    means = {number: column.values[np.asarray(classes) == number].mean(0) for number in common}
    chart = charts.by_class({subject.called(number): mean for number, mean in means.items()}, CHART)
    column.charts["gates of each class that the pictures are taken for"] = chart
    moved = class_effect(column.values, classes)
    if moved is not None and not column.meaning.words:
        highest = {
            c: max(means, key=lambda number: means[number][c])
            for c in np.argsort(moved[1])[::-1][:5]
            if moved[1][c] > FOLLOWS
        }
        column.figures["channels_by_class"] = [
            {"channel": int(c), "share": float(moved[1][c]), "highest": subject.called(number)}
            for c, number in highest.items()
        ]


def judged(found: Map, head: int | None = None) -> np.ndarray:
    """What `regard.maps.meaning.judge` takes of a map: (K, h, w) of pixels, else (K, n).

    Args:
        found: as `see` gives it.
        head: of weights between positions; None is the mean of the heads.
    """
    value = found.value
    if found.kind in ("spatial", "element", "axis", *METHODS) and value.dim() == 4:
        return np.asarray(value.mean(1))
    if found.kind == "token" and found.layout:
        if head is not None and head >= value.shape[1]:
            raise UserError(f"the weights of {found.name} have {value.shape[1]} heads, there is no number {head}")
        weights = (value.mean(1) if head is None else value[:, head])[:, 0, found.layout.prefix :]
        return np.asarray(weights.unflatten(1, found.layout.grid))
    if found.kind in ("branch", "kernel"):  # as it is drawn
        return np.asarray(value.flatten(2).mean(2) if found.kind == "branch" else value.mean(1))
    return np.asarray(value.flatten(1))


def inside(found: Map, values: np.ndarray) -> np.ndarray | None:
    """Of views that reach no further than a window (K, h, w) the places in it, (h, w); None where all are judged."""
    there = (values != 0).any(0)
    return None if not found.windows or there.all() else np.asarray(there)


def within(values: np.ndarray, places: np.ndarray | None) -> np.ndarray:
    """Values (K, h, w) at these places alone, (K, n); all of them where it is None."""
    return values if places is None else values[:, places]


def _drawn(
    maps: Sequence[Map], kind: str, pictures: Sequence[Image.Image], values: np.ndarray, asked: _Asked
) -> Iterator[Picture]:
    """A column shares its scale, so that its pictures can be compared."""
    limits = (float(values.min()), float(values.max())) if values.ndim == 3 else None
    usual = values.mean(0) if kind == "channel" and len(values) > 1 else None
    at = 0
    for found in maps:
        for number in range(len(found.value)):
            if kind in METHODS:
                found = Map(found.name, "spatial", found.value)
            yield draw(
                found,
                pictures[at],
                number=number,
                query=asked.query,
                head=asked.head,
                size=asked.size,
                smooth=asked.smooth,
                limits=limits,
                usual=usual,
            )
            at += 1


def caption(found: Map, kind: str, head: int | None = None, smooth: bool = True) -> str:
    """What a picture of a map shows, for a reader who has never seen one.

    Args:
        found: as `see` gives it.
        kind: its kind, or the method for what spoke for the class.
        head, smooth: as drawn.
    """
    words = f"What spoke for the class ({kind} at {found.name})" if kind in METHODS else CAPTIONS[kind]
    if words.endswith("."):
        return words
    if kind == "token" and found.value.shape[1] > 1:
        words += f", {'mean of the heads' if head is None else f'head {head}'}"
    sides = found.layout.grid if found.layout else found.value.shape[-2:]
    return f"{words}. {' x '.join(map(str, sides))} places, {'blended' if smooth else 'as blocks'}."


def _uri(picture: Image.Image | Picture) -> str:
    """A picture inside the page."""
    if isinstance(picture, Chart):
        return "data:image/svg+xml;base64," + base64.b64encode(picture.svg().encode()).decode()
    return data_uri(picture if isinstance(picture, Image.Image) else picture.image())


# --- the network -----------------------------------------------------------------------------------------------------


def open_subjects(text: str, *, own: str | None = None, **options: Any) -> list[Subject]:
    """As `open_subject`; of the folder of a comparison, every arm that kept weights, with its first seed."""
    if not Path(text).is_dir():
        return [open_subject(text, own=own, **options)]
    first: dict[str, Path] = {}
    for arm, _, path in trained(text):
        first.setdefault(arm, path)
    return [open_subject(str(path), own=own) for path in first.values()]


def trained(folder: str | Path) -> list[tuple[str, int, Path]]:
    """Arm, seed and file of every network that a comparison kept, in the order of its arms.

    Raises:
        UserError: the folder holds no comparison, or it kept no weights.
    """
    from regard.comparison.results import Comparison

    found = [
        (arm, int(path.stem.removeprefix("seed-")), path)
        for arm in Comparison.load(folder).arms
        for path in sorted(Path(folder, "weights", slug(arm)).glob("seed-*.safetensors"))
        if SEED.fullmatch(path.name)
    ]
    if not found:
        raise UserError(f"the comparison in {folder} kept no weights: run it again with --keep first")
    return found


def trained_on(folder: str | Path) -> int | None:
    """The largest number in the files of more than 8 bits a value that a comparison trained on, if there were such."""
    from regard.comparison import data

    return data.load(Path(folder, "data")).peak


def open_subject(
    text: str,
    *,
    weights: Path | None = None,
    pretrained: bool = False,
    size: int | None = None,
    own: str | None = None,
) -> Subject:
    """A network by a word, and how its pictures are prepared.

    Args:
        text: as `regard.open_model` takes it, or the weights that `regard compare` kept:
            ``runs/mine/weights/se/seed-0000.safetensors``.
        weights: a checkpoint of the network, safetensors or what ``torch.load(weights_only=True)`` reads.
        pretrained: timm's pretrained weights.
        size: side of the pictures in pixels; None is the network's own.
        own: the ``file.py:function`` of weights that were trained in such a network. No file is run that only the
            folder of a comparison names, since the folder may come from anybody.

    Raises:
        UserError: as `open_model` does, the checkpoint does not fit, or a comparison's file is not given again.
    """
    if text.endswith(".safetensors"):
        return _compared(Path(text), own)
    # what a function returns with its network has its own number of pictures
    count = None if Named.read(text).file else 1
    model, example = open_model(text, size=size, batch=count, usual=1, pretrained=pretrained)
    if not isinstance(example, Tensor) or example.dim() != 4:
        raise UserError(f"{text} is not called with pictures alone, so there is nothing to look at here")
    if weights is not None:
        from regard.comparison.hosts import load

        load(model, weights)
    found = Subject.of(model, text, tuple(example.shape[1:]))
    return replace(found, random=not pretrained and weights is None and not Named.read(text).file)


def _given(question: dict[str, Any], own: str | None, folder: Path) -> str:
    """The network of a comparison, where no file has to be run for it that the user did not name."""
    named = Named.read(question["model"])
    if named.file is None:
        return named.text
    if own is None:
        raise UserError(
            f"{folder} was made with {named.same}, and no file is run because a folder names it: if it is yours, "
            f"pass --model {named.file}:{named.name} as well"
        )
    given = Named.read(own)
    if given.same != named.same or given.digest() != question["model_sha256"] or not question["model_sha256"]:
        raise UserError(f"{folder} was made with another {named.same} than {own}: name the file as it was then")
    return own


def _imagenet() -> list[str]:
    """What timm calls the classes of ImageNet; of each the first of its words."""
    from timm.data.imagenet_info import ImageNetInfo

    names = ImageNetInfo()
    return [names.index_to_description(number).partition(",")[0] for number in range(names.num_classes())]


def _compared(path: Path, own: str | None) -> Subject:
    """What a comparison trained, from its folder."""
    from regard.base.files import slug
    from regard.comparison import data, hosts, training
    from regard.comparison.results import Comparison, read_question

    if not path.is_file():
        raise UserError(f"there is no file {path}")
    folder, seed = path.parents[2], path.stem.removeprefix("seed-")
    comparison = Comparison.load(folder)
    arm = next((arm for arm in comparison.arms if slug(arm) == path.parent.name), None)
    if arm is None or not SEED.fullmatch(path.name):
        raise UserError(
            f"{path} is not where a comparison keeps weights: name FOLDER/weights/ARM/seed-NNNN.safetensors"
        )
    question = read_question(folder, strict=True)["question"]
    question |= {"model": _given(question, own, folder)}
    # all weights are in the file: nothing is fetched, and no other file is opened
    model = training.build(question | {"pretrained": False, "weights": None}, arm, int(seed))
    hosts.load(model, path)
    images = data.load(folder / "data")
    if images.fingerprint != question["fingerprint"]:
        raise UserError(f"the images in {folder / 'data'} are not those of its question.json: ask it again")
    channels = images.pixels.shape[1]
    mean, deviation = question["normalisation"] or data.normalisation(images, images.split(int(seed)).train)
    side = question["size"]
    note = (
        f"It was trained by `regard compare` on {question['data']}, {channels} x {side} x {side}, and knows these "
        f"classes alone: {', '.join(question['classes'][:12])}{', ...' if len(question['classes']) > 12 else ''}."
    )
    name = f"{arm} in {question['model']}"
    return Subject(
        model, name, (side, side), channels, mean, deviation, question["classes"], False, note, True, images.peak
    )
