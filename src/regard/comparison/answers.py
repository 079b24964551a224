"""What a run answered: its logits on the validation and the test images, kept beside its record."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import safetensors.numpy

from regard.base.errors import UserError
from regard.base.files import opened, slug, whole

PARTS = ("val", "test")
KINDS = {"images": np.int32, "labels": np.int32, "logits": np.float16}
HEADER = 10_000  # bytes before the numbers of a file, at most
LOST = "its accuracy is in its record and counts; what is computed from logits is without it"


class Answers(NamedTuple):
    """What a network said about N images of C classes.

    Attributes:
        images: which of the comparison's images, int (N,).
        labels: their true classes, int (N,).
        logits: float (N, C). As they are kept, the largest of each image is 0: the softmax is the same, and float16 is
            exact where it matters most.
    """

    images: np.ndarray
    labels: np.ndarray
    logits: np.ndarray

    @property
    def guesses(self) -> np.ndarray:
        """The first guess for each image, int (N,)."""
        return self.logits.argmax(axis=1)


def path_of(folder: Path, arm: str, seed: int) -> Path:
    """Where a run's logits are, beside its record."""
    return folder / "runs" / slug(arm) / f"seed-{seed:04d}.safetensors"


def write(path: Path, val: Answers, test: Answers) -> str:
    """Keep what a run answered, in float16, whole or not at all; the sha256 of the file."""
    arrays: dict[str, np.ndarray] = {}
    for part, answers in zip(PARTS, (val, test), strict=True):
        logits = answers.logits - answers.logits.max(axis=1, keepdims=True)
        kept = answers._replace(logits=logits.clip(np.finfo(np.float16).min))
        arrays |= {f"{part}_{name}": getattr(kept, name).astype(kind) for name, kind in KINDS.items()}
    content = safetensors.numpy.save(arrays)
    with whole(path) as temporary:
        temporary.write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def read(path: Path, sha256: str, images: int, classes: int) -> tuple[Answers, Answers]:
    """What a run answered on the validation and on the test images, as `write` kept it.

    Args:
        path: of the file.
        sha256: of the file, as the run's record says.
        images, classes: how many there are, both parts together; no more is read than they take.

    Raises:
        UserError: the file is missing, or it is not the one that the run wrote.
    """
    try:
        with opened(path) as file:
            content = file.read(images * (8 + 2 * classes) + HEADER)
    except UserError as error:
        raise UserError(f"{error}: {LOST}") from error
    if hashlib.sha256(content).hexdigest() != sha256:
        raise UserError(f"{path} is not what the run wrote: {LOST}")
    try:
        arrays = safetensors.numpy.load(content)
        parts = [Answers(*(arrays[f"{part}_{name}"] for name in KINDS)) for part in PARTS]
        for part in parts:
            _check(part, classes)
    except Exception as error:  # what safetensors and numpy raise differs with every kind of damage
        reason = (str(error).splitlines() or [""])[0][:200] or type(error).__name__
        raise UserError(f"{path} is damaged ({reason}): {LOST}") from error
    return parts[0], parts[1]


def _check(part: Answers, classes: int) -> None:
    for (name, kind), array in zip(KINDS.items(), part, strict=True):
        if array.dtype != kind or array.shape != (
            (len(part.images), classes) if name == "logits" else part.images.shape
        ):
            raise ValueError(f"{name} is {array.dtype} {array.shape}")
    if part.images.ndim != 1 or not len(part.images) or (part.images < 0).any() or (np.diff(part.images) <= 0).any():
        raise ValueError("the numbers of its images do not ascend from 0 or above")
    if part.labels.min() < 0 or part.labels.max() >= classes:
        raise ValueError(f"its labels are not below {classes}")
    if not np.isfinite(part.logits).all():
        raise ValueError("a logit is no number")
