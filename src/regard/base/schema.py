"""What a file must hold to be believed: one declared shape for each kind, and one reader that holds files to it.

A shape is written as Python's own types: a ``TypedDict`` for an object, ``list[...]``, ``tuple[...]`` for an array of
fixed length, ``Literal``, unions, and ``Annotated`` with a `Within` for bounds. What an object has beside its declared
fields is left alone, so that older and newer folders can be read.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cache
from os import PathLike
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NotRequired, Union, get_args, get_origin, get_type_hints, is_typeddict

from regard.base.errors import UserError
from regard.base.files import opened

DEEPEST = 40  # arrays and objects within one another
LARGEST = 2**53  # whole number that every reader of JSON understands
FARTHEST = 1e300  # other number from 0
LONGEST = 2**30  # bytes of a file


@dataclass(frozen=True)
class Within:
    """The least and the greatest value of a number, or length of a text, an array or an object."""

    low: float
    high: float = math.inf


Whole = Annotated[int, Within(0, LARGEST)]
Positive = Annotated[int, Within(1, LARGEST)]
Share = Annotated[float, Within(0, 1)]
NoLess = Annotated[float, Within(0, 1e15)]  # than 0


def read(path: str | PathLike[str], shape: Any, cure: str, *, strict: bool = False) -> Any:
    """Read a JSON file that may come from anybody.

    Args:
        path: of the file.
        shape: what it must hold, see above.
        cure: what to do about a damaged one, as the end of a sentence.
        strict: whether fields that may be missing must be there, too.

    Raises:
        UserError: it cannot be read, or is not of this shape; says which field is wrong.
    """
    with opened(path) as file:
        text = file.read(LONGEST + 1)
    try:
        if len(text) > LONGEST:
            raise ValueError(f"it is larger than {LONGEST:,} bytes")
        value = json.loads(text)
    except RecursionError:
        raise UserError(f"{path} is damaged (it is nested too deeply): {cure}") from None
    except (ValueError, MemoryError) as error:
        raise UserError(f"{path} is damaged (no JSON: {error or 'too large'}): {cure}") from error
    if wrong := fault(value, shape, strict=strict):
        raise UserError(f"{path} is damaged ({wrong}): {cure}")
    return value


def fault(value: Any, shape: Any, *, strict: bool = False) -> str | None:
    """What is wrong with a value that JSON gave, in words that name the field; None where it has the shape."""
    return _unwritable(value) or _fault(value, shape, "", strict)


def _unwritable(value: Any) -> str | None:
    """Nesting that no reader follows, and text that no file can hold."""
    waiting, deep = [value], 0
    while waiting:
        deep += 1
        if deep > DEEPEST:
            return "it is nested too deeply"
        inner: list[Any] = []
        for one in waiting:
            if isinstance(one, str) and not one.isascii():
                try:
                    one.encode()
                except UnicodeEncodeError:
                    return f"{_short(one)} is no text"
            elif isinstance(one, dict):
                inner += [*one, *one.values()]
            elif isinstance(one, list | tuple):
                inner += one
        waiting = inner
    return None


def _fault(value: Any, shape: Any, at: str, strict: bool) -> str | None:
    origin, args = get_origin(shape), get_args(shape)
    if shape is Any:
        return None
    if origin is Annotated:
        wrong = _fault(value, args[0], at, strict)
        bounds: Within = args[1]
        size = len(value) if not wrong and isinstance(value, str | list | dict) else value
        return wrong or (None if bounds.low <= size <= bounds.high else _said(value, shape, at))
    if origin in (Union, UnionType):
        others = [one for one in args if one is not NoneType]
        if value is None and len(others) < len(args):
            return None
        if value is not None and len(others) == 1:
            return _fault(value, others[0], at, strict)
        return None if not all(_fault(value, one, at, strict) for one in others) else _said(value, shape, at)
    if origin is Literal:
        return None if any(type(value) is type(one) and value == one for one in args) else _said(value, shape, at)
    if is_typeddict(shape):
        return _fields(value, shape, at, strict)
    if origin is dict:
        if not isinstance(value, dict):
            return _said(value, shape, at)
        return _first(_fault(one, args[1], f"{at}.{key}" if at else key, strict) for key, one in value.items())
    if origin in (list, tuple):
        kinds = [args[0]] * len(value) if origin is list and isinstance(value, list | tuple) else args
        if not isinstance(value, list | tuple) or len(value) != len(kinds):
            return _said(value, shape, at)
        return _first(_fault(value[i], kind, f"{at}[{i}]", strict) for i, kind in enumerate(kinds))
    if shape is float:
        sound = type(value) in (int, float) and abs(value) <= FARTHEST  # what is no number fails here, too
    elif shape is int:
        sound = type(value) is int and abs(value) <= LARGEST
    else:
        sound = type(value) is (NoneType if shape is None else shape)
    return None if sound else _said(value, shape, at)


def _fields(value: Any, shape: Any, at: str, strict: bool) -> str | None:
    if not isinstance(value, dict):
        return _said(value, shape, at)
    for name, kind in _hints(shape).items():
        where, needed = f"{at}.{name}" if at else name, strict
        if get_origin(kind) is NotRequired:
            (kind,) = get_args(kind)
        else:
            needed = True
        if name not in value:
            if needed:
                return f"{where} is missing"
        elif wrong := _fault(value[name], kind, where, strict):
            return wrong
    return None


@cache
def _hints(shape: Any) -> dict[str, Any]:
    return get_type_hints(shape, include_extras=True)


def _first(faults: Any) -> str | None:
    return next(filter(None, faults), None)


def _said(value: Any, shape: Any, at: str) -> str:
    return f"{at or 'it'} is {_short(value)} and should be {_words(shape)}"


def _short(value: Any) -> str:
    if isinstance(value, dict | list):
        what = "an object" if isinstance(value, dict) else "an array"
        return f"{what} of {len(value)}" if value else f"an empty {what.partition(' ')[2]}"
    text = repr(value) if not isinstance(value, int) or abs(value) < 1e40 else f"a number of {value.bit_length()} bits"
    text = "null" if value is None else text.encode("ascii", "backslashreplace").decode()
    return text if len(text) <= 40 else text[:37] + "..."


def _words(shape: Any) -> str:
    """A shape in words."""
    origin, args = get_origin(shape), get_args(shape)
    if origin is Annotated:
        bounds: Within = args[1]
        words = _words(args[0])
        if args[0] in (int, float):
            least, most = f"{bounds.low:.6g}", "" if bounds.high >= LARGEST / 10 else f" to {bounds.high:.6g}"
            return f"{words} from {least}{most}"
        most = "" if bounds.high == math.inf else f" to {bounds.high:g}"
        return f"{words} of {bounds.low:g}{most or ' or more'} {'characters' if args[0] is str else 'entries'}"
    if origin in (Union, UnionType):
        return " or ".join(_words(one) for one in args)
    if origin is Literal:
        return " or ".join(repr(one) for one in args)
    if origin is tuple:
        return f"an array of {len(args)}"
    if origin is list:
        return "an array"
    plain = {str: "text", int: "a whole number", float: "a number", bool: "true or false", NoneType: "null"}
    return plain.get(shape, "an object")
