"""The docs page of every mechanism, made from its docstring and its Info, and the list of the files.

``python tools/pages.py docs`` writes them.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

import diagram
import regard
from regard import Info, info, names
from regard.base.files import write_text
from regard.layers.tap import Blend, taps
from regard.registry.info import SLOTS
from regard.registry.signatures import example_inputs
from regard.registry.spelling import spell
from rooms import ROOMS

WIDTHS = (64, 256, 1024)
AT = 64  # channels at which the start is looked at
# What the diagrams are drawn from: lengths, and halves of them, that are no width, kernel or window of a mechanism, so
# that each can be told by its letter.
BATCH, CHANNELS, SIDES = 13, 256, (22, 34)


def page(known: Info) -> str:
    """One mechanism's page, as Markdown."""
    cells = " | ".join(f"{known.parameters(width):,}" for width in WIDTHS)
    options = "\n".join(
        f"| `{option}` | `{default!r}` | {_meaning(known, option)} |" for option, default in known.options.items()
    )
    options = options or "| none | | |"
    slots = "\n\n".join(f"**{slot}.** {_slot(known, slot)}" for slot in SLOTS)
    return f"""# {known.name}

{known.slots["Summary"]}

{slots}

## Data flow

```mermaid
{diagram.draw(flow(known.name), f"Data flow of {known.name}")}
```

Blue: learnt weights. Yellow: a map that can be recorded. Drawn from a forward pass of maps of {SIDES[0]} x {SIDES[1]}
with the options' defaults.

## Options

| option | default | meaning |
|---|---|---|
{options}

## Parameters

| channels | {" | ".join(map(str, WIDTHS))} |
|---|{"---|" * len(WIDTHS)}
| parameters | {cells} |

With the options' defaults. {_multiply_adds(known)}

## At the start

| weights | shape at C = {AT} | start as |
|---|---|---|
{_starts(known)}

{_multiplier(known)}

## Use

```python
{_example(known)}
```

{_exceptions(known)}{_weights(known)}
"""


def index() -> str:
    """The list of all mechanisms by category, as Markdown."""
    ordered = sorted(map(info, names()), key=lambda known: (known.category, known.name))
    rows = "\n".join(
        f"| {known.category} | [{known.name}]({known.name}.md) | {known.attention} | {known.paper} | "
        f"{known.parameters(256):,} |"
        for known in ordered
    )
    return f"""# Mechanisms

Made by `make docs` from the docstrings; `regard info NAME` prints the same card. What each was held to:
[trust](../trust.md).

| category | name | attention | paper | parameters at C = 256 |
|---|---|---|---|---|
{rows}
"""


CATEGORIES = {"channel": ' ("what")', "spatial": ' ("where")', "channel and spatial": "", "temporal": ' ("when")'}
CATEGORIES |= {"spatial and temporal": "", "branch": ' ("which")', "layer": ""}
LIST = re.compile(r"(?<=<!-- made by `make docs` -->\n).*(?=\n<!-- until here -->)", re.DOTALL)


def listed(readme: str) -> str:
    """The README with its list of the mechanisms written anew, between two comments."""
    by_category: dict[str, list[str]] = {category: [] for category in CATEGORIES}
    for known in map(info, names()):
        link = f"[`{known.name}`](docs/mechanisms/{known.name}.md)" + "\\*" * (known.place is None)
        by_category.setdefault(known.category, []).append(link)
    rows = (f"| {each}{CATEGORIES.get(each, '')} | {' '.join(links)} |" for each, links in by_category.items())
    table = "\n".join(["| category | mechanisms |", "|---|---|", *rows])
    return LIST.sub(lambda _: table, readme)


# ResNet-50: the width at the end of each block, and after each stage but the last; its own parameters
BRANCHES, STAGES, RESNET50 = [256] * 3 + [512] * 4 + [1024] * 6 + [2048] * 3, [256, 512, 1024], 25_557_032
# What can be checked without training: mechanism, options, widths, what is published and where.
PUBLISHED: list[tuple[str, dict[str, Any], list[int], str]] = [
    ("se", {}, BRANCHES, "28.09 M in all (tables of SGE and CBAM)"),
    ("cbam", {}, BRANCHES, "28.09 M in all"),
    ("bam", {}, STAGES, "25.92 M in all"),
    ("sge", {}, BRANCHES, "25.56 M in all"),
    ("shuffle", {"groups": 64}, BRANCHES, "300 added (abstract); the released code has these 708"),
    ("eca", {"kernel_size": "released"}, BRANCHES, "80 added (abstract)"),
    ("eca", {}, BRANCHES, "the paper's rule for the kernel; the released networks do not follow it"),
    ("srm", {}, BRANCHES, "not published; counted on the authors' code"),
    ("triplet", {}, BRANCHES, "25.56 M in all"),
    ("simam", {}, BRANCHES, "parameter-free"),
]


def numbers() -> str:
    """The papers' numbers of parameters that can be checked without training, as Markdown."""
    rows = []
    for name, options, widths, published in PUBLISHED:
        added = sum(info(name).parameters(width, **options) for width in widths)
        total = f"{(RESNET50 + added) / 1e6:.2f} M"
        arm = spell(name, options)
        rows.append(f"| [{arm}](mechanisms/{name}.md) | {len(widths)} | {added:,} | {total} | {published} |")
    table = "\n".join(rows)
    se, bam = (sum(info(name).parameters(w) for w in widths) for name, widths in (("se", BRANCHES), ("bam", STAGES)))
    return f"""# The papers' numbers

Made by `make docs`: parameters added to a ResNet-50 ({RESNET50:,} parameters) at the authors' own placement, counted by
the formula on each card, which the tests hold to the modules as they are built.

| mechanism | places | added | in all | published |
|---|---|---|---|---|
{table}

One table that is copied from tutorial to tutorial, the CBAM paper's ablation of its channel part, cannot be right. Its
rows "ResNet50 + AvgPool (SE)", "+ MaxPool" and "+ AvgPool & MaxPool" are given with 25.92 M parameters. A network with
SE at reduction 16 in every block has {(RESNET50 + se) / 1e6:.2f} M; {(RESNET50 + bam) / 1e6:.2f} M is what BAM needs.
The accuracies of these rows may well be right; their sizes are not.
"""


def every_file() -> str:
    """Every file of the package with the sentence that it begins with, room by room, as Markdown."""
    root = Path(regard.__file__).parent
    kernels = [root / "ops" / "kernels", *(root / "ops" / "kernels" / device for device in ("cpu", "triton"))]
    parts = []
    for folder in [*map(root.joinpath, ROOMS), *kernels]:
        held = [path for path in sorted(folder.glob("*.py")) if path.name != "__init__.py"]
        rows = [f"| [{path.name}](../src/regard/{path.relative_to(root)}) | {_beginning(path)} |" for path in held]
        lines = [f"## {folder.relative_to(root)}/", "", _beginning(folder / "__init__.py"), ""]
        lines += ["| file | what it holds |", "|---|---|", *rows, ""] if rows else []
        parts += lines
    return "\n".join(["# The files", "", FILES, "", *parts])


FILES = """Made by `make docs` from the sentence that each file begins with. A room imports only what stands below it
here; [DESIGN.md](../DESIGN.md) says how they work together."""


def _beginning(path: Path) -> str:
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    return text.partition("\n\n")[0].replace("\n", " ").replace("|", "\\|")


@cache
def flow(name: str) -> diagram.Flow:
    """What a mechanism computes, with its axes named as in its signature."""
    known = info(name)
    channels = CHANNELS if CHANNELS not in known.options.values() else 3  # else a hidden width would be called C
    inputs = example_inputs(known, channels, batch=BATCH, size=SIDES)
    letters = {BATCH: "B", channels: "C", SIDES[0]: "H", SIDES[1]: "W"}
    for axes, x in zip(re.findall(r"\(([^)]*)\)", known.signature), inputs, strict=False):
        for axis, length in zip(axes.split(", "), x.shape, strict=False):
            if re.fullmatch(r"\w+", axis):
                letters.setdefault(length, axis)
    return diagram.trace(known.factory(channels), inputs, letters)


def write(folder: Path) -> list[Path]:
    """Write every page below ``folder/mechanisms``, the files, the numbers, and the list in the README."""
    there = folder / "mechanisms"
    files = {f"{name}.md": page(info(name)) for name in names()} | {"README.md": index()}
    made = [write_text(there / name, text) for name, text in files.items()]
    readme = folder.parent / "README.md"
    if readme.exists():
        made.append(write_text(readme, listed(readme.read_text())))
    made.append(write_text(folder / "files.md", every_file()))
    return [*made, write_text(folder / "numbers.md", numbers())]


def _multiply_adds(known: Info) -> str:
    """Of one image of 14 x 14 pixels, or one clip of them, at each width."""
    counts = []
    for width in WIDTHS:
        inputs = example_inputs(known, width, batch=1, size=(14, 14))
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            known.factory(width).eval()(*inputs)
        counts.append(f"{counter.get_total_flops() // 2:,}")
    sizes = "; ".join(f"{count} at C = {width}" for width, count in zip(WIDTHS, counts, strict=True))
    shapes = " and ".join(str(tuple(x.shape)).replace(str(WIDTHS[-1]), "C") for x in inputs)
    return f"Multiply-adds of its convolutions and matrix products on {shapes}: {sizes}."


def _starts(known: Info) -> str:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = known.factory(AT)
    rows = []
    for name, weight in module.named_parameters():
        values = weight.detach()
        one = values.flatten()[0].item()
        if (values == one).all() and (values.numel() > 1 or one in (0, 1)):
            start = f"{one:g}"
        elif set(values.unique().tolist()) <= {0.0, 1.0}:
            start = "the identity"
        else:
            start = "random" + (f", standard deviation {values.std().item():.1g}" if values.numel() > 8 else "")
        rows.append(f"| `{name}` | {' x '.join(map(str, values.shape))} | {start} |")
    return "\n".join(rows) or "| none | | |"


def _multiplier(known: Info) -> str:
    """By how much a fresh module multiplies the values of a map, in every way to start."""
    if known.place is None:
        return "It is not put behind a layer of a network, so there is no multiplier to speak of."
    (x,) = example_inputs(known, AT, size=(14, 14))
    module = known.factory(AT).eval()
    with torch.no_grad():
        if known.identity is None or torch.equal(module(x), x):
            return (
                "What it multiplies a map with at the start: 1, exactly, in every way to start: a fresh module is the "
                "identity."
            )
    if any(isinstance(part, Blend) for part in module.modules()) or all(tap.rest is None for _, tap in taps(module)):
        return (
            'It moves or replaces what a map holds, so there is no multiplier. `start="identity"` blends: the map '
            "itself at first, exactly."
        )
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        module, x = known.factory(AT).eval(), torch.randn_like(x)
        ratios = (module(x) / x)[x.abs() > 0.1]
    low, high = (f"{ratios.quantile(share).item():.2f}" for share in (0.05, 0.95))
    measured = low if low == high else f"{low} to {high} (nine values in ten)"
    return (
        f'What it multiplies a random map with at the start: `start="paper"`: {measured}; `start="scaled"`: the same, '
        f'each gate divided by its mean; `start="identity"`: 1, exactly.'
    )


def _weights(known: Info) -> str:
    calls = ", ".join(f'`regard.load_official("{key}", ...)`' for key in known.official)
    return f"Authors' weights: {calls or 'none'}."


def _exceptions(known: Info) -> str:
    rows = "\n".join(f"- {words}: {reason}." for words, reason in known.exceptions.items())
    return f"What the contract asks and it does not keep:\n\n{rows}\n\n" if rows else ""


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
