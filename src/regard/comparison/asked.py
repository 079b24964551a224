"""What is asked, as far as words tell it: whether a folder holds another question is said before torch is loaded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from regard.base.errors import UserError
from regard.base.files import regular
from regard.comparison.arms import HOSTS, controls, refuse_names
from regard.comparison.embedded import packaged
from regard.comparison.folders import SIZES, existing
from regard.comparison.folders import text as as_text
from regard.comparison.results import read_question
from regard.registry.cards import card
from regard.registry.named import SMALL, Named
from regard.registry.spelling import parse

EPOCHS = {"fashion": 3, "cluttered": 5}  # of the embedded images; a folder's default is below
RECIPE = 2  # raise it when the same question would train otherwise: older folders are then not added to
FEW = 3  # epochs up to which crops and mirror images only slow the training down
OPTIMISERS = ("muon", "adamw")
AUGMENTATIONS = ("none", "crops")
MATRIX_RATE = 0.07  # of Muon, where AdamW has the default
# learnt from the runs, only said, or moving with what is asked: a change of these is no other question
UNASKED = ("widening", "widening_parameters", "matrix_rate", "rates", "broken", "classes")


def question(
    *,
    data: str | Path,
    model: str,
    size: int | None,
    epochs: int | Literal["auto"] | None,
    batch: int | None,
    optimiser: str | None,
    learning_rate: float | None,
    tune: int,
    augmentation: str | None,
    at: str | Sequence[str],
    start: str | None,
    trunk: str,
    margin: float,
    pairing: str | None,
    pretrained: bool,
    weights: str | Path | None,
    device: str | None,
) -> dict[str, Any]:
    """What every run will have in common; None is what only the network, the machine or a trial can say.

    Raises:
        UserError: a file that is named is not there.
    """
    starting = pretrained or weights is not None
    small = Named.read(model).name == SMALL
    found = epochs == "auto"  # by `trials`
    chosen = None if epochs == "auto" else epochs or first_epochs(data, starting)
    optimiser = optimiser or ("muon" if small and not starting else "adamw")
    height = _height(small, starting, trunk)
    return {
        "recipe": RECIPE,
        "data": as_text(str(Path(data))),  # photos and photos/ are the same
        "model": model,
        "model_sha256": Named.read(model).digest(),
        "size": size,
        "epochs": chosen,
        "epochs_auto": found,
        "batch": batch or (96 if small else 128),
        "optimiser": optimiser,
        "learning_rate": learning_rate or height,
        # where the one rate is doubled, so is the other
        "matrix_rate": MATRIX_RATE * (learning_rate or height) / height if optimiser == "muon" else None,
        "tune": tune,
        "rates": None,  # what the learning rates of an arm are multiplied with, once that is tuned
        "augmentation": augmentation or augmentation_for(chosen),
        "weight_decay": 0.05,
        "smoothing": 0.1,
        "at": at if isinstance(at, str) else list(at),
        "start": start or ("identity" if starting else "scaled"),
        "trunk": trunk,
        "margin": margin,
        "pairing": pairing,  # None until the images are known
        "pretrained": pretrained,
        "weights": str(weights) if weights is not None else None,
        "weights_sha256": _digest(Path(weights)) if weights is not None else None,
        "widening": None,  # of the controls, once they are measured
        "widening_parameters": None,
        "device": device,
    }


def first_epochs(data: str | Path, starting: bool) -> int:
    """How many epochs where nobody says it; `starting`: from weights that have learnt before."""
    return EPOCHS.get(str(data), 8 if starting else 20)


def augmentation_for(epochs: int | None) -> str | None:
    """Where nobody says it: images that are seen a few times only are new as they are."""
    return None if epochs is None else "crops" if epochs > FEW else "none"


def refuse_early(
    arms: Sequence[str], folder: str | Path | None, control: str | Sequence[str] | None = None, **words: Any
) -> None:
    """Refuse what words alone show to be wrong: mechanisms, options, images, a folder that holds another question."""
    controls(control)
    for arm in arms:
        refuse_names(arm)
        if parse(arm)[0] not in HOSTS:
            card(arm)
    if words["data"] not in SIZES:
        existing(words["data"], tuple(SIZES))
    elif folder is None or not Path(folder, "data", "meta.json").exists():  # else they are decoded already
        packaged()
    asked = question(**words)
    if folder is not None:
        refuse_other(Path(folder), {key: value for key, value in asked.items() if value is not None})


def refuse_other(folder: Path, question: dict[str, Any]) -> dict[str, Any]:
    """What the folder's question.json holds, if there is one; refuse what differs from it, as far as that is known."""
    path = folder / "question.json"
    if not path.exists():
        return {}
    stored = read_question(folder)
    before = stored["question"]
    question = json.loads(json.dumps(question))
    differing = [key for key in question if key not in UNASKED and not _alike(key, question[key], before.get(key))]
    if differing:
        changes = "; ".join(_change(key, before.get(key), question) for key in differing)
        raise UserError(f"{folder} holds another question ({changes}): ask that one, or pass another --out")
    return read_question(folder, strict=True)


def _alike(key: str, ours: Any, theirs: Any) -> bool:
    if key == "model":
        with suppress(UserError, TypeError):  # of the stored one, which anybody may have written
            return Named.read(ours).same == Named.read(theirs).same
    return bool(ours == theirs)


def _change(key: str, before: Any, question: dict[str, Any]) -> str:
    if key == "model_sha256" and before is not None:
        return f"the text of {question['model'].rpartition(':')[0]} has changed"
    return f"{key} was {_short(before)}, now {_short(question[key])}"


def _height(small: bool, starting: bool, trunk: str) -> float:
    """The learning rate where none is asked for: what is new learns fast, what has learnt before keeps most of it."""
    if starting:
        return 1e-2 if trunk == "frozen" else 3e-4
    return 4e-3 if small else 1e-3


def _digest(path: Path) -> str:
    try:
        str(path).encode()  # the question keeps it
        regular(path).close()
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"cannot read the weights {path}: {error.strerror}") from error
    except UnicodeError as error:
        raise UserError(f"the path of the weights, {str(path)!r}, is no text: give the file another name") from error


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."
