"""What a picture of boxes and arrows is written with: colours, lengths of texts, numbers, the frame around all."""

from __future__ import annotations

import math
from xml.sax.saxutils import escape

MARGIN = 16  # around all
SMALL = 11  # size of small text
STYLE = """text{font:13px Helvetica,Arial,sans-serif;fill:#1f2328;text-anchor:middle}
.s{font-size:11px;fill:#59636e}
.panel{fill:#fbfbfa;stroke:#d1d9e0}
.step{fill:#fff;stroke:#818b98}
.layer{fill:#dbe9fb;stroke:#4a7bb7}
.arrow{fill:none;stroke:#59636e;stroke-width:1.3}"""
EMS = {"ijlI|.,:;' ·": 0.34, "frt()[]/-!": 0.42, "mwMW%→×÷−+=": 0.98}  # of the widest common sans-serif font


def page(body: str, width: float, height: float, *, title: str, description: str, style: str = STYLE) -> str:
    """A picture on a panel of its own, so that it reads on light and dark pages.

    Args:
        body: elements between (0, 0) and (width, height).
        width, height: in pixels.
        title, description: what it shows, for those who cannot see it.
        style: CSS.
    """
    wide, high = math.ceil(width) + 2 * MARGIN, math.ceil(height) + 2 * MARGIN
    return f"""<svg xmlns="http://www.w3.org/2000/svg" width="{wide}" height="{high}" \
viewBox="{-MARGIN} {-MARGIN} {wide} {high}" role="img">
<title>{escape(title)}</title>
<desc>{escape(description)}</desc>
<style>{style}</style>
<rect class="panel" x="{0.5 - MARGIN}" y="{0.5 - MARGIN}" width="{wide - 1}" height="{high - 1}" rx="6"/>
{body}
</svg>
"""


def length(text: str, size: int) -> float:
    """How long a text is at most, in pixels."""
    plain = {letter: 0.8 if letter.isupper() else 0.64 for letter in text}
    ems = plain | {letter: em for letters, em in EMS.items() for letter in letters}
    return size * sum(ems[letter] for letter in text)


def number(value: float) -> str:
    return f"{round(value, 1):g}"


def at(x: float, y: float) -> str:
    return f"{number(x)} {number(y)}"
