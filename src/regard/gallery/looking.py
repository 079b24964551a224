"""`look`: from networks and pictures to a gallery."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from regard.base.errors import UserError, brief
from regard.gallery.attention import Recording, record_all
from regard.gallery.checks import with_cascades, with_curves
from regard.gallery.columns import Column, Shown, column
from regard.gallery.images import read_all
from regard.gallery.masks import on_grid, read_masks
from regard.gallery.options import Options, Tell
from regard.gallery.page import Gallery, View
from regard.gallery.subjects import Subject, with_input
from regard.maps.layer_choice import NoLayer, find_layer
from regard.maps.targets import class_scores
from regard.networks.hookable import refuse_unseen
from regard.networks.replica import borrowed
from regard.pictures.picture import resize

CHECKED = 8  # pictures, when the network is run again and again
LISTED = 3  # names in a note


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
    """Show what a network's attention looks at in some pictures, the evidence for its decisions, and whether that means
    anything.

    Args:
        model: the network, or several to be seen side by side; its pictures are prepared as `Subject.of` says.
        paths: of the pictures, as `expand` takes them, or the pictures.
        target: the class whose evidence is shown; None is the predicted class of each picture.
        method, layer: see `regard.explain`.
        query: the place (row, column) whose view is shown of weights between positions, as shares of the sides.
        head: of these weights; None is their mean.
        every: whether all layers with attention are shown, or the last of each kind and resolution.
        checks: whether the network is run again to see if the maps mean anything: cascading weight randomisation, and
            deletion and insertion curves; both on the first few pictures.
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
    networks = model if isinstance(model, Sequence) else [model]
    for network in networks:
        refuse_unseen(network.model if isinstance(network, Subject) else network)
    if not all(0 <= at <= 1 for at in query):
        raise UserError(f"query is (row, column) as shares of the sides, from 0 to 1, got {query!r}")
    subjects = [network if isinstance(network, Subject) else Subject.of(network) for network in networks]
    subjects = [with_input(subject, input_size, mean, std) for subject in subjects]
    pictures = read_all(paths, max((subject.peak for subject in subjects if subject.peak), default=None))
    objects = None if masks is None else read_masks(Path(masks), pictures.names)
    options = Options(target, method, layer, query, head, every, checks, smooth, size, batch)
    looked = []
    for subject in subjects:

        def tell(what: str, done: int, total: int, name: str = subject.name) -> None:
            if progress:
                progress(f"{name}: {what}", done, total)

        looked.append(_view(subject, pictures.images, objects, options, tell))
    return Gallery(pictures.names, [resize(image, size) for image in pictures.images], looked, pictures.notes)


def _view(
    subject: Subject,
    pictures: Sequence[Image.Image],
    masks: Sequence[Image.Image] | None,
    options: Options,
    tell: Tell,
) -> View:
    """One network on every picture."""
    images = _images(subject, pictures)
    layer, why_no_evidence = _evidence_layer(subject.model, images, options.layer)
    recording = record_all(
        subject, images, options, layer, options.target, lambda done: tell("looking", done, len(images))
    )
    classes = [number for number, _ in recording.classes]
    series = recording.series(options.every, options.head)
    few = images[:CHECKED]
    if options.checks:
        targets = classes[:CHECKED] if options.target is None else [options.target] * len(few)
        series = with_cascades(series, subject, few, options, layer, targets, tell)
        if layer is not None:
            series = with_curves(series, subject.model, few, targets, options.batch, tell)
    shown = Shown(
        images,
        [subject.framed(picture) for picture in pictures],
        None if masks is None else on_grid([subject.framed(mask) for mask in masks], subject.size),
        classes if layer is not None else None,
    )
    columns = [column(each, subject, shown, options) for each in series]
    notes = [*_notes_on_network(subject), *why_no_evidence, *_notes_on_attention(recording, columns)]
    return View(subject.name, _predicted(subject, recording), columns, notes, len(few))


def _images(subject: Subject, pictures: Sequence[Image.Image]) -> Tensor:
    """What the network is shown, where and as its weights are."""
    images = subject.prepare(pictures)
    weights = next((weight for weight in subject.model.parameters() if weight.is_floating_point()), images)
    return images.to(weights.device, weights.dtype)


def _evidence_layer(model: nn.Module, images: Tensor, layer: str) -> tuple[str | None, list[str]]:
    """The layer at which evidence for a class is shown; or None, and why there is none."""
    try:
        with torch.inference_mode(), borrowed(model) as replica:
            output = replica(images[:1])
    except Exception as error:  # networks are other people's code
        raise UserError(
            f"the network cannot be run on pictures of {tuple(images.shape[1:])} ({brief(error)}): give it pictures of "
            "another size, or another network"
        ) from error
    if class_scores(output) is None:
        return None, ["The network gives no classes, so no evidence for them is shown."]
    try:
        return find_layer(model, images, layer), []
    except NoLayer:
        return None, ["No layer gives a map of more than one pixel, so no evidence for the classes is shown."]


def _predicted(subject: Subject, recording: Recording) -> list[str]:
    return [
        "" if share is None else f"{subject.called(number)}, {100 * share:.{1 if share < 0.01 else 0}f} %"
        for number, share in recording.classes
    ]


def _notes_on_network(subject: Subject) -> list[str]:
    notes = ["The network's weights are random: pass --weights FILE or --pretrained."] if subject.random else []
    return [*notes, *([subject.note] if subject.note else []), subject.prepared]


def _notes_on_attention(recording: Recording, columns: Sequence[Column]) -> list[str]:
    """What was seen of attention and is not shown."""
    if recording.hidden:
        return [
            f"Attention at {len(recording.hidden)} more places is not shown, as it cannot be laid on the picture "
            f"(channels that look at one another, or tokens whose places are not known): {_listed(recording.hidden)}. "
            "`regard.record` has it."
        ]
    if recording.attention:
        return []
    left = "only the evidence for its decisions is shown" if columns else "there is nothing to show"
    notes = [f"No attention that could be recognised was found in this network: {left}."]
    if recording.dropped:
        notes.append(
            f"What is multiplied at {_listed(recording.dropped)} was seen, and is attention of no kind that is known "
            "here."
        )
    return notes


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:LISTED]) + (", ..." if len(names) > LISTED else "")
