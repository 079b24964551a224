"""question.json: read, written, and held against what is asked now."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, NotRequired, TypedDict, get_type_hints

from regard.base.errors import UserError
from regard.base.files import write_text
from regard.base.schema import Within, fault, read
from regard.comparison.arms import HOSTS, controls, refuse_names
from regard.comparison.embedded import packaged
from regard.comparison.folders import SIZES, existing
from regard.comparison.question import BEFORE, NOT_STORED, Draft, Question
from regard.comparison.records import Asked
from regard.registry.cards import card
from regard.registry.spelling import parse


def _shape() -> Any:
    """What question.json must hold; what has a default may be missing."""
    make: Any = TypedDict
    hints = get_type_hints(Question, include_extras=True)
    question = {
        each.name: hints[each.name] if each.default is MISSING else NotRequired[hints[each.name]]
        for each in fields(Question)
        if each.name not in NOT_STORED
    }
    asked = Annotated[list[Asked], Within(1, 10_000)]
    return make("_File", {"question": make("_Question", question), "asked": asked, "environment": dict[str, Any]})


SHAPE = _shape()


@dataclass(frozen=True)
class Stored:
    """question.json.

    Attributes:
        question: what is asked.
        asked: every time it was asked, see `records.Asked`.
        environment: versions and machine of the first time.
    """

    question: Question
    asked: list[dict[str, Any]]
    environment: dict[str, Any]

    @classmethod
    def read(cls, folder: Path, *, strict: bool = False) -> Stored:
        """What a folder holds; where networks are built from it, `strict`: it must hold all that this takes.

        Raises:
            UserError: the file is missing, damaged, or too old; the sentence names the field.
        """
        path = folder / "question.json"
        held = read(path, SHAPE, "put a sound copy there, or ask anew in another folder")
        held["question"] = BEFORE | held["question"]
        if strict and (wrong := fault(held, SHAPE, strict=True)):
            raise UserError(f"{path} is too old or damaged ({wrong}): ask anew in another folder")
        return cls(Question.from_json(held["question"]), held["asked"], held["environment"])

    def write(self, folder: Path) -> None:
        """Write it whole or not at all."""
        held = {"question": self.question.to_json(), "asked": self.asked, "environment": self.environment}
        write_text(folder / "question.json", json.dumps(held, indent=1))


def refuse_early(
    draft: Draft, arms: Sequence[str], folder: str | Path | None, control: str | Sequence[str] | None = None
) -> None:
    """Refuse what words alone show to be wrong: mechanisms, options, images, a folder that holds another question."""
    controls(control)
    for arm in arms:
        refuse_names(arm)
        if parse(arm)[0] not in HOSTS:
            card(arm)
    if draft.data not in SIZES:
        existing(draft.data, tuple(SIZES))
    elif folder is None or not Path(folder, "data", "meta.json").exists():  # else they are decoded already
        packaged()
    if folder is not None:
        refuse_other(Path(folder), draft)


def refuse_other(folder: Path, draft: Draft) -> Stored | None:
    """What the folder's question.json holds, if there is one; refuse what differs from it, as far as that is known."""
    if not (folder / "question.json").exists():
        return None
    if changes := draft.differs_from(Stored.read(folder).question):
        raise UserError(f"{folder} holds another question ({changes}): ask that one, or pass another --out")
    return Stored.read(folder, strict=True)
