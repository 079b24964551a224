"""What the files of a comparison hold: one declared shape for each, to which every reader holds them.

A field that older folders lack is `NotRequired`; a new one is declared so, too. What question.json holds is declared by
`question.Question` and `stored.Stored`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, TypedDict

from regard.base.errors import UserError
from regard.base.files import slug
from regard.base.schema import NoLess, Positive, Share, Whole, Within, fault, read

Side = Annotated[int, Within(1, 2**16)]
Seed = Annotated[int, Within(0, 2**32 - 1)]
Arm = Annotated[str, Within(1, 200)]
Count = Annotated[int, Within(0, 1000)]
BaseCount = Annotated[int, Within(0, 32_000)]
Ratio = Annotated[float, Within(1e-9, 1e9)]
Above0 = Annotated[float, Within(5e-324)]
Spread = tuple[NoLess, NoLess, NoLess]  # lower quartile, median, upper quartile
OPEN = 0.05  # a gate whose spreads over places and over images are all below this share of its mean did not open
Ratios = tuple[Ratio, Ratio, Ratio]
Factor = Annotated[float, Within(0.1, 100)]  # by which a network is widened


class Asked(TypedDict):
    """One time that the question was asked."""

    when: str
    arms: Annotated[list[Arm], Within(1, 1000)]
    seeds: Annotated[list[Seed], Within(0, 32_000)]
    command: str
    seen: bool
    looks: NotRequired[Annotated[list[Count], Within(1, 20)]]  # how many of the seeds every arm has at each look
    base: NotRequired[Annotated[list[BaseCount], Within(0, 20)]]  # and `none`, where it has more


class Epoch(TypedDict):
    epoch: Positive
    train_loss: float
    val_top1: Share
    seconds: NoLess


class Gate(TypedDict):
    """How far one gate opened, over validation images; a gate that leaves its map alone is 1 everywhere"""

    name: str
    kind: str
    mean: float
    places: NoLess  # deviation over the channels and pixels of an image
    images: NoLess  # ... over images, at one place
    strength: float | None  # where it fades in


def opened(gates: Sequence[Gate]) -> bool | None:
    """Whether any gate of a run opened: whether it differs from place to place (channels count as places) or from image
    to image by 5 % of its mean or more, a standard deviation. A gate that is the same everywhere and for every image
    only scales a map, whatever its mean is. None without gates.

    Args:
        gates: of a run.
    """
    if not gates:
        return None
    return any(max(gate["places"], gate["images"]) >= OPEN * abs(gate["mean"]) for gate in gates)


class Run(TypedDict):
    """runs/ARM/seed-NNNN.json, of any run"""

    arm: Arm
    seed: Seed
    status: Literal["done", "failed"]
    environment: NotRequired[dict[str, Any]]


class Done(Run):
    """... of one that finished"""

    top1: Share
    top5: Share | None
    log_loss: NotRequired[NoLess]  # on the test images, in nats
    val_log_loss: NotRequired[NoLess]  # on the validation images, after the last epoch
    logits_sha256: NotRequired[str]  # of the file beside it
    curve: Annotated[list[Epoch], Within(1)]
    reason: NotRequired[None]
    test_images: NotRequired[Whole]
    seconds: NotRequired[NoLess]
    parameters: NotRequired[Whole]
    weights_sha256: NotRequired[str]
    resumed: NotRequired[Whole]
    layout: NotRequired[str]
    killed: NotRequired[str | None]
    branch_scale: NotRequired[dict[str, NoLess | None]]  # by site, at the start: after the mechanism over before
    gates: NotRequired[list[Gate]]
    gate_images: NotRequired[Whole]  # test images of the fields below; at most as many of validation
    top1_own_gate: NotRequired[Share]
    top1_mean_gate: NotRequired[Share]  # every gate replaced by its mean over training images
    top1_other_gate: NotRequired[Share]  # ... by that of another image
    val_top1_own_gate: NotRequired[Share]
    val_top1_mean_gate: NotRequired[Share]
    val_top1_other_gate: NotRequired[Share]


class Tried(Run):
    """trials/.../runs/ARM/seed-NNNN.json, of one that finished: no test image was looked at"""

    val_log_loss: NoLess
    curve: Annotated[list[Epoch], Within(1)]


class Failed(Run):
    """... and of one that did not"""

    reason: str


class Price(TypedDict):
    parameters: Whole
    macs: Whole
    infer_ms: Spread
    infer_ratio: Ratios
    train_ms: Spread
    train_ratio: Ratios
    peak_ratio: Ratio
    added_parameters: NotRequired[int]
    added_macs: NotRequired[int]
    peak_bytes: NotRequired[Whole]


class Cost(TypedDict):
    """cost.json"""

    device: str
    batch: Positive
    rounds: Whole
    noisy: bool
    arms: dict[str, Price]
    narrow: NotRequired[dict[str, list[str]]]  # by arm, where it has very few hidden units


class Linear(TypedDict):
    """linear.json"""

    fingerprint: str
    seed: Seed
    side: Side
    train_images: Whole
    test_images: Positive
    top1: Share
    log_loss: NoLess
    val_top1: Share
    val_log_loss: NoLess
    l2: Above0
    chance: Share
    seconds: NoLess


class Meta(TypedDict):
    """data/meta.json"""

    name: str
    classes: Annotated[list[str], Within(1)]
    files: list[str]
    broken: list[tuple[str, str]]
    peak: NotRequired[Annotated[int, Within(1, 2**32)] | None]
    fingerprint: str
    key: dict[str, Any]


class Shown(TypedDict):
    """One map of maps/ARM.npz"""

    key: str
    name: str
    kind: str
    limits: list[Any] | None


class Checkpoint(TypedDict):
    """What a checkpoint holds beside weights and optimiser"""

    curve: list[Epoch]
    resumed: Whole
    environment: dict[str, Any]


def read_run(path: Path) -> dict[str, Any]:
    """The record of one run, of the arm and seed that its place says."""
    cure = "`regard compare` does this run again when it is asked the same question"
    run = read(path, Run, cure)
    wrong = fault(run, Done if run["status"] == "done" else Failed)
    if not wrong and (slug(run["arm"]), f"seed-{run['seed']:04d}") != (path.parent.name, path.stem):
        wrong = f"its arm {run['arm']!r} and seed {run['seed']} belong to another file"
    if wrong:
        raise UserError(f"{path} is damaged ({wrong}): {cure}")
    return run


def read_cost(folder: Path) -> dict[str, Any] | None:
    """What cost.json holds, if there is one."""
    path = folder / "cost.json"
    return read(path, Cost, "delete it, and `regard compare` measures the costs again") if path.exists() else None


def read_linear(folder: Path) -> dict[str, Any] | None:
    """What linear.json holds, if there is one."""
    path = folder / "linear.json"
    return read(path, Linear, "delete it, and `regard compare` fits it again") if path.exists() else None
