"""Look into a network: what its attention looks at in some pictures, what spoke for its decision, and what that is
worth, as a gallery."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor, nn

from regard.borrowing import borrowed
from regard.drawing import data_uri, draw, resize
from regard.errors import UserError
from regard.files import write_text
from regard.layout import Layout
from regard.meaning import Meaning, judge, randomised
from regard.models import open_model, timm_model
from regard.recording import Map, record
from regard.registry import parse
from regard.saliency import METHODS, explain, find_layer

IMAGES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
PIXELS = 100_000_000  # of a picture, at most
MAPS = 6  # columns, unless more are asked for
SIDE = 224
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # what networks for photos are trained with


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
    """

    model: nn.Module
    name: str
    size: tuple[int, int] = (SIDE, SIDE)
    channels: int = 3
    mean: Sequence[float] = MEAN
    deviation: Sequence[float] = DEVIATION
    classes: Sequence[str] = ()

    def prepare(self, pictures: Iterable[Image.Image]) -> Tensor:
        """(B, channels, height, width) of RGB pictures of any size, which are squeezed to this one."""
        height, width = self.size
        mode = "L" if self.channels == 1 else "RGB"
        resized = [p.convert(mode).resize((width, height), Image.Resampling.BICUBIC) for p in pictures]
        pixels = torch.from_numpy(np.stack([np.asarray(p, dtype=np.float32) / 255 for p in resized]))
        pixels = pixels.unsqueeze(1) if self.channels == 1 else pixels.movedim(-1, 1)
        mean, deviation = (torch.tensor(v, dtype=torch.float32).view(-1, 1, 1) for v in (self.mean, self.deviation))
        return (pixels - mean) / deviation

    def called(self, number: int) -> str:
        """A class in words."""
        return self.classes[number] if number < len(self.classes) else f"class {number}"


@dataclass(frozen=True)
class Column:
    """One place in the network, on every picture.

    Attributes:
        name: of the tap, module or layer.
        kind: of its map, or the method for what spoke for the class.
        caption: what is drawn, for a reader who has never seen such a picture.
        pictures: one for each image.
        values: (K, ...) what is judged: of pixels (K, h, w), else (K, n).
        meaning: of these.
    """

    name: str
    kind: str
    caption: str
    pictures: list[Image.Image] = field(repr=False)
    values: np.ndarray = field(repr=False)
    meaning: Meaning


@dataclass(frozen=True)
class Gallery:
    """Pictures and figures; `save` writes them.

    Attributes:
        name: of the network.
        images: names of the pictures.
        pictures: as they came, small.
        classes: what each is taken for, in words with its share.
        columns: places in the network.
        notes: what a reader must know.
    """

    name: str
    images: list[str]
    pictures: list[Image.Image] = field(repr=False)
    classes: list[str]
    columns: list[Column]
    notes: list[str]

    def to_json(self) -> dict[str, Any]:
        """Everything but the pictures."""
        return {
            "model": self.name,
            "images": [{"name": name, "class": word} for name, word in zip(self.images, self.classes, strict=True)],
            "maps": [
                {"name": c.name, "kind": c.kind, "caption": c.caption, "words": c.meaning.words, **asdict(c.meaning)}
                for c in self.columns
            ],
            "notes": self.notes,
        }

    def save(self, folder: str | Path) -> Path:
        """Write gallery.html, one file without anything from elsewhere, and gallery.json; gives the page's path."""
        import jinja2

        environment = jinja2.Environment(
            loader=jinja2.PackageLoader("regard", "."), autoescape=True, undefined=jinja2.StrictUndefined
        )
        page = environment.get_template("gallery.html.jinja").render(gallery=self, data_uri=data_uri, words=_words)
        write_text(Path(folder) / "gallery.json", json.dumps(self.to_json(), indent=1) + "\n")
        return write_text(Path(folder) / "gallery.html", page)

    def __str__(self) -> str:
        rows = [f"{self.name}, {len(self.images)} pictures"]
        for column in self.columns:
            rows.append(
                f"  {column.kind:12} {column.name}: {'; '.join(column.meaning.words) or _words(column.meaning)}"
            )
        return "\n".join([*rows, *self.notes])


def look(
    model: nn.Module | Subject,
    paths: Sequence[str | Path | Image.Image],
    *,
    target: int | None = None,
    method: str = "grad-cam",
    layer: str = "auto",
    query: tuple[float, float] = (0.5, 0.5),
    head: int | None = None,
    every: bool = False,
    sanity: bool = True,
    smooth: bool = True,
    size: int = 160,
    batch: int = 8,
    progress: Callable[[int, int], None] | None = None,
) -> Gallery:
    """Show what a network's attention looks at in some pictures, what spoke for its decision, and what that is worth.

    Args:
        model: the network; its pictures are prepared as timm says where it comes from there, else as ImageNet's
            usually are. A `Subject` says it itself.
        paths: of the pictures, or the pictures.
        target: the class whose reasons are shown; None is the one that each picture is taken for.
        method, layer: see `regard.explain`.
        query: the place (row, column) whose view is shown of weights between positions, as shares of the sides.
        head: of these weights; None is their mean.
        every: whether all places are shown, or the last of each kind and resolution.
        sanity: whether the maps are held against those of the same network with its weights drawn anew.
        smooth: whether a map's values are blended or drawn as blocks.
        size: the longer side of a picture in the gallery.
        batch: pictures at a time.
        progress: called with pictures done and pictures in all.

    Raises:
        UserError: there is no picture, one is too large, or none can be read.
    """
    subject = model if isinstance(model, Subject) else _subject(model, type(model).__name__)
    names, pictures, notes = _read(paths)
    found = _Found()
    where: str | None = None
    for at in range(0, len(pictures), batch):
        part = subject.prepare(pictures[at : at + batch])
        found.take(see(subject, part, query))
        if at == 0:
            where = _layer(subject.model, part, layer, notes)
        if where is not None:
            found.add(Map(where, method, explain(subject.model, part, target, method=method, layer=where).value))
        if progress:
            progress(min(len(pictures), at + batch), len(pictures))
    random = _again(subject, pictures, query, target, method, where, batch) if sanity else None
    inputs = subject.prepare(pictures)
    columns = []
    for key in found.chosen(every):
        maps = found.maps[key]
        values = np.concatenate([_judged(one, head) for one in maps])
        drawn_anew = None
        if random is not None and key in random.maps:
            drawn_anew = np.concatenate([_judged(one, head) for one in random.maps[key]])
        columns.append(
            Column(
                key[0],
                key[1],
                _caption(maps[0], key[1], head, smooth),
                list(_drawn(maps, key[1], pictures, values, query, head, size, smooth)),
                values,
                judge(values, inputs, random=drawn_anew),
            )
        )
    if not any(column.kind not in METHODS for column in columns):
        notes.append("No attention was found in this network: there are only the reasons for its decisions.")
    classes = [
        "" if score is None else f"{subject.called(number)}, {100 * score:.{1 if score < 0.01 else 0}f} %"
        for number, score in found.classes
    ]
    small = [resize(picture, size) for picture in pictures]
    return Gallery(subject.name, names, small, classes, columns, notes)


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
            inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGES)
            if not inside:
                raise UserError(f"the folder {path} holds no pictures ({', '.join(IMAGES)})")
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            base = Path(path.anchor or ".")
            matches = sorted(base.glob(str(path.relative_to(path.anchor)) if path.anchor else word))
            if not matches:
                raise UserError(f"there is no picture {word}")
            found += [match for match in matches if match.is_file()]
    return list(dict.fromkeys(found))


def _read(paths: Sequence[str | Path | Image.Image]) -> tuple[list[str], list[Image.Image], list[str]]:
    names, pictures, notes = [], [], []
    for at, path in enumerate(paths):
        if isinstance(path, Image.Image):
            names.append(f"picture {at + 1}")
            pictures.append(path.convert("RGB"))
            continue
        try:
            with Image.open(path) as opened:
                if opened.width * opened.height > PIXELS:
                    notes.append(f"{path} was left out: it has more than {PIXELS:,} pixels.")
                    continue
                pictures.append(ImageOps.exif_transpose(opened).convert("RGB"))
            names.append(Path(path).name)
        except (OSError, UnidentifiedImageError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            notes.append(f"{path} was left out: it cannot be read ({type(error).__name__}).")
    if not pictures:
        raise UserError(notes[0] if notes else "there are no pictures to look at: name some")
    return names, pictures, notes


# --- the maps --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Seen:
    """What a network's attention looks at in some pictures.

    Attributes:
        maps: in the order of the calls; the gates along the axes of one mechanism are one map, and of weights between
            positions there is one query. All on the CPU.
        classes: of each picture, the number of the class that it is taken for and its share; None without classes.
    """

    maps: list[Map]
    classes: list[tuple[int, float | None]]


class _Found:
    """The maps of each place, batch by batch."""

    def __init__(self) -> None:
        self.maps: dict[tuple[str, str, int], list[Map]] = {}  # (name, kind, call)
        self.classes: list[tuple[int, float | None]] = []

    def add(self, found: Map, call: int = 0) -> None:
        self.maps.setdefault((found.name, found.kind, call), []).append(found)

    def take(self, seen: Seen) -> None:
        self.classes += seen.classes
        calls: dict[tuple[str, str], int] = {}
        for found in seen.maps:
            call = calls[found.name, found.kind] = calls.get((found.name, found.kind), -1) + 1
            self.add(found, call)

    def chosen(self, every: bool) -> list[tuple[str, str, int]]:
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
    """What the attention looks at, as maps that `regard.drawing.draw` takes.

    Args:
        subject: the network.
        images: as `Subject.prepare` gives them.
        query: the place (row, column) whose view is taken of weights between positions, as shares of the sides.
    """
    with torch.inference_mode(), borrowed(subject.model), record(subject.model, queries=[query]) as maps:
        output = subject.model(images)
    classes: list[tuple[int, float | None]] = [(0, None)] * len(images)
    if isinstance(output, Tensor) and output.dim() == 2:
        shares = output.softmax(1).max(1)
        classes = list(zip(shares.indices.tolist(), shares.values.tolist(), strict=True))
    kept = []
    for found in (_view(found, query) for found in _joined(maps)):
        windows = found.kind == "token" and found.layout is None
        if len(found.value) == len(images) and found.kind in DRAWN and not windows:
            kept.append(found)
    return Seen(kept, classes)


def _view(found: Map, query: tuple[float, float]) -> Map:
    """A map on the CPU; the view from one place is the same whether pixels or tokens are weighed."""
    value = found.value
    if found.kind == "position" and value.dim() == 6:  # a mechanism that builds all of them anyway
        row, column = (min(side - 1, int(at * side)) for at, side in zip(query, value.shape[2:4], strict=True))
        value = value[:, :, row, column].unsqueeze(2)
    value = value.float().cpu()
    if found.kind == "position" and value.dim() == 5:
        return Map(found.name, "token", value.flatten(3), Layout("tokens", 0, tuple(value.shape[3:])))
    return Map(found.name, found.kind, value, found.layout)


DRAWN = {
    "channel": "How much each channel is let through, sorted.",
    "spatial": "How much each place is let through",
    "axis": "How much each row and column is let through, their product",
    "element": "How much each place is let through, mean of the channels",
    "token": "Where the place with the cross looks",
    "criss-cross": "Where the place with the cross looks, in its row and column",
    "branch": "How much each branch counts, mean of the channels.",
    "kernel": "How much each moment counts, mean of the channels.",
    "pair": "What each channel or layer takes from the others.",
    "query": "What each query takes from the keys.",
    "frame": "The part of the picture that is taken; the thick edge becomes the upper one.",
    "path": "The places that were looked at, in their order.",
}


def _joined(maps: Sequence[Map]) -> Iterator[Map]:
    """The gates along the axes of one mechanism multiply, so they are one map."""
    axes: dict[str, Map] = {}
    for found in maps:
        if found.kind != "axis":
            yield found
            continue
        where = found.name.rpartition(".")[0] if found.name.rpartition(".")[2].isdigit() else found.name
        before = axes.get(where)
        sides = [i for i in range(2, found.value.dim()) if found.value.shape[i] > 1]
        if before is None or (sides and all(before.value.shape[i] > 1 for i in sides)):
            axes[where] = Map(where, "axis", found.value)
        else:
            axes[where] = Map(where, "axis", before.value * found.value)
    yield from axes.values()


def _layer(model: nn.Module, images: Tensor, layer: str, notes: list[str]) -> str | None:
    """The layer whose map is explained, if the network gives classes."""
    with torch.inference_mode(), borrowed(model):
        output = model(images[:1])
    if not (isinstance(output, Tensor) and output.dim() == 2):
        notes.append("The network gives no classes, so nothing is said about what spoke for them.")
        return None
    return find_layer(model, images, layer)[0]


def _again(
    subject: Subject,
    pictures: Sequence[Image.Image],
    query: tuple[float, float],
    target: int | None,
    method: str,
    layer: str | None,
    batch: int,
) -> _Found:
    """The maps of the same network with all of its weights drawn anew."""
    found = _Found()
    *_, (_, copy) = randomised(subject.model, subject.prepare(pictures[:1]))
    for at in range(0, len(pictures), batch):
        part = subject.prepare(pictures[at : at + batch])
        found.take(see(replace(subject, model=copy), part, query))
        if layer is not None:
            given: Any = target
            if given is None:
                with torch.no_grad(), borrowed(subject.model):
                    given = subject.model(part).argmax(1)
            found.add(Map(layer, method, explain(copy, part, given, method=method, layer=layer).value))
    return found


def _judged(found: Map, head: int | None) -> np.ndarray:
    """(K, h, w) of maps of pixels, else (K, n)."""
    value = found.value
    if found.kind in ("spatial", "element", "axis", *METHODS) and value.dim() == 4:
        return np.asarray(value.mean(1))
    if found.kind == "token" and found.layout:
        weights = (value.mean(1) if head is None else value[:, head])[:, 0, found.layout.prefix :]
        return np.asarray(weights.unflatten(1, found.layout.grid))
    return np.asarray(value.flatten(1))


def _drawn(
    maps: Sequence[Map],
    kind: str,
    pictures: Sequence[Image.Image],
    values: np.ndarray,
    query: tuple[float, float],
    head: int | None,
    size: int,
    smooth: bool,
) -> Iterator[Image.Image]:
    """A column shares its scale, so that its pictures can be compared."""
    limits = (float(values.min()), float(values.max())) if values.ndim == 3 else None
    at = 0
    for found in maps:
        for number in range(len(found.value)):
            if kind in METHODS:
                found = Map(found.name, "spatial", found.value)
            yield draw(
                found, pictures[at], number=number, query=query, head=head, size=size, smooth=smooth, limits=limits
            )
            at += 1


def _caption(found: Map, kind: str, head: int | None, smooth: bool) -> str:
    words = f"What spoke for the class ({kind})" if kind in METHODS else DRAWN[kind]
    if words.endswith("."):
        return words
    if kind == "token":
        words += f", {'mean of the heads' if head is None else f'head {head}'}"
    sides = found.layout.grid if found.layout else found.value.shape[-2:]
    return f"{words}. {' x '.join(map(str, sides))} places, {'blended' if smooth else 'as blocks'}."


def _words(meaning: Meaning) -> str:
    """The figures in a line."""
    parts = [f"spread {meaning.spread:.2g}", f"entropy {meaning.entropy:.2f}"]
    for name, value in (("between images", meaning.depends), ("edges", meaning.edges), ("random", meaning.stays)):
        if value is not None:
            parts.append(f"{name} {value:.2f}")
    return ", ".join(parts)


# --- the network -----------------------------------------------------------------------------------------------------


def open_subject(
    text: str, *, weights: Path | None = None, pretrained: bool = False, size: int | None = None
) -> Subject:
    """A network by a word, and how its pictures are prepared.

    Args:
        text: as `regard.models.open_model` takes it, or the weights that `regard compare` kept:
            ``runs/mine/weights/se/seed-0000.safetensors``.
        weights: a checkpoint of the network, safetensors or what ``torch.load(weights_only=True)`` reads.
        pretrained: timm's pretrained weights.
        size: side of the pictures in pixels; None is the network's own.

    Raises:
        UserError: as `open_model` does, or the checkpoint does not fit.
    """
    if text.endswith(".safetensors"):
        return _compared(Path(text))
    if pretrained:
        name, options = parse(text)
        model: nn.Module = timm_model(name, options, pretrained=True)
    else:
        model, example = open_model(text, size=size, batch=1)
        if not isinstance(example, Tensor) or example.dim() != 4:
            raise UserError(f"{text} is not called with pictures alone, so there is nothing to look at here")
    if weights is not None:
        from regard.comparison.hosts import load

        load(model, weights)
    sides = None if pretrained else tuple(example.shape[1:])
    return _subject(model, text, sides if size is None or sides else (3, size, size))


def _subject(model: nn.Module, name: str, sides: tuple[int, ...] | None = None) -> Subject:
    config: Any = getattr(model, "pretrained_cfg", None) or {}
    channels, height, width = sides or config.get("input_size") or (3, SIDE, SIDE)
    mean, deviation = config.get("mean") or MEAN, config.get("std") or DEVIATION
    if len(mean) != channels:
        mean, deviation = (0.5,) * channels, (0.5,) * channels
    return Subject(model, name, (height, width), channels, mean, deviation)


def _compared(path: Path) -> Subject:
    """What a comparison trained, from its folder."""
    import safetensors.torch

    from regard.comparison import data, training
    from regard.comparison.results import Comparison
    from regard.files import slug

    if not path.is_file():
        raise UserError(f"there is no file {path}")
    folder, seed = path.parents[2], path.stem.removeprefix("seed-")
    comparison = Comparison.load(folder)
    arm = next((arm for arm in comparison.arms if slug(arm) == path.parent.name), None)
    if arm is None or not seed.isdigit():
        raise UserError(
            f"{path} is not where a comparison keeps weights: name FOLDER/weights/ARM/seed-NNNN.safetensors"
        )
    question = comparison.question
    model = training.build(question, arm, int(seed))
    model.load_state_dict(safetensors.torch.load_file(path))
    images = data.load(folder / "data")
    channels = images.pixels.shape[1]
    mean, deviation = question["normalisation"] or data.normalisation(images, images.split(int(seed)).train)
    side = question["size"]
    return Subject(model, f"{arm} in {question['model']}", (side, side), channels, mean, deviation, question["classes"])
