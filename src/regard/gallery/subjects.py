"""A network and how its pictures are prepared."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from regard.base.errors import UserError
from regard.base.images import middle_square

SIDE = 224
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # what networks for photos are trained with


@dataclass(frozen=True)
class Subject:
    """A network and how its pictures are prepared.

    Attributes:
        model: gives (B, classes), if evidence for a class is to be shown; any other is only recorded.
        name: as the user wrote it.
        size: (height, width) of its pictures.
        channels: of its pictures.
        mean, deviation: of each channel, as shares of 1.
        classes: their names; empty where they have none.
        random: whether its weights are known to be.
        note: what a reader must know of it.
        square: whether it is shown the middle square of a picture alone, as `compare` does it; else the whole picture,
            resized.
        peak: the largest number in the pictures of more than 8 bits a value that it was trained on, if it was.
        stored: the side to which `compare` scaled the middle squares that it stored, if it is more than the network is
            shown: the middle of these.
    """

    model: nn.Module
    name: str
    size: tuple[int, int] = (SIDE, SIDE)
    channels: int = 3
    mean: Sequence[float] = MEAN
    deviation: Sequence[float] = DEVIATION
    classes: Sequence[str] = ()
    random: bool = False
    note: str = ""
    square: bool = False
    peak: int | None = None
    stored: int | None = None

    @classmethod
    def of(cls, model: nn.Module, name: str | None = None, sides: tuple[int, ...] | None = None) -> Subject:
        """A network with the size, mean and deviation of pictures that timm names, else those usual for ImageNet. The
        whole picture is resized to that size, not cropped, so that maps cover it.

        Args:
            model: the network.
            name: its class's if not said.
            sides: (channels, height, width) of its pictures; timm's if not said, else 3 x 224 x 224.
        """
        config: Any = getattr(model, "pretrained_cfg", None) or {}
        channels, height, width = sides or config.get("input_size") or (3, SIDE, SIDE)
        mean, deviation = config.get("mean") or MEAN, config.get("std") or DEVIATION
        if len(mean) != channels:
            mean, deviation = (0.5,) * channels, (0.5,) * channels
        imagenet = config.get("num_classes") == getattr(model, "num_classes", None) == 1000
        classes = _imagenet() if imagenet else []
        return cls(model, name or type(model).__name__, (height, width), channels, mean, deviation, classes)

    def prepare(self, pictures: Iterable[Image.Image]) -> Tensor:
        """(B, channels, height, width) of RGB pictures of any size, which are brought to this one."""
        mode = "L" if self.channels == 1 else "RGB"
        scaled = [np.asarray(self._scaled(picture.convert(mode)), dtype=np.float32) for picture in pictures]
        pixels = torch.from_numpy(np.stack(scaled) / 255)
        pixels = pixels.unsqueeze(1) if self.channels == 1 else pixels.movedim(-1, 1)
        mean, deviation = (torch.tensor(v, dtype=torch.float32).view(-1, 1, 1) for v in (self.mean, self.deviation))
        return (pixels - mean) / deviation

    def _scaled(self, picture: Image.Image) -> Image.Image:
        height, width = self.size
        if not self.square or height != width:
            return self.framed(picture).resize((width, height), Image.Resampling.BICUBIC)
        square = middle_square(picture, self.stored or height)
        margin = (square.width - height) // 2
        return square.crop((margin, margin, margin + height, margin + height))

    def framed(self, picture: Image.Image) -> Image.Image:
        """What the network is shown of a picture, not yet scaled."""
        if not self.square:
            return picture
        edge = round(self._share * min(picture.size))
        left, top = ((side - edge) // 2 for side in picture.size)
        return picture.crop((left, top, left + edge, top + edge))

    @property
    def _share(self) -> float:
        """Of the middle square, the share of the side that the network is shown."""
        return max(self.size) / self.stored if self.stored else 1.0

    @property
    def prepared(self) -> str:
        """How its pictures are prepared, in words."""
        height, width = self.size
        shown = "each whole picture, resized"
        if self.square:
            share = f" ({100 * self._share:.0f} % of its shorter side)" if self._share < 1 else ""
            shown = f"the middle square of each picture{share}, resized"
        grey = ", in grey" if self.channels == 1 else ""
        mean, deviation = (", ".join(f"{value:.3g}" for value in values) for values in (self.mean, self.deviation))
        return (
            f"The network is shown {shown} to {height} x {width} pixels{grey}, normalised by the mean ({mean}) and the "
            f"standard deviation ({deviation}) of each channel."
        )

    def called(self, number: int) -> str:
        """A class in words."""
        return self.classes[number] if number < len(self.classes) else f"class {number}"


def with_input(
    subject: Subject,
    size: int | tuple[int, int] | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> Subject:
    """The network with other pictures than those it is known by.

    Raises:
        UserError: a side, mean or standard deviation cannot be one.
    """
    for name, values in (("mean", mean), ("std", std)):
        if values is not None and len(values) != subject.channels:
            raise UserError(f"{name} is one number for each of {subject.channels} channels, got {list(values)}")
        if values is not None and not all(map(math.isfinite, values)):
            raise UserError(f"{name} is made of finite numbers, got {list(values)}")
    if std is not None and min(std) <= 0:
        raise UserError(f"std is above 0, got {list(std)}")
    sides = (size, size) if isinstance(size, int) else size
    if sides is not None and not (len(sides) == 2 and all(type(side) is int and 1 <= side <= 4096 for side in sides)):
        raise UserError(f"input_size is a height and a width from 1 to 4096, got {size!r}")
    if sides is not None:
        stored = round(max(sides) * subject.stored / max(subject.size)) if subject.stored else None
        subject = replace(subject, size=sides, stored=stored)
    return replace(subject, mean=mean or subject.mean, deviation=std or subject.deviation)


def _imagenet() -> list[str]:
    """What timm calls the classes of ImageNet; of each the first of its words."""
    from timm.data.imagenet_info import ImageNetInfo

    names = ImageNetInfo()
    return [names.index_to_description(number).partition(",")[0] for number in range(names.num_classes())]
