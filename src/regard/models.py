"""Networks by a word: one of timm, one of torchvision, or what a function in the user's own file returns."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from traceback import extract_tb
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
    text: str,
    *,
    size: int | None = None,
    batch: int | None = None,
    usual: int = 8,
    device: torch.device | str = "cpu",
) -> tuple[nn.Module, Any]:
    """Build a network with random weights, and a batch for it. Nothing is downloaded.

    The same text gives the same weights and images every time; torch's global random state stays as it was.

    Args:
        text: a name of timm, with options where wanted (``"resnet18[num_classes=5]"``); ``"torchvision/NAME"``, also
            of its segmentation, detection, video and optical-flow networks; or ``"file.py:function"``, which is called
            without arguments and returns a model, or a model and an example. That runs the file.
        size: side of the images in pixels; None is the network's own. A detector, which resizes its images itself, is
            told to resize them to this.
        batch: images, or clips; None is the usual number.
        usual: that number.
        device: of both.

    Returns:
        The model, and the example to call it with: one tensor, or a tuple of arguments.

    Raises:
        UserError: there is no such network, it cannot be built like that, the file does not give a model, or the images
            do not fit into memory.

    Example:
        >>> model, example = open_model("resnet18", size=64, batch=2)
        >>> model(example).shape
        torch.Size([2, 1000])
    """
    for word, number in {"size": size, "batch": batch}.items():
        if number is not None and number < 1:
            raise UserError(f"{word} is at least 1, got {number}")
    try:
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError) as error:
        raise UserError(f"there is no device {str(device)!r} here: take cpu, or leave it out") from error
    with _same_every_time():
        model, example = _opened(text, size, batch, usual)
    return model.to(device), tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, example)


def _opened(text: str, size: int | None, batch: int | None, usual: int) -> tuple[nn.Module, Any]:
    if re.search(r"\.py(:|$)", text):
        return _own(text, size, batch, usual)
    if not re.fullmatch(r"\w+(\.\w+)?(\[.*\])?", text.removeprefix(TORCHVISION)):
        raise UserError(f"cannot read the model {text!r}: give a name of timm, torchvision/NAME or file.py:function")
    batch = batch or usual
    if text.startswith(TORCHVISION):
        return _torchvision(text.removeprefix(TORCHVISION), size, batch)
    name, options = parse(re.sub(r"\.\w+", "", text, count=1))  # timm's tag says which weights
    model = timm_model(name, _sized(name, size) | options)
    config: Any = model.pretrained_cfg
    channels, side, _ = config.get("input_size") or (3, SIDE, SIDE)
    side = size or options.get("img_size") or side
    return model, _images(batch, options.get("in_chans", channels), side, side)


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
        return model, (list(_images(batch, 3, size or fixed[0], size or fixed[0], make=torch.rand)),)
    if name in models.list_models(module=models.video):
        return model, _images(batch, 3, FRAMES, side, side)
    if name in models.list_models(module=models.optical_flow):
        return model, (_images(batch, 3, side, side), _images(batch, 3, side, side))
    return model, _images(batch, 3, side, side)


def _images(*shape: int, make: Callable[..., Tensor] = torch.randn) -> Tensor:
    try:
        return make(*shape)
    except (RuntimeError, TypeError) as error:  # no memory, or more numbers than a tensor can count
        sides = " x ".join(map(str, shape))
        raise UserError(f"images of {sides} numbers do not fit into memory: take a smaller size or batch") from error


def _own(text: str, size: int | None, batch: int | None, usual: int) -> tuple[nn.Module, Any]:
    file, _, function = text.rpartition(":") if ":" in text else (text, "", "")
    path = Path(file)
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    if not function:
        raise UserError(f"say which function of {path} gives the network: {path}:NAME")
    build = vars(_imported(path)).get(function)
    if not callable(build):
        raise UserError(f"{path} has no function {function!r}{near(function, _functions(path))}")
    try:
        with suppress(ValueError):  # some classes have no signature
            inspect.signature(build).bind()
    except TypeError as error:
        raise UserError(
            f"{text} is called without arguments ({error}): write a function around it that knows them"
        ) from error
    try:
        built = build()
    except (Exception, SystemExit) as error:
        raise UserError(f"{text} failed {_said(error, path)}") from error
    model, example = built if isinstance(built, tuple) and len(built) == 2 else (built, None)
    if not isinstance(model, nn.Module):
        raise UserError(f"{text} returns {type(model).__name__}: return a torch.nn.Module, or one and its example")
    if example is None:
        return model, _images(batch or usual, 3, size or SIDE, size or SIDE)
    if size or batch:
        raise UserError(f"{text} returns its own example, which size and batch do not change: leave them out")
    return model, example


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
    except (Exception, SystemExit) as error:
        raise UserError(f"{path} cannot be run {_said(error, path)}") from error
    return module


def _said(error: BaseException, path: Path) -> str:
    """What went wrong, and where in the user's file."""
    here = [frame for frame in extract_tb(error.__traceback__) if Path(frame.filename).resolve() == path.resolve()]
    where = f" in line {here[-1].lineno} of {path}" if here else ""
    return f"({type(error).__name__}{where}: {str(error).partition(chr(10))[0]})"


def _functions(path: Path) -> list[str]:
    module = sys.modules[path.stem]
    return [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]


@contextmanager
def _same_every_time() -> Iterator[None]:
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(0)
        yield
