"""Networks of torchvision, by their names: of classification, segmentation, detection, video and optical flow."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from regard.base.errors import UserError, near
from regard.networks.options import check_options
from regard.networks.source import SIDE, Normalisation, Wanted, random_images
from regard.registry.named import Named

FRAMES = 16  # of a clip


def check(named: Named) -> None:
    from torchvision import models

    if named.name not in models.list_models():
        raise UserError(f"there is no model {named.name!r} in torchvision{near(named.name, models.list_models())}")


def build(named: Named, wanted: Wanted) -> tuple[nn.Module, Any]:
    from torchvision import models

    check(named)
    check_options(f"torchvision cannot build {named.name!r}", named.options)
    takes = inspect.signature(models.get_model_builder(named.name)).parameters
    options = named.options | ({"weights_backbone": None} if "weights_backbone" in takes else {})
    sizes = {} if wanted.classes is None else {"num_classes": wanted.classes}
    try:
        model = models.get_model(named.name, weights=None, **sizes, **options)
    except Exception as error:  # torchvision checks no option before it uses it
        raise UserError(f"torchvision cannot build {named.name!r} with these options: {error}") from error
    if wanted.channels not in (None, 3):
        _enter_with(model, wanted.channels)
    return model, None


def example(named: Named, model: nn.Module, size: int | None, batch: int) -> Any:
    from torchvision import models

    side = size or image_size(named) or SIDE
    if named.name in models.list_models(module=models.detection):
        return (list(_detection_images(model, size, batch)),)
    if named.name in models.list_models(module=models.video):
        return random_images(batch, 3, FRAMES, side, side)
    if named.name in models.list_models(module=models.optical_flow):
        return random_images(batch, 3, side, side), random_images(batch, 3, side, side)
    return random_images(batch, 3, side, side)


def image_size(named: Named) -> int | None:
    return int(getattr(_transforms(named), "crop_size", [SIDE])[-1])


def pretraining(named: Named) -> Normalisation | None:
    transforms = _transforms(named)
    return (tuple(transforms.mean), tuple(transforms.std)) if hasattr(transforms, "mean") else None


def _transforms(named: Named) -> Any:
    """How the images of a network's pretraining were prepared."""
    from torchvision import models

    check(named)
    return models.get_model_weights(named.name).DEFAULT.transforms()


def _detection_images(model: nn.Module, size: int | None, batch: int) -> torch.Tensor:
    """Images for a detector, which resizes them itself: it is told to resize them to the size that is asked for."""
    resize: Any = model.transform
    own = (resize.fixed_size or (resize.min_size[-1],))[0]
    if size and not resize.fixed_size:
        resize.min_size, resize.max_size = (size,), size
    return random_images(batch, 3, size or own, size or own, make=torch.rand)


def _enter_with(model: nn.Module, channels: int) -> None:
    """Give a network another first convolution, for images of other channels."""
    convolutions: Iterator[tuple[str, Any]] = ((n, m) for n, m in model.named_modules() if isinstance(m, nn.Conv2d))
    name, first = next(convolutions)
    parent, _, child = name.rpartition(".")
    other = nn.Conv2d(
        channels, first.out_channels, first.kernel_size, first.stride, first.padding, first.dilation,
        bias=first.bias is not None,
    )  # fmt: skip
    setattr(model.get_submodule(parent), child, other)
