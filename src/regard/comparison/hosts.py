"""The networks that arms are compared in."""

from __future__ import annotations

import inspect
from pathlib import Path
from statistics import fmean
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from regard.borrowing import same_kind
from regard.errors import UserError
from regard.files import regular
from regard.models import check_timm, timm_model
from regard.registry import parse

SMALL = "small_resnet"


def _zoo() -> Any:
    """timm takes seconds to import, in every worker, and the small host does not need it."""
    import timm

    return timm


class Block(nn.Module):
    """Two 3x3 convolutions and their sum with the input."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.shortcut = nn.Sequential()
        if stride != 1 or channels != width:
            self.shortcut = nn.Sequential(nn.Conv2d(channels, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        branch = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(branch + self.shortcut(x))


class SmallResNet(nn.Module):
    """A residual network for small images: a stem that halves the sides, then three stages.

    Shape: (B, channels, H, W) -> (B, classes)

    Args:
        classes: width of the output.
        channels: of the images.
        width: of the first stage; the second has twice, the third four times as many.
        depth: blocks in each stage.
    """

    def __init__(self, classes: int, channels: int = 3, *, width: int = 16, depth: int = 1) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(channels, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        stages = []
        for stage in range(3):
            entering = width * 2 ** max(0, stage - 1)
            blocks = [Block(entering, width * 2**stage, stride=2 if stage else 1)]
            blocks += [Block(width * 2**stage, width * 2**stage, stride=1) for _ in range(depth - 1)]
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(4 * width, classes)

    def get_classifier(self) -> nn.Module:
        return self.head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stages(self.stem(x)).mean((2, 3)))


def build(
    model: str,
    classes: int,
    channels: int,
    *,
    seed: int,
    pretrained: bool = False,
    weights: Path | None = None,
    widening: float = 1.0,
) -> nn.Module:
    """Build a host; its own weights are drawn from `seed`, and torch's global random state stays as it was.

    Beside weights that have learnt, a classifier for other classes starts at 0. Drawn at random it can be so loud (in
    timm's EfficientNets the fewer classes, the louder) that a short training goes into unlearning it.

    Args:
        model: ``"small_resnet"`` or any name of timm, with options where wanted: ``"resnet18[zero_init_last=false]"``.
        classes: width of the output.
        channels: of the images.
        seed: of the initial weights.
        pretrained: timm's pretrained weights.
        weights: a checkpoint of this model, safetensors or what ``torch.load(weights_only=True)`` reads.
        widening: every width is multiplied by this.

    Raises:
        UserError: unknown model or option, weights that cannot be had or do not fit, a model that cannot be widened.
    """
    name, options = parse(model)
    state = torch.get_rng_state()
    try:
        torch.default_generator.manual_seed(seed)
        if name == SMALL:
            if pretrained:
                raise UserError(f"{SMALL} has no pretrained weights: take a model of timm, or --weights FILE")
            host = _small(classes, channels, options, widening)
        else:
            host = _timm(name, classes, channels, options, pretrained, widening)
    finally:
        torch.set_rng_state(state)
    if weights is not None:
        load(host, weights, classes)
    return host


def classifiers(host: nn.Module) -> tuple[nn.Module, ...]:
    """The last layers of a host, which know the classes; more than one where it was distilled."""
    found = host.get_classifier()  # type: ignore[operator]
    return found if isinstance(found, tuple) else (found,)


def memory_format(host: nn.Module) -> torch.memory_format:
    """Channels last, which won in every convolutional network that was measured, unless that is not safe.

    On processors without AVX-512, oneDNN's gradient of the weights of a strided 1x1 convolution from 2 to 7 channels
    (or of a transposed one to as few) writes past its workspace in channels last: the gradient is wrong, the process
    hangs or dies. Seen with torch 2.6 to 2.15; https://github.com/uxlfoundation/oneDNN/issues/6035. The layout is the
    same on every processor, so that a comparison is as well.

    Source: benchmarks/results/training.json (`make loop`) for the speed, tests/test_memory_format.py for the fault.
    """
    for module in host.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            few = module.in_channels if isinstance(module, nn.Conv2d) else module.out_channels
            if module.groups == 1 and set(module.kernel_size) == {1} and max(module.stride) > 1 and 1 < few < 8:
                return torch.contiguous_format
    return torch.channels_last


def image_size(model: str) -> int | None:
    """The side in pixels that a timm model expects, or None for the small host, which takes any."""
    name, options = parse(model)
    if name == SMALL:
        return None
    if isinstance(options.get("img_size"), int):
        return int(options["img_size"])
    config = _zoo().get_pretrained_cfg(name)
    return config.input_size[-1] if config else 224


def normalisation(model: str, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and deviation of each channel that a timm model was trained with, as fractions of 1; else None.

    Where the images have another number of channels, each is given the average.
    """
    name, _ = parse(model)
    config = None if name == SMALL else _zoo().get_pretrained_cfg(name)
    if not config:
        return None
    both = tuple(config.mean), tuple(config.std)
    return both if channels == len(both[0]) else ((fmean(both[0]),) * channels, (fmean(both[1]),) * channels)


def check(model: str) -> None:
    """Raise a `UserError` when there is no such host."""
    name, _ = parse(model)
    if name != SMALL:
        check_timm(name, SMALL)


def _small(classes: int, channels: int, options: dict[str, Any], widening: float) -> nn.Module:
    allowed = [p.name for p in inspect.signature(SmallResNet).parameters.values() if p.kind is p.KEYWORD_ONLY]
    for option in options:
        if option not in allowed:
            raise UserError(f"{SMALL} has no option {option!r}: its options are {', '.join(allowed)}")
        if not isinstance(options[option], int) or options[option] < 1:
            raise UserError(f"{SMALL}: {option} is a whole number from 1, got {options[option]!r}")
    options["width"] = round(options.get("width", 16) * widening)
    return SmallResNet(classes, channels, **options)


def _timm(
    name: str, classes: int, channels: int, options: dict[str, Any], pretrained: bool, widening: float
) -> nn.Module:
    check(name)
    own: dict[str, Any] = {"num_classes": classes, "in_chans": channels}
    if widening != 1.0:
        plain: Any = timm_model(name, options)
        if not isinstance(plain, _zoo().models.ResNet):
            raise UserError(f"the wider control knows {SMALL} and the ResNets of timm, not {name!r}: leave it out")
        widths = [stage["num_chs"] // plain.layer1[0].expansion for stage in plain.feature_info[1:]]
        own["channels"] = tuple(max(8, round(width * widening / 8) * 8) for width in widths)
    host = timm_model(name, options, pretrained=pretrained, **own)
    if pretrained and _zoo().get_pretrained_cfg(name).num_classes != classes:
        for classifier in classifiers(host):
            for parameter in classifier.parameters():
                nn.init.zeros_(parameter)
    return host


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
