"""What is asked of a comparison: one object, the same for every run, with its check, its JSON and its difference.

Nothing here loads torch, so that what words alone show to be wrong is said at once.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from regard.base.errors import UserError, near
from regard.base.files import regular, slug
from regard.base.schema import NoLess, Positive, Share, Whole, Within
from regard.comparison.arms import (
    CONSTANT,
    HOSTS,
    PARAMETERS,
    PLAIN,
    WIDER,
    mechanisms,
    twinned,
)
from regard.comparison.folders import SIZES
from regard.comparison.folders import text as as_text
from regard.comparison.plan import MOST_RATES, Pairing, Plan
from regard.comparison.records import Above0, Factor, Side
from regard.registry.named import SMALL, Named

EPOCHS = {"fashion": 3, "cluttered": 5}  # of the embedded images; a folder's default is below
RECIPE = 2  # raise it when the same question would train otherwise: older folders are then not added to
FEW = 3  # epochs up to which crops and mirror images only slow the training down
MATRIX_RATE = 0.07  # of Muon, where AdamW has the default
OPEN = ("size", "epochs", "augmentation", "pairing", "device")  # what a draft may leave open
NOT_STORED = ("trial", "other")
# of a field that the first folders lack: nobody can know what it was, so no network of theirs is built again
UNKNOWN: Any = None
LOST = {"lost": True}

Optimiser = Literal["muon", "adamw"]
Augmentation = Literal["none", "crops"]
Start = Literal["scaled", "identity", "paper"]
Trunk = Literal["trained", "frozen"]
Normalisation = tuple[list[float], Annotated[list[Above0], Within(1)]]


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A question as far as words tell it: what only the network, the images, the machine or trials can say is None.

    A field's default is what a folder means that was written before there was a choice. A field that is not compared
    is measured, found by trials, or moves with another one: a change of it makes no other question.

    Attributes:
        recipe: see `RECIPE`.
        data: ``"fashion"``, ``"cluttered"`` or the path of a folder.
        model: as `regard.open_model` takes it.
        model_sha256: of the user's own file.
        size: side of the images in pixels.
        epochs: of every run.
        epochs_auto: whether trials found them.
        batch: images in one step.
        optimiser: ``"muon"`` for the kernels of the host's convolutions, or ``"adamw"`` for everything.
        learning_rate, matrix_rate: the highest ones of AdamW and of Muon.
        tune: how many learning rates every arm is tried with.
        rates: arm -> what its learning rates are multiplied with, once that is tuned.
        augmentation: ``"crops"`` or ``"none"``.
        weight_decay: of AdamW.
        smoothing: of the labels.
        at: sites.
        start: how mechanisms start.
        trunk: whether the weights of the host are ``"trained"`` or ``"frozen"``.
        margin: the largest difference not worth having, a fraction.
        pairing: see `plan.Plan`.
        pretrained: whether training starts from timm's weights.
        weights, weights_sha256: the checkpoint that it starts from.
        widening, widening_parameters: how much wider the controls `wider` and `parameters` are, once that is measured.
        device: where networks are trained.
    """

    recipe: Positive = 1
    data: str
    model: str
    model_sha256: str | None = None
    size: Side | None
    epochs: Positive | None
    epochs_auto: bool = False
    batch: Positive
    optimiser: Optimiser = "adamw"
    learning_rate: Above0
    matrix_rate: Above0 | None = field(default=None, compare=False)
    tune: Annotated[int, Within(0, 100)] = 0
    rates: dict[str, Annotated[float, Within(1e-9, 1e9)]] | None = field(default=None, compare=False)
    augmentation: Augmentation | None = "crops"
    weight_decay: NoLess = field(default=UNKNOWN, metadata=LOST)
    smoothing: Share = field(default=UNKNOWN, metadata=LOST)
    at: str | list[str] = field(default=UNKNOWN, metadata=LOST)
    start: Start
    trunk: Trunk = "trained"
    margin: Annotated[float, Within(5e-324, 1)]
    pairing: Pairing | None = "seeds"
    pretrained: bool
    weights: str | None
    weights_sha256: str | None = field(default=UNKNOWN, metadata=LOST)
    widening: Factor | None = field(default=UNKNOWN, compare=False, metadata=LOST)
    widening_parameters: Factor | None = field(default=None, compare=False)
    device: str | None = field(default=UNKNOWN, metadata=LOST)

    @classmethod
    def of(
        cls,
        *,
        data: str | Path = "fashion",
        model: str = SMALL,
        size: int | None = None,
        epochs: int | Literal["auto"] | None = None,
        batch: int | None = None,
        optimiser: str | None = None,
        learning_rate: float | None = None,
        tune: int = 0,
        augmentation: str | None = None,
        at: str | Sequence[str] = "auto",
        start: str | None = None,
        trunk: str = "trained",
        margin: float = 0.01,
        pairing: str | None = None,
        pretrained: bool = False,
        weights: str | Path | None = None,
        device: str | None = None,
    ) -> Draft:
        """What the words of `regard.compare` ask, with its defaults where there are none.

        Raises:
            UserError: a file that is named is not there, or the epochs are neither a number nor ``"auto"``.
        """
        if isinstance(epochs, str) and epochs != "auto":
            raise UserError(f"epochs is 'auto' or how many there should be, got {epochs[:60]!r}")
        learnt = pretrained or weights is not None
        small = Named.read(model).name == SMALL
        if epochs is None:
            epochs = first_epochs(data, learnt)
        chosen = None if isinstance(epochs, str) else epochs
        optimiser = optimiser or ("muon" if small and not learnt else "adamw")
        usual = _usual_rate(small, learnt, trunk)
        rate = usual if learning_rate is None else learning_rate
        words: dict[str, Any] = {
            "optimiser": optimiser,
            "augmentation": augmentation or augmentation_for(chosen),
            "start": start or ("identity" if learnt else "scaled"),
            "trunk": trunk,
            "pairing": pairing,
        }  # held to what they may be by `check`
        return cls(
            recipe=RECIPE,
            data=as_text(str(Path(data))),  # photos and photos/ are the same
            model=model,
            model_sha256=Named.read(model).digest(),
            size=size,
            epochs=chosen,
            epochs_auto=epochs == "auto",
            batch=(96 if small else 128) if batch is None else batch,
            learning_rate=rate,
            # where the one rate is doubled, so is the other
            matrix_rate=MATRIX_RATE * rate / usual if optimiser == "muon" else None,
            tune=tune,
            weight_decay=0.05,
            smoothing=0.1,
            at=at if isinstance(at, str) else list(at),
            margin=margin,
            pretrained=pretrained,
            weights=str(weights) if weights is not None else None,
            weights_sha256=_digest(Path(weights)) if weights is not None else None,
            device=device,
            **words,
        )

    @property
    def learnt_before(self) -> bool:
        """Whether training starts from weights that have learnt."""
        return self.pretrained or self.weights is not None

    def check(self) -> None:
        """Refuse values that make no sense, whatever the network and the images are.

        Raises:
            UserError: which one, and what it may be.
        """
        if not 0 <= self.tune <= MOST_RATES:
            raise UserError(
                f"tune is how many learning rates every arm is tried with, at most {MOST_RATES}, got {self.tune}"
            )
        for name, value, least in (("epochs", self.epochs, 1), ("batch", self.batch, 2), ("size", self.size, 8)):
            if value is not None and value < least:
                raise UserError(f"{name} must be at least {least}, got {value}")
        if not 0 < self.learning_rate < float("inf"):
            raise UserError(f"the learning rate must be above 0, got {self.learning_rate}")
        if not 0 < self.margin < 1:
            raise UserError(
                f"the margin is a fraction of the test images between 0 and 1, such as 0.01, got {self.margin}"
            )
        self._check_words()
        if self.trunk == "frozen" and not self.learnt_before:
            raise UserError(
                "a frozen trunk must have learnt something before: pass --pretrained or --weights FILE as well"
            )

    def _check_words(self) -> None:
        for name, word, kind in (
            ("optimiser", self.optimiser, Optimiser),
            ("augmentation", self.augmentation, Augmentation),
            ("start", self.start, Start),
            ("trunk", self.trunk, Trunk),
            ("pairing", self.pairing, Pairing),
        ):
            words = get_args(kind)
            if word is not None and word not in words:
                *first, last = map(repr, words)
                raise UserError(f"{name} is {', '.join(first)} or {last}, got {word!r}{near(word, words)}")

    def to_json(self) -> dict[str, Any]:
        """As question.json holds it."""
        return {each.name: getattr(self, each.name) for each in fields(self) if each.name not in NOT_STORED}

    def differs_from(self, other: Draft) -> str:
        """What is asked otherwise than in another question, in words; empty where it is the same question.

        What a draft leaves open (`OPEN`) differs from nothing.
        """
        ours, theirs = (json.loads(json.dumps(question.to_json())) for question in (self, other))
        return "; ".join(
            _change(name, theirs.get(name), ours)
            for name in (each.name for each in fields(self) if each.compare)
            if not (name in OPEN and ours[name] is None) and not _alike(name, ours[name], theirs.get(name))
        )

    def default_folder(self) -> Path:
        """Where the results go if nobody says it: the same question finds its folder again."""
        # what was not asked yet when older folders were named has no part in the name
        named = {name: value for name, value in self.to_json().items() if BEFORE.get(name, ...) != value}
        digest = hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()[:8]
        name = Path(self.data).resolve().name if self.data not in SIZES else self.data
        model = Named.read(self.model)
        host = slug(model.same.replace(".py:", "-")) if model.file else model.name
        return Path("runs") / f"{name}-{host}-{digest}"


@dataclass(frozen=True, kw_only=True)
class Question(Draft):
    """What is asked, whole: the same for every run.

    Attributes:
        fingerprint: of the images.
        classes: their names.
        channels: of an image.
        normalisation: mean and deviation of each channel that the network was trained with; None for those of the
            training images.
        train_images, val_images, test_images: how many there are.
        split_varies: see `data.Images.varies`.
        broken: (file, reason) of what could not be read.
        trial: whether this is a trial, whose runs know nothing of the test images.
        other: what question.json holds that this version does not know; it stays there.
    """

    size: Side
    epochs: Positive
    augmentation: Augmentation = "crops"
    pairing: Pairing = "seeds"
    device: str = field(default=UNKNOWN, metadata=LOST)
    fingerprint: str
    classes: Annotated[list[str], Within(1)] = field(compare=False)
    channels: Side = field(default=UNKNOWN, metadata=LOST)
    normalisation: Normalisation | None = field(default=UNKNOWN, metadata=LOST)
    train_images: Whole
    val_images: Whole
    test_images: Whole
    split_varies: str
    broken: list[tuple[str, str]] = field(default=UNKNOWN, compare=False, metadata=LOST)
    trial: bool = field(default=False, compare=False)
    other: dict[str, Any] = field(default_factory=dict, compare=False)

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> Question:
        """The question that question.json holds, of this version or another."""
        names = {each.name for each in fields(cls)} - set(NOT_STORED)
        other = {name: value for name, value in stored.items() if name not in names}
        return cls(**{name: value for name, value in stored.items() if name in names}, other=other)

    def to_json(self) -> dict[str, Any]:
        return super().to_json() | self.other

    def __getitem__(self, name: str) -> Any:
        """A field by its name in question.json; with `keys`, ``dict(question)`` is what is stored."""
        return self.to_json()[name]

    def keys(self) -> Iterator[str]:
        """The names of its fields."""
        return iter(self.to_json())

    def width_of(self, arm: str) -> float | None:
        """By how much the network of an arm is widened; None for one that is not, or not measured yet."""
        return {WIDER: self.widening, PARAMETERS: self.widening_parameters}.get(arm)

    def widened(self, control: str, factor: float) -> Question:
        """The question in which the network of a control is so much wider."""
        if control == WIDER:
            return replace(self, widening=factor)
        return replace(self, widening_parameters=factor)

    def command(self, arms: Sequence[str], plan: Plan, folder: Path) -> str:
        """The command line that asks this question."""
        chosen = [CONSTANT] * any(map(twinned, arms)) + [arm for arm in arms if arm in HOSTS and arm != PLAIN]
        options = {
            "--data": self.data,
            "--model": self.model,
            "--size": self.size,
            "--epochs": "auto" if self.epochs_auto else self.epochs,
            "--batch": self.batch,
            "--learning-rate": self.learning_rate,
            "--tune": self.tune or None,
            "--optimiser": self.optimiser,
            "--augmentation": self.augmentation,
            "--start": self.start,
            "--trunk": self.trunk,
            "--margin": self.margin,
            "--pairing": self.pairing,
            **_seeds_asked(plan),
            "--at": self.at if isinstance(self.at, str) else ",".join(self.at),
            "--pretrained": True if self.pretrained else None,
            "--weights": self.weights,
            "--skip-broken": True if self.broken else None,
            "--control": ",".join(chosen) or None,
            "--out": folder,
        }
        words = ["regard", "compare", *mechanisms(arms)]
        for option, value in options.items():
            if value is not None:
                words += [option] if value is True else [option, str(value)]
        return as_text(shlex.join(words))


def _seeds_asked(plan: Plan) -> dict[str, Any]:
    if len(plan.looks) > 1:
        return {"--seeds": "auto", "--looks": ",".join(map(str, plan.looks))}
    if plan.seeds == tuple(range(len(plan.seeds))):
        return {"--seeds": len(plan.seeds)}
    return {"--seed-list": ",".join(map(str, plan.seeds))}


# what a question asks that was stored before there was a choice
BEFORE: dict[str, Any] = {
    each.name: each.default
    for each in fields(Question)
    if each.default is not MISSING and not each.metadata and each.name not in NOT_STORED
}


def first_epochs(data: str | Path, learnt_before: bool) -> int:
    """How many epochs where nobody says it."""
    return EPOCHS.get(str(data), 8 if learnt_before else 20)


def augmentation_for(epochs: int | None) -> Augmentation | None:
    """Where nobody says it: images that are seen a few times only are new as they are."""
    return None if epochs is None else "crops" if epochs > FEW else "none"


def _alike(name: str, ours: Any, theirs: Any) -> bool:
    if name == "model":
        with suppress(UserError, TypeError):  # of the stored one, which anybody may have written
            return Named.read(ours).same == Named.read(theirs).same
    return bool(ours == theirs)


def _change(name: str, before: Any, ours: dict[str, Any]) -> str:
    if name == "model_sha256" and before is not None:
        return f"the text of {ours['model'].rpartition(':')[0]} has changed"
    return f"{name} was {_short(before)}, now {_short(ours[name])}"


def _usual_rate(small: bool, learnt_before: bool, trunk: str) -> float:
    """The learning rate where none is asked for: what is new learns fast, what has learnt before keeps most of it."""
    if learnt_before:
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
