"""Networks to look into by a word: a network's name, or what a comparison kept."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from regard.base.errors import UserError
from regard.base.files import slug
from regard.gallery.subjects import Subject
from regard.networks.models import open_model
from regard.registry.named import Named

if TYPE_CHECKING:
    from regard.comparison.question import Question

SEED = re.compile(r"seed-[0-9]{4,10}\.safetensors")


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

    networks = [
        (arm, int(path.stem.removeprefix("seed-")), path)
        for arm in Comparison.load(folder).arms
        for path in sorted(Path(folder, "weights", slug(arm)).glob("seed-*.safetensors"))
        if SEED.fullmatch(path.name)
    ]
    if not networks:
        raise UserError(f"the comparison in {folder} kept no weights: run it again with --keep first")
    return networks


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
    subject = Subject.of(model, text, tuple(example.shape[1:]))
    return replace(subject, random=not pretrained and weights is None and not Named.read(text).file)


def _given(question: Question, own: str | None, folder: Path) -> str:
    """The network of a comparison, where no file has to be run for it that the user did not name."""
    named = Named.read(question.model)
    if named.file is None:
        return named.text
    if own is None:
        raise UserError(
            f"{folder} was made with {named.same}, and no file is run because a folder names it: if it is yours, "
            f"pass --model {named.file}:{named.name} as well"
        )
    given = Named.read(own)
    if given.same != named.same or given.digest() != question.model_sha256 or not question.model_sha256:
        raise UserError(f"{folder} was made with another {named.same} than {own}: name the file as it was then")
    return own


def _compared(path: Path, own: str | None) -> Subject:
    """What a comparison trained, from its folder."""
    from regard.comparison import data, hosts, network, preprocessing
    from regard.comparison.question_file import Stored
    from regard.comparison.results import Comparison

    if not path.is_file():
        raise UserError(f"there is no file {path}")
    folder, seed = path.parents[2], path.stem.removeprefix("seed-")
    comparison = Comparison.load(folder)
    arm = next((arm for arm in comparison.arms if slug(arm) == path.parent.name), None)
    if arm is None or not SEED.fullmatch(path.name):
        raise UserError(
            f"{path} is not where a comparison keeps weights: name FOLDER/weights/ARM/seed-NNNN.safetensors"
        )
    question = Stored.read(folder, strict=True).question
    question = replace(question, model=_given(question, own, folder))
    # all weights are in the file: nothing is fetched, and no other file is opened
    model = network.build(replace(question, pretrained=False, weights=None), arm, int(seed))
    hosts.load(model, path)
    images = data.load(folder / "data")
    if images.fingerprint != question.fingerprint:
        raise UserError(f"the images in {folder / 'data'} are not those of its question.json: ask it again")
    side, stored, classes = question.size, images.pixels.shape[-1], question.classes
    mean, deviation = question.normalisation or preprocessing.normalisation(images, images.split(int(seed)).train)
    channels = images.pixels.shape[1]
    return Subject(
        model,
        name=f"{arm} in {question.model}",
        size=(side, side),
        channels=channels,
        mean=mean,
        deviation=deviation,
        classes=classes,
        note=f"Trained by regard compare on {question.data}, {channels} x {side} x {side}. The network knows these "
        f"classes alone: {', '.join(classes[:12])}{', ...' if len(classes) > 12 else ''}.",
        square=True,
        peak=images.peak,
        stored=stored if stored > side else None,
    )
