"""The docs page of every mechanism, made from its docstring and its Info: ``python -m regard.pages docs``."""

from __future__ import annotations

import inspect
import re
import sys
from functools import cache
from pathlib import Path

from regard import Info, diagram, info, names
from regard.files import write_text
from regard.registry import SLOTS, example_inputs

WIDTHS = (64, 256, 1024)
# What the diagrams are drawn from: lengths, and halves of them, that are no width, kernel or window of a mechanism, so
# that each can be told by its letter.
BATCH, CHANNELS, SIDES = 13, 256, (22, 34)


def page(known: Info) -> str:
    """One mechanism's page, as Markdown."""
    cells = " | ".join(f"{known.parameters(width):,}" for width in WIDTHS)
    options = "\n".join(
        f"| `{option}` | `{default!r}` | {_meaning(known, option)} |" for option, default in known.options.items()
    )
    slots = "\n\n".join(f"**{slot}.** {_slot(known, slot)}" for slot in SLOTS)
    return f"""# {known.name}

{known.slots["Summary"]}

{slots}

## Data flow

![{title(known)}: {flow(known.name)}]({known.name}.svg)

Drawn from a forward pass with {CHANNELS} channels and the options' defaults.

## Options

| option | default | meaning |
|---|---|---|
{options}

## Parameters

| channels | {" | ".join(map(str, WIDTHS))} |
|---|{"---|" * len(WIDTHS)}
| parameters | {cells} |

## Use

```python
{_example(known)}
```

Authors' weights: {", ".join(f'`regard.load_official("{key}", ...)`' for key in known.official) or "none"}.
"""


def index() -> str:
    """The list of all mechanisms, as Markdown."""
    rows = "\n".join(
        f"| [{known.name}]({known.name}.md) | {known.category} | {known.paper} | {known.parameters(256):,} |"
        for known in map(info, names())
    )
    return f"""# Mechanisms

Made by `make docs` from the docstrings; `regard info NAME` prints the same card.

| name | category | paper | parameters at C = 256 |
|---|---|---|---|
{rows}
"""


@cache
def flow(name: str) -> diagram.Flow:
    """What a mechanism computes, with its axes named as in its signature."""
    known = info(name)
    inputs = example_inputs(known, CHANNELS, batch=BATCH, size=SIDES)
    letters = {BATCH: "B", CHANNELS: "C", SIDES[0]: "H", SIDES[1]: "W"}
    for axes, x in zip(re.findall(r"\(([^)]*)\)", known.signature), inputs, strict=False):
        for axis, length in zip(axes.split(", "), x.shape, strict=False):
            if re.fullmatch(r"\w+", axis):
                letters.setdefault(length, axis)
    return diagram.trace(known.factory(CHANNELS), inputs, letters)


def title(known: Info) -> str:
    return f"Data flow of {known.name}"


def write(folder: Path) -> list[Path]:
    """Write every page and its diagram below ``folder/mechanisms``."""
    there = folder / "mechanisms"
    files = {f"{name}.md": page(info(name)) for name in names()} | {"README.md": index()}
    files |= {f"{name}.svg": diagram.draw(flow(name), title(info(name))) for name in names()}
    return [write_text(there / name, text) for name, text in files.items()]


def _slot(known: Info, slot: str) -> str:
    text = known.slots[slot]
    if slot in ("Formula", "Shape"):
        return "\n\n" + "\n".join(f"    {line.strip()}" for line in re.split(r";\s+", text))
    return " ".join(text.split())


def _meaning(known: Info, option: str) -> str:
    text = inspect.cleandoc(known.factory.__doc__ or "")
    match = re.search(rf"^    {option}: (.*(?:\n        .*)*)", text, re.MULTILINE)
    return " ".join(match[1].split()).replace("``", "`").replace("|", "\\|") if match else ""


def _example(known: Info) -> str:
    text = inspect.cleandoc(known.factory.__doc__ or "")
    return "\n".join(line.strip().removeprefix(">>> ") for line in text.splitlines() if line.strip().startswith(">>> "))


if __name__ == "__main__":
    for path in write(Path(sys.argv[1] if len(sys.argv) > 1 else "docs")):
        print(path)
