"""How a mechanism is written with its options: ``cbam[squeeze=max,reduction=8]``; one with its options is an arm."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from regard.base.errors import UserError


def parse(text: str, what: str = "arm") -> tuple[str, dict[str, Any]]:
    """Read ``name[option=value,...]``: numbers, ``true``, ``false`` and ``none`` become what they say, else text.

    Args:
        text: of an arm.
        what: the word for it in sentences.

    Example:
        >>> parse("cbam[squeeze=max,reduction=8]")
        ('cbam', {'squeeze': 'max', 'reduction': 8})
    """
    match = re.fullmatch(r"\s*([A-Za-z0-9_]+)\s*(?:\[(.*)\])?\s*", text)
    if not match:
        raise UserError(f"cannot read the {what} {text!r}: write a name, or name[option=value,option=value]")
    options: dict[str, Any] = {}
    for part in filter(None, map(str.strip, (match[2] or "").split(","))):
        option, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not option or not value:
            raise UserError(f"cannot read {part!r} in the {what} {text!r}: write option=value")
        if option in options:
            raise UserError(f"the {what} {text!r} gives {option!r} twice")
        options[option] = _value(value)
    return match[1], options


def spell(name: str, options: Mapping[str, Any]) -> str:
    """The one way to write a mechanism with its options, which `parse` reads.

    Example:
        >>> spell("cbam", {"squeeze": "max", "reduction": 8})
        'cbam[reduction=8,squeeze=max]'
    """
    words = {True: "true", False: "false", None: "none"}
    parts = [
        f"{option}={words[value] if value is None or isinstance(value, bool) else value}"
        for option, value in sorted(options.items())
    ]
    return f"{name}[{','.join(parts)}]" if parts else name


def _value(text: str) -> Any:
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    for number in (int, float) if re.fullmatch(r"[-+.0-9eE]+", text) else ():
        with suppress(ValueError):
            return number(text)
    return text
