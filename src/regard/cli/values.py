"""What the text of an option means where it is more than one word or number."""

from __future__ import annotations

from typing import Literal

from regard.base.errors import UserError


def sites(text: str) -> str | list[str]:
    """One word or pattern as it is, several joined by commas as a list."""
    names = [name.strip() for name in text.split(",")]
    return [name for name in names if name] if len(names) > 1 else names[0]


def numbers(option: str, text: str) -> list[int]:
    """Whole numbers joined by commas."""
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise UserError(f"{option} is numbers joined by commas, such as 3,4,5, got {text!r}") from None


def seeds(count: int | Literal["auto"] | None, listed: str | None) -> int | list[int] | Literal["auto"]:
    """How many seeds, or which, of --seeds and --seed-list."""
    if listed is None:
        return "auto" if count is None else count
    if count is not None:
        raise UserError("--seeds says how many and --seed-list says which: give one of them")
    return numbers("--seed-list", listed)


def per_channel(option: str, text: str | None) -> list[float] | None:
    """One number for each channel, joined by commas."""
    try:
        return None if text is None else [float(word) for word in text.split(",")]
    except ValueError:
        raise UserError(f"{option} is one number for each channel, such as 0.5,0.5,0.5, got {text!r}") from None


def query(text: str) -> tuple[float, float]:
    """Row and column, as fractions of a picture's sides."""
    try:
        row, column = map(float, text.split(","))
    except ValueError:
        raise UserError(f"--query is row,column as fractions of the sides, such as 0.4,0.6, got {text!r}") from None
    if not (0 <= row <= 1 and 0 <= column <= 1):
        raise UserError(f"--query lies between 0 and 1, got {text!r}")
    return row, column
