"""Networks by a word: one of timm, one of torchvision, or what a function in the user's own file returns."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from regard.errors import UserError, near
from regard.registry import parse

SIDE = 224  # pixels, where neither the user nor the network says another size
FRAMES = 16  # of a clip
TORCHVISION = "torchvision/"


def open_model(
    text: str, *, size: int | None = None, batch: int = 8, device: torch.device | str = "cpu"
) -> tuple[nn.Module, Any]:
    """Build a network with random weights, and a batch for it. Nothing is downloaded.

    The same text gives the same weights and images every time; torch's global random state stays as it was.

    Args:
        text: a name of timm, with options where wanted (``"resnet18[num_classes=5]"``); ``"torchvision/NAME"``, also
            of its segmentation, detection, video and optical-flow networks; or ``"file.py:function"``, which is called
            without arguments and returns a model, or a model and an example. That runs the file.
        size: side of the images in pixels; None is the network's own. A detector, which resizes its images itself, is
            told to resize them to this.
        batch: images, or clips.
        device: of both.

    Returns:
        The model, and the example to call it with: one tensor, or a tuple of arguments.

    Raises:
        UserError: there is no such network, it cannot be built like that, or the file does not give a model.

    Example:
        >>> model, example = open_model("resnet18", size=64, batch=2)
        >>> model(example).shape
        torch.Size([2, 1000])
    """
    if batch < 1 or (size is not None and size < 1):
        raise UserError(f"size and batch are at least 1, got {size} and {batch}")
    try:
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError) as error:
        raise UserError(f"there is no device {str(device)!r} here: take cpu, or leave it out") from error
    with _same_every_time():
        model, example = _opened(text, size, batch)
    return model.to(device), tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, example)


def _opened(text: str, size: int | None, batch: int) -> tuple[nn.Module, Any]:
    if ".py:" in text:
        return _own(text, size or SIDE, batch)
    if text.startswith(TORCHVISION):
        return _torchvision(text.removeprefix(TORCHVISION), size, batch)
    if not re.fullmatch(r"\w+(\.\w+)?(\[.*\])?", text):
        raise UserError(f"cannot read the model {text!r}: give a name of timm, torchvision/NAME or file.py:function")
    name, options = parse(re.sub(r"\.\w+", "", text, count=1))  # timm's tag says which weights
    model = timm_model(name, _sized(name, size) | options)
    config: Any = model.pretrained_cfg
    channels, side, _ = config.get("input_size") or (3, SIDE, SIDE)
    side = size or options.get("img_size") or side
    return model, torch.randn(batch, options.get("in_chans", channels), side, side)


def timm_model(name: str, options: Mapping[str, Any], *, pretrained: bool = False, **others: Any) -> nn.Module:
    """Build a network of timm.

    Args:
        name: of the network.
        options: of its constructor, as the user gave them.
        pretrained: with timm's weights.
        others: options that the user may not give.

    Raises:
        UserError: timm has none of this name, does not take the options, or cannot get the pretrained weights.
    """
    check_timm(name)
    import timm

    try:
        return timm.create_model(name, pretrained=pretrained, **others, **options)
    except Exception as error:  # timm checks no option before it uses it
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if pretrained:
            raise UserError(
                f"the pretrained weights of {name!r} cannot be had ({reason}): go online, or pass --weights FILE"
            ) from error
        raise UserError(f"timm cannot build {name!r} with these options: {reason}") from error


def check_timm(name: str, *others: str) -> None:
    """Raise a `UserError` when timm has no network of this name; the others are names that would do, too."""
    import timm

    if not timm.is_model(name):
        hint = near(name, [*others, *timm.list_models()]) or "".join(f", and it is not {other}" for other in others)
        raise UserError(f"there is no model {name!r} in timm{hint}")


def _sized(name: str, size: int | None) -> dict[str, Any]:
    """A network for images of one size alone is built for that size."""
    import timm

    config = timm.get_pretrained_cfg(name) if size and timm.is_model(name) else None
    return {"img_size": size} if config and config.fixed_input_size else {}


def _torchvision(text: str, size: int | None, batch: int) -> tuple[nn.Module, Any]:
    from torchvision import models

    name, options = parse(text)
    if name not in models.list_models():
        raise UserError(f"there is no model {name!r} in torchvision{near(name, models.list_models())}")
    takes = inspect.signature(models.get_model_builder(name)).parameters
    options |= {"weights_backbone": None} if "weights_backbone" in takes else {}
    try:
        model = models.get_model(name, weights=None, **options)
    except Exception as error:  # torchvision checks no option before it uses it
        raise UserError(f"torchvision cannot build {name!r} with these options: {error}") from error
    crop = getattr(models.get_model_weights(name).DEFAULT.transforms(), "crop_size", [SIDE])
    side = size or crop[-1]
    if name in models.list_models(module=models.detection):
        resize: Any = model.transform
        fixed = resize.fixed_size or (resize.min_size[-1],)
        if size and not resize.fixed_size:
            resize.min_size, resize.max_size = (size,), size
        return model, ([torch.rand(3, size or fixed[0], size or fixed[0]) for _ in range(batch)],)
    if name in models.list_models(module=models.video):
        return model, torch.randn(batch, 3, FRAMES, side, side)
    if name in models.list_models(module=models.optical_flow):
        return model, (torch.randn(batch, 3, side, side), torch.randn(batch, 3, side, side))
    return model, torch.randn(batch, 3, side, side)


def _own(text: str, size: int, batch: int) -> tuple[nn.Module, Any]:
    file, _, function = text.rpartition(":")
    path = Path(file)
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    build = vars(_imported(path)).get(function)
    if not callable(build):
        raise UserError(f"{path} has no function {function!r}{near(function, _functions(path))}")
    try:
        built = build()
    except Exception as error:
        raise UserError(f"{text} failed ({type(error).__name__}: {error}): it is called without arguments") from error
    model, example = built if isinstance(built, tuple) and len(built) == 2 else (built, None)
    if not isinstance(model, nn.Module):
        raise UserError(f"{text} returns {type(model).__name__}: return a torch.nn.Module, or one and its example")
    return model, torch.randn(batch, 3, size, size) if example is None else example


def _imported(path: Path) -> Any:
    """The user's file, run as a module that may import what lies beside it."""
    spec = spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None  # it ends in .py
    module = module_from_spec(spec)
    sys.path.insert(0, str(path.parent.resolve()))
    sys.modules[path.stem] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UserError(f"{path} cannot be run ({type(error).__name__}: {error})") from error
    return module


def _functions(path: Path) -> list[str]:
    module = sys.modules[path.stem]
    return [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]


@contextmanager
def _same_every_time() -> Iterator[None]:
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(0)
        yield
