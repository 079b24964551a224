"""Make docs/advice.md and its pictures: what every mechanism costs in three networks, measured on this machine.

Usage: python benchmarks/advice.py [--budget SECONDS] [--threads N]

Nothing else may run meanwhile. The budget is that of the timings of one network; 5 rounds are done even so.
"""

import argparse
import os
import platform
import sys
from pathlib import Path

import torch

import regard
from regard.base.files import write_text
from regard.costs.advice import Row
from regard.costs.timing import ALLOCATOR, allocator_hint
from regard.networks.models import open_model

DOCS = Path(__file__).parents[1] / "docs"
BATCH, LARGE = 2, 64
NETWORKS = {
    "resnet18": "The usual small trunk: blocks of two convolutions with batch norm.",
    "mobilenetv2_100": "Inverted residuals: wide inside, narrow between, and so cheap that whatever is added shows.",
    "vit_tiny_patch16_224": "A transformer: its maps are tokens behind a class token, at one resolution throughout.",
}


def page(budget: float) -> str:
    """The page, as Markdown; the pictures are written on the way."""
    parts = [
        f"""# The price first

Made by `make advice`: what `regard advise` says of three networks, on {_machine()}.
The times are those of that machine alone: ask on yours. `x` is how many times as long, or as much memory, as without;
in parentheses the quartiles over the rounds. A training step is forward and backward pass; memory is the most that it
holds beside weights and batch, predicted for a batch of {LARGE} from smaller ones. The mechanisms start as the
identity, so each gate has one parameter more than published."""
    ]
    for name, words in NETWORKS.items():
        model, example = open_model(name, batch=BATCH)
        advice = regard.advise(model, example, batch=LARGE, budget=budget, name=name, progress=_tell)
        picture = write_text(DOCS / "images" / f"advice-{name}.svg", advice.picture())
        parts.append(
            f"## {name}\n\n{words}\n\n![The maps of {name} and where mechanisms go](images/{picture.name})\n\n"
            f"    regard advise {name} --batch {BATCH} --predict {LARGE} --picture {name}.svg\n\n```text\n{advice}\n```"
        )
    return "\n\n".join(parts) + "\n"


def _machine() -> str:
    model = next((line for line in _lines("/proc/cpuinfo") if line.startswith("model name")), f": {platform.machine()}")
    threads = torch.get_num_threads()
    cores = f"{threads} thread{'s' * (threads != 1)}"
    return f"{model.partition(': ')[2]}, {cores}, torch {torch.__version__.partition('+')[0]}"


def _lines(path: str) -> list[str]:
    file = Path(path)
    return file.read_text().splitlines() if file.is_file() else []


def _tell(row: Row, done: int, total: int) -> None:
    print(f"{done}/{total} {row.arm}", file=sys.stderr)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=float, default=900.0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    asked = parser.parse_args()
    if allocator_hint() is not None:  # the C library reads the settings once, before Python starts
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | ALLOCATOR)
    torch.set_num_threads(asked.threads)
    print(write_text(DOCS / "advice.md", page(asked.budget)))
