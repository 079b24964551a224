"""Numbers as tables and sentences have them."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from regard.comparison.verdict import Verdict


def points(fraction: float) -> str:
    """A difference of accuracies in percentage points, signed: ``+1.24``; nothing where there is no number."""
    return f"{round(100 * fraction, 2) + 0.0:+.2f}" if math.isfinite(fraction) else ""  # no negative zero


def interval(verdict: Verdict) -> str:
    """A verdict's interval in percentage points: ``[+0.31, +2.17]``; nothing where too few runs give none."""
    if not (math.isfinite(verdict.low) and math.isfinite(verdict.high)):
        return ""
    return f"[{points(verdict.low)}, {points(verdict.high)}]"


def counted(number: int, noun: str) -> str:
    """``1 seed``, ``2 seeds``, ``1,200 seeds``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def typeset(text: str) -> str:
    """The text with true minus signs, which line up with plus signs, and no line break inside a number and its unit."""
    text = re.sub(r"(?<![\w-])-(?=\d)", "−", text)
    return re.sub(r"(?<=\d) %|(?<=\bp) = ", lambda match: match[0].replace(" ", "\u00a0"), text)
