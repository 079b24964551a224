"""What logits say about a run beside its accuracy: log-loss, calibration, churn, classes. Plain numpy.

Everywhere ``logits`` is float (N, C), in any precision, and ``labels`` int (N,); sums are taken in double precision.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from regard.comparison.answers import Answers

BINS = 15


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """The logarithm of every class's probability, (N, C), float64."""
    z = logits.astype(np.float64)
    z -= z.max(axis=1, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=1, keepdims=True))


def right(logits: np.ndarray, labels: np.ndarray, among: int = 1) -> np.ndarray:
    """Whether the true class is among the first so many guesses, bool (N,); of equal logits the lower class leads."""
    own = np.take_along_axis(logits, labels[:, None], axis=1)
    before = np.arange(logits.shape[1]) < labels[:, None]
    return ((logits > own) | ((logits == own) & before)).sum(axis=1) < among


def log_loss(logits: np.ndarray, labels: np.ndarray) -> float:
    """The mean of minus the logarithm of the true class's probability, in nats: 0 is perfect, log C is guessing."""
    return float(-np.take_along_axis(log_softmax(logits), labels[:, None], axis=1).mean())


def calibration_error(logits: np.ndarray, labels: np.ndarray, bins: int = BINS) -> float:
    """Expected calibration error, a fraction: how far confidence and accuracy lie apart (Guo et al., ICML 2017).

    The probability of the first guess is its confidence. Images fall into ``bins`` bins of equal width by it, each open
    below and closed above; the distances between mean confidence and accuracy are averaged over the images.
    """
    probability = np.exp(log_softmax(logits))
    confidence = probability.max(axis=1)
    surplus = confidence - right(logits, labels)
    bin_of = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    return float(np.abs(np.bincount(bin_of, surplus, minlength=bins)).sum() / len(labels))


def by_class(answers: Answers) -> np.ndarray:
    """The accuracy on the images of each class, a fraction, (C,); NaN for a class without an image."""
    classes = answers.logits.shape[1]
    counts = np.bincount(answers.labels, minlength=classes)
    hits = np.bincount(answers.labels, right(answers.logits, answers.labels), minlength=classes)
    return np.divide(hits, counts, out=np.full(classes, np.nan), where=counts > 0)


class Endpoints(NamedTuple):
    """What is left of one run's answers on the test images once they have been looked at.

    Attributes:
        images, guesses: which images, and the first guess for each, int (N,).
        calibration: its `calibration_error`.
        by_class: see there, (C,).
    """

    images: np.ndarray
    guesses: np.ndarray
    calibration: float
    by_class: np.ndarray


def endpoints(answers: Answers) -> Endpoints:
    """All of it."""
    calibration = calibration_error(answers.logits, answers.labels)
    return Endpoints(answers.images, answers.guesses, calibration, by_class(answers))


def churn(one: Answers | Endpoints, other: Answers | Endpoints) -> float:
    """The share of the images that both saw on which their first guesses differ; NaN where they share none."""
    _, a, b = np.intersect1d(one.images, other.images, assume_unique=True, return_indices=True)
    return float((one.guesses[a] != other.guesses[b]).mean()) if len(a) else float("nan")


def class_differences(pairs: Sequence[tuple[Endpoints, Endpoints]]) -> list[float | None]:
    """For each class the accuracy of the first of a pair less that of the second, a fraction: the mean over pairs."""
    differences = np.array([one.by_class - other.by_class for one, other in pairs])
    known = ~np.isnan(differences)
    totals, counts = np.where(known, differences, 0).sum(axis=0), known.sum(axis=0)
    return [float(total / count) if count else None for total, count in zip(totals, counts, strict=True)]
