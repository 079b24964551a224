"""A network that a function in a user's file returns; the file is run, with what lies beside it."""

from __future__ import annotations

import hashlib
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from traceback import extract_tb
from typing import Any, ClassVar

from torch import nn

from regard.base.errors import UserError, near
from regard.networks.source import SIDE, Normalisation, Wanted, random_images
from regard.registry.named import Named

# what a function calls the number of classes and of the images' channels, and what it is told where nobody knows them
CLASSES = ("num_classes", "classes", "n_classes", "nclasses", "n_class", "num_labels"), 1000
CHANNELS = ("in_chans", "in_channels", "channels", "num_channels", "n_channels", "input_channels"), 3


def check(named: Named) -> None:
    named.digest()


def build(named: Named, wanted: Wanted) -> tuple[nn.Module, Any]:
    path, text = named.file, named.text
    assert path is not None
    check(named)
    if not named.name:
        raise UserError(f"say which function of {path} gives the network: {path}:NAME")
    with _beside(path):
        function = _function(path, named.name)
        numbers = _arguments(text, function, wanted)
        try:
            built = function(**numbers)
        except (Exception, SystemExit) as error:
            raise UserError(f"{text} failed {_reason(error, path)}") from error
    model, given = built if isinstance(built, tuple) and len(built) == 2 else (built, None)
    if not isinstance(model, nn.Module):
        raise UserError(f"{text} returns {type(model).__name__}: return a torch.nn.Module, or one and its example")
    return model, given


def example(named: Named, model: nn.Module, size: int | None, batch: int) -> Any:
    return random_images(batch, 3, size or SIDE, size or SIDE)


def image_size(named: Named) -> int | None:
    return None


def pretraining(named: Named) -> Normalisation | None:
    return None


def _function(path: Path, name: str) -> Callable[..., Any]:
    held = vars(_imported(path))
    function = held.get(name)
    if not callable(function):
        others = [other for other, value in held.items() if callable(value) and not other.startswith("_")]
        raise UserError(f"{path} has no function {name!r}{near(name, others)}")
    return function


def _arguments(text: str, function: Callable[..., Any], wanted: Wanted) -> dict[str, int]:
    """What a function is called with: the numbers of classes and channels where it asks for them."""
    try:
        signature = inspect.signature(function)
    except ValueError:  # some classes have none
        return {}
    numbers = _numbers(signature, wanted.classes, wanted.channels)
    try:
        if signature.parameters:
            signature.bind(**numbers)
    except TypeError as error:
        but = " but for " + " and ".join(numbers) if numbers else ""
        raise UserError(
            f"{text} is called without arguments{but} ({error}): write a function around it that knows them"
        ) from error
    return numbers


def _numbers(signature: inspect.Signature, classes: int | None, channels: int | None) -> dict[str, int]:
    """The arguments of a user's function: the numbers of classes and channels where it asks for them."""
    given = {}
    for (words, usual), number in ((CLASSES, classes), (CHANNELS, channels)):
        word = next((word for word in words if word in signature.parameters), None)
        if word is None:
            continue
        default = signature.parameters[word].default
        if word == "channels" and isinstance(default, int) and default > 4:  # a width, not that of images
            continue
        if number is not None:
            given[word] = number
        elif default is inspect.Parameter.empty:
            given[word] = usual
    return given


class _Beside(MetaPathFinder):
    """Finds what lies beside a user's file, as for a script, but never instead of a standard module."""

    folders: ClassVar[dict[str, str]] = {}  # module -> folder, of all files together

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder.resolve())

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if path is not None or name in sys.stdlib_module_names:
            return None
        spec = PathFinder.find_spec(name, [self.folder], target)
        if spec is None or spec.loader is None:  # nothing, or a folder of anything
            return None
        self.folders[name] = self.folder
        return spec


@contextmanager
def _beside(path: Path) -> Iterator[None]:
    """What lies beside a file can be imported meanwhile; what lay beside another under the same name is forgotten."""
    finder = _Beside(path.parent)
    others = [name for name, folder in finder.folders.items() if folder != finder.folder]
    for module in list(sys.modules):
        if module.partition(".")[0] in others:
            del sys.modules[module]
    for name in others:
        del finder.folders[name]
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


def _imported(path: Path) -> Any:
    """The user's file, run as a module under a name that no other module has."""
    name = f"_regard_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]}_{path.stem}"
    spec = spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None  # it ends in .py
    module = module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise UserError(f"{path} cannot be run {_reason(error, path)}") from error
    return module


def _reason(error: BaseException, path: Path) -> str:
    """What went wrong, and where in the user's file."""
    here = [frame for frame in extract_tb(error.__traceback__) if Path(frame.filename).resolve() == path.resolve()]
    where = f" in line {here[-1].lineno} of {path}" if here else ""
    return f"({type(error).__name__}{where}: {str(error).partition(chr(10))[0]})"
