"""The networks that arms are compared in."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from regard.base.errors import UserError
from regard.base.files import regular
from regard.networks import models
from regard.networks.randomness import seeded
from regard.networks.source import Wanted
from regard.networks.weights import same_kind
from regard.registry.named import Named


def build(
    model: str,
    classes: int,
    channels: int,
    *,
    seed: int,
    size: int | None = None,
    pretrained: bool = False,
    weights: Path | None = None,
    widening: float = 1.0,
    digest: str | None = None,
) -> nn.Module:
    """Build a host; its own weights are drawn from `seed`, and the global random states stay as they were.

    Beside weights that have learnt, a classifier for other classes starts at 0. Drawn at random its logits can be so
    large (in timm's EfficientNets the larger, the fewer classes) that a short training is spent shrinking them.

    Args:
        model: as `regard.open_model` takes it: ``"resnet18[zero_init_last=false]"``, ``"mynet.py:build"``.
        classes: width of the output.
        channels: of the images.
        seed: of the initial weights.
        size: side of the images, for networks that are built for one size alone.
        pretrained: timm's pretrained weights.
        weights: a checkpoint of this model, safetensors or what ``torch.load(weights_only=True)`` reads.
        widening: every width is multiplied by this.
        digest: sha256 that the user's own file must have.

    Raises:
        UserError: unknown model or option, weights that cannot be had or do not fit, a model that cannot be widened, a
            file that has changed.
    """
    named = Named.read(model)
    if digest is not None and named.digest() != digest:
        raise UserError(f"{named.file} has changed since the comparison was asked: ask again with another --out")
    with seeded(seed):
        host, _ = models.build(named, Wanted(classes, channels, size, pretrained, widening))
    if pretrained and host.pretrained_cfg["num_classes"] != classes:  # type: ignore[index]
        for classifier in classifiers(host, classes):
            for parameter in classifier.parameters():
                nn.init.zeros_(parameter)
    if weights is not None:
        load(host, weights, classes)
    return host


def classifiers(host: nn.Module, classes: int) -> tuple[nn.Module, ...]:
    """The last layers of a host, which know the classes; more than one where it was distilled.

    Raises:
        UserError: the host does not tell, and no layer of it gives so many numbers.
    """
    if hasattr(host, "get_classifier"):
        found: Any = host.get_classifier()  # type: ignore[operator]
        return found if isinstance(found, tuple) else (found,)
    parts = list(host.modules())
    layers: list[nn.Module] = [m for m in parts if isinstance(m, nn.Linear) and m.out_features == classes]
    layers = layers or [m for m in parts if isinstance(m, nn.Conv2d) and m.out_channels == classes]
    if not layers:
        raise UserError(
            f"no layer of this {type(host).__name__} gives {classes} numbers, so its classifier cannot be identified: "
            "give it a method get_classifier() that returns the layer"
        )
    return (layers[-1],)


def memory_format(host: nn.Module) -> torch.memory_format:
    """Channels last, which won in every convolutional network that was measured, unless that is not safe.

    On processors without AVX-512, oneDNN's gradient of the weights of a strided 1x1 convolution from 2 to 7 channels
    (or of a transposed one to as few) writes past its workspace in channels last: the gradient is wrong, the process
    hangs or dies. Seen with torch 2.6 to 2.15; https://github.com/uxlfoundation/oneDNN/issues/6035. The layout is the
    same on every processor, so that a comparison is as well.

    Source: benchmarks/results/training.json (`make loop`) for the speed, tests/comparison/test_memory_format.py for
    the fault.
    """
    for module in host.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            few = module.in_channels if isinstance(module, nn.Conv2d) else module.out_channels
            if module.groups == 1 and set(module.kernel_size) == {1} and max(module.stride) > 1 and 1 < few < 8:
                return torch.contiguous_format
    return torch.channels_last


def image_size(model: str) -> int | None:
    """The side in pixels that a host expects, or None for one that takes any."""
    return models.image_size(Named.read(model))


def normalisation(model: str, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and standard deviation of each channel, as fractions of 1, that a host of another library was trained with.

    Where the images have another number of channels, each is given the average.
    """
    both = models.pretraining(Named.read(model))
    if both is None or channels == len(both[0]):
        return both
    return (fmean(both[0]),) * channels, (fmean(both[1]),) * channels


def check(model: str) -> None:
    """Raise a `UserError` when there is no such host."""
    models.check(Named.read(model))


def load(host: nn.Module, path: Path, classes: int | None = None) -> None:
    """Load a checkpoint, safetensors or what ``torch.load(weights_only=True)`` reads.

    Args:
        host: the network.
        path: of the file.
        classes: of a classifier that may differ from the file's, and then starts at 0.

    Raises:
        UserError: there is no such file, it holds no plain state dict, or it does not fit.
    """
    try:
        regular(path).close()
        if path.suffix == ".safetensors":
            tensors = safetensors.torch.load_file(path)
        else:
            tensors = torch.load(path, map_location="cpu", weights_only=True)
            tensors = tensors.get("state_dict", tensors.get("model", tensors))
        tensors = {key.removeprefix("module."): tensor for key, tensor in tensors.items()}
        if not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
            raise TypeError
    except FileNotFoundError as error:
        raise UserError(f"there is no file {path}") from error
    except Exception as error:  # what an unpickler raises for a file that is none differs with every file
        raise UserError(f"{path} is no plain state dict, so it is not loaded: save model.state_dict()") from error
    own = host.state_dict()
    other = [key for key in own if key in tensors and tensors[key].shape != own[key].shape]
    # a classifier for other classes differs in its outputs alone
    head = [k for k in other if tensors[k].dim() and own[k].shape == (classes, *tensors[k].shape[1:])]
    differences = [f"lacks {key!r}" for key in sorted(own.keys() - tensors.keys())]
    differences += [f"has {key!r} too many" for key in sorted(tensors.keys() - own.keys())]
    differences += [f"has {key!r} in another shape" for key in other if key not in head]
    differences += [
        f"has {key!r} as {str(tensors[key].dtype).removeprefix('torch.')} and not as "
        f"{str(own[key].dtype).removeprefix('torch.')}"
        for key in own
        if key in tensors and not same_kind(tensors[key], own[key])
    ]
    if differences:
        raise UserError(f"{path} does not fit the model: it {'; it '.join(differences[:3])}")
    host.load_state_dict({key: torch.zeros_like(own[key]) if key in head else tensors[key] for key in own})
