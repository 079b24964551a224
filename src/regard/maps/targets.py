"""What of a network's output is explained: a class, a pixel of a segmentation, a box, or any function of the output."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from regard.base.errors import UserError

Target = int | Sequence[int] | Tensor | Callable[[Any], Tensor] | None

LOGITS = ("logits", "out")  # what networks call their scores among other outputs


def pixel(number: int, row: int, column: int) -> Callable[[Any], Tensor]:
    """A target: the score of a class at one pixel of a segmentation.

    Args:
        number: of the class.
        row, column: of the output's map.
    """

    def score(output: Any) -> Tensor:
        scores = logits_of(output)
        if scores.dim() != 4:
            raise UserError(f"a pixel's score needs an output of (B, classes, H, W), got {tuple(scores.shape)}")
        for what, at, size in (("class", number, 1), ("row", row, 2), ("column", column, 3)):
            if not -scores.shape[size] <= at < scores.shape[size]:
                raise UserError(f"the network's output has {scores.shape[size]} for {what}, from 0 on, got {at}")
        return scores[:, number, row, column]

    return score


def box(number: int) -> Callable[[Any], Tensor]:
    """A target: the score of a detector's box, in each image.

    Args:
        number: of the box, in the detector's order; in an image with fewer boxes nothing is explained.
    """

    def score(output: Any) -> Tensor:
        try:
            images = [image["scores"] for image in output]
        except (KeyError, TypeError, IndexError) as error:
            raise UserError(
                'a box needs a detector whose output is [{"scores": ...}, ...], as torchvision\'s'
            ) from error
        if not any(len(scores) > number for scores in images):
            counts = ", ".join(str(len(scores)) for scores in images)
            raise UserError(f"there is no box {number}: the images have {counts}")
        return torch.stack([scores[number] if len(scores) > number else scores.sum() * 0 for scores in images])

    return score


def logits_of(output: Any) -> Tensor:
    """The scores among a network's outputs: the tensor itself; what a dict or an object calls ``logits`` or ``out``, or
    its only tensor; of a tuple the first.

    Raises:
        UserError: it cannot be told which they are.
    """
    logits = _logits(output)
    if logits is None:
        tensors = _named_tensors(output)
        given = f"{type(output).__name__} of {', '.join(tensors)}" if tensors else type(output).__name__
        raise UserError(f"the model gives {given}: pass a function of it as the target")
    return logits


def class_scores(output: Any) -> Tensor | None:
    """What a network's output says of classes, (B, classes); None where it says nothing of them."""
    scores = _logits(output)
    return scores if scores is not None and scores.dim() == 2 else None


def _logits(output: Any) -> Tensor | None:
    if isinstance(output, Tensor):
        return output
    if isinstance(output, tuple | list) and not hasattr(output, "_fields") and output and isinstance(output[0], Tensor):
        return output[0]
    tensors = _named_tensors(output)
    names = LOGITS if len(tensors) != 1 else tuple(tensors)
    return next((tensors[name] for name in names if name in tensors), None)


def _named_tensors(output: Any) -> dict[str, Tensor]:
    named: Mapping[Any, Any] = {}
    if isinstance(output, Mapping):
        named = output
    elif hasattr(output, "_asdict"):  # a named tuple
        named = output._asdict()
    elif hasattr(output, "__dict__"):
        named = vars(output)
    return {str(name): value for name, value in named.items() if isinstance(value, Tensor)}


def score_of(output: Any, target: Target) -> tuple[Tensor, Tensor | None]:
    """What is differentiated, (B,) or (), and the classes (B,) where it is their score.

    Raises:
        UserError: the output has no such class, or the target's function returns something else.
    """
    if callable(target):
        scores = target(output)
        if not isinstance(scores, Tensor) or scores.dim() > 1:
            raise UserError("the target's function returns one score for each image, or their sum, as a tensor")
        return scores, None
    logits = logits_of(output)
    if logits.dim() != 2:
        raise UserError(
            f"a class is explained where the output is (B, classes), got {tuple(logits.shape)}: pass a function of the "
            "output as the target, such as regard.pixel(class, row, column)"
        )
    classes = logits.argmax(1) if target is None else _classes(target, logits)
    return logits.gather(1, classes.unsqueeze(1)).squeeze(1), classes


def _classes(target: int | Sequence[int] | Tensor, logits: Tensor) -> Tensor:
    """(B,) the class of each image."""
    try:
        classes = torch.as_tensor(target, device=logits.device)
    except (TypeError, ValueError, RuntimeError):
        classes = torch.zeros(())  # no whole number: refused below
    if classes.dim() == 0:
        classes = classes.expand(len(logits))
    if classes.shape != logits.shape[:1] or classes.is_floating_point() or classes.dtype == torch.bool:
        raise UserError(f"the target is one class, or one for each of {len(logits)} images, got {target!r}")
    if int(classes.min()) < 0 or int(classes.max()) >= logits.shape[1]:
        raise UserError(f"the network knows classes 0 to {logits.shape[1] - 1}, got {target!r}")
    return classes
